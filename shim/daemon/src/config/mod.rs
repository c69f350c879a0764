//! Configuration: what files and flags say ([`file`]), and what that means on this host ([`Config`]).
//!
//! ```text
//!  config.toml, config.d/*.toml ─ sources ─► File, origins ─ settle ─► Config (everything decided)
//!                                    ▲ keys: names, reference           └ reload: what may change at SIGHUP
//! ```
//!
//! Works with no file. Unknown keys and wrong values are refused with file and line.

mod changes;
pub(crate) mod command;
mod file;
mod handlers;
mod import;
mod keys;
mod policy;
mod sources;
mod values;

pub(crate) use changes::Changes;
pub(crate) use file::{Checkpoints, Containers, File, Handler, Labels, LogFormat, Selinux, Tracing, seconds};
pub(crate) use values::{Level, Sysctl, Time, Ulimit};

use crate::cgroups::Cgroups;
use anyhow::{Context, Result, bail};
use sources::Sources;
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
    /// Configuration file (TOML); the default one, /etc/slipway/config.toml, may be absent. Files in config.d beside it follow
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or tracing's filter syntax; comes before the configuration's log_level
    #[arg(long)]
    pub(crate) log_level: Option<Level>,
}

/// The image policy of the files, and what is wrong with it; for whoever is no daemon.
pub(crate) fn image_policy(args: &ServeArgs) -> Result<(slipway_images::Policy, Vec<String>)> {
    let sources = Sources::read(args.config.as_deref())?;
    let rules = sources.blame("images.policy", policy::rules(&sources.file.images.policy))?;
    Ok(slipway_images::Policy::load(&rules))
}

/// The keys of the files, and the control groups they mean; for whoever is no daemon.
pub(crate) fn look(args: &ServeArgs) -> Result<(File, Cgroups)> {
    let sources = Sources::read(args.config.as_deref())?;
    let cgroups = cgroups(&sources)?;
    Ok((sources.file, cgroups))
}

fn cgroups(sources: &Sources) -> Result<Cgroups> {
    let file = &sources.file;
    let key = if file.cgroup_root.is_some() { "cgroup_root" } else { "cgroup_driver" };
    let systemd = slipway_runtime::cgroup::prefers_systemd();
    sources.blame(key, Cgroups::decide(file.cgroup_driver, file.cgroup_root.as_deref(), systemd))
}

/// Everything decided.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) address: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) keeper: PathBuf,
    pub(crate) nri: slipway_nri::Options,
    /// Group of the socket.
    pub(crate) group: Option<u32>,
    /// All keys as they are in force.
    pub(crate) file: File,
    /// `images.policy` with its keys.
    pub(crate) policy: slipway_images::Policy,
    /// What is wrong beside the files themselves, a sentence each: keys of the policy that cannot be read (its rules refuse their
    /// images), programs of handlers that are not there. A daemon that starts goes on with that (its containers must not wait
    /// for a file); a reload does not take it over.
    pub(crate) faults: Vec<String>,
}

impl Config {
    /// Reads the files and decides the rest.
    pub(crate) fn load(args: &ServeArgs, address: &Path) -> Result<Self> {
        let sources = Sources::read(args.config.as_deref())?;
        Self::decide(&sources, args, address)
    }

    fn decide(sources: &Sources, args: &ServeArgs, address: &Path) -> Result<Self> {
        let mut file = sources.file.clone();
        if let Some(level) = &args.log_level {
            file.log_level = level.clone();
        }
        let (root, state) = (absolute(&args.root)?, absolute(&args.state)?);
        let cgroups = cgroups(sources)?;
        let keeper = sources.blame("keeper.path", keeper_binary(file.keeper.path.as_deref()))?;
        let group = sources.blame("socket.group", file.socket.group.as_deref().map(group).transpose())?;
        if let Some(builtin) = builtin(&file) {
            let key =
                if sources.origins.contains_key("network.pool") { "network.pool" } else { "network.bridge" };
            sources.blame(key, builtin.check().map_err(Into::into))?;
        }
        let written = |key: &&str| sources.origins.contains_key(*key);
        let tls = ["streaming.tls_certificate", "streaming.tls_key", "streaming.tls_client_ca"];
        sources.blame(tls.iter().find(|key| written(key)).unwrap_or(&tls[0]), file.streaming.tls())?;
        let rules = sources.blame("images.policy", policy::rules(&file.images.policy))?;
        let (policy, unread) = slipway_images::Policy::load(&rules);
        let unread = unread.iter().map(|fault| format!("{fault}; until then images below it are refused"));
        let mut faults: Vec<String> = unread.collect();
        for (name, handler) in &file.handlers {
            let (key, checked) = handlers::check(&file, name, handler);
            sources.blame(&key, checked)?;
            let (key, found) = handlers::fault(name, handler);
            if let Err(error) = sources.blame(&key, found) {
                faults.push(format!("{error:#}; until then its pods get no containers"));
            }
        }
        file.settle(&cgroups, Some(&keeper), &state);
        Ok(Self {
            address: absolute(address)?,
            cgroups,
            keeper,
            nri: file.nri.options(),
            group,
            file,
            policy,
            faults,
            root,
            state,
        })
    }

    /// For the image store.
    pub(crate) fn images(&self) -> slipway_images::Options {
        slipway_images::Options {
            root: self.root.join("images"),
            registries: self.file.images.registries(),
            policy: self.policy.clone(),
        }
    }

    /// The same, if nothing is wrong with it.
    ///
    /// # Errors
    /// All [`Config::faults`].
    pub(crate) fn sound(self) -> Result<Self> {
        if self.faults.is_empty() { Ok(self) } else { bail!("{}", self.faults.join("\n")) }
    }

    /// For the networks.
    pub(crate) fn network(&self) -> slipway_network::Options {
        let cni = &self.file.cni;
        slipway_network::Options {
            conf_dir: cni.conf_dir.clone(),
            bin_dirs: cni.bin_dirs.clone(),
            // Outlives a boot: a pod of the former one still gets its CNI DEL.
            state_dir: self.root.join("network"),
            builtin: builtin(&self.file),
        }
    }
}

fn builtin(file: &File) -> Option<slipway_network::Builtin> {
    let network = &file.network;
    let (bridge, pool) = (network.bridge.clone(), network.pool.clone());
    network.builtin.then_some(slipway_network::Builtin { bridge, pool })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("path {}", path.display()))
}

/// Beside our own executable, then PATH, unless the configuration names it.
fn keeper_binary(named: Option<&Path>) -> Result<PathBuf> {
    const NAME: &str = "containerd-shim-slipway-v1";
    if let Some(path) = named {
        return if path.is_file() {
            Ok(path.to_owned())
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

/// A group's number from its name or number.
fn group(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let found = nix::unistd::Group::from_name(name).with_context(|| format!("socket.group = {name:?}"))?;
    let group = found.with_context(|| {
        format!("socket.group = {name:?}: no such group; make it (groupadd --system {name}) or give a number")
    })?;
    Ok(group.gid.as_raw())
}
