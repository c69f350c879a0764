//! A plan as a flat list of kernel steps: pure data, printed by [`Program::explain`], run by `launch`.
//!
//! Owns the order of things. Each rule of order stands where the step is appended, with its reason.

mod explain;
mod hook;

pub use explain::{EXECUTE, Explanation, FIND_COMMAND, PARK};
pub use hook::HookPlace;

use crate::error::Kind;
use crate::host::CgroupLayout;
use crate::namespace::NamespaceKind;
use crate::plan::{
    BindPlan, Delivery, DevicePlan, FreshPlan, MountPlan, NamespaceSource, Plan, ProcessPlan, Scheduling,
};
use crate::rootfs::Rootfs;
use crate::sys::raw::MountAttr;
use crate::sys::step::{CapabilityMasks, FreshMount, Handle, Node, Step, StringTable, Target, TargetKind};
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
    /// The pidfd of the container's first process.
    Target,
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
    /// CPUs that the process is born on, before it is in its control group.
    pub birth_cpus: Option<Vec<u64>>,
    pub steps: Vec<Step>,
}

impl Program {
    /// The program that creates a container.
    pub fn create(plan: &Plan, parking: Parking) -> Result<Self> {
        let mut builder = Builder::default();
        let pid_namespace = builder.birth(plan);
        builder.tree(plan)?;
        let late_namespace = plan.new_cgroup_namespace() && plan.cgroup_layout == CgroupLayout::V1;
        builder.process_end(&plan.process, parking, late_namespace)?;
        let new = plan.namespaces.iter().filter(|n| n.source == NamespaceSource::New);
        // The cgroup namespace is made after the group was joined.
        let new_namespaces =
            new.filter(|n| n.kind != NamespaceKind::Cgroup).fold(0, |flags, n| flags | n.kind.clone_flag());
        Ok(Self {
            prepare: builder.prepare,
            new_namespaces,
            pid_namespace,
            birth_cpus: None,
            steps: builder.steps,
        })
    }

    /// The program that becomes the first process of a shared PID namespace: nothing to see, nothing to do, no rights.
    pub fn reaper() -> Self {
        const NOBODY: u32 = 65535;
        let mut builder = Builder::default();
        let (empty, reaper) = (builder.handle(Prepare::Empty), builder.handle(Prepare::Reaper));
        let steps = [
            Step::CloseForeign,
            Step::ResetSignals,
            Step::NewSession,
            Step::DetachPropagation,
            Step::EnterRoot(empty),
            Step::StandardStreams { uid: 0 },
            Step::BoundingSet(0),
            Step::Credentials { uid: NOBODY, gid: NOBODY, groups: Vec::new() },
            Step::Capabilities { masks: CapabilityMasks::default(), extra: 0 },
            Step::NoNewPrivileges,
            Step::UnblockSignals,
            Step::ExecuteDescriptor { from: reaper, argv: StringTable::new(vec![text("slipway-reaper")]) },
        ];
        let new_namespaces = (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u32;
        let pid_namespace = PidNamespace::Inherited;
        Self {
            prepare: builder.prepare,
            new_namespaces,
            pid_namespace,
            birth_cpus: None,
            steps: steps.into(),
        }
    }

    /// The program that starts a process inside a container whose first process is behind [`Prepare::Target`].
    pub fn exec(process: &ProcessPlan) -> Result<Self> {
        let mut builder = Builder::default();
        builder.begin(process);
        let target = builder.handle(Prepare::Target);
        builder.join_process(target);
        if process.terminal {
            builder.push(Step::OpenTerminal);
        }
        builder.process_end(process, Parking::Not, false)?;
        Ok(Self {
            prepare: builder.prepare,
            new_namespaces: 0,
            pid_namespace: PidNamespace::OfProcess(target),
            birth_cpus: process.scheduling.first_cpus.clone(),
            steps: builder.steps,
        })
    }
}

#[derive(Default)]
struct Builder {
    prepare: Vec<Prepare>,
    steps: Vec<Step>,
}

impl Builder {
    fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn handle(&mut self, prepare: Prepare) -> Handle {
        self.prepare.push(prepare);
        Handle(self.prepare.len() - 1)
    }

    /// All namespaces of the process behind `target` but that of pids, which the clone is born into.
    fn join_process(&mut self, target: Handle) {
        let inside = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
        let kinds = (inside | libc::CLONE_NEWCGROUP) as u32;
        self.push(Step::JoinProcess { pidfd: target, kinds });
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

    /// Namespaces, and what is said about them while the host's procfs is in reach.
    fn birth(&mut self, plan: &Plan) -> PidNamespace {
        self.begin(&plan.process);
        let mut pid_namespace = PidNamespace::Inherited;
        for namespace in &plan.namespaces {
            let kind = namespace.kind;
            let prepare = match &namespace.source {
                NamespaceSource::New => continue,
                NamespaceSource::Path(path) => Prepare::Namespace { kind, path: path.clone() },
                NamespaceSource::Given(index) => Prepare::Given { kind, index: *index },
            };
            let from = self.handle(prepare);
            if kind == NamespaceKind::Pid {
                pid_namespace = PidNamespace::Joined(from);
            } else {
                self.push(Step::JoinNamespace { from, kind: kind.clone_flag() });
            }
        }
        for (file, value) in &plan.sysctls {
            let path = text(&format!("/proc/sys/{file}"));
            self.push(Step::WriteProc { path, value: text(value), forgive: 0 });
        }
        if let Some(name) = &plan.hostname {
            self.push(Step::SetHostName(text(name)));
        }
        if let Some(name) = &plan.domainname {
            self.push(Step::SetDomainName(text(name)));
        }
        // On version 2 clone3 has put us into the group already, and the mount of cgroup2 below needs the namespace.
        if plan.new_cgroup_namespace() && plan.cgroup_layout == CgroupLayout::V2 {
            self.push(Step::NewCgroupNamespace);
        }
        pid_namespace
    }

    /// The file system tree, from the bare root to the last mask.
    fn tree(&mut self, plan: &Plan) -> Result<()> {
        let root = self.handle(Prepare::Root(plan.rootfs.clone()));
        self.push(Step::DetachPropagation);
        match &plan.root_place {
            None => self.push(Step::EnterRoot(root)),
            Some(place) => self.push(Step::HangRoot { root, at: path_text(place)? }),
        }
        for mount in &plan.mounts {
            self.mount(mount)?;
        }
        if let Some(devices) = &plan.devices {
            self.device_tree(devices)?;
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
                self.push(Step::Mask { path: relative(path)?, null });
            }
        }
        // Last: until here missing mount targets had to be made.
        if plan.root_readonly {
            let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            self.push(Step::SetAttributes { path: text("."), recursive: false, attr });
        }
        Ok(())
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
                let from =
                    self.handle(Prepare::CopyUp { plan: plan.clone(), below: mount.destination.clone() });
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
        let mount = FreshMount {
            fstype: text(&plan.fstype),
            source: text(&plan.source),
            options: plan.options.iter().map(option).collect(),
            attributes: plan.attributes,
            inherit_mode: plan.fstype == "tmpfs" && !plan.options.iter().any(|(key, _)| key == "mode"),
        };
        let (propagation, recursive) = plan.propagation.unwrap_or((0, false));
        let propagation = (propagation != 0).then(|| MountAttr { propagation, ..MountAttr::default() });
        let target = target(destination, TargetKind::Directory)?;
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
        let tmpfs = FreshPlan {
            fstype: "tmpfs".to_owned(),
            source: "cgroup".to_owned(),
            options: vec![("mode".to_owned(), Some("755".to_owned()))],
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

    fn device_tree(&mut self, devices: &[DevicePlan]) -> Result<()> {
        for device in devices {
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

    /// In the control group, whose CPUs, memory nodes and real-time share decide what is allowed; and still with the
    /// rights of this process.
    fn scheduling(&mut self, process: &ProcessPlan, entering: bool) {
        let Scheduling { policy, io_priority, last_cpus, memory, domain, .. } = process.scheduling.clone();
        // A deadline task may not choose its CPUs any more.
        self.steps.extend(last_cpus.filter(|_| entering).map(Step::Affinity));
        self.steps.extend(policy.map(Step::Schedule));
        self.steps.extend(io_priority.map(Step::IoPriority));
        self.steps.extend(memory.map(Step::MemoryPolicy));
        self.steps.extend(domain.map(Step::Personality));
    }

    /// From the finished tree to execve.
    fn process_end(
        &mut self,
        process: &ProcessPlan,
        parking: Parking,
        late_cgroup_namespace: bool,
    ) -> Result<()> {
        let uid = process.uid;
        self.push(Step::StandardStreams { uid });
        if process.terminal {
            self.push(Step::ControlTerminal);
        }
        for limit in &process.limits {
            let (resource, soft, hard) = (limit.resource, limit.soft, limit.hard);
            self.push(Step::ResourceLimit { resource, soft, hard });
        }
        // As late as possible, so that what was done above is not charged to the group.
        self.push(Step::EnterCgroup);
        if late_cgroup_namespace {
            self.push(Step::NewCgroupNamespace);
        }
        self.scheduling(process, parking == Parking::Not);
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
        match parking {
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
