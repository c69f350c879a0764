//! Control groups, versions 1 (also hybrid) and 2, cgroupfs driver: make, limit, join, read, kill, remove.
//!
//! Polls nothing in the background; never touches a group it did not make or was not given, except that version 2
//! controllers are enabled in the groups above, and empty version 1 cpusets above are filled (see `tree`).
//!
//! ```text
//!  LinuxResources ──check──▶ ──v1 | v2──▶ Change ──apply──▶ control files       tree: directories
//!                   (refuse)    (pure)                                          freeze, stats: live groups
//! ```
//!
//! Of cgroups-rs 0.5.1 we use, on version 1, `FreezerController`, `PidController` and the reader of device lists. The rest is
//! ours, because there: limits written by `Cgroup::apply` cannot be undone as a whole and are read back after each
//! write; a group is made in all hierarchies or none with cpusets filled for every group on the way each time; nothing
//! removes what was made when a step fails; version 2 has no device rules and drops `unified`; a read that fails counts
//! as 0 (see `stats`). What its code does right is not written again.

mod apply;
mod check;
mod devices;
mod files;
mod freeze;
mod layout;
mod limits;
mod stats;
mod tree;
mod v1;
mod v2;

use crate::error::Kind;
use crate::{Error, Result};
use apply::Change;
use layout::{Hierarchy, Layout, WANTED};
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tree::Made;

/// One container's control group: a directory per version 1 hierarchy, or one directory on version 2.
///
/// [`Cgroup::path`] is all that [`Cgroup::open`] needs, so that it can be kept in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
    /// Version 1, exec sessions only: the container's group, which is the session's in all hierarchies but the freezer.
    base: Option<String>,
    /// Hybrid hosts: there is a directory on the version 2 mount, too (for huge pages).
    unified: bool,
}

/// How a child about to exec enters the group (DESIGN 1A and ANCHORS: as late and as cheaply as possible).
#[derive(Debug)]
pub enum Join {
    /// Version 2: the directory descriptor for clone3 with CLONE_INTO_CGROUP.
    CloneInto(OwnedFd),
    /// Version 1: descriptors of the `tasks` files (O_WRONLY|O_CLOEXEC); the single-threaded child writes `0`
    /// to each, which costs microseconds where `cgroup.procs` waits for an RCU grace period. (Of a hybrid host's group
    /// with huge page limits the last one is a `cgroup.procs`; `0` does there, too, but costs that wait.)
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
    /// On error nothing that this call made is left.
    ///
    /// Device rules, if there are any, start from "nothing is allowed"; no rules means no restriction.
    ///
    /// # Errors
    /// `Exists` if the leaf exists and holds processes or groups; `Invalid` for a path or limit that cannot be meant;
    /// `Unsupported` for a systemd path, and for limits this host has no controller for.
    pub fn create(path: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        let path = checked_path(path)?;
        let layout = Layout::get()?;
        let change = resources.map(|r| Change::plan(layout, r, None)).transpose()?.unwrap_or_default();
        let unified = resources.is_some_and(|r| apply::needs_unified(layout, r));
        for limit in &change.limits {
            apply::place(layout, &path, limit)?;
        }
        let mut made = Made::default();
        match layout {
            Layout::V1 { hierarchies, unified: beside } => {
                for hierarchy in hierarchies {
                    make_v1(hierarchy, &path, &change, &mut made)?;
                }
                if let Some(beside) = beside.as_ref().filter(|_| unified) {
                    tree::make(beside, &path, &mut made)?;
                    tree::enable(beside, &path, &["hugetlb"], &["hugetlb".to_owned()])?;
                }
            }
            Layout::V2(hierarchy) => {
                tree::make(hierarchy, &path, &mut made)?;
                let required = change.controllers();
                let extra = required.iter().map(String::as_str).filter(|c| !WANTED.contains(c));
                let wanted: Vec<&str> =
                    WANTED.into_iter().chain(extra).filter(|c| hierarchy.has(c)).collect();
                tree::enable(hierarchy, &path, &wanted, &required)?;
            }
        }
        apply::fresh(layout, &path, &change)?;
        made.keep();
        Ok(Self { path, base: None, unified })
    }

    /// Finds a group made earlier, e.g. after a restart. What is left of a half-removed group is found, too.
    ///
    /// # Errors
    /// `NotFound` if no hierarchy has it.
    pub fn open(path: &str) -> Result<Self> {
        let path = checked_path(path)?;
        let layout = Layout::get()?;
        let there = |h: &Hierarchy, path: &str| std::fs::metadata(h.dir(path)).is_ok_and(|m| m.is_dir());
        let held: Vec<&Hierarchy> = layout.all().filter(|h| there(h, &path)).collect();
        if held.is_empty() {
            return Err(Error::new(Kind::NotFound, "open control group", path)
                .hint("it was removed, or made on another host; see the container's cgroupsPath"));
        }
        let Layout::V1 { unified, .. } = layout else {
            return Ok(Self { path, base: None, unified: false });
        };
        let parent = path.rfind('/').map(|at| &path[..at]).filter(|p| !p.is_empty());
        // Below a container's group and in the freezer hierarchy alone: an exec session.
        let alone = held.len() == 1 && layout.freezer().is_some_and(|freezer| held[0] == freezer);
        let base = parent
            .filter(|parent| alone && layout.all().any(|h| Some(h) != layout.freezer() && there(h, parent)));
        let base = base.map(str::to_owned);
        let home = base.as_deref().unwrap_or(&path);
        let unified = unified.as_ref().is_some_and(|u| there(u, home));
        Ok(Self { base, unified, path })
    }

    /// Relative to the hierarchy's root, as [`Cgroup::open`] takes it.
    pub fn path(&self) -> String {
        self.path.clone()
    }

    /// What the launcher needs so that the child enters this group.
    pub fn join(&self) -> Result<Join> {
        let layout = Layout::get()?;
        let open = |path: String, flags: OFlags| {
            rustix::fs::open(&*path, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|e| Error::sys("open control group to join", path, e))
        };
        match layout {
            Layout::V2(h) => {
                open(self.dir(layout, h), OFlags::RDONLY | OFlags::DIRECTORY).map(Join::CloneInto)
            }
            Layout::V1 { hierarchies, unified } => {
                let tasks = hierarchies.iter().map(|h| format!("{}/tasks", self.dir(layout, h)));
                let beside = unified.iter().filter(|_| self.unified);
                let procs = beside.map(|h| format!("{}/cgroup.procs", self.dir(layout, h)));
                let files = tasks.chain(procs).map(|path| open(path, OFlags::WRONLY));
                files.collect::<Result<_>>().map(Join::WriteTasks)
            }
        }
    }

    /// Moves this process, with all its threads, into the group.
    pub fn enter(&self) -> Result<()> {
        self.take("0")
    }

    /// Moves another process, with all its threads, into the group.
    pub fn admit(&self, pid: u32) -> Result<()> {
        self.take(&pid.to_string())
    }

    fn take(&self, process: &str) -> Result<()> {
        let layout = Layout::get()?;
        for hierarchy in layout.all() {
            let file = format!("{}/cgroup.procs", self.dir(layout, hierarchy));
            match files::write(&file, process) {
                // A hybrid host's version 2 mount, where the group need not be.
                Err(error) if files::absent(&error) && matches!(layout, Layout::V1 { .. }) => {}
                result => result.map_err(|e| Error::sys("enter control group", file, e))?,
            }
        }
        Ok(())
    }

    /// A child group `exec-<name>` for one exec session, so that the whole subtree of the session can be killed
    /// (on version 1 it exists in one hierarchy only, and joins the container's own groups in all others).
    ///
    /// # Errors
    /// `Invalid` if `name` is no single path component, `Exists` if a session of that name is there.
    pub fn exec_group(&self, name: &str) -> Result<Self> {
        let fits = !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\n', '\0']);
        if !fits {
            return Err(Error::new(Kind::Invalid, "make exec group", format!("name {name:?}"))
                .hint("must be one path component of at most 250 bytes"));
        }
        let layout = Layout::get()?;
        let path = format!("{}/exec-{name}", self.path);
        let mut made = Made::default();
        let (hierarchy, base) = match layout {
            Layout::V2(unified) => (unified, None),
            Layout::V1 { hierarchies, .. } => {
                // `get` refuses a version 1 layout without hierarchies, so there is always one to name.
                let Some(freezer) = layout.freezer().or(hierarchies.first()) else {
                    return Err(Error::new(Kind::Unsupported, "make exec group", path));
                };
                (freezer, Some(self.base.clone().unwrap_or_else(|| self.path.clone())))
            }
        };
        stats::must_exist(self, &hierarchy.dir(&self.path))?;
        if !tree::make(hierarchy, &path, &mut made)? {
            return Err(
                Error::new(Kind::Exists, "make exec group", path).hint("an exec of this id is still there")
            );
        }
        made.keep();
        Ok(Self { path, base, unified: self.unified })
    }

    /// Changes limits of a live group; all-or-nothing (CRI-UPD-01): on error the former values are back.
    /// Zero-valued fields leave things as they are (CRI-UPD-03).
    ///
    /// # Errors
    /// As [`Cgroup::create`]; `State` when more memory is in use than a new limit allows (CRI-UPD-05).
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let layout = Layout::get()?;
        let change = Change::plan(layout, resources, Some(&apply::now(layout, &self.path)))?;
        apply::check_usage(layout, &self.path, resources)?;
        if apply::needs_unified(layout, resources) && !self.unified {
            return Err(Error::new(Kind::Unsupported, "set hugetlb limit", &*self.path).hint(
                "this group was made without huge page limits, so its processes are not where hugetlb is on this host; \
                 make the container again with one",
            ));
        }
        apply::live(layout, &self.path, &change)
    }

    /// # Errors
    /// `NotFound` if the group has been removed.
    pub fn stats(&self) -> Result<Stats> {
        let layout = Layout::get()?;
        if let Layout::V2(hierarchy) = layout {
            let dir = hierarchy.dir(&self.path);
            stats::must_exist(self, &dir)?;
            return stats::v2(&dir);
        }
        let dir = |controller| layout.v1(controller).map(|h| self.dir(layout, h));
        let (memory, pids) = (dir("memory"), dir("pids"));
        if let Some(some) = memory.as_ref().or(pids.as_ref()) {
            stats::must_exist(self, some)?;
        }
        stats::v1(&stats::Dirs { cpu: dir("cpu"), cpuacct: dir("cpuacct"), memory, pids })
    }

    /// True if the OOM killer ended a process of this group or below: memory.oom_control / memory.events.
    /// Read it before the group is removed.
    pub fn oom_killed(&self) -> Result<bool> {
        let layout = Layout::get()?;
        let kills = match layout {
            Layout::V2(hierarchy) => stats::oom_kills_v2(&hierarchy.dir(&self.path))?,
            Layout::V1 { .. } => match layout.v1("memory") {
                Some(hierarchy) => stats::oom_kills_v1(&self.dir(layout, hierarchy))?,
                None => 0,
            },
        };
        Ok(kills > 0)
    }

    /// All processes, host pids, of this group and the groups below.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let dir = self.main_dir()?;
        tree::pids(&dir).map_err(|e| Error::sys("list processes of control group", dir, e))
    }

    /// Stops all processes of the group and below where they are, or lets them go on.
    ///
    /// # Errors
    /// `State` if a process did not stop within two seconds; the group is then thawed again.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let layout = Layout::get()?;
        match layout {
            Layout::V2(hierarchy) => freeze::set_v2(&hierarchy.dir(&self.path), frozen),
            Layout::V1 { .. } => match layout.v1("freezer") {
                Some(hierarchy) => freeze::set_v1(&hierarchy.dir(&self.path), frozen),
                None => Err(Error::new(Kind::Unsupported, "freeze control group", &*self.path)
                    .hint("the freezer controller of version 1 is not mounted on this host")),
            },
        }
    }

    /// True while the group is frozen as a whole, by itself or by a group above.
    pub fn is_frozen(&self) -> bool {
        let Ok(dir) = self.main_dir() else { return false };
        match Layout::get() {
            Ok(Layout::V2(_)) => files::read(&format!("{dir}/cgroup.events"))
                .is_ok_and(|t| files::keyed(&t, "frozen") == Some(1)),
            _ => files::read(&format!("{dir}/freezer.state")).is_ok_and(|t| t.trim_end() == "FROZEN"),
        }
    }

    /// SIGKILL to every process in it and below: cgroup.kill on version 2, freeze and kill and thaw on version 1.
    /// Does not wait for them to be gone. A group that has gone is success.
    pub fn kill_all(&self) -> Result<()> {
        let dir = self.main_dir()?;
        let done = match Layout::get()? {
            Layout::V2(_) => freeze::kill_v2(&dir),
            Layout::V1 { .. } => freeze::kill_v1(&dir),
        };
        done.or_else(|error| if error.kind() == Kind::NotFound { Ok(()) } else { Err(error) })
    }

    /// Removes the group and the groups below; waits up to `patience` for the last zombies to leave it.
    /// Missing is success. Parents made by [`Cgroup::create`] that are now empty are left for their owner.
    ///
    /// # Errors
    /// `State` if processes are still there after `patience`, naming them; call it again on [`Cgroup::open`].
    // Taking `self` is the point: a removed group cannot be used.
    #[allow(clippy::needless_pass_by_value)]
    pub fn remove(self, patience: Duration) -> Result<()> {
        let layout = Layout::get()?;
        let deadline = Instant::now() + patience;
        let mut first = Ok(());
        for hierarchy in layout.all() {
            if self.base.is_some() && Some(hierarchy) != layout.freezer() {
                continue;
            }
            // One hierarchy that is in use keeps none of the others from being removed.
            let removed = tree::remove(&hierarchy.dir(&self.path), deadline);
            first = first.and(removed);
        }
        first
    }

    /// Removes a group that nobody uses any more, such as a pod's group that [`Cgroup::create`] made on the way to a
    /// container's. Missing is success; one that holds processes or groups is left as it is, in all hierarchies.
    pub fn remove_if_empty(path: &str) -> Result<()> {
        let path = checked_path(path)?;
        let dirs: Vec<String> = Layout::get()?.all().map(|h| h.dir(&path)).collect();
        for dir in &dirs {
            match tree::is_used(dir) {
                Ok(true) => return Ok(()),
                Err(e) if !files::absent(&e) => return Err(Error::sys("read control group", &**dir, e)),
                _ => {}
            }
        }
        for dir in &dirs {
            match std::fs::remove_dir(dir) {
                // Somebody came in between: it is theirs now.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                Err(e) if !files::absent(&e) => return Err(Error::sys("remove control group", &**dir, e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The directory that governs a process of this group in `hierarchy`.
    fn dir(&self, layout: &Layout, hierarchy: &Hierarchy) -> String {
        let elsewhere = self.base.as_deref().filter(|_| Some(hierarchy) != layout.freezer());
        hierarchy.dir(elsewhere.unwrap_or(&self.path))
    }

    /// The directory in which processes are listed, frozen and killed.
    pub fn main_dir(&self) -> Result<String> {
        let layout = Layout::get()?;
        let hierarchy = match layout {
            Layout::V2(hierarchy) => Some(hierarchy),
            Layout::V1 { .. } => layout.freezer(),
        };
        hierarchy.map(|h| h.dir(&self.path)).ok_or_else(|| {
            Error::new(Kind::Unsupported, "find control group", &*self.path)
                .hint("no hierarchy of version 1 is mounted")
        })
    }
}

/// Makes `path` in one version 1 hierarchy, ready to be entered.
fn make_v1(hierarchy: &Hierarchy, path: &str, change: &Change, made: &mut Made) -> Result<()> {
    tree::make(hierarchy, path, made)?;
    if !hierarchy.has("cpuset") {
        return Ok(());
    }
    for list in ["cpuset.cpus", "cpuset.mems"] {
        // The parent must own what the limit will name; the leaf itself needs it only where no limit comes.
        let parent = path.rfind('/').map_or("", |at| &path[..at]);
        tree::inherit_cpuset(hierarchy, if change.sets(list) { parent } else { path }, list)?;
    }
    Ok(())
}

/// The path with single slashes and none at the end.
fn checked_path(path: &str) -> Result<String> {
    if path.split(':').count() == 3 && !path.starts_with('/') {
        return Err(Error::new(Kind::Unsupported, "read control group path", path)
            .hint("slice:prefix:name is for the systemd driver, which this version does not have; use the cgroupfs driver"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain =
        |part: &&str| *part != "." && *part != ".." && !part.contains(['\n', '\0']) && part.len() <= 255;
    if !path.starts_with('/') || parts.is_empty() || !parts.iter().all(plain) {
        return Err(Error::new(Kind::Invalid, "read control group path", format!("{path:?}")).hint(
            "must be absolute below the hierarchy's root, such as /kubepods/pod1/c1, without . or ..",
        ));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(checked_path("//kubepods/pod1//c/").unwrap(), "/kubepods/pod1/c");
        for bad in ["", "/", "a/b", "/a/../b", "/a/./b", "/a\n", "/a\0"] {
            assert_eq!(checked_path(bad).unwrap_err().kind(), Kind::Invalid, "{bad:?}");
        }
        let error = checked_path("system.slice:slipway:c1").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }
}
