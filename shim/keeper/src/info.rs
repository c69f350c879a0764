//! The `-info` flag: who we are and what containers may ask for (SHIM-INFO-01..04).

use crate::bootstrap;
use crate::options::Options;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use std::error::Error;

/// What containerd's typeurl registers the runtime specification's Features under.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The encoded RuntimeInfo. Options are checked, so that a mistake in them shows when containerd starts and not with the
/// first pod.
pub(crate) fn info() -> Result<Vec<u8>, Box<dyn Error>> {
    let options = bootstrap::info_options()?;
    Options::parse(options.as_ref())?;
    let features = slipway_runtime::features::features("1.3.0");
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), ..Default::default() };
    let features =
        Any { type_url: FEATURES.into(), value: features.to_string().into_bytes(), ..Any::default() };
    let info = RuntimeInfo {
        name: "io.containerd.slipway.v1".into(),
        version: Some(version).into(),
        options: options.into(),
        features: Some(features).into(),
        ..Default::default()
    };
    Ok(info.write_to_bytes()?)
}
