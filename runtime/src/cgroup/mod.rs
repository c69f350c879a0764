//! Control groups, versions 1 (also hybrid) and 2, cgroupfs and systemd drivers: make, limit, join, read, kill, remove.
//!
//! Polls nothing in the background; never touches a group it did not make or was not given, except that version 2
//! controllers are enabled in the groups above, and empty version 1 cpusets above are filled (see `tree`).
//!
//! ```text
//!  LinuxResources ──check──▶ ──v1 | v2──▶ Change ──apply──▶ control files       tree: directories
//!                   (refuse)    (pure)                       └─ systemd         freeze, stats: live groups
//! ```
//!
//! Of cgroups-rs 0.5.1 we use, on version 1, `FreezerController`, `PidController` and the reader of device lists. The rest is
//! ours, because there: limits written by `Cgroup::apply` cannot be undone as a whole and are read back after each
//! write; a group is made in all hierarchies or none with cpusets filled for every group on the way each time; nothing
//! removes what was made when a step fails; version 2 has no device rules and drops `unified`; a read that fails counts
//! as 0 (see `stats`). What its code does right is not written again.

mod apart;
mod apply;
mod check;
mod delegate;
mod devices;
mod explain;
mod files;
mod freeze;
mod layout;
mod limits;
mod name;
mod oom;
mod stats;
mod systemd;
mod tree;
mod v1;
mod v2;

pub use apart::Apart;
pub use oom::{Oom, OomBefore, OomLevel};
pub use stats::{HugetlbStats, IoStats, MemoryEvents, Pressure, Stalled, Stats};

use crate::error::Kind;
use crate::{Error, Result};
use apply::Change;
use layout::{Hierarchy, Layout, WANTED};
use name::{Name, parent};
use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use systemd::Holder;
use tree::Made;

/// One container's control group: a directory per version 1 hierarchy, or one directory on version 2.
///
/// [`Cgroup::path`] is all that [`Cgroup::open`] needs, so that it can be kept in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    name: Name,
    /// Version 1, exec sessions only: the container's group, which is the session's in all hierarchies but the freezer.
    base: Option<String>,
    /// Hybrid hosts: there is a directory on the version 2 mount, too (for huge pages).
    unified: bool,
    /// systemd driver: keeps a new scope alive; see [`Cgroup::joined`].
    holder: Option<Holder>,
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

/// True where groups should be made by systemd: it is the init of this host and manages version 2 alone, as the kubelet and
/// containerd decide, too.
pub fn prefers_systemd() -> bool {
    systemd::is_running() && matches!(Layout::get(), Ok(Layout::V2(_)))
}

impl Cgroup {
    /// Makes the group at `path`, with every limit of `resources` already written, and nobody in it. `path` is relative to
    /// the hierarchy's root, such as `/kubepods/pod1/<id>`, or a systemd scope, `slice:prefix:name`: then systemd makes
    /// it, knows its limits too, and [`Cgroup::joined`] must be called once a process is in it.
    ///
    /// Controllers absent on this host are skipped only when nothing was asked of them; a limit that cannot be applied is
    /// an error naming controller, file and value. On error nothing that this call made is left.
    ///
    /// Device rules, if there are any, start from "nothing is allowed"; no rules means no restriction.
    ///
    /// # Errors
    /// `Exists` if the leaf exists and holds processes or groups; `Invalid` for a path or limit that cannot be meant;
    /// `Unsupported` for limits this host has no controller for, and for a scope where systemd does not run.
    pub fn create(path: &str, resources: Option<&LinuxResources>) -> Result<Self> {
        let name = Name::parse(path)?;
        let layout = Layout::get()?;
        let change = resources.map(|r| Change::plan(layout, r, None)).transpose()?.unwrap_or_default();
        let unified = resources.is_some_and(|r| apply::needs_unified(layout, r));
        for limit in &change.limits {
            apply::place(layout, &name.dir, limit)?;
        }
        if let Some(scope) = name.scope.clone() {
            systemd::must_run(layout, path)?;
            let holder = Some(systemd::start(&scope, &change)?);
            let group = Self { name, base: None, unified: false, holder };
            let limited = group.limit_scope(layout, &change);
            return limited.map(|()| group).inspect_err(|_| drop(systemd::stop(&scope.unit)));
        }
        let mut made = Made::default();
        match layout {
            Layout::V1 { hierarchies, unified: beside } => {
                for hierarchy in hierarchies {
                    make_v1(hierarchy, &name.dir, &change, &mut made)?;
                }
                if let Some(beside) = beside.as_ref().filter(|_| unified) {
                    tree::make(beside, &name.dir, &mut made)?;
                    tree::enable(beside, &name.dir, &["hugetlb"], &["hugetlb".to_owned()])?;
                }
            }
            Layout::V2(hierarchy) => {
                tree::make(hierarchy, &name.dir, &mut made)?;
                enable_v2(hierarchy, &name.dir, &change)?;
            }
        }
        apply::fresh(layout, &name.dir, &change)?;
        made.keep();
        Ok(Self { name, base: None, unified, holder: None })
    }

    /// What systemd has no property for, or holds less exactly, in a scope that it has just started.
    fn limit_scope(&self, layout: &Layout, change: &Change) -> Result<()> {
        if let Layout::V2(hierarchy) = layout {
            enable_v2(hierarchy, &self.name.dir, change)?;
        }
        apply::fresh(layout, &self.name.dir, change)
    }

    /// Says that the container's own process is in the group: what kept it alive until then leaves.
    pub fn joined(&mut self) {
        self.holder = None;
    }

    /// Finds a group made earlier, e.g. after a restart. What is left of a half-removed group is found, too.
    ///
    /// # Errors
    /// `NotFound` if no hierarchy has it.
    pub fn open(path: &str) -> Result<Self> {
        let name = Name::parse(path)?;
        let layout = Layout::get()?;
        let there = |h: &Hierarchy, path: &str| std::fs::metadata(h.dir(path)).is_ok_and(|m| m.is_dir());
        let held: Vec<&Hierarchy> = layout.all().filter(|h| there(h, &name.dir)).collect();
        if held.is_empty() {
            return Err(Error::new(Kind::NotFound, "open control group", name.text)
                .hint("it was removed, or made on another host; see the container's cgroupsPath"));
        }
        let Layout::V1 { unified, .. } = layout else {
            return Ok(Self { name, base: None, unified: false, holder: None });
        };
        // Below a container's group and in the freezer hierarchy alone: an exec session.
        let alone = held.len() == 1 && layout.freezer().is_some_and(|freezer| held[0] == freezer);
        let base = parent(&name.dir)
            .filter(|parent| alone && layout.all().any(|h| Some(h) != layout.freezer() && there(h, parent)));
        let base = base.map(str::to_owned);
        let home = base.as_deref().unwrap_or(&name.dir);
        let unified = unified.as_ref().is_some_and(|u| there(u, home));
        Ok(Self { base, unified, name, holder: None })
    }

    /// What stands for the group of a container that has none and stays in its maker's: nobody is in it, it has no limits, and
    /// whoever joins it stays where it is.
    #[must_use]
    pub fn none() -> Self {
        Self { name: Name::none(), base: None, unified: false, holder: None }
    }

    /// True of [`Cgroup::none`].
    pub fn is_none(&self) -> bool {
        self.name.text.is_empty()
    }

    /// The group of that name, whether it is there or not (any more); for one that was made whole.
    ///
    /// # Errors
    /// `Invalid` for what is neither a path nor a scope.
    pub fn named(path: &str) -> Result<Self> {
        Ok(Self { name: Name::parse(path)?, base: None, unified: false, holder: None })
    }

    /// As [`Cgroup::open`] takes it: a path relative to the hierarchy's root, or a scope.
    pub fn path(&self) -> String {
        self.name.text.clone()
    }

    /// True if `path`, as [`OomLevel::Above`] names it, is the group this one was made in.
    pub fn is_directly_below(&self, path: &str) -> bool {
        parent(self.governing_dir()) == Some(path)
    }

    /// What the launcher needs so that the child enters this group.
    pub fn join(&self) -> Result<Join> {
        if self.is_none() {
            return Ok(Join::WriteTasks(Vec::new()));
        }
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
        let name = self.name.child(&format!("exec-{name}"));
        let mut made = Made::default();
        let (hierarchy, base) = match layout {
            Layout::V2(unified) => (unified, None),
            Layout::V1 { hierarchies, .. } => {
                // `get` refuses a version 1 layout without hierarchies, so there is always one to name.
                let Some(freezer) = layout.freezer().or(hierarchies.first()) else {
                    return Err(Error::new(Kind::Unsupported, "make exec group", name.text));
                };
                (freezer, Some(self.base.clone().unwrap_or_else(|| self.name.dir.clone())))
            }
        };
        stats::must_exist(self, &hierarchy.dir(&self.name.dir))?;
        if !tree::make(hierarchy, &name.dir, &mut made)? {
            return Err(Error::new(Kind::Exists, "make exec group", name.text)
                .hint("an exec of this id is still there"));
        }
        made.keep();
        Ok(Self { name, base, unified: self.unified, holder: None })
    }

    /// Changes limits of a live group; all-or-nothing (CRI-UPD-01): on error the former values are back.
    /// Zero-valued fields leave things as they are (CRI-UPD-03).
    ///
    /// # Errors
    /// As [`Cgroup::create`]; `State` when more memory is in use than a new limit allows (CRI-UPD-05).
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        let layout = Layout::get()?;
        let change = Change::plan(layout, resources, Some(&apply::now(layout, &self.name.dir)))?;
        apply::check_usage(layout, &self.name.dir, resources)?;
        if apply::needs_unified(layout, resources) && !self.unified {
            return Err(Error::new(Kind::Unsupported, "set hugetlb limit", &*self.name.text).hint(
                "this group was made without huge page limits, so its processes are not where hugetlb is on this host; \
                 make the container again with one",
            ));
        }
        let told = match &self.name.scope {
            Some(scope) => systemd::update(&scope.unit, &change)?,
            None => None,
        };
        apply::live(layout, &self.name.dir, &change).map_err(|error| {
            match told.map(systemd::Former::restore) {
                Some(Err(stuck)) => error.hint(format!("and systemd keeps the new values: {stuck}")),
                _ => error,
            }
        })
    }

    /// All figures the kernel has for this group and those below it.
    ///
    /// # Errors
    /// `NotFound` if the group has been removed.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(Layout::get()?, self)
    }

    /// What the OOM killer did here, and whose limit ran out; None if nothing. Read it before the group is removed.
    ///
    /// # Errors
    /// `NotFound` if it has gone: a systemd scope goes with its last process.
    pub fn oom(&self) -> Result<Option<Oom>> {
        oom::read(Layout::get()?, self)
    }

    /// What to keep of a new group for [`Cgroup::oom_since`]; None where [`Cgroup::oom`] can always be asked.
    ///
    /// # Errors
    /// `Kernel` if the accounting of the group above cannot be read.
    pub fn oom_before(&self) -> Result<Option<OomBefore>> {
        oom::before(Layout::get()?, self)
    }

    /// As [`Cgroup::oom`], for a scope that has gone before it was asked, by what its slice counted meanwhile. For a process
    /// that was killed: kills of the slice's other scopes are in there, too, and cannot be told apart.
    ///
    /// # Errors
    /// `Kernel` if the accounting of the group above cannot be read.
    pub fn oom_since(&self, before: &OomBefore) -> Result<Option<Oom>> {
        oom::since(Layout::get()?, self, before)
    }

    /// Lets a user have the group, to make groups below it and to move processes among them (OCI config-linux.md, "Cgroup
    /// ownership"). Its limits stay whose they are. Version 2 only: on version 1 this would not be safe, and does nothing.
    ///
    /// # Errors
    /// `Kernel` naming the file.
    pub fn give_to(&self, uid: u32) -> Result<()> {
        delegate::give(Layout::get()?, self, uid)
    }

    /// True if the OOM killer ended a process of this group or below.
    pub fn oom_killed(&self) -> Result<bool> {
        Ok(self.oom()?.is_some())
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
            Layout::V2(hierarchy) => freeze::set_v2(&hierarchy.dir(&self.name.dir), frozen),
            Layout::V1 { .. } => match layout.v1("freezer") {
                Some(hierarchy) => freeze::set_v1(&hierarchy.dir(&self.name.dir), frozen),
                None => Err(Error::new(Kind::Unsupported, "freeze control group", &*self.name.text)
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
    pub fn remove(mut self, patience: Duration) -> Result<()> {
        let layout = Layout::get()?;
        let deadline = Instant::now() + patience;
        self.joined();
        if let Some(scope) = &self.name.scope {
            // Not with processes in it: systemd would kill them, and wait for them.
            tree::vacate(&self.main_dir()?, deadline)?;
            systemd::stop(&scope.unit)?;
        }
        let mut first = Ok(());
        for hierarchy in layout.all() {
            if self.base.is_some() && Some(hierarchy) != layout.freezer() {
                continue;
            }
            // One hierarchy that is in use keeps none of the others from being removed.
            let removed = tree::remove(&hierarchy.dir(&self.name.dir), deadline);
            first = first.and(removed);
        }
        if let Layout::V1 { unified: Some(beside), .. } = layout
            && self.base.is_none()
        {
            first = first.and(apart::sweep(beside, &self.name, deadline));
        }
        first
    }

    /// [`Cgroup::remove`] for a group by its path, of which somebody else may have removed a part: a kubelet that tidies up
    /// a pod's groups leaves the hierarchy of version 2 on a hybrid host.
    ///
    /// # Errors
    /// Those of [`Cgroup::open`] but `NotFound`, and of [`Cgroup::remove`].
    pub fn remove_at(path: &str, patience: Duration) -> Result<()> {
        match Self::open(path) {
            Err(error) if error.kind() == Kind::NotFound => {
                let rest = Self::named(path)?;
                // A scope that has gone is gone everywhere.
                if rest.name.scope.is_some() { Ok(()) } else { rest.remove(patience) }
            }
            group => group?.remove(patience),
        }
    }

    /// Removes a group that nobody uses any more, such as a pod's group that [`Cgroup::create`] made on the way to a
    /// container's. Missing is success; one that holds processes or groups is left as it is, in all hierarchies.
    pub fn remove_if_empty(path: &str) -> Result<()> {
        let path = Name::parse(path)?.dir;
        let dirs: Vec<String> = Layout::get()?.all().map(|h| h.dir(&path)).collect();
        for dir in &dirs {
            match tree::is_used(dir) {
                Ok(true) => return Ok(()),
                Err(e) if !files::absent(&e) => return Err(Error::sys("read control group", &**dir, e)),
                _ => {}
            }
        }
        if let Some(slice) =
            path.rsplit('/').next().filter(|leaf| leaf.ends_with(".slice") && prefers_systemd())
        {
            systemd::stop(slice)?;
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
        hierarchy.dir(elsewhere.unwrap_or(&self.name.dir))
    }

    /// The path of the group whose limits count for this one: an exec session of version 1 has none of its own.
    fn governing_dir(&self) -> &str {
        self.base.as_deref().unwrap_or(&self.name.dir)
    }

    /// Removes the groups that [`Cgroup::exec_group`] made below this one, in which nothing is left; those of sessions that
    /// `is_live` knows by name stay. Whether any other is left.
    ///
    /// # Errors
    /// If the group itself cannot be read.
    pub fn sweep_exec_groups(&self, is_live: impl Fn(&str) -> bool) -> Result<bool> {
        let dir = self.main_dir()?;
        let entries = std::fs::read_dir(&dir).map_err(|e| Error::sys("read control group", &*dir, e))?;
        let mut left = false;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(session) = name.to_str().and_then(|name| name.strip_prefix("exec-")) else { continue };
            // Held by a process, or being made.
            left |= !is_live(session) && std::fs::remove_dir(entry.path()).is_err();
        }
        Ok(left)
    }

    /// The directory in which processes are listed, frozen and killed.
    pub fn main_dir(&self) -> Result<String> {
        let layout = Layout::get()?;
        let hierarchy = match layout {
            Layout::V2(hierarchy) => Some(hierarchy),
            Layout::V1 { .. } => layout.freezer(),
        };
        hierarchy.map(|h| h.dir(&self.name.dir)).ok_or_else(|| {
            Error::new(Kind::Unsupported, "find control group", &*self.name.text)
                .hint("no hierarchy of version 1 is mounted")
        })
    }
}

/// Makes the controllers that limits and statistics need available in a version 2 group.
fn enable_v2(hierarchy: &Hierarchy, dir: &str, change: &Change) -> Result<()> {
    let required = change.controllers();
    let extra = required.iter().map(String::as_str).filter(|c| !WANTED.contains(c));
    let wanted: Vec<&str> = WANTED.into_iter().chain(extra).filter(|c| hierarchy.has(c)).collect();
    tree::enable(hierarchy, dir, &wanted, &required)
}

/// Makes `path` in one version 1 hierarchy, ready to be entered.
fn make_v1(hierarchy: &Hierarchy, path: &str, change: &Change, made: &mut Made) -> Result<()> {
    tree::make(hierarchy, path, made)?;
    if !hierarchy.has("cpuset") {
        return Ok(());
    }
    for list in ["cpuset.cpus", "cpuset.mems"] {
        // The parent must own what the limit will name; the leaf itself needs it only where no limit comes.
        let own = if change.sets(list) { parent(path).unwrap_or("") } else { path };
        tree::inherit_cpuset(hierarchy, own, list)?;
    }
    Ok(())
}
