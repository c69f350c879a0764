//! How the program is linked: at a fixed address, as runc is. Its tables then come as they are from the page cache instead of being
//! written to at each start (212 KiB, a sixth of the memory of a `run`), and engines start it several times for each container.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // musl's start files are chosen by the compiler, for its own kind of static program.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu") {
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
