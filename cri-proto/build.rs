//! Generates the wire types from `proto/` without protoc: protox parses CRI, protobuf's own parser the ttrpc files.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    #[cfg(feature = "cri-types")]
    cri()?;
    #[cfg(feature = "keeper")]
    ttrpc("keeper")?;
    #[cfg(feature = "nri")]
    ttrpc("nri")?;
    Ok(())
}

/// Messages of `runtime.v1` always, services and `slipway.v1` only with the feature `cri`.
#[cfg(feature = "cri-types")]
fn cri() -> Result<(), Box<dyn Error>> {
    let services = cfg!(feature = "cri");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);

    let mut files = vec!["cri.proto"];
    if services {
        files.push("slipway.proto");
    }
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_source_info(true).open_files(files)?;
    tonic_prost_build::configure()
        .build_transport(false)
        .build_server(services)
        .build_client(services)
        // Its Debug is written by hand in lib.rs: prost would print the secrets.
        .skip_debug([".runtime.v1.AuthConfig"])
        // The daemon's records and verbose answers are JSON; unknown and missing fields are fine in both directions.
        .message_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .compile_fds(compiler.file_descriptor_set())?;

    let mut bare = protox::Compiler::new(["proto"])?;
    bare.include_imports(true).open_files(["cri.proto"])?;
    // protox encodes it itself, so that options prost-types does not know are kept.
    std::fs::write(out.join("cri.fds"), bare.encode_file_descriptor_set())?;
    Ok(())
}

/// `NAME.rs` (messages) and `NAME_ttrpc.rs` (async client and server) from `proto/NAME.proto`.
#[cfg(any(feature = "keeper", feature = "nri"))]
fn ttrpc(name: &str) -> Result<(), Box<dyn Error>> {
    use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join(name);
    std::fs::create_dir_all(&out)?;
    Codegen::new()
        .out_dir(&out)
        .include("proto")
        .input(format!("proto/{name}.proto"))
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()?;
    // The generators' own mod.rs begins with an inner attribute, which `include!` refuses.
    std::fs::write(out.join("modules.rs"), format!("pub mod {name};\npub mod {name}_ttrpc;\n"))?;
    Ok(())
}
