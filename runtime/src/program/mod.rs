//! A plan as a flat list of kernel steps: pure data, printed by [`Program::explain`], run by `launch`.
//!
//! Owns the order of things. Each rule of order stands where the step is appended, with its reason.

mod birth;
mod explain;
mod hook;
mod pod;
mod wish;

pub(crate) use explain::scheduling_sentence;
pub use explain::{EXECUTE, Explanation, FIND_COMMAND, JOIN_PROCESS, PARK};
pub use hook::HookPlace;
pub use pod::PodPlan;

use crate::error::Kind;
use crate::host::CgroupLayout;
use crate::idmap::{IdMappings, Setgroups};
use crate::namespace::NamespaceKind;
use crate::plan::{
    BindPlan, Delivery, DevicePlan, FreshPlan, MountHome, MountPlan, Plan, ProcessPlan, Scheduling, UserPlan,
};
use crate::rootfs::Rootfs;
use crate::sys::raw::MountAttr;
use crate::sys::step::{FreshMount, Handle, Node, Step, StringTable, Target, TargetKind};
use crate::{Error, Result};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A descriptor the parent makes before the clone; [`Handle`] is its place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepare {
    /// The root filesystem, detached and private.
    Root(Rootfs),
    Bind(BindPlan),
    /// A bind of one of the container's own version 1 groups; absent when the group is.
    Group {
        path: PathBuf,
        readonly: bool,
    },
    /// A file system of the host's own making.
    FileSystem(FreshPlan),
    /// A tmpfs that begins as a copy of a directory of the root filesystem.
    CopyUp {
        plan: FreshPlan,
        below: PathBuf,
        /// User and group of the host that own it where that directory is missing.
        owner: (u32, u32),
    },
    /// The host's /dev/null, for masks.
    Null,
    /// A namespace, opened by path.
    Namespace {
        kind: NamespaceKind,
        path: PathBuf,
    },
    /// The n-th namespace descriptor of the request.
    Given {
        kind: NamespaceKind,
        index: usize,
    },
    /// A new user namespace.
    NewUser {
        mappings: IdMappings,
        setgroups: Setgroups,
    },
    /// A new time namespace with these lines of /proc/<pid>/timens_offsets.
    NewTime {
        offsets: String,
    },
    /// Nothing: the child makes it on its way.
    InChild {
        what: String,
    },
    /// A device node for a user namespace, in which nobody may make one; owners are the host's.
    Device {
        plan: DevicePlan,
        /// SELinux label.
        label: Option<String>,
    },
    /// The pidfd of the container's first process.
    Target,
    /// Its root directory.
    TargetRoot,
    /// Our reaper, as a sealed memfd.
    Reaper,
    /// An empty read-only file system.
    Empty,
}

/// Which pid namespace the child is born into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PidNamespace {
    /// The caller's, or a new one (then `Program::new_namespaces` says so).
    Inherited,
    /// The namespace behind a descriptor.
    Joined(Handle),
    /// The one of the process behind a pidfd.
    OfProcess(Handle),
}

/// Where a program stops until it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parking {
    /// Nowhere.
    Not,
    /// The command is looked up after the byte: it may appear until then.
    CommandOpen,
    /// The command is looked up before: a container whose command is missing is never created.
    CommandFound,
}

/// All a launch does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub prepare: Vec<Prepare>,
    /// CLONE_NEW* for clone3.
    pub new_namespaces: u32,
    pub pid_namespace: PidNamespace,
    /// The container's user namespace and its maps, where they are known: id-mapped mounts can use it.
    pub user: Option<(Handle, IdMappings)>,
    /// CPUs that the process is born on, before it is in its control group.
    pub birth_cpus: Option<Vec<u64>>,
    pub steps: Vec<Step>,
}

/// How a container differs from the usual, for a process that joins it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Joined<'a> {
    /// Its user namespace, if that is not ours.
    pub user: Option<&'a UserPlan>,
    /// Its time namespace is not ours.
    pub time: bool,
    /// Its root is not that of its mount namespace ([`MountHome`]).
    pub root: bool,
}

/// What a process beside the first one joins, whatever the container has of its own.
const INSIDE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u32;

impl Program {
    /// The program that creates a container.
    pub fn create(plan: &Plan, parking: Parking) -> Result<Self> {
        let mut builder = Builder::default();
        let birth = builder.birth(plan)?;
        builder.tree(plan)?;
        builder.go_home(&plan.mount_home);
        let late_namespace = plan.new_cgroup_namespace() && plan.cgroup_layout == CgroupLayout::V1;
        builder.process_end(&plan.process, End { parking, late_namespace, rights: plan.user.is_none() })?;
        Ok(builder.program(birth.new_namespaces, birth.pid_namespace))
    }

    /// The program that starts a process inside a container whose first process is behind [`Prepare::Target`].
    pub fn exec(process: &ProcessPlan, joined: Joined<'_>) -> Result<Self> {
        let Joined { user, time, root } = joined;
        let mut builder = Builder::default();
        builder.begin(process);
        let target = builder.handle(Prepare::Target);
        let mut kinds = INSIDE;
        if time {
            kinds |= NamespaceKind::Time.clone_flag();
        }
        let root = root.then(|| builder.handle(Prepare::TargetRoot));
        let pid_namespace = match user {
            None => builder.join_and_go_on(target, kinds | NamespaceKind::Pid.clone_flag(), root, Vec::new()),
            Some(user) => builder.enter_user_namespace_of(target, process, user, kinds, root),
        };
        if process.terminal {
            builder.push(Step::OpenTerminal);
        }
        let end = End { parking: Parking::Not, late_namespace: false, rights: user.is_none() };
        builder.process_end(process, end)?;
        let birth_cpus = process.scheduling.first_cpus.clone();
        Ok(Self { birth_cpus, ..builder.program(0, pid_namespace) })
    }
}

#[derive(Default)]
struct Builder {
    prepare: Vec<Prepare>,
    steps: Vec<Step>,
    user: Option<(Handle, IdMappings)>,
    joined_pid: Option<Handle>,
    /// User and group of the host that are the container's root.
    root: (u32, u32),
    /// [`Plan::mount_label`].
    label: Option<String>,
    /// In a user namespace: steps that must come before the root changes, put there in the end.
    early: Option<Vec<Step>>,
}

/// How the last part of a program differs.
#[derive(Clone, Copy)]
struct End {
    parking: Parking,
    /// A cgroup namespace is made after the group was joined.
    late_namespace: bool,
    /// The rights of the host are still there: priorities were not set earlier.
    rights: bool,
}

impl Builder {
    fn program(self, new_namespaces: u32, pid_namespace: PidNamespace) -> Program {
        let Self { prepare, steps, user, .. } = self;
        Program { prepare, new_namespaces, pid_namespace, user, birth_cpus: None, steps }
    }

    fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn handle(&mut self, prepare: Prepare) -> Handle {
        self.prepare.push(prepare);
        Handle(self.prepare.len() - 1)
    }

    /// All namespaces of the process behind `target` but that of pids, which the clone is born into.
    fn join_process(&mut self, target: Handle) {
        self.push(Step::JoinProcess { pidfd: target, kinds: INSIDE });
    }

    /// What comes first in every child, on the host's own tree: nothing an image could have put in our way.
    fn begin(&mut self, process: &ProcessPlan) {
        self.push(Step::CloseForeign);
        self.push(Step::ResetSignals);
        self.push(Step::NewSession);
        if let Some(score) = process.oom_score_adj {
            // Lowering needs CAP_SYS_RESOURCE; a node without it goes on (as a confined kubelet's node must).
            let value = text(&score.to_string());
            self.push(Step::WriteProc {
                path: text("/proc/self/oom_score_adj"),
                value,
                forgive: libc::EACCES,
            });
        }
        if let Some((file, value)) = &process.label {
            let path = text(&format!("/proc/self/attr/{file}"));
            self.push(Step::WriteProc { path, value: text(value), forgive: 0 });
        }
    }

    /// The file system tree, from the bare root to the last mask.
    fn tree(&mut self, plan: &Plan) -> Result<()> {
        self.label.clone_from(&plan.mount_label);
        let root = self.handle(Prepare::Root(plan.rootfs.clone()));
        self.push(Step::DetachPropagation);
        let entrance = self.steps.len();
        match &plan.root_place {
            None => self.push(Step::EnterRoot(root)),
            // The way to it was gone with the host's rights.
            Some(_) if plan.user.is_some() => self.push(Step::HangRoot { root, at: text(".") }),
            Some(place) => self.push(Step::HangRoot { root, at: path_text(place)? }),
        }
        for mount in &plan.mounts {
            self.mount(mount)?;
        }
        if let Some(devices) = &plan.devices {
            self.device_tree(devices, plan.user.as_ref())?;
        }
        if plan.root_place.is_some() {
            self.push(Step::Meet);
            self.push(Step::Pivot);
        }
        if plan.process.terminal {
            self.push(Step::OpenTerminal);
            self.push(Step::BindConsole);
        }
        if plan.process.cwd != Path::new("/") {
            self.push(Step::MakeDirectory(relative(&plan.process.cwd)?));
        }
        if let Some((propagation, recursive)) = plan.root_propagation {
            let attr = MountAttr { propagation, ..MountAttr::default() };
            self.push(Step::SetAttributes { path: text("."), recursive, attr });
        }
        for path in &plan.readonly {
            self.push(Step::ReadOnly(relative(path)?));
        }
        if !plan.masked.is_empty() {
            let null = self.handle(Prepare::Null);
            for path in &plan.masked {
                let label = self.label.as_deref().map(text);
                self.push(Step::Mask { path: relative(path)?, null, label });
            }
        }
        if let Some(early) = self.early.take() {
            self.steps.splice(entrance..entrance, early);
        }
        // Last: until here missing mount targets had to be made.
        if plan.root_readonly {
            let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            self.push(Step::SetAttributes { path: text("."), recursive: false, attr });
        }
        Ok(())
    }

    /// Takes the finished tree along into a mount namespace that is not the container's own. The one it was made in is gone
    /// with the join; the copy lives while a process has it as its root.
    fn go_home(&mut self, home: &MountHome) {
        let path = match home {
            MountHome::Own => return,
            MountHome::Runtime => PathBuf::from("/proc/thread-self/ns/mnt"),
            MountHome::Path(path) => path.clone(),
        };
        let kind = NamespaceKind::Mount;
        let from = self.handle(Prepare::Namespace { kind, path });
        let copy = self.handle(Prepare::InChild { what: "the finished tree".to_owned() });
        self.push(Step::CopyRoot { into: copy });
        self.push(Step::JoinNamespace { from, kind: kind.clone_flag() });
        self.push(Step::ChangeRoot(copy));
    }

    fn mount(&mut self, mount: &MountPlan) -> Result<()> {
        match &mount.delivery {
            Delivery::Bind(bind) => {
                let from = self.handle(Prepare::Bind(bind.clone()));
                let target = target(&mount.destination, TargetKind::LikeSource)?;
                self.push(Step::Place { from, target });
            }
            Delivery::Fresh(fresh) => self.fresh(fresh, &mount.destination)?,
            Delivery::Foreign(plan) => {
                let from = self.handle(Prepare::FileSystem(plan.clone()));
                self.push(Step::Place { from, target: target(&mount.destination, TargetKind::Directory)? });
            }
            Delivery::CopyUp(plan) => {
                let (below, owner) = (mount.destination.clone(), self.root);
                let from = self.handle(Prepare::CopyUp { plan: plan.clone(), below, owner });
                self.push(Step::Place { from, target: target(&mount.destination, TargetKind::Directory)? });
            }
            Delivery::Change(attr) => {
                let path = relative(&mount.destination)?;
                self.push(Step::SetAttributes { path, recursive: false, attr: *attr });
            }
            Delivery::Groups { hierarchies, readonly } => {
                self.groups(&mount.destination, hierarchies, *readonly)?
            }
        }
        Ok(())
    }

    fn fresh(&mut self, plan: &FreshPlan, destination: &Path) -> Result<()> {
        let option = |(key, value): &(String, Option<String>)| (text(key), value.as_deref().map(text));
        // mqueue takes no option for it: its root is labelled, and what is made in it gets the same type (as runc does it).
        let by_hand = |(key, _): &&(String, Option<String>)| key == "context" && plan.fstype == "mqueue";
        let label = plan.options.iter().find(by_hand).and_then(|(_, label)| label.as_deref().map(text));
        let mount = FreshMount {
            label,
            fstype: text(&plan.fstype),
            source: text(&plan.source),
            options: plan.options.iter().filter(|pair| !by_hand(pair)).map(option).collect(),
            attributes: plan.attributes,
            inherit_mode: plan.fstype == "tmpfs" && !plan.options.iter().any(|(key, _)| key == "mode"),
        };
        let (propagation, recursive) = plan.propagation.unwrap_or((0, false));
        let propagation = (propagation != 0).then(|| MountAttr { propagation, ..MountAttr::default() });
        let target = target(destination, TargetKind::Directory)?;
        if self.early.is_some() && matches!(plan.fstype.as_str(), "proc" | "sysfs") {
            let into = self.handle(Prepare::InChild { what: format!("the new {}", plan.fstype) });
            let early = Step::MakeMount { mount, into, propagation, recursive };
            self.early.get_or_insert_default().push(early);
            self.push(Step::Place { from: into, target });
            return Ok(());
        }
        self.push(Step::MountFresh { mount, target, propagation, recursive });
        Ok(())
    }

    /// The usual version 1 tree: a tmpfs, a directory and bind per hierarchy, read-only in the end.
    fn groups(
        &mut self,
        destination: &Path,
        hierarchies: &[(String, PathBuf)],
        readonly: bool,
    ) -> Result<()> {
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let context = self.label.clone().map(|label| ("context".to_owned(), Some(label)));
        let tmpfs = FreshPlan {
            fstype: "tmpfs".to_owned(),
            source: "cgroup".to_owned(),
            options: [("mode".to_owned(), Some("755".to_owned()))].into_iter().chain(context).collect(),
            attributes,
            propagation: None,
        };
        self.fresh(&tmpfs, destination)?;
        for (name, path) in hierarchies {
            let from = self.handle(Prepare::Group { path: path.clone(), readonly });
            let target = target(&destination.join(name), TargetKind::Directory)?;
            self.push(Step::Place { from, target });
            for alias in name.split(',').filter(|alias| alias != name) {
                let path = relative(&destination.join(alias))?;
                self.push(Step::Symlink { target: text(name), path });
            }
        }
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        if readonly {
            self.push(Step::SetAttributes { path: relative(destination)?, recursive: false, attr });
        }
        Ok(())
    }

    fn device_tree(&mut self, devices: &[DevicePlan], user: Option<&UserPlan>) -> Result<()> {
        for device in devices {
            let fifo = device.mode & libc::S_IFMT == libc::S_IFIFO;
            if let Some(user) = user.filter(|_| !fifo) {
                let (plan, label) = (user.on_host(device), self.label.clone());
                let from = self.handle(Prepare::Device { plan, label });
                let target = target(&device.path, TargetKind::File)?;
                self.push(Step::Place { from, target });
                continue;
            }
            let DevicePlan { mode, major, minor, uid, gid, .. } = *device;
            let path = relative(&device.path)?;
            self.push(Step::MakeNode(Node { path, mode, major, minor, uid, gid }));
        }
        let links = [
            ("/proc/self/fd", "dev/fd"),
            ("/proc/self/fd/0", "dev/stdin"),
            ("/proc/self/fd/1", "dev/stdout"),
            ("/proc/self/fd/2", "dev/stderr"),
            ("pts/ptmx", "dev/ptmx"),
        ];
        for (target, path) in links {
            self.push(Step::Symlink { target: text(target), path: text(path) });
        }
        Ok(())
    }

    fn limits(&mut self, process: &ProcessPlan) {
        for limit in &process.limits {
            let (resource, soft, hard) = (limit.resource, limit.soft, limit.hard);
            self.push(Step::ResourceLimit { resource, soft, hard });
        }
    }

    /// What of them needs the host's rights.
    fn hard_limits(&mut self, process: &ProcessPlan) {
        for limit in &process.limits {
            self.push(Step::RaiseLimit { resource: limit.resource, hard: limit.hard });
        }
    }

    /// In the control group, whose CPUs, memory nodes and real-time share decide what is allowed; and, on the host's user
    /// namespace, still with the rights of this process.
    fn scheduling(&mut self, process: &ProcessPlan, entering: bool, rights: bool) {
        let Scheduling { last_cpus, memory, domain, .. } = process.scheduling.clone();
        // A deadline task may not choose its CPUs any more.
        self.steps.extend(last_cpus.filter(|_| entering).map(Step::Affinity));
        if rights {
            self.steps.extend(priorities(process));
        }
        self.steps.extend(memory.map(Step::MemoryPolicy));
        self.steps.extend(domain.map(Step::Personality));
    }

    /// From the finished tree to execve.
    fn process_end(&mut self, process: &ProcessPlan, end: End) -> Result<()> {
        let uid = process.uid;
        self.push(Step::StandardStreams { uid });
        if process.terminal {
            self.push(Step::ControlTerminal);
        }
        self.limits(process);
        // As late as possible, so that what was done above is not charged to the group.
        self.push(Step::EnterCgroup);
        if end.late_namespace {
            self.push(Step::NewCgroupNamespace);
        }
        self.scheduling(process, end.parking == Parking::Not, end.rights);
        // Before the working directory: no descriptor of the host may be left to name one.
        self.push(Step::CloseAll);
        let cwd = CString::new(process.cwd.as_os_str().as_bytes()).unwrap_or_default();
        self.push(Step::ChangeDirectory(cwd.clone()));
        self.push(Step::BoundingSet(process.capabilities.bounding));
        self.push(Step::Credentials { uid, gid: process.gid, groups: process.groups.clone() });
        self.push(Step::Capabilities { masks: process.capabilities, extra: process.extra_capabilities });
        if process.no_new_privileges {
            self.push(Step::NoNewPrivileges);
        }
        self.push(Step::VerifyDirectory(cwd));
        self.push(Step::FileModeMask(process.umask));
        let find = Step::FindCommand { candidates: process.candidates.clone() };
        match end.parking {
            Parking::Not => self.push(find),
            Parking::CommandOpen => self.steps.extend([Step::Park, find]),
            Parking::CommandFound => self.steps.extend([find, Step::Park]),
        }
        self.push(Step::UnblockSignals);
        // The very last step, so that the filter sees execve only: either no_new_privs is set, or CAP_SYS_ADMIN is still
        // effective, which execve takes away (capabilities(7): what a process may is computed anew from the bounding,
        // inheritable and ambient sets).
        if process.filtered {
            self.push(Step::Seccomp);
        }
        let (argv, env) = (StringTable::new(process.args.clone()), StringTable::new(process.env.clone()));
        self.push(Step::Execute { argv, env });
        Ok(())
    }
}

/// What asks for rights on the host.
fn priorities(process: &ProcessPlan) -> Vec<Step> {
    let Scheduling { policy, io_priority, .. } = process.scheduling.clone();
    policy.map(Step::Schedule).into_iter().chain(io_priority.map(Step::IoPriority)).collect()
}

fn target(destination: &Path, kind: TargetKind) -> Result<Target> {
    let system = destination == Path::new("/proc") || destination == Path::new("/sys");
    Ok(Target {
        path: relative(destination)?,
        kind,
        refuse_procfs: !destination.starts_with("/proc"),
        no_symlinks: system,
    })
}

/// The path below the container's root, as the child opens it.
fn relative(path: &Path) -> Result<CString> {
    let below = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
    let below: &[u8] = if below.is_empty() { b"." } else { below };
    let error = || Error::new(Kind::Invalid, "program", format!("{}: contains a NUL byte", path.display()));
    CString::new(below).map_err(|_| error())
}

/// A path of the host's tree.
fn path_text(path: &Path) -> Result<CString> {
    let error = || Error::new(Kind::Invalid, "program", format!("{}: contains a NUL byte", path.display()));
    CString::new(path.as_os_str().as_bytes()).map_err(|_| error())
}

/// Plans hold no NUL bytes; should one slip through, the text ends there.
fn text(value: &str) -> CString {
    let end = value.find('\0').unwrap_or(value.len());
    CString::new(&value[..end]).unwrap_or_default()
}
