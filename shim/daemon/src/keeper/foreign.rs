//! What the keeper is told of a container that another OCI runtime is to make: its own options, as containerd's generic message
//! holds them (shim/keeper/src/options.rs).

use prost::Message as _;
use protobuf::well_known_types::any::Any;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// runtimeoptions.v1.Options of containerd (api/types/runtimeoptions/v1/api.proto).
const GENERIC: &str = "runtimeoptions.v1.Options";
/// What a keeper does beside the runtime's own work, and to take it back when that fails.
const AROUND: Duration = Duration::from_secs(45);

#[derive(Clone, PartialEq, prost::Message)]
struct Generic {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// An OCI runtime as the keeper calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Runtime {
    pub(crate) path: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) args: Vec<String>,
    /// Seconds.
    pub(crate) create_timeout: u64,
    pub(crate) standalone: bool,
}

impl Runtime {
    /// Of a handler; none if that is Slipway itself. `state` is the daemon's directory.
    pub(crate) fn of(handler: &crate::config::Handler, name: &str, state: &Path) -> Option<Self> {
        Some(Self {
            path: handler.runtime_path.clone()?,
            root: handler.runtime_root.clone().unwrap_or_else(|| state.join("runtimes").join(name)),
            args: handler.runtime_args.clone(),
            create_timeout: handler.create_timeout.length().as_secs().max(1),
            standalone: handler.sandbox_per_container,
        })
    }

    /// How long to wait for the keeper's answer to a creation.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.create_timeout) + AROUND
    }

    pub(super) fn options(&self) -> Any {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Options<'a> {
            runtime: &'a Runtime,
        }
        // Texts, numbers and paths of a TOML file: there is nothing that TOML could not hold.
        let body = toml::to_string(&Options { runtime: self }).unwrap_or_default();
        let message = Generic { config_body: body.into_bytes(), ..Generic::default() };
        let mut any = Any::new();
        any.type_url = GENERIC.into();
        any.value = message.encode_to_vec();
        any
    }
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
        let any = runtime.options();
        let body = Generic::decode(any.value.as_slice()).expect("its own message").config_body;
        let wanted = "[Runtime]\nPath = \"/r\"\nRoot = \"/s\"\nArgs = [\"-x\"]\nCreateTimeout = 7\nStandalone = true\n";
        assert_eq!((any.type_url.as_str(), String::from_utf8_lossy(&body).as_ref()), (GENERIC, wanted));
    }
}
