//! `[nri]` of the configuration: the keys that containerd has, with the same meanings and defaults.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use slipway_nri::{Options, Validator};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A daemon with a state directory of its own does not take the node's plugins away.
const NODE_STATE: &str = "/run/slipway";

/// As written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LowNri {
    /// true: no plugins at all.
    disable: Option<bool>,
    /// true: only plugins of `plugin_path`; nobody can connect.
    disable_connections: Option<bool>,
    /// Where plugins connect. Default /var/run/nri/nri.sock; with another --state than the usual one, nri.sock in there.
    socket_path: Option<PathBuf>,
    /// Executables `NN-name`, launched at start. Default /opt/nri/plugins.
    plugin_path: Option<PathBuf>,
    /// Their configuration, `NN-name.conf` or `name.conf`. Default /etc/nri/conf.d.
    plugin_config_path: Option<PathBuf>,
    /// From the connection to the registration, and for the first synchronization. Default "5s".
    plugin_registration_timeout: Option<String>,
    /// For one request; a plugin that takes longer is dropped. Default "2s".
    plugin_request_timeout: Option<String>,
    default_validator: LowValidator,
}

/// `[nri.default_validator]`: what plugins may not do here. Off unless `enable` is true.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowValidator {
    enable: bool,
    reject_oci_hook_adjustment: bool,
    /// Policies of containers that asked for RuntimeDefault, Unconfined, Localhost.
    reject_runtime_default_seccomp_adjustment: bool,
    reject_unconfined_seccomp_adjustment: bool,
    reject_custom_seccomp_adjustment: bool,
    reject_namespace_adjustment: bool,
    reject_sysctl_adjustment: bool,
    /// Names (`policy`, or `10-policy`) without whose answer no container is made. Pods may ask for more by the annotation
    /// required-plugins.noderesource.dev.
    required_plugins: Vec<String>,
    /// Annotation by which a pod can do without them: static pods, and the plugins' own.
    tolerate_missing_plugins_annotation: String,
}

impl LowNri {
    pub(crate) fn decide(self, state: &Path) -> Result<Options> {
        let usual = Options::default();
        let socket = self.socket_path.or_else(|| {
            let of_node = state == Path::new(NODE_STATE);
            if of_node { usual.socket.clone() } else { Some(state.join("nri.sock")) }
        });
        let time = |key: &str, text: Option<String>, usual| match text {
            Some(text) => duration(&text).with_context(|| format!("nri.{key} = {text:?}")),
            None => Ok(usual),
        };
        Ok(Options {
            disable: self.disable.unwrap_or(false),
            socket: socket.filter(|_| !self.disable_connections.unwrap_or(false)),
            plugin_dir: self.plugin_path.unwrap_or(usual.plugin_dir),
            config_dir: self.plugin_config_path.unwrap_or(usual.config_dir),
            registration_timeout: time(
                "plugin_registration_timeout",
                self.plugin_registration_timeout,
                usual.registration_timeout,
            )?,
            request_timeout: time(
                "plugin_request_timeout",
                self.plugin_request_timeout,
                usual.request_timeout,
            )?,
            validator: self.default_validator.decide(),
            ..usual
        })
    }
}

impl LowValidator {
    fn decide(self) -> Option<Validator> {
        self.enable.then_some(Validator {
            reject_oci_hook_adjustment: self.reject_oci_hook_adjustment,
            reject_runtime_default_seccomp_adjustment: self.reject_runtime_default_seccomp_adjustment,
            reject_unconfined_seccomp_adjustment: self.reject_unconfined_seccomp_adjustment,
            reject_custom_seccomp_adjustment: self.reject_custom_seccomp_adjustment,
            reject_namespace_adjustment: self.reject_namespace_adjustment,
            reject_sysctl_adjustment: self.reject_sysctl_adjustment,
            required_plugins: self.required_plugins,
            tolerate_missing_plugins_annotation: self.tolerate_missing_plugins_annotation,
        })
    }
}

/// "500ms", "5s" or "1m", as Go writes them; never zero, which would drop every plugin.
fn duration(text: &str) -> Result<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().context("it does not begin with a number")?;
    let duration = match &text[split..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        unit => bail!("unknown unit {unit:?}: write ms, s or m"),
    };
    if duration.is_zero() {
        bail!("it must be more than nothing");
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str, state: &str) -> Result<Options> {
        toml::from_str::<LowNri>(text)?.decide(Path::new(state))
    }

    /// NRI-01, NRI-12.
    #[test]
    fn defaults_are_containerds() {
        let node = options("", NODE_STATE).expect("defaults");
        assert_eq!(node.socket.as_deref(), Some(Path::new("/var/run/nri/nri.sock")));
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

    #[test]
    fn bad_values_are_named() {
        for (text, word) in [
            ("plugin_request_timeout = \"5\"", "unit"),
            ("plugin_request_timeout = \"0s\"", "more than nothing"),
            ("plugin_registration_timeout = \"s\"", "plugin_registration_timeout"),
            ("plugins_path = \"/x\"", "plugins_path"),
        ] {
            let error = format!("{:#}", options(text, NODE_STATE).expect_err(text));
            assert!(error.contains(word), "{error}");
        }
    }
}
