//! Control groups, versions 1 (also hybrid) and 2, cgroupfs driver: make, limit, join, read, kill, remove.
//!
//! Never polls while nobody waits; never touches a group it did not make or was not given.
//!
//! Why not crate cgroups-rs here: on version 2 its `set()` fails with any device rule and drops `unified` silently, it writes
//! nothing for a limit of -1, and on version 1 its object per controller costs more than the mkdir itself
//! (../shared/CRATES.md, headline 7). It is the oracle of our tests for version 1.

mod devices;
mod files;
mod kill;
mod layout;
mod limits;
mod make;
mod stats;

use crate::host::CgroupLayout;
use crate::{Error, Result, error::Kind};
use files::{read, write};
use layout::Layout;
use oci_spec::runtime::LinuxResources;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// One container's control group: a directory per version 1 hierarchy, or one directory on version 2.
///
/// [`Cgroup::path`] is all that [`Cgroup::open`] needs, so that it can be kept in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
    /// Version 1 exec sessions live below this group in the freezer hierarchy only.
    session: Option<String>,
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
    /// `resources` already written, and nobody in it.
    ///
    /// # Errors
    /// A limit that cannot be applied names file and value; `Exists` if the leaf holds processes; `Unsupported` for the
    /// systemd form `slice:prefix:name`. On error nothing that this call made is left.
    pub fn create(path: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        let path = normal(path)?;
        make::make(Layout::get(), &path, resources)?;
        Ok(Self { path, session: None })
    }

    /// Finds a group made earlier, e.g. after a restart.
    ///
    /// # Errors
    /// `NotFound` when no hierarchy has it.
    pub fn open(path: &str) -> Result<Self> {
        let path = normal(path)?;
        let (path, session) = match path.rsplit_once("/exec-") {
            Some((owner, name)) if Layout::get().kind == CgroupLayout::V1 => {
                (owner.to_owned(), Some(format!("exec-{name}")))
            }
            _ => (path, None),
        };
        let group = Self { path, session };
        if group.directories().iter().any(|d| d.is_dir()) {
            return Ok(group);
        }
        Err(Error::new(Kind::NotFound, "open cgroup", group.path()).hint("it was removed, or never made"))
    }

    /// Relative to the hierarchy's root, as [`Cgroup::open`] takes it.
    pub fn path(&self) -> String {
        match &self.session {
            Some(session) => format!("{}/{session}", self.path),
            None => self.path.clone(),
        }
    }

    /// What the launcher needs so that the child enters this group.
    pub fn join(&self) -> Result<Join> {
        let layout = Layout::get();
        if layout.kind == CgroupLayout::V2 {
            let dir = self.directories().remove(0);
            let opened = std::fs::File::open(&dir);
            let opened =
                opened.map_err(|e| Error::sys("open cgroup to join", dir.display().to_string(), e))?;
            return Ok(Join::CloneInto(opened.into()));
        }
        let tasks = |dir: PathBuf, file: &str| {
            let path = dir.join(file);
            let opened = std::fs::OpenOptions::new().write(true).open(&path);
            opened
                .map(OwnedFd::from)
                .map_err(|e| Error::sys("open cgroup to join", path.display().to_string(), e))
        };
        let mut all = Vec::new();
        for hierarchy in &layout.hierarchies {
            all.push(tasks(self.below(hierarchy), "tasks")?);
        }
        // Only where a hybrid limit (hugetlb) made a group there: joining it waits for a grace period.
        if let Some(dir) = layout.unified.as_ref().map(|u| self.below(u)).filter(|d| d.is_dir()) {
            all.push(tasks(dir, "cgroup.procs")?);
        }
        Ok(Join::WriteTasks(all))
    }

    /// A child group `name` for one exec session, so that the whole subtree of the session can be killed
    /// (on version 1 it exists in the freezer hierarchy only, and joins the container's own groups in all others).
    pub fn exec_group(&self, name: &str) -> Result<Self> {
        if name.is_empty() || name.contains('/') {
            return Err(Error::new(Kind::Invalid, "exec group", format!("name {name:?}")));
        }
        let session = format!("exec-{name}");
        let layout = Layout::get();
        let group = match layout.kind {
            CgroupLayout::V2 => Self { path: format!("{}/{session}", self.path), session: None },
            CgroupLayout::V1 => Self { path: self.path.clone(), session: Some(session) },
        };
        let dir = match layout.kind {
            CgroupLayout::V2 => group.directories().remove(0),
            CgroupLayout::V1 => match layout.v1("freezer") {
                Some(freezer) => group.below(freezer),
                None => return Ok(Self { path: self.path.clone(), session: None }),
            },
        };
        std::fs::create_dir(&dir)
            .map_err(|e| Error::sys("make exec cgroup", dir.display().to_string(), e))?;
        Ok(group)
    }

    /// Changes limits of a live group; all-or-nothing (CRI-UPD-01): on error the former values are back.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        make::update(Layout::get(), &self.path, resources)
    }

    pub fn stats(&self) -> Result<Stats> {
        let layout = Layout::get();
        if !self.directories().iter().any(|d| d.is_dir()) {
            return Err(Error::new(Kind::NotFound, "read cgroup statistics", self.path()));
        }
        Ok(match layout.kind {
            CgroupLayout::V1 => stats::v1(|controller| layout.v1(controller).map(|h| self.below(h))),
            CgroupLayout::V2 => stats::v2(&self.directories().remove(0)),
        })
    }

    /// True if the OOM killer ended a process of this group or below: memory.oom_control / memory.events.
    /// Read it before the group is removed. False where memory is not accounted.
    pub fn oom_killed(&self) -> Result<bool> {
        let layout = Layout::get();
        Ok(match layout.kind {
            CgroupLayout::V1 => layout.v1("memory").is_some_and(|h| stats::oom_kills_v1(&self.below(h)) > 0),
            CgroupLayout::V2 => stats::oom_kills_v2(&self.directories().remove(0)) > 0,
        })
    }

    /// All processes, host pids, of this group and the groups below.
    pub fn pids(&self) -> Result<Vec<i32>> {
        Ok(kill::pids_below(&self.tree()))
    }

    /// Stops or continues every process of the group (cgroup.freeze; freezer.state).
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        match Layout::get().kind {
            CgroupLayout::V2 => write(&self.tree(), "cgroup.freeze", if frozen { "1" } else { "0" }),
            CgroupLayout::V1 if Layout::get().v1("freezer").is_none() => {
                Err(Error::new(Kind::Unsupported, "freeze", self.path())
                    .hint("this host has no freezer controller"))
            }
            CgroupLayout::V1 => kill::freeze_v1(&self.tree(), frozen),
        }
    }

    /// True while the group is frozen.
    pub fn is_frozen(&self) -> bool {
        let (file, word) = match Layout::get().kind {
            CgroupLayout::V1 => ("freezer.state", "FROZEN"),
            CgroupLayout::V2 => ("cgroup.freeze", "1"),
        };
        read(&self.tree(), file).is_ok_and(|state| state == word)
    }

    /// SIGKILL to every process in it and below: cgroup.kill on version 2, freeze and kill and thaw on version 1.
    /// Returns when the signals are sent, not when the processes are gone. A missing group is success.
    pub fn kill_all(&self) -> Result<()> {
        let dir = self.tree();
        if !dir.is_dir() {
            return Ok(());
        }
        match Layout::get().kind {
            CgroupLayout::V2 => kill::v2(&dir),
            CgroupLayout::V1 => kill::v1(&dir, Layout::get().v1("freezer").is_some()),
        }
    }

    /// Removes the group and the groups below; waits up to `patience` for the last zombies to leave it.
    /// Missing is success. Parents made by [`Cgroup::create`] are left for their owner ([`Cgroup::remove_if_empty`]).
    pub fn remove(self, patience: Duration) -> Result<()> {
        let deadline = std::time::Instant::now() + patience;
        let dirs = match &self.session {
            Some(_) => vec![self.tree()],
            None => self.directories(),
        };
        dirs.iter().try_for_each(|dir| kill::remove_tree(dir, deadline))
    }

    /// Removes a parent group that is ours and holds neither processes nor groups; anything else is left alone.
    pub fn remove_if_empty(path: &str) -> Result<()> {
        let group = Self { path: normal(path)?, session: None };
        for dir in group.directories() {
            match std::fs::remove_dir(&dir) {
                Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EBUSY | libc::ENOTEMPTY)) => {
                    return Err(Error::sys("remove cgroup", dir.display().to_string(), e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The group's directory in every hierarchy that may have one.
    fn directories(&self) -> Vec<PathBuf> {
        let layout = Layout::get();
        layout.hierarchies.iter().chain(&layout.unified).map(|h| self.below(h)).collect()
    }

    /// The group's directory in one hierarchy; a session has one of its own only in the freezer.
    fn below(&self, hierarchy: &layout::Hierarchy) -> PathBuf {
        let own = hierarchy.mount.join(self.path.trim_start_matches('/'));
        match &self.session {
            Some(session) if hierarchy.has("freezer") => own.join(session),
            _ => own,
        }
    }

    /// The directory whose processes are exactly the group's: the one place to freeze, list and kill.
    fn tree(&self) -> PathBuf {
        let layout = Layout::get();
        let hierarchy = layout.v1("freezer").or_else(|| layout.hierarchies.first());
        hierarchy.map_or_else(PathBuf::new, |h| self.below(h))
    }
}

/// Absolute, without `.`, `..` or empty parts; not the root itself.
fn normal(path: &str) -> Result<String> {
    if path.matches(':').count() == 2 && !path.starts_with('/') {
        return Err(Error::new(Kind::Unsupported, "cgroup path", path)
            .hint("this is the systemd driver's form slice:prefix:name; use the cgroupfs driver for now"));
    }
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(Error::new(Kind::Invalid, "cgroup path", format!("{path:?}"))
            .hint("give a path below the hierarchy's root, without '..'"));
    }
    Ok(format!("/{}", parts.join("/")))
}
