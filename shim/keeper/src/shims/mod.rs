//! Pods that a containerd shim of somebody else runs (kata's, runsc's, runc's): here the keeper is what containerd is to such a
//! shim. Logs, attach, records and everything above stay the keeper's own and the same.
//!
//! ```text
//!  sandbox ──▶ Pod ───────── program: BIN -namespace N -address <dir> -id I start|delete ──▶ the shim's server
//!   task ────▶ Container ─┐   (its answer: answer; a time limit)                                  ▲
//!   exec ────▶ Process ───┴── link: ttrpc, Task v2 or v3 ─────────────────────────────────────────┘
//!                             bundle: <keeper>/shims/<pod>/<id>/{config.json,rootfs,log,in,out,err}
//!                             events: where it publishes; only TaskOOM is of use
//! ```
//!
//! - One shim for each pod, by its first container, the sandbox: our reaper as its pause, in the pod's own namespaces.
//! - Output goes through fifos to the log engine like any pipe; sessions write straight into their client's.
//! - Who has ended is known by Wait alone. A shim that is gone is told by its connection: then its `delete` action and we
//!   ourselves take away what it had.
//! - `shim.json` in the pod's directory is what the next keeper needs.
//!
//! Absent on purpose: checkpoints, user namespaces, the Sandbox service, shims that speak gRPC.

mod answer;
mod aside;
mod bundle;
mod container;
mod deadline;
mod events;
mod link;
mod log;
mod pause;
mod pod;
mod process;
mod program;
#[cfg(test)]
mod tests;

pub(crate) use aside::{Aside, wait};
pub(crate) use container::{Container, New, close_stdin, end_session};
pub(crate) use events::Listener;
pub(crate) use pod::{Lost, Pause, Pod, clear_left_over, left_over, undo};
pub(crate) use process::Process;
pub(crate) use program::{ACTION, become_shim, is_publishing};

use crate::error::{Error, Result};
use containerd_shim_protos::shim::oci::Options as RuncOptions;
use cri_proto::keeper::GenericOptions;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How long the making of a pod or container may take where nothing else is said, in seconds.
const CREATE: u64 = 60;
/// How long any other call may take. Below what clients wait for an answer.
const QUICK: Duration = Duration::from_secs(20);
/// The same for signals, which have another way where the container is in a control group of the host.
const SIGNAL: Duration = Duration::from_secs(5);
/// How long a shim may take to kill a container; one that takes longer is ended, and its pod with it.
const KILL: Duration = Duration::from_secs(15);

/// A shim, as the client's configuration names it and `shim.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Shim {
    /// Its program.
    pub(crate) path: PathBuf,
    /// Its own configuration file, and the type that it knows that by; containerd's ConfigPath and TypeUrl.
    #[serde(default)]
    pub(crate) config_path: String,
    #[serde(default)]
    pub(crate) config_type: String,
    /// Where the OCI runtime behind it keeps its state; only for runc's shim.
    #[serde(default)]
    pub(crate) root: PathBuf,
    /// Seconds.
    #[serde(default = "create")]
    pub(crate) create_timeout: u64,
    /// Control group of the sandbox container.
    #[serde(default)]
    pub(crate) cgroup: String,
    /// Annotations of the sandbox container.
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

fn create() -> u64 {
    CREATE
}

impl Shim {
    /// As the client sends it.
    ///
    /// # Errors
    /// `InvalidArgument` for what cannot be meant.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let shim: Self = toml::from_str(text).map_err(|e| Error::invalid(format!("shim: {e}")))?;
        if !shim.path.is_absolute() {
            let path = shim.path.display();
            return Err(Error::invalid(format!("shim: Path = {path}: must be an absolute path")));
        }
        if shim.create_timeout == 0 {
            return Err(Error::invalid("shim: CreateTimeout = 0: must be at least a second"));
        }
        Ok(shim)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.create_timeout)
    }

    /// runc's shim knows no options but its own.
    fn is_runcs(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("containerd-shim-runc-v")
    }

    /// What it is told of its runtime (SHIM-OPT-01, SHIM-OPT-02); `scope`: control groups are systemd's.
    fn options(&self, scope: bool) -> Result<Option<Any>> {
        let (type_url, value) = if self.is_runcs() {
            let root = self.root.to_string_lossy().into_owned();
            let options = RuncOptions { root, systemd_cgroup: scope, ..RuncOptions::default() };
            ("containerd.runc.v1.Options", options.write_to_bytes())
        } else if self.config_path.is_empty() && self.config_type.is_empty() {
            return Ok(None);
        } else {
            let (type_url, config_path) = (self.config_type.clone(), self.config_path.clone());
            let options = GenericOptions { type_url, config_path, ..GenericOptions::default() };
            ("runtimeoptions.v1.Options", options.write_to_bytes())
        };
        let value = value.map_err(|e| Error::internal(format!("encode the shim's options: {e}")))?;
        Ok(Some(Any { type_url: type_url.into(), value, ..Any::default() }))
    }
}

#[cfg(test)]
mod shim_tests {
    use super::*;

    fn shim(path: &str) -> Shim {
        Shim::parse(&format!("Path = {path:?}\nRoot = \"/r\"")).unwrap()
    }

    #[test]
    fn a_shim_gets_the_options_that_it_knows() {
        // SHIM-OPT-01, SHIM-OPT-02
        let runc = shim("/usr/bin/containerd-shim-runc-v2").options(true).unwrap().unwrap();
        assert_eq!(runc.type_url, "containerd.runc.v1.Options");
        let options = RuncOptions::parse_from_bytes(&runc.value).unwrap();
        assert_eq!((options.root.as_str(), options.systemd_cgroup), ("/r", true));
        let mut kata = shim("/usr/bin/containerd-shim-kata-v2");
        assert_eq!(kata.options(false).unwrap(), None);
        kata.config_path = "/etc/kata.toml".into();
        let any = kata.options(false).unwrap().unwrap();
        assert_eq!(any.type_url, "runtimeoptions.v1.Options");
        assert_eq!(GenericOptions::parse_from_bytes(&any.value).unwrap().config_path, "/etc/kata.toml");
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (text, named) in [
            ("Path = \"kata\"", "Path = kata"),
            ("Path = \"/k\"\nCreateTimeout = 0", "CreateTimeout"),
            ("Path = \"/k\"\nConfig = \"/s\"", "Config"),
            ("", "Path"),
        ] {
            let error = Shim::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
