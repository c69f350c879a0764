//! `[nri]` of the configuration: the keys that containerd has, with the same meanings and defaults.

use crate::config::{Time, seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use slipway_nri::{Options, Validator};
use std::path::{Path, PathBuf};

/// A daemon with a state directory of its own does not take the node's plugins away.
const NODE_STATE: &str = "/run/slipway";

/// As written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Keys {
    /// true: no plugins at all.
    disable: bool,
    /// true: only plugins of plugin_path; nobody can connect.
    disable_connections: bool,
    /// Where plugins connect. Without it: /var/run/nri/nri.sock; with another --state than the usual one, nri.sock in there.
    socket_path: Option<PathBuf>,
    /// Directory of executables NN-name, launched at start.
    plugin_path: PathBuf,
    /// Directory of their configuration, NN-name.conf or name.conf.
    plugin_config_path: PathBuf,
    /// Time from the connection to the registration, and for the first synchronization.
    plugin_registration_timeout: Time,
    /// Time for one request; a plugin that takes longer is dropped.
    plugin_request_timeout: Time,
    /// What plugins may not do on this node.
    default_validator: ValidatorKeys,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            disable: false,
            disable_connections: false,
            socket_path: None,
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            plugin_registration_timeout: seconds(5),
            plugin_request_timeout: seconds(2),
            default_validator: ValidatorKeys::default(),
        }
    }
}

/// `[nri.default_validator]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct ValidatorKeys {
    /// Whether anything of this table is in force.
    enable: bool,
    /// Refuse plugins that add OCI hooks.
    reject_oci_hook_adjustment: bool,
    /// Refuse plugins that change the seccomp policy of containers that asked for RuntimeDefault.
    reject_runtime_default_seccomp_adjustment: bool,
    /// Refuse plugins that change the seccomp policy of containers that asked for Unconfined.
    reject_unconfined_seccomp_adjustment: bool,
    /// Refuse plugins that change the seccomp policy of containers that asked for a Localhost profile.
    reject_custom_seccomp_adjustment: bool,
    /// Refuse plugins that change namespaces.
    reject_namespace_adjustment: bool,
    /// Refuse plugins that change sysctls.
    reject_sysctl_adjustment: bool,
    /// Names (policy, or 10-policy) without whose answer no container is made. Pods may ask for more by the annotation
    /// required-plugins.noderesource.dev.
    required_plugins: Vec<String>,
    /// Annotation by which a pod can do without them: static pods, and the plugins' own.
    tolerate_missing_plugins_annotation: String,
}

impl Keys {
    /// Decides what is left to the host.
    pub(crate) fn settle(&mut self, state: &Path) {
        let of_node = state == Path::new(NODE_STATE);
        let usual = || if of_node { "/var/run/nri/nri.sock".into() } else { state.join("nri.sock") };
        self.socket_path.get_or_insert_with(usual);
    }

    /// For the plugins' room; settled before.
    pub(crate) fn options(&self) -> Options {
        Options {
            disable: self.disable,
            socket: self.socket_path.clone().filter(|_| !self.disable_connections),
            plugin_dir: self.plugin_path.clone(),
            config_dir: self.plugin_config_path.clone(),
            registration_timeout: self.plugin_registration_timeout.length(),
            request_timeout: self.plugin_request_timeout.length(),
            validator: self.default_validator.options(),
            ..Options::default()
        }
    }
}

impl ValidatorKeys {
    fn options(&self) -> Option<Validator> {
        self.enable.then(|| Validator {
            reject_oci_hook_adjustment: self.reject_oci_hook_adjustment,
            reject_runtime_default_seccomp_adjustment: self.reject_runtime_default_seccomp_adjustment,
            reject_unconfined_seccomp_adjustment: self.reject_unconfined_seccomp_adjustment,
            reject_custom_seccomp_adjustment: self.reject_custom_seccomp_adjustment,
            reject_namespace_adjustment: self.reject_namespace_adjustment,
            reject_sysctl_adjustment: self.reject_sysctl_adjustment,
            required_plugins: self.required_plugins.clone(),
            tolerate_missing_plugins_annotation: self.tolerate_missing_plugins_annotation.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn options(text: &str, state: &str) -> Result<Options, toml::de::Error> {
        let mut keys: Keys = toml::from_str(text)?;
        keys.settle(Path::new(state));
        Ok(keys.options())
    }

    /// NRI-01, NRI-12.
    #[test]
    fn defaults_are_containerds() {
        let node = options("", NODE_STATE).expect("defaults");
        let usual = Options::default();
        assert_eq!(node.socket.as_deref(), Some(Path::new("/var/run/nri/nri.sock")));
        assert_eq!((&node.plugin_dir, &node.config_dir), (&usual.plugin_dir, &usual.config_dir));
        assert_eq!(
            (node.registration_timeout, node.request_timeout),
            (Duration::from_secs(5), Duration::from_secs(2))
        );
        assert!(node.validator.is_none() && !node.disable);
        let other = options("", "/tmp/x").expect("defaults");
        assert_eq!(other.socket.as_deref(), Some(Path::new("/tmp/x/nri.sock")));
    }

    #[test]
    fn keys() {
        let text = "disable_connections = true\nplugin_request_timeout = \"250ms\"\n[default_validator]\nenable = true\nrequired_plugins = [\"a\"]";
        let options = options(text, NODE_STATE).expect("options");
        assert_eq!((options.socket, options.request_timeout), (None, Duration::from_millis(250)));
        assert_eq!(options.validator.expect("enabled").required_plugins, ["a"]);
    }
}
