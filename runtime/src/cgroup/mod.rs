//! Control groups, versions 1 (also hybrid) and 2, cgroupfs driver: make, limit, join, read, kill, remove.
//!
//! Never polls; never touches a group it did not make or was not given.

use crate::Result;
use oci_spec::runtime::LinuxResources;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// One container's control group: a directory per version 1 hierarchy, or one directory on version 2.
///
/// Cheap to clone into a record: [`Cgroup::path`] is all that [`Cgroup::open`] needs.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
}

/// How a child about to exec enters the group (DESIGN 1A and ANCHORS: as late and as cheaply as possible).
#[derive(Debug)]
pub enum Join {
    /// Version 2: the directory descriptor for clone3 with CLONE_INTO_CGROUP.
    CloneInto(OwnedFd),
    /// Version 1: descriptors of the `tasks` files (O_WRONLY|O_CLOEXEC); the single-threaded child writes `0`
    /// to each, which costs microseconds where `cgroup.procs` waits for an RCU grace period.
    WriteTasks(Vec<OwnedFd>),
}

/// Accounting of one group at one moment. Absent where the controller is absent. Nanoseconds and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_usage_ns: Option<u64>,
    pub cpu_user_ns: Option<u64>,
    pub cpu_system_ns: Option<u64>,
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_ns: u64,
    pub memory_usage: Option<u64>,
    /// None when unlimited.
    pub memory_limit: Option<u64>,
    pub memory_rss: u64,
    pub memory_inactive_file: u64,
    pub memory_cache: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub swap_usage: Option<u64>,
    pub swap_limit: Option<u64>,
    pub pids_current: Option<u64>,
    pub pids_limit: Option<u64>,
    pub oom_kills: u64,
}

impl Cgroup {
    /// Makes the group at `path` (relative to the hierarchy root, e.g. `/kubepods/pod1/<id>`), with every limit of
    /// `resources` already written, and nobody in it. `controllers` absent on this host are skipped only when
    /// nothing was asked of them; a limit that cannot be applied is an error naming controller, file and value.
    /// On error nothing that this call made is left. Sets `Kind::Exists` if the leaf exists and holds processes.
    pub fn create(path: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        let _ = (path, resources);
        todo!()
    }

    /// Finds a group made earlier, e.g. after a restart.
    pub fn open(path: &str) -> Result<Self> {
        let _ = path;
        todo!()
    }

    pub fn path(&self) -> &str {
        &self.path
    }

    /// What the launcher needs so that the child enters this group.
    pub fn join(&self) -> Result<Join> {
        todo!()
    }

    /// A child group `name` for one exec session, so that the whole subtree of the session can be killed
    /// (on version 1 it exists in one hierarchy only, and joins the container's own groups in all others).
    pub fn exec_group(&self, name: &str) -> Result<Self> {
        let _ = name;
        todo!()
    }

    /// Changes limits of a live group; all-or-nothing (CRI-UPD-01): on error the former values are back.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let _ = resources;
        todo!()
    }

    pub fn stats(&self) -> Result<Stats> {
        todo!()
    }

    /// True if the OOM killer ended a process of this group or below: memory.oom_control / memory.events.
    /// Read it before the group is removed.
    pub fn oom_killed(&self) -> Result<bool> {
        todo!()
    }

    /// All processes, host pids, of this group and the groups below.
    pub fn pids(&self) -> Result<Vec<i32>> {
        todo!()
    }

    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let _ = frozen;
        todo!()
    }

    /// SIGKILL to every process in it and below: cgroup.kill on version 2, freeze and kill and thaw on version 1.
    pub fn kill_all(&self) -> Result<()> {
        todo!()
    }

    /// Removes the group and the groups below; waits up to `patience` for the last zombies to leave it.
    /// Missing is success. Parents made by [`Cgroup::create`] that are now empty are left for their owner.
    pub fn remove(self, patience: Duration) -> Result<()> {
        let _ = patience;
        todo!()
    }
}

/// Moves nobody; only says whether `dir` is on a version 2 hierarchy. Kept here so that `launch` needs no layout.
pub fn is_v2(dir: BorrowedFd<'_>) -> bool {
    let _ = dir;
    todo!()
}
