//! What the keeper is told of a container that another OCI runtime is to make, and of a pod that another shim is to run.

use crate::pods::PodRecord;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a keeper does beside the runtime's own work, and to take it back when that fails: a shim has 15 s to do so, then its
/// `delete` action 10 s, its farewell 8 s; the rest is ours.
const AROUND: Duration = Duration::from_secs(60);

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
}

/// A containerd shim as the keeper starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Shim {
    pub(crate) path: PathBuf,
    pub(crate) config_path: String,
    pub(crate) config_type: String,
    /// Where the runtime behind runc's shim keeps its state.
    pub(crate) root: PathBuf,
    /// Seconds.
    pub(crate) create_timeout: u64,
    /// Control group of the sandbox container.
    pub(crate) cgroup: String,
    /// Its annotations. A table: TOML wants it behind all plain values.
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Shim {
    /// Of the pod's handler; none if that has none. `state` is the daemon's directory.
    pub(crate) fn of(pod: &PodRecord, cgroup: String, state: &Path) -> Option<Self> {
        let handler = &pod.settings;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        Some(Self {
            path: handler.shim.clone()?,
            config_path: handler.config_path.as_ref().map(text).unwrap_or_default(),
            config_type: handler.config_type.clone().unwrap_or_default(),
            root: handler.runtime_root.clone().unwrap_or_else(|| state.join("runtimes").join(&pod.handler)),
            create_timeout: handler.create_timeout.length().as_secs().max(1),
            cgroup,
            annotations: sandbox_annotations(pod),
        })
    }

    /// How long to wait for the keeper's answer.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.create_timeout) + AROUND
    }
}

/// How long to wait for the keeper's answer to the creation of a container by another program; none: it is Slipway's own.
pub(crate) fn patience(handler: &crate::config::Handler) -> Option<Duration> {
    handler.program().map(|_| handler.create_timeout.length() + AROUND)
}

/// As containerd's CRI names them (internal/cri/annotations): shims look for these, and size their virtual machines by them.
fn sandbox_annotations(pod: &PodRecord) -> BTreeMap<String, String> {
    let about = pod.metadata();
    let mut all: BTreeMap<String, String> = [
        ("container-type", "sandbox".to_owned()),
        ("sandbox-id", pod.id.clone()),
        ("sandbox-name", about.name.clone()),
        ("sandbox-namespace", about.namespace.clone()),
        ("sandbox-uid", about.uid.clone()),
        ("sandbox-log-directory", pod.config.log_directory.clone()),
    ]
    .into_iter()
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value))
    .collect();
    let linux = pod.config.linux.as_ref();
    if let Some(resources) = linux.and_then(|linux| linux.resources.as_ref()) {
        for (key, value) in [
            ("sandbox-cpu-period", resources.cpu_period),
            ("sandbox-cpu-quota", resources.cpu_quota),
            ("sandbox-cpu-shares", resources.cpu_shares),
            ("sandbox-memory", resources.memory_limit_in_bytes),
        ] {
            all.insert(format!("io.kubernetes.cri.{key}"), value.to_string());
        }
    }
    for (name, value) in pod.passed_annotations() {
        // Which pod it is is not the pod's to say.
        all.entry(name).or_insert(value);
    }
    all
}
