//! The runtime options of containerd's configuration: runc's own message, or a handler's table as TOML
//! (SHIM-OPT-01, SHIM-OPT-02, SHIM-OPT-03, SHIM-TSK-02).

use crate::error::{Error, Result};
use crate::foreign::Runtime;
use containerd_shim_protos::shim::oci::Options as RuncOptions;
use cri_proto::keeper::GenericOptions;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::Deserialize;

/// runc's message (api/types/runc/options/oci.proto).
const RUNC: &str = "containerd.runc.v1.Options";
/// The generic one (api/types/runtimeoptions/v1/api.proto).
const GENERIC: &str = "runtimeoptions.v1.Options";

/// What is understood of them. Keys have runc's names; those of runc that mean nothing here are accepted, so that a
/// configuration can be switched over by one line. Unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Control group of the keeper itself.
    pub(crate) shim_cgroup: String,
    /// Owner of pipes and fifos, where it is not the process's own user; 0 is "not said".
    pub(crate) io_uid: u32,
    pub(crate) io_gid: u32,
    /// Enter the root without pivot_root(2), for hosts whose root is an initramfs.
    pub(crate) no_pivot_root: bool,
    /// Containers keep the keeper's session keyring.
    pub(crate) no_new_keyring: bool,
    /// CRIU's program, where it is not the one in PATH, and the directory of its log.
    pub(crate) criu_path: String,
    pub(crate) criu_work_path: String,
    /// Ours: a keeper for each pod.
    pub(crate) grouping: Grouping,
    /// A cgroupsPath in the form of a scope is one, or an error. Where it is not said, that is seen by the path on hosts whose
    /// systemd makes scopes.
    pub(crate) systemd_cgroup: bool,
    /// Ours: another OCI runtime makes and runs the containers.
    pub(crate) runtime: Option<Runtime>,
    /// The rest is runc's alone.
    binary_name: String,
    root: String,
    #[allow(dead_code, reason = "accepted and checked for its type; the client names it in each request")]
    criu_image_path: String,
}

/// How many keepers a client has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grouping {
    #[default]
    Node,
    Pod,
}

/// True for messages that [`Options::parse`] understands.
pub(crate) fn is_options(any: &Any) -> bool {
    matches!(name(any), RUNC | GENERIC)
}

/// Type URLs may have a host in front.
fn name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

impl Options {
    /// # Errors
    /// `InvalidArgument` for other types, damaged messages, unknown keys and values of the wrong type.
    pub(crate) fn parse(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(Self::default()) };
        let damaged =
            |error: &dyn std::fmt::Display| Error::invalid(format!("options {}: {error}", any.type_url));
        match name(any) {
            RUNC => Ok(RuncOptions::parse_from_bytes(&any.value).map_err(|e| damaged(&e))?.into()),
            GENERIC => {
                let generic = GenericOptions::parse_from_bytes(&any.value).map_err(|e| damaged(&e))?;
                let text = match generic.config_path.as_str() {
                    "" => String::from_utf8(generic.config_body).map_err(|e| damaged(&e))?,
                    path => std::fs::read_to_string(path)
                        .map_err(|e| Error::invalid(format!("options: ConfigPath {path}: {e}")))?,
                };
                // toml's sentence shows line and key.
                let options: Self =
                    toml::from_str(&text).map_err(|e| Error::invalid(format!("options: {e}")))?;
                options.runtime.as_ref().map_or(Ok(()), Runtime::check)?;
                Ok(options)
            }
            other => Err(Error::invalid(format!(
                "options of type {other:?} are not known; use {RUNC} or {GENERIC}"
            ))),
        }
    }

    /// Owner of pipes and fifos instead of the process's own.
    pub(crate) fn io_owner(&self) -> Option<(u32, u32)> {
        (self.io_uid != 0 || self.io_gid != 0).then_some((self.io_uid, self.io_gid))
    }

    /// Says what was given and has no effect.
    pub(crate) fn note_ignored(&self) {
        for (key, value) in [("BinaryName", &self.binary_name), ("Root", &self.root)] {
            if !value.is_empty() {
                tracing::info!(
                    "option {key} = {value:?} has no effect: Slipway runs containers itself, and Runtime.Path names another one"
                );
            }
        }
    }
}

impl From<RuncOptions> for Options {
    fn from(runc: RuncOptions) -> Self {
        Self {
            shim_cgroup: runc.shim_cgroup,
            io_uid: runc.io_uid,
            io_gid: runc.io_gid,
            no_pivot_root: runc.no_pivot_root,
            binary_name: runc.binary_name,
            root: runc.root,
            systemd_cgroup: runc.systemd_cgroup,
            no_new_keyring: runc.no_new_keyring,
            criu_work_path: runc.criu_work_path,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Any {
        let message = GenericOptions { config_body: text.into(), ..GenericOptions::default() };
        Any { type_url: GENERIC.into(), value: message.write_to_bytes().unwrap(), ..Any::default() }
    }

    fn of(any: &Any) -> Result<Options> {
        Options::parse(Some(any))
    }

    #[test]
    fn both_messages_mean_the_same() {
        // SHIM-OPT-01, SHIM-OPT-02, SHIM-OPT-03
        let runc = RuncOptions {
            shim_cgroup: "/s".into(),
            io_uid: 7,
            systemd_cgroup: true,
            binary_name: "crun".into(),
            ..Default::default()
        };
        let any = Any { type_url: RUNC.into(), value: runc.write_to_bytes().unwrap(), ..Any::default() };
        let text = "ShimCgroup = \"/s\"\nIoUid = 7\nSystemdCgroup = true\nBinaryName = \"crun\"\n";
        let options = of(&any).unwrap();
        assert_eq!(options, of(&generic(text)).unwrap());
        assert_eq!(options.io_owner(), Some((7, 0)));
        assert_eq!(of(&generic("Grouping = \"pod\"")).unwrap().grouping, Grouping::Pod);
        for nothing in [None, Some(&Any::default()), Some(&generic(""))] {
            assert_eq!(Options::parse(nothing).unwrap(), Options::default());
        }
    }

    #[test]
    fn another_runtime_is_named_by_absolute_paths() {
        let full = "[Runtime]\nPath = \"/r\"\nRoot = \"/s\"\nArgs = [\"-x\"]\nCreateTimeout = 5\nStandalone = true\n";
        let runtime = of(&generic(full)).unwrap().runtime.unwrap();
        assert_eq!((runtime.path.to_str(), runtime.root.to_str()), (Some("/r"), Some("/s")));
        assert_eq!((runtime.args, runtime.create_timeout, runtime.standalone), (vec!["-x".into()], 5, true));
        let short = of(&generic("[Runtime]\nPath = \"/r\"")).unwrap().runtime.unwrap();
        assert_eq!((short.root.to_str(), short.create_timeout), (Some(""), 60));
        for (text, named) in [
            ("[Runtime]\nPath = \"runc\"", "Runtime.Path"),
            ("[Runtime]\nPath = \"/r\"\nRoot = \"s\"", "Runtime.Root"),
            ("[Runtime]\nPath = \"/r\"\nCreateTimeout = 0", "CreateTimeout"),
            ("[Runtime]\nRoot = \"/s\"", "Path"),
            ("[Runtime]\nPath = \"/r\"\nBinary = \"/s\"", "Binary"),
        ] {
            let error = of(&generic(text)).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_file_may_hold_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("options.toml");
        std::fs::write(&path, "Grouping = \"pod\"\n").unwrap();
        let message =
            GenericOptions { config_path: path.to_str().unwrap().into(), ..GenericOptions::default() };
        let mut any = generic("");
        any.value = message.write_to_bytes().unwrap();
        assert_eq!(of(&any).unwrap().grouping, Grouping::Pod);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(of(&any).unwrap_err().code(), ttrpc::Code::INVALID_ARGUMENT);
    }

    #[test]
    fn what_is_not_known_is_named() {
        // SHIM-TSK-02
        for (any, named) in [
            (generic("SystemdCgruop = true"), "SystemdCgruop"),
            (generic("IoUid = \"x\""), "IoUid"),
            (generic("Grouping = \"rack\""), "rack"),
            (Any { type_url: "example.com/My.Options".into(), ..Any::default() }, "My.Options"),
            (Any { type_url: RUNC.into(), value: vec![0xff; 3], ..Any::default() }, RUNC),
        ] {
            let error = of(&any).unwrap_err();
            assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
