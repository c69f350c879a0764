//! Builds the reaper, a free-standing program that the library carries inside itself.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=reaper/main.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let setting = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let output = PathBuf::from(setting("OUT_DIR")).join("reaper");
    let mut rustc = Command::new(setting("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "reaper", "reaper/main.rs"]);
    rustc.args(["--target", &setting("TARGET")]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
    ] {
        rustc.args(["-C", option]);
    }
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noseparate-code"]
    {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    if setting("CARGO_CFG_TARGET_ENV") == "musl" {
        // rustc would bring musl's own start code, which wants a main.
        rustc.args(["-C", "link-self-contained=no"]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    rustc.arg("-o").arg(&output);
    let status = rustc.status().unwrap_or_else(|e| panic!("cannot run rustc for the reaper: {e}"));
    assert!(status.success(), "building the reaper failed: {rustc:?}");
}
