//! What is configured.

use crate::validator::Validator;
use std::path::PathBuf;
use std::time::Duration;

/// All decided by the caller; see [`Options::default`] for what is usual.
#[derive(Debug, Clone)]
pub struct Options {
    /// No plugin is started or listened to.
    pub disable: bool,
    /// Where plugins connect; none: only those that we launch.
    pub socket: Option<PathBuf>,
    /// Executables `NN-name`, launched at start.
    pub plugin_dir: PathBuf,
    /// Their configuration: `NN-name.conf`, or `name.conf`.
    pub config_dir: PathBuf,
    pub registration_timeout: Duration,
    pub request_timeout: Duration,
    pub runtime_name: String,
    pub runtime_version: String,
    pub validator: Option<Validator>,
}

impl Options {
    /// Synchronize is not a pod's request: it holds up only what is created meanwhile.
    pub(crate) fn sync_timeout(&self) -> Duration {
        self.registration_timeout.max(self.request_timeout)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            disable: false,
            socket: Some("/var/run/nri/nri.sock".into()),
            plugin_dir: "/opt/nri/plugins".into(),
            config_dir: "/etc/nri/conf.d".into(),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            runtime_name: "slipway".into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            validator: None,
        }
    }
}
