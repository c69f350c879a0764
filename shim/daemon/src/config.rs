//! Configuration: what the file and the flags say (low), and what that means on this host (high).
//!
//! Works with no file. Unknown keys are refused with file and line.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Flags of `slipway serve`; `--root`, `--state`, `--address` and `--config` mean what they mean to containerd.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeArgs {
    /// What outlives a boot: images, writable layers
    #[arg(long, default_value = "/var/lib/slipway")]
    pub(crate) root: PathBuf,
    /// What dies with the boot: records, sockets, namespaces
    #[arg(long, default_value = "/run/slipway")]
    pub(crate) state: PathBuf,
    /// Configuration file (TOML); the default one may be absent
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or tracing's filter syntax
    #[arg(long, default_value = "info")]
    pub(crate) log_level: String,
}

const DEFAULT_FILE: &str = "/etc/slipway/config.toml";

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Low {
    /// Parent of the control groups of pods that bring no cgroup_parent of their own.
    cgroup_root: Option<String>,
    keeper: LowKeeper,
    cni: LowCni,
    network: LowNetwork,
    images: LowImages,
    logs: LowLogs,
    cdi: LowCdi,
    metrics: LowMetrics,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowKeeper {
    /// The keeper's binary; default: beside this program, then PATH.
    path: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowCni {
    conf_dir: Option<PathBuf>,
    bin_dirs: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowNetwork {
    /// false: without CNI configuration the network is not ready.
    builtin: Option<bool>,
    bridge: Option<String>,
    pool: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowImages {
    /// hosts.toml directories (containerd's `config_path`).
    hosts_dirs: Option<Vec<PathBuf>>,
    parallel_layers: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowLogs {
    /// Bytes of one log line before it is cut into partial ones; 0 never cuts (CRI-LOG-06).
    max_line: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowCdi {
    /// Directories of device files; of the same device the later one's counts.
    spec_dirs: Option<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LowMetrics {
    /// Where Prometheus finds /metrics; default: nowhere. There is no authentication: a loopback address, or one that only
    /// the scraper reaches.
    address: Option<SocketAddr>,
}

/// Everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) address: PathBuf,
    pub(crate) cgroup_root: String,
    pub(crate) keeper: PathBuf,
    pub(crate) max_log_line: usize,
    pub(crate) cdi_dirs: Vec<PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) images: slipway_images::Options,
    pub(crate) network: slipway_network::Options,
}

impl Config {
    /// Reads the file and decides the rest.
    pub(crate) fn load(args: &ServeArgs, address: &Path) -> Result<Self> {
        let low = read(args.config.as_deref())?;
        let root = absolute(&args.root)?;
        let state = absolute(&args.state)?;
        let cgroup_root = low.cgroup_root.unwrap_or_else(|| "/slipway".into());
        if !cgroup_root.starts_with('/') || cgroup_root.split('/').any(|p| p == "..") {
            bail!(
                "cgroup_root = {cgroup_root:?}: give an absolute path below the hierarchy's root, without '..'"
            );
        }
        let builtin = low.network.builtin.unwrap_or(true).then(|| slipway_network::Builtin {
            bridge: low.network.bridge.unwrap_or_else(|| "slipway0".into()),
            pool: low.network.pool.unwrap_or_else(|| "10.88.0.0/16".into()),
        });
        Ok(Self {
            address: absolute(address)?,
            cgroup_root: cgroup_root.trim_end_matches('/').to_owned(),
            keeper: keeper_binary(low.keeper.path)?,
            cdi_dirs: low.cdi.spec_dirs.unwrap_or_else(|| vec!["/etc/cdi".into(), "/var/run/cdi".into()]),
            metrics: low.metrics.address,
            max_log_line: low.logs.max_line.unwrap_or(16384),
            images: slipway_images::Options {
                root: root.join("images"),
                hosts_dirs: low.images.hosts_dirs.unwrap_or_else(|| vec!["/etc/slipway/certs.d".into()]),
                parallel_layers: low.images.parallel_layers.unwrap_or(3).max(1),
            },
            network: slipway_network::Options {
                conf_dir: low.cni.conf_dir.unwrap_or_else(|| "/etc/cni/net.d".into()),
                bin_dirs: low
                    .cni
                    .bin_dirs
                    .unwrap_or_else(|| vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()]),
                // Outlives a boot: a pod of the former one still gets its CNI DEL.
                state_dir: root.join("network"),
                builtin,
            },
            root,
            state,
        })
    }
}

fn read(file: Option<&Path>) -> Result<Low> {
    let (path, named) = file.map_or((Path::new(DEFAULT_FILE), false), |path| (path, true));
    match std::fs::read_to_string(path) {
        // toml's error shows the line and the key.
        Ok(text) => toml::from_str(&text).with_context(|| format!("configuration {}", path.display())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => Ok(Low::default()),
        Err(e) => Err(e).with_context(|| format!("read configuration {}", path.display())),
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

/// Beside our own executable, then PATH, unless the configuration names it.
fn keeper_binary(named: Option<PathBuf>) -> Result<PathBuf> {
    const NAME: &str = "containerd-shim-slipway-v1";
    if let Some(path) = named {
        return if path.is_file() {
            Ok(path)
        } else {
            bail!("keeper.path = {}: no such file", path.display())
        };
    }
    let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        beside.into_iter().chain(std::env::split_paths(&path)).map(|d| d.join(NAME)).find(|p| p.is_file());
    found.with_context(|| {
        format!("{NAME} is neither beside this program nor in PATH: install it or set keeper.path")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "cgroup_root = \"/x\"\n[network]\nbrigde = \"br0\"\n").expect("write");
        let error = format!("{:#}", read(Some(&file)).expect_err("a typing error"));
        assert!(error.contains("brigde") && error.contains("line 3"), "{error}");
        assert!(read(Some(&dir.path().join("absent"))).is_err(), "a named file must exist");
    }
}
