//! What can be said on the command line: runc's global flags, and one command.

use crate::commands::Command;
use crate::log::Log;
use clap::{Args, Parser, ValueEnum};
use slipway_runtime::host::Host;
use std::path::PathBuf;

/// An OCI runtime: creates and runs containers from bundles, straight onto the kernel.
#[derive(Debug, Parser)]
#[command(name = "slipway-oci", version = VERSION, disable_version_flag = true, max_term_width = 120)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print the version and the specification it follows
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// Flags that stand before the command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Directory of the containers' state (should be on tmpfs) [default: /run/slipway-oci, or below XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File to which errors and warnings are appended
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Form of the lines in the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Log more
    #[arg(long)]
    pub(crate) debug: bool,
    /// Control groups through systemd: cgroupsPath is then `slice:prefix:name`
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Tolerate what only root may do with control groups: true, false or auto
    #[arg(long, value_name = "BOOL", default_value = "auto")]
    pub(crate) rootless: Rootless,
    /// CRIU, for checkpoint and restore [default: criu, from PATH]
    #[arg(long, value_name = "PATH")]
    pub(crate) criu: Option<PathBuf>,
    /// Descriptors above the standard streams that were open when we began.
    #[arg(skip)]
    pub(crate) inherited: Vec<i32>,
    /// Where --log leads.
    #[arg(skip)]
    pub(crate) journal: Log,
}

/// Whether control groups that cannot be made may be done without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rootless {
    True,
    False,
    /// By who is not the host's root.
    Auto,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

impl Global {
    pub(crate) fn tolerates_missing_groups(&self) -> bool {
        match self.rootless {
            Rootless::True => true,
            Rootless::False => false,
            Rootless::Auto => !Host::current().makes_groups,
        }
    }

    pub(crate) fn root(&self) -> PathBuf {
        let home = || std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty() && !is_root());
        let default = || home().map_or_else(|| PathBuf::from("/run"), PathBuf::from).join("slipway-oci");
        self.root.clone().unwrap_or_else(default)
    }
}

/// Whether this process is the host's root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The second line is what engines read for the specification's version.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");
