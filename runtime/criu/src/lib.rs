//! CRIU (criu(8)), which freezes the processes of a container into files and makes them again from there.
//!
//! Owns: what is asked of it for a container, the directories it works in, and its log when it fails. Never looks into
//! its images, and keeps no record of containers: that is the caller's.
//!
//! ```text
//!  Dump    ──Images──▶ Options ──Talk──▶ criu swrk ──▶ *.img, descriptors.json, dump.log
//!  Restore ◀──────────────────────────── criu swrk ◀── the same directory
//! ```

mod dump;
mod images;
mod mounts;
mod namespaces;
mod restore;
pub mod rpc;
mod streams;
mod talk;

pub use dump::Dump;
pub use images::Images;
pub use restore::{Restore, Restored, own_mounts};
pub use streams::Streams;
pub use talk::NotInstalled;

use rpc::{CgroupMode, Options};
use std::path::Path;

/// Everything that CRIU tells; at 4 its log says what it was doing when it failed.
const LOG_LEVEL: i32 = 4;

/// What a caller may ask for in both directions; named as runc's and containerd's options are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Allow open TCP connections.
    pub tcp_established: bool,
    /// Allow unix sockets that are connected to the outside.
    pub ext_unix_sk: bool,
    /// Allow processes whose session or terminal belongs to the outside.
    pub shell_job: bool,
    pub file_locks: bool,
    pub auto_dedup: bool,
    pub lazy_pages: bool,
    /// What is kept of control groups; soft unless said.
    pub cgroups: Option<CgroupMode>,
}

impl Wishes {
    /// Criu's options; `config` as [`config_file`] has it.
    pub fn options(&self, config: Option<String>) -> Options {
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
            manage_cgroups_mode: Some(self.cgroups.unwrap_or(CgroupMode::Soft).into()),
            // Devices of networks are whoever's who made the container's network.
            empty_ns: Some(libc::CLONE_NEWNET as u32),
            config_file: config,
            ..Options::default()
        }
    }
}

/// criu.conf(5) for containers: the annotation's, else ours, else the one that engines write for runc. An empty annotation
/// means none.
pub fn config_file(annotation: Option<&str>) -> Option<String> {
    match annotation {
        Some(named) => Some(named.to_owned()).filter(|name| !name.is_empty()),
        None => {
            let known = ["/etc/criu/slipway-oci.conf", "/etc/criu/runc.conf"];
            known.into_iter().find(|path| Path::new(path).exists()).map(str::to_owned)
        }
    }
}

/// The annotation that [`config_file`] asks for.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";
