//! The `-info` flag: who we are (SHIM-INFO-01, 04).

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message as _;

/// The encoded RuntimeInfo.
pub(crate) fn info() -> protobuf::Result<Vec<u8>> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    RuntimeInfo {
        name: "io.containerd.slipway.v1".into(),
        version: Some(version).into(),
        ..Default::default()
    }
    .write_to_bytes()
}
