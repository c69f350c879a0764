//! What the keeper is told of a container that another OCI runtime is to make.

use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a keeper does beside the runtime's own work, and to take it back when that fails.
const AROUND: Duration = Duration::from_secs(45);

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
}
