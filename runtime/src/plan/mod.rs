//! Everything decided: an OCI [`Spec`] against the facts of a host becomes a [`Plan`].
//!
//! Owns: what the spec's words mean here, and refusing what cannot be done. Pure: no system call, no root, no clock.
//! After this nobody looks at the spec again.

mod capabilities;
mod hooks;
mod mapped;
mod mounts;
mod namespaces;
mod net_devices;
mod process;
mod rdt;
mod scheduling;
mod time;
mod user;

pub use capabilities::{capability_names, clipped};
pub use hooks::{HookPlan, HookPlans, Moment};
pub use mounts::{BindPlan, Delivery, FreshPlan, IdmapPlan, MountPlan, Propagation, known_options};
pub use namespaces::{MountHome, NamespacePlan, NamespaceSource, root_is_elsewhere};
pub use net_devices::NetDevicePlan;
pub use process::{Limit, ProcessPlan};
pub use rdt::RdtPlan;
pub(crate) use rdt::{parse as parse_schema, plan as rdt};
pub use scheduling::Scheduling;
pub use user::{UserPlan, of_running};

use crate::error::Kind;
use crate::host::{CgroupLayout, Host};
use crate::namespace::NamespaceKind;
use crate::rootfs::Rootfs;
use crate::unit::ScopeName;
use crate::{Error, Result};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Process, Spec};
use std::path::{Component, Path, PathBuf};

/// A device node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    pub path: PathBuf,
    /// S_IFCHR, S_IFBLK or S_IFIFO with the permission bits.
    pub mode: u32,
    pub major: u32,
    pub minor: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A container, decided.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All but the user namespace.
    pub namespaces: Vec<NamespacePlan>,
    pub mount_home: MountHome,
    pub user: Option<UserPlan>,
    /// For a new time namespace: the lines of /proc/<pid>/timens_offsets.
    pub time_offsets: String,
    pub rootfs: Rootfs,
    pub root_readonly: bool,
    /// MS_* propagation of the root in the end, and whether for all below it.
    pub root_propagation: Option<Propagation>,
    pub mounts: Vec<MountPlan>,
    /// SELinux label of what nobody asks for by a mount: covers of masked paths, device nodes, trees of control groups.
    pub mount_label: Option<String>,
    /// None when /dev is a bind of somebody else's: then it is left alone.
    pub devices: Option<Vec<DevicePlan>>,
    pub masked: Vec<PathBuf>,
    pub readonly: Vec<PathBuf>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// File below /proc/sys and value.
    pub sysctls: Vec<(String, String)>,
    /// Devices of the host to be moved into the network namespace.
    pub net_devices: Vec<NetDevicePlan>,
    pub rdt: Option<RdtPlan>,
    /// Control groups are mounted where programs look for them, and not read-only.
    pub writes_groups: bool,
    pub cgroup_path: String,
    pub cgroup_layout: CgroupLayout,
    pub process: ProcessPlan,
    pub hooks: HookPlans,
    /// Where the root hangs on the host's tree until the container changes into it: only for hooks that look for it.
    pub root_place: Option<PathBuf>,
}

/// What the plan needs beside the spec.
#[derive(Debug)]
pub struct Facts<'a> {
    pub host: &'a Host,
    pub bundle: &'a Path,
    pub rootfs: &'a Rootfs,
    /// Kinds of the descriptors of the request, in order.
    pub given: &'a [NamespaceKind],
    /// `HOME` of the user as the root filesystem's passwd has it, for a process that sets none.
    pub home: Option<&'a str>,
}

impl Plan {
    /// Decides. `Invalid` names the field that cannot be right, `Unsupported` what this runtime or host cannot do.
    pub fn new(id: &str, spec: &Spec, facts: &Facts<'_>) -> Result<Self> {
        let process = spec.process().as_ref().ok_or_else(|| invalid("process", "missing"))?;
        let none = Linux::default();
        let linux = spec.linux().as_ref().unwrap_or(&none);
        let mut namespaces = namespaces::plan(linux, facts.given)?;
        let user = user::plan(linux, &mut namespaces, facts.host)?;
        let mount_home = namespaces::mount_home(&mut namespaces, user.is_some())?;
        let has = |kind| namespaces.iter().any(|namespace| namespace.kind == kind);
        let cgroup_path = cgroup_path(id, Some(linux))?;
        let scope = ScopeName::parse(&cgroup_path)?;
        let group = scope.map_or_else(|| cgroup_path.clone(), |scope| scope.directory());
        let hooks = HookPlans::new(spec)?;
        let context = mounts::Context {
            facts,
            cgroup_path: &group,
            namespaces: &namespaces,
            user: user.as_ref(),
            label: mount_label(linux, facts.host)?,
        };
        let mounts = mounts::plan(spec.mounts().as_deref().unwrap_or_default(), &context)?;
        let root_propagation = linux.rootfs_propagation().as_deref().map(mounts::propagation).transpose()?;
        namespaces::check_home(&mount_home, &mounts, root_propagation)?;
        Ok(Self {
            hostname: name_in(spec.hostname().as_ref(), "hostname", has(NamespaceKind::Uts))?,
            domainname: name_in(spec.domainname().as_ref(), "domainname", has(NamespaceKind::Uts))?,
            sysctls: sysctls(linux, &namespaces)?,
            devices: devices(linux, &mounts)?,
            time_offsets: time::offsets(linux, &namespaces)?,
            net_devices: net_devices::plan(linux, &namespaces)?,
            rdt: rdt::plan(id, linux, facts.host)?,
            masked: paths(linux.masked_paths().as_deref(), "linux.maskedPaths")?,
            readonly: paths(linux.readonly_paths().as_deref(), "linux.readonlyPaths")?,
            root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            root_propagation,
            mount_label: context.label.map(str::to_owned),
            rootfs: facts.rootfs.clone(),
            process: process::plan(
                process,
                linux.seccomp().is_some(),
                facts.host,
                facts.home,
                user.as_ref(),
                scheduling(linux)?,
            )?,
            cgroup_layout: facts.host.cgroups,
            writes_groups: mounts::writes_groups(spec.mounts().as_deref().unwrap_or_default()),
            root_place: if hooks.during_creation() { Some(root_place(spec, facts.bundle)?) } else { None },
            hooks,
            namespaces,
            mount_home,
            user,
            mounts,
            cgroup_path,
        })
    }
}

/// The user namespace of a container, for whoever must have it before the rest is planned.
pub fn user_namespace(spec: &Spec, given: &[NamespaceKind], host: &Host) -> Result<Option<UserPlan>> {
    let none = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&none);
    user::plan(linux, &mut namespaces::plan(linux, given)?, host)
}

impl Plan {
    /// True if the container gets a cgroup namespace of its own.
    pub fn new_cgroup_namespace(&self) -> bool {
        let new = |n: &NamespacePlan| n.kind == NamespaceKind::Cgroup && n.source == NamespaceSource::New;
        self.namespaces.iter().any(new)
    }

    /// The host's user that the container's control group is to belong to: that of its process, if it sees the group as its
    /// root and may write there (OCI config-linux.md, "Cgroup ownership").
    pub fn group_owner(&self) -> Option<u32> {
        let uid = match &self.user {
            Some(user) if user.ordinary => return None,
            Some(_) => self.process.host_uid?,
            None => self.process.uid,
        };
        let owned =
            self.new_cgroup_namespace() && self.cgroup_layout == CgroupLayout::V2 && self.writes_groups;
        (owned && uid != 0).then_some(uid)
    }
}

/// Decides for a process beside the container's first one.
pub fn exec(
    process: &Process,
    spec: &Spec,
    host: &Host,
    home: Option<&str>,
    user: Option<&UserPlan>,
) -> Result<ProcessPlan> {
    let filtered = spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some());
    let mut process = process.clone();
    if let Some(init) = spec.process() {
        if process.capabilities().is_none() {
            process.set_capabilities(init.capabilities().clone());
        }
        if process.no_new_privileges().is_none() {
            process.set_no_new_privileges(init.no_new_privileges());
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(init.oom_score_adj());
        }
    }
    let scheduling = spec.linux().as_ref().map(scheduling).transpose()?.unwrap_or_default();
    process::plan(&process, filtered, host, home, user, scheduling)
}

fn scheduling(linux: &Linux) -> Result<Scheduling> {
    Scheduling::of_container(linux.personality().as_ref(), linux.memory_policy().as_ref())
}

pub(crate) fn invalid(field: &str, what: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, format!("plan {field}"), what)
}

fn unsupported(field: &str, what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("plan {field}"), what)
}

/// The control group of a container: `/name` when the spec says nothing; systemd's `slice:prefix:name` stays as it is.
pub fn cgroup_path(id: &str, linux: Option<&Linux>) -> Result<String> {
    let Some(path) = linux.and_then(|linux| linux.cgroups_path().as_ref()) else {
        return Ok(format!("/{id}"));
    };
    let text = path.to_str().ok_or_else(|| invalid("linux.cgroupsPath", "not UTF-8"))?;
    if text.contains('\0') {
        return Err(invalid("linux.cgroupsPath", "contains a NUL byte"));
    }
    if ScopeName::parse(text)?.is_some() {
        return Ok(text.to_owned());
    }
    if Path::new(text).components().any(|part| part == Component::ParentDir) {
        return Err(invalid("linux.cgroupsPath", format!("{text} climbs out")));
    }
    Ok(if text.starts_with('/') { text.to_owned() } else { format!("/{text}") })
}

fn name_in(name: Option<&String>, field: &str, namespace: bool) -> Result<Option<String>> {
    match name {
        Some(name) if name.is_empty() => Ok(None),
        Some(_) if !namespace => Err(invalid(field, "needs a UTS namespace of the container or the pod")),
        Some(name) if name.contains('\0') => Err(invalid(field, "contains a NUL byte")),
        Some(name) if name.len() > 64 => Err(invalid(field, format!("{name} has more than 64 bytes"))),
        name => Ok(name.cloned()),
    }
}

fn sysctls(linux: &Linux, namespaces: &[NamespacePlan]) -> Result<Vec<(String, String)>> {
    let mut plans = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let kind = sysctl_namespace(key).ok_or_else(|| {
            invalid("linux.sysctl", format!("{key} belongs to the host, not to a namespace"))
        })?;
        if !namespaces.iter().any(|namespace| namespace.kind == kind) {
            return Err(invalid(
                "linux.sysctl",
                format!("{key} needs a {kind} namespace that is not the host's"),
            ));
        }
        if value.contains('\0') {
            return Err(invalid("linux.sysctl", format!("the value of {key} contains a NUL byte")));
        }
        plans.push((sysctl_file(key)?, value.clone()));
    }
    plans.sort();
    Ok(plans)
}

/// Which kind of namespace a sysctl speaks of (sysctl(8) names, dots or slashes); none: the whole host.
pub fn sysctl_namespace(key: &str) -> Option<NamespaceKind> {
    let key = key.replace('/', ".");
    let ipc =
        ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax"];
    let more_ipc = ["kernel.shmmni", "kernel.shm_rmid_forced"];
    match key.as_str() {
        "kernel.domainname" | "kernel.hostname" => Some(NamespaceKind::Uts),
        key if ipc.contains(&key) || more_ipc.contains(&key) => Some(NamespaceKind::Ipc),
        key if key.starts_with("fs.mqueue.") => Some(NamespaceKind::Ipc),
        key if key.starts_with("net.") => Some(NamespaceKind::Network),
        _ => None,
    }
}

/// The file of a sysctl below /proc/sys. As sysctl(8): the first separator decides which of `.` and `/` separates.
pub fn sysctl_file(key: &str) -> Result<String> {
    let dots = key.find(['.', '/']).is_some_and(|at| key[at..].starts_with('.'));
    let file: String = if dots {
        key.chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect()
    } else {
        key.to_owned()
    };
    let bad_part = |part: &str| part.is_empty() || part == "." || part == ".." || part.contains('\0');
    if file.split('/').any(bad_part) {
        Err(invalid("linux.sysctl", format!("{key} is not a name")))
    } else {
        Ok(file)
    }
}

fn devices(linux: &Linux, mounts: &[MountPlan]) -> Result<Option<Vec<DevicePlan>>> {
    let foreign = |mount: &MountPlan| {
        mount.destination == Path::new("/dev") && matches!(mount.delivery, Delivery::Bind(_))
    };
    if mounts.iter().any(foreign) {
        return Ok(None);
    }
    let usual = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];
    let mut plans: Vec<DevicePlan> = usual.map(|(name, minor)| character(name, 1, minor)).into();
    plans.push(character("tty", 5, 0));
    for device in linux.devices().iter().flatten() {
        let plan = device_plan(device)?;
        plans.retain(|known| known.path != plan.path);
        plans.push(plan);
    }
    Ok(Some(plans))
}

fn character(name: &str, major: u32, minor: u32) -> DevicePlan {
    let path = Path::new("/dev").join(name);
    DevicePlan { path, mode: libc::S_IFCHR | 0o666, major, minor, uid: 0, gid: 0 }
}

fn device_plan(device: &LinuxDevice) -> Result<DevicePlan> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => return Err(invalid("linux.devices", "type `a` is not a device")),
    };
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| invalid("linux.devices", format!("bad number {value}")))
    };
    let fifo = kind == libc::S_IFIFO;
    Ok(DevicePlan {
        path: clean(device.path(), "linux.devices")?,
        mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
        major: if fifo { 0 } else { number(device.major())? },
        minor: if fifo { 0 } else { number(device.minor())? },
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn mount_label<'a>(linux: &'a Linux, host: &Host) -> Result<Option<&'a str>> {
    match linux.mount_label().as_deref().filter(|label| !label.is_empty()) {
        Some(label) if !host.selinux => {
            let hint = "leave linux.mountLabel out, or boot with SELinux";
            Err(unsupported("linux.mountLabel", &format!("{label}: this host has no SELinux")).hint(hint))
        }
        Some(label) if label.contains('\0') => Err(invalid("linux.mountLabel", "contains a NUL byte")),
        label => Ok(label),
    }
}

/// The directory that the spec calls the root filesystem: there hooks look for it.
fn root_place(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    let root = spec.root().as_ref().ok_or_else(|| invalid("root.path", "missing, and hooks look for it"))?;
    Ok(bundle.join(root.path()))
}

fn paths(list: Option<&[String]>, field: &str) -> Result<Vec<PathBuf>> {
    // A relative one starts at the root, as with runc.
    list.unwrap_or_default().iter().map(|path| clean(&Path::new("/").join(path), field)).collect()
}

/// An absolute path inside the container without `.` and `..`. Symlinks are the kernel's business, at the time of use.
pub(crate) fn clean(path: &Path, field: &str) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    if !path.is_absolute() || path.as_os_str().as_bytes().contains(&0) {
        return Err(invalid(field, format!("{:?} is not an absolute path", path.display())));
    }
    let mut cleaned = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    Ok(cleaned)
}
