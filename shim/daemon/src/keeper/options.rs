//! What the keeper is told of the making itself, in the form in which containerd hands on a runtime class's options.

use super::foreign::{Runtime, Shim};
use crate::error::{Error, Result};
use cri_proto::keeper::{GenericOptions, SandboxOptions};
use cri_proto::v1;
use prost::Message as _;
use protobuf::well_known_types::any::Any;
use serde::Serialize;
use std::path::Path;

/// How containerd calls the message (api/types/runtimeoptions/v1/api.proto).
const GENERIC: &str = "runtimeoptions.v1.Options";

/// By the names of shim/keeper/src/options.rs.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Options<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    criu_path: Option<&'a Path>,
    // A table: TOML wants it behind all plain values.
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<&'a Runtime>,
}

/// `runtime`: who makes the container, if not Slipway itself; `criu`: CRIU's program, if not the one in PATH. None: nothing
/// is to be said.
///
/// # Errors
/// Internal for a path that is not UTF-8, which TOML cannot hold.
pub(super) fn encode(runtime: Option<&Runtime>, criu: Option<&Path>) -> Result<Option<Any>> {
    if runtime.is_none() && criu.is_none() {
        return Ok(None);
    }
    let failed = |error: &dyn std::fmt::Display| Error::internal(format!("encode options: {error}"));
    let body = toml::to_string(&Options { criu_path: criu, runtime }).map_err(|e| failed(&e))?;
    let message = GenericOptions { config_body: body.into_bytes(), ..GenericOptions::default() };
    let mut any = Any::new();
    any.type_url = GENERIC.into();
    any.value = protobuf::Message::write_to_bytes(&message).map_err(|e| failed(&e))?;
    Ok(Some(any))
}

/// Options of a pod: CRI's own configuration, and around it the shim that is to run it, if any.
///
/// # Errors
/// As [`encode`].
pub(super) fn of_pod(config: &v1::PodSandboxConfig, shim: Option<&Shim>) -> Result<Any> {
    let mut any = Any::new();
    (any.type_url, any.value) = ("runtime.v1.PodSandboxConfig".into(), config.encode_to_vec());
    if let Some(shim) = shim {
        let failed = |error: &dyn std::fmt::Display| Error::internal(format!("encode options: {error}"));
        let shim = toml::to_string(shim).map_err(|e| failed(&e))?;
        let options = SandboxOptions { config: any.value, shim, ..SandboxOptions::default() };
        any.type_url = "slipway.keeper.v1.SandboxOptions".into();
        any.value = protobuf::Message::write_to_bytes(&options).map_err(|e| failed(&e))?;
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_what_the_keeper_reads() {
        let runtime = Runtime {
            path: "/r".into(),
            root: "/s".into(),
            args: vec!["-x".into()],
            create_timeout: 7,
            standalone: true,
        };
        let text = |runtime, criu: Option<&str>| {
            let any = encode(runtime, criu.map(Path::new)).expect("encoded")?;
            assert_eq!(any.type_url, GENERIC);
            let message: GenericOptions =
                protobuf::Message::parse_from_bytes(&any.value).expect("its own message");
            Some(String::from_utf8(message.config_body).expect("TOML"))
        };
        assert_eq!(text(None, None), None);
        assert_eq!(text(None, Some("/c")).as_deref(), Some("CriuPath = \"/c\"\n"));
        let table = "[Runtime]\nPath = \"/r\"\nRoot = \"/s\"\nArgs = [\"-x\"]\nCreateTimeout = 7\nStandalone = true\n";
        assert_eq!(text(Some(&runtime), None).as_deref(), Some(table));
        assert_eq!(text(Some(&runtime), Some("/c")), Some(format!("CriuPath = \"/c\"\n\n{table}")));
    }
}
