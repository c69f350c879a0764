//! CRIU (criu(8)), which freezes the processes of a container into files and makes them again from there.
//!
//! Owns: what is asked of it for a container, the directories it works in, and its log when it fails. Never looks into
//! its images.
//!
//! ```text
//!  checkpoint ──Images──▶ Options ──Talk──▶ criu swrk ──▶ *.img, descriptors.json, dump.log
//!  restore    ◀──────────────────────────── criu swrk ◀── the same directory
//! ```

mod images;
mod mounts;
mod namespaces;
pub(crate) mod rpc;
mod talk;

pub(crate) use images::Images;
pub(crate) use mounts::{Externals, make_points};
pub(crate) use namespaces::{at_dump, at_restore};
pub(crate) use talk::Talk;

use crate::cli::Global;
use crate::record::Record;
use anyhow::Result;
use clap::Args;
use oci_spec::runtime::Spec;
use rpc::{CgroupMode, Options};
use slipway_runtime::container;
use slipway_runtime::plan::Plan;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that CRIU tells; at 4 its log says what it was doing when it failed.
const LOG_LEVEL: i32 = 4;

/// Options of `checkpoint` and `restore` alike.
#[derive(Debug, Args)]
pub(crate) struct CriuArgs {
    /// Directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub(crate) image_path: PathBuf,
    /// Directory of the log and of other working files [default: that of the images]
    #[arg(long, value_name = "DIR")]
    pub(crate) work_path: Option<PathBuf>,
    /// Allow open TCP connections
    #[arg(long)]
    pub(crate) tcp_established: bool,
    /// Allow unix sockets that are connected to the outside
    #[arg(long)]
    pub(crate) ext_unix_sk: bool,
    /// Allow processes whose session or terminal belongs to the outside
    #[arg(long)]
    pub(crate) shell_job: bool,
    /// Keep file locks
    #[arg(long)]
    pub(crate) file_locks: bool,
    /// What is kept of control groups [default: soft]
    #[arg(long, value_name = "MODE")]
    pub(crate) manage_cgroups_mode: Option<CgroupMode>,
    /// Make this namespace, but leave it empty (a network is never filled)
    #[arg(long, value_name = "NAMESPACE", value_parser = ["network"])]
    pub(crate) empty_ns: Vec<String>,
    /// Drop from the images what newer ones have
    #[arg(long)]
    pub(crate) auto_dedup: bool,
    /// Bring memory only when it is touched
    #[arg(long)]
    pub(crate) lazy_pages: bool,
}

impl CriuArgs {
    /// What both directions say alike.
    pub(crate) fn options(&self, annotations: &BTreeMap<String, String>) -> Options {
        Options {
            images_dir_fd: -1,
            log_level: Some(LOG_LEVEL),
            notify_scripts: Some(true),
            shell_job: Some(self.shell_job),
            tcp_established: Some(self.tcp_established),
            ext_unix_sk: Some(self.ext_unix_sk),
            file_locks: Some(self.file_locks),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            orphan_pts_master: Some(true),
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(self.manage_cgroups_mode.unwrap_or(CgroupMode::Soft).into()),
            // Devices of networks are whoever's who made the container's network.
            empty_ns: Some(libc::CLONE_NEWNET as u32),
            config_file: config_file(annotations),
            ..Options::default()
        }
    }
}

/// What the container is, as it was decided at its creation.
pub(crate) fn plan(record: &Record, spec: &Spec) -> Result<Plan> {
    Ok(container::decide(&record.id, &record.bundle, &record.rootfs, spec)?)
}

/// The program, as the command line names it or PATH has it.
pub(crate) fn program(global: &Global) -> &Path {
    global.criu.as_deref().unwrap_or(Path::new("criu"))
}

/// criu.conf(5) for containers: the annotation's, else ours, else the one that engines write for runc. An empty annotation
/// means none.
fn config_file(annotations: &BTreeMap<String, String>) -> Option<String> {
    match annotations.get("org.criu.config") {
        Some(named) => Some(named.clone()).filter(|name| !name.is_empty()),
        None => {
            let known = ["/etc/criu/slipway-oci.conf", "/etc/criu/runc.conf"];
            known.into_iter().find(|path| Path::new(path).exists()).map(str::to_owned)
        }
    }
}
