//! A program in words: one sentence per step, the same in `explain`, in error messages and in golden files.

use super::{PidNamespace, Prepare, Program};
use crate::idmap::Setgroups;
use crate::namespace::NamespaceKind;
use crate::plan::{BindPlan, FreshPlan, IdmapPlan};
use crate::rootfs::Rootfs;
use crate::sys::raw::MountAttr;
use crate::sys::step::{FreshMount, Handle, Node, Schedule, Step, Target};
use serde::Serialize;
use std::ffi::CStr;

/// How the sentences of the two last steps begin; after a start only the sentences are left to tell what failed.
pub const FIND_COMMAND: &str = "find command";
pub const JOIN_PROCESS: &str = "join the container's";
pub const EXECUTE: &str = "execute";
/// The sentence of [`Step::Park`].
pub const PARK: &str = "wait for the start byte";

/// A program in words: the control group, what the parent prepares, the clone, and the child's steps by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Of whoever makes the group; empty for the program alone.
    pub groups: Vec<String>,
    pub prepare: Vec<String>,
    pub clone: String,
    pub steps: Vec<String>,
}

impl Program {
    /// One line per thing the parent prepares (`prepare`), the clone, and one per step of the child.
    pub fn explain(&self) -> Vec<String> {
        let Explanation { prepare, clone, steps, .. } = self.explanation();
        let prepare = prepare.into_iter().map(|thing| format!("prepare {thing}"));
        prepare.chain([clone]).chain(steps).collect()
    }

    pub fn explanation(&self) -> Explanation {
        let prepare = self.by_parent().map(|(_, prepare)| describe(prepare)).collect();
        Explanation { groups: Vec::new(), prepare, clone: self.explain_clone(), steps: self.sentences() }
    }

    /// The sentence of one thing that the parent prepares, as a failed one is quoted.
    pub fn preparation(&self, index: usize) -> String {
        let thing = self.prepare.get(index).map(describe).unwrap_or_default();
        let number = self.by_parent().take_while(|(at, _)| *at <= index).count();
        format!("prepare {thing} ({number} of {})", self.by_parent().count())
    }

    /// What the child does not make itself, with its handle's number.
    fn by_parent(&self) -> impl Iterator<Item = (usize, &Prepare)> {
        self.prepare.iter().enumerate().filter(|(_, prepare)| !matches!(prepare, Prepare::InChild { .. }))
    }

    /// Sentences of the child's steps, by index: what a report's number means.
    pub fn sentences(&self) -> Vec<String> {
        self.steps.iter().map(|step| self.sentence(step)).collect()
    }

    fn explain_clone(&self) -> String {
        let names = kind_names(self.new_namespaces);
        let new = if names.is_empty() { "nothing new".to_owned() } else { format!("new {names}") };
        let new = match &self.birth_cpus {
            Some(cpus) => format!("{new}, on cpus {}", bit_list(cpus)),
            None => new,
        };
        match self.pid_namespace {
            PidNamespace::Inherited => format!("clone3: {new}"),
            PidNamespace::Joined(from) => format!("clone3: {new}, in {}", self.name(from)),
            PidNamespace::OfProcess(_) => format!("clone3: {new}, in the container's pid namespace"),
        }
    }

    fn name(&self, handle: Handle) -> String {
        self.prepare.get(handle.0).map_or_else(|| format!("descriptor {}", handle.0), describe)
    }

    fn sentence(&self, step: &Step) -> String {
        match step {
            Step::CloseForeign => "close foreign descriptors".to_owned(),
            Step::ResetSignals => "reset signals".to_owned(),
            Step::NewSession => "new session".to_owned(),
            Step::SessionKeyring(name) => format!("join session keyring {}", lossy(name)),
            Step::WriteProc { path, value, .. } => format!("write {} to {}", lossy(value), lossy(path)),
            Step::JoinNamespace { from, .. } => format!("join {}", self.name(*from)),
            Step::JoinProcess { kinds, .. } if *kinds == NamespaceKind::Cgroup.clone_flag() => {
                format!("{JOIN_PROCESS} cgroup namespace")
            }
            Step::JoinProcess { .. } => format!("{JOIN_PROCESS} namespaces"),
            Step::Unshare(kinds) => format!("new {} namespaces", kind_names(*kinds)),
            Step::Rebirth { outside } => {
                let said = outside.iter().map(scheduling_sentence);
                [vec!["go on as a new process".to_owned()], said.collect()].concat().join(", from outside: ")
            }
            Step::BecomeNamespaceRoot { groups: true } => "become root of the user namespace".to_owned(),
            Step::BecomeNamespaceRoot { groups: false } => {
                "become root of the user namespace, groups as they are".to_owned()
            }
            Step::GiveStreams { uid } => format!("give the standard streams to uid {uid} of the host"),
            Step::SetHostName(name) => format!("set host name {}", lossy(name)),
            Step::SetDomainName(name) => format!("set domain name {}", lossy(name)),
            Step::NewCgroupNamespace => "new cgroup namespace".to_owned(),
            Step::EnterCgroup => "enter the control group".to_owned(),
            Step::OpenTerminal => "open a terminal in the container's devpts".to_owned(),
            Step::StandardStreams { uid } => format!("standard streams for uid {uid}"),
            Step::ControlTerminal => "make it the controlling terminal".to_owned(),
            Step::RaiseLimit { resource, hard } => {
                format!("limit {} to at most {hard}, to begin with", limit_name(*resource))
            }
            Step::ResourceLimit { resource, soft, hard } => {
                format!("limit {} to {soft}:{hard}", limit_name(*resource))
            }
            Step::Schedule(_)
            | Step::IoPriority(_)
            | Step::Affinity(_)
            | Step::MemoryPolicy(_)
            | Step::Personality(_) => scheduling_sentence(step),
            Step::CloseAll => "close all descriptors but the streams".to_owned(),
            _ => self.tree_sentence(step),
        }
    }

    fn tree_sentence(&self, step: &Step) -> String {
        match step {
            Step::DetachPropagation => "make all inherited mounts private".to_owned(),
            Step::GoToPlace(at) => format!("hang the root filesystem later: go to {}", lossy(at)),
            Step::EnterRoot(_) => "pivot into the root filesystem".to_owned(),
            Step::HangRoot { at, .. } => format!("hang the root filesystem at {}", lossy(at)),
            Step::Pivot => "pivot into it".to_owned(),
            Step::MoveRoot(_) => {
                "move the root filesystem to / and change into it, without pivot_root".to_owned()
            }
            Step::CopyRoot { .. } => "copy the finished tree".to_owned(),
            Step::ChangeRoot(root) => format!("change root to {}", self.name(*root)),
            Step::MountFresh { mount, target, propagation, .. } => {
                fresh(mount, target, propagation.is_some())
            }
            Step::MakeMount { mount, .. } => format!("mount {}, to be placed", lossy(&mount.fstype)),
            Step::Place { from, target } => format!("place {} on {}", self.name(*from), rooted(&target.path)),
            Step::MakeDirectory(path) => format!("make directory {}", rooted(path)),
            Step::Symlink { target, path } => format!("link {} to {}", rooted(path), lossy(target)),
            Step::MakeNode(node) => device(node),
            Step::SetAttributes { path, recursive, attr } => {
                format!("set {} on {}", attributes(attr, *recursive), rooted(path))
            }
            Step::Mask { path, .. } => format!("mask {}", rooted(path)),
            Step::ReadOnly(path) => format!("make {} read-only", rooted(path)),
            Step::BindConsole => "bind the terminal on /dev/console".to_owned(),
            _ => end_sentence(step),
        }
    }
}

pub(crate) fn scheduling_sentence(step: &Step) -> String {
    match step {
        Step::Schedule(schedule) => {
            let name = match schedule.policy as i32 {
                libc::SCHED_OTHER => "SCHED_OTHER",
                libc::SCHED_FIFO => "SCHED_FIFO",
                libc::SCHED_RR => "SCHED_RR",
                libc::SCHED_BATCH => "SCHED_BATCH",
                libc::SCHED_IDLE => "SCHED_IDLE",
                _ => "SCHED_DEADLINE",
            };
            let Schedule { flags, nice, priority, runtime, deadline, period, .. } = schedule;
            let mut text = format!("schedule by {name}, nice {nice}, priority {priority}, flags {flags:#x}");
            if *deadline != 0 {
                text = format!("{text}, {runtime} of {deadline} ns each {period} ns");
            }
            text
        }
        Step::IoPriority(word) => format!("I/O priority class {}, level {}", word >> 13, word & 0x1fff),
        Step::Affinity(cpus) => format!("run on cpus {}", bit_list(cpus)),
        Step::MemoryPolicy(policy) => {
            format!("memory policy {:#x} on nodes {}", policy.mode, bit_list(&policy.nodes))
        }
        Step::Personality(word) => format!("execution domain {word:#x}"),
        other => format!("{other:?}"),
    }
}

/// A bit mask as the kernel writes lists: `0-3,7`.
fn bit_list(mask: &[u64]) -> String {
    let set = |bit: usize| mask.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1);
    let mut parts = Vec::new();
    let mut bit = 0;
    while bit < mask.len() * 64 {
        if !set(bit) {
            bit += 1;
            continue;
        }
        let first = bit;
        while set(bit + 1) {
            bit += 1;
        }
        parts.push(if first == bit { first.to_string() } else { format!("{first}-{bit}") });
        bit += 1;
    }
    if parts.is_empty() { "none".to_owned() } else { parts.join(",") }
}

fn end_sentence(step: &Step) -> String {
    match step {
        Step::FileModeMask(mask) => format!("umask {mask:03o}"),
        Step::BoundingSet(mask) => format!("bound capabilities to {mask:#x}"),
        Step::Credentials { uid, gid, groups: Some(groups) } => {
            format!("become uid {uid}, gid {gid}, groups {groups:?}")
        }
        Step::Credentials { uid, gid, groups: None } => {
            format!("become uid {uid}, gid {gid}, groups as they are")
        }
        Step::Capabilities { masks, extra } => format!(
            "capabilities effective {:#x}, permitted {:#x}, inheritable {:#x}, ambient {:#x}{}",
            masks.effective,
            masks.permitted,
            masks.inheritable,
            masks.ambient,
            if *extra == 0 { String::new() } else { format!(", until execve also {extra:#x}") },
        ),
        Step::NoNewPrivileges => "no new privileges".to_owned(),
        Step::ChangeDirectory(path) => format!("change directory to {}", lossy(path)),
        Step::VerifyDirectory(path) => format!("verify directory {}", lossy(path)),
        Step::Meet => "let the parent act on the namespaces, wait for its byte".to_owned(),
        Step::Park => PARK.to_owned(),
        Step::FindCommand { candidates } => {
            let list: Vec<_> = candidates.iter().map(|c| lossy(c)).collect();
            format!("{FIND_COMMAND} {}", list.join(" or "))
        }
        Step::UnblockSignals => "unblock signals".to_owned(),
        Step::Seccomp => "load the seccomp filter".to_owned(),
        Step::Execute { argv, .. } => {
            let words: Vec<_> = argv.strings().iter().map(|word| lossy(word)).collect();
            format!("{EXECUTE} {}", words.join(" "))
        }
        Step::ExecuteDescriptor { .. } => format!("{EXECUTE} the reaper"),
        // Every other variant has its sentence above.
        other => format!("{other:?}"),
    }
}

fn kind_names(kinds: u32) -> String {
    let in_it = |kind: &&NamespaceKind| kinds & kind.clone_flag() != 0;
    let names: Vec<String> = NamespaceKind::ALL.iter().filter(in_it).map(ToString::to_string).collect();
    names.join(", ")
}

fn describe(prepare: &Prepare) -> String {
    match prepare {
        Prepare::Root(Rootfs::Directory(path)) => format!("root filesystem {}", path.display()),
        Prepare::Root(Rootfs::Overlay(overlay)) => {
            let upper =
                overlay.upper.as_ref().map_or("read-only".to_owned(), |path| path.display().to_string());
            let label = overlay.label.as_ref().map_or(String::new(), |label| format!(", label {label}"));
            format!("root filesystem overlay of {} layers, upper {upper}{label}", overlay.lower.len())
        }
        Prepare::Bind(bind) => describe_bind(bind),
        Prepare::Group { path, readonly } => {
            format!("control group {}{}", path.display(), if *readonly { " read-only" } else { "" })
        }
        Prepare::FileSystem(plan) => describe_file_system(plan),
        Prepare::CopyUp { plan, below, .. } => {
            format!("{} with a copy of {}", describe_file_system(plan), below.display())
        }
        Prepare::Null => "/dev/null".to_owned(),
        Prepare::Namespace { kind, path } => format!("{kind} namespace {}", path.display()),
        Prepare::Given { kind, .. } => format!("the pod's {kind} namespace"),
        Prepare::NewUser { mappings, setgroups } => {
            let denied = if *setgroups == Setgroups::Deny { ", setgroups denied" } else { "" };
            format!("a user namespace mapped {mappings}{denied}")
        }
        Prepare::NewTime { offsets } if offsets.is_empty() => "a time namespace".to_owned(),
        Prepare::NewTime { offsets } => {
            format!("a time namespace, offset {}", offsets.trim_end().replace('\n', ", "))
        }
        Prepare::Device { plan: device, .. } => format!(
            "device {} {}:{} mode {:04o} owner {}:{}",
            device.path.display(),
            device.major,
            device.minor,
            device.mode & 0o7777,
            device.uid,
            device.gid
        ),
        Prepare::InChild { what } => what.clone(),
        Prepare::Reaper => "the reaper".to_owned(),
        Prepare::Empty => "an empty root".to_owned(),
        Prepare::Target => "the container's first process".to_owned(),
        Prepare::TargetRoot => "the container's root directory".to_owned(),
    }
}

fn describe_bind(bind: &BindPlan) -> String {
    let mut text = format!("{} {}", if bind.recursive { "tree" } else { "bind" }, bind.source.display());
    let parts = [
        attributes(&bind.attributes, false),
        attributes(&bind.recursive_attributes, true),
        bind.idmap.as_ref().map(describe_idmap).unwrap_or_default(),
        bind.propagation.map(|(kind, recursive)| propagation(kind, recursive)).unwrap_or_default(),
    ];
    for part in parts.iter().filter(|part| !part.is_empty()) {
        text = format!("{text} {part}");
    }
    text
}

fn describe_idmap(idmap: &IdmapPlan) -> String {
    format!("{} {}", if idmap.recursive { "ridmap" } else { "idmap" }, idmap.mappings)
}

fn describe_file_system(plan: &FreshPlan) -> String {
    let mut options = attribute_names(plan.attributes, "");
    for (key, value) in &plan.options {
        options.push(value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={value}")));
    }
    let options = if options.is_empty() { String::new() } else { format!(" ({})", options.join(",")) };
    format!("{} {}{options}", plan.fstype, plan.source)
}

fn fresh(mount: &FreshMount, target: &Target, propagated: bool) -> String {
    let mut options = attribute_names(mount.attributes, "");
    for (key, value) in &mount.options {
        options.push(
            value.as_ref().map_or_else(|| lossy(key), |value| format!("{}={}", lossy(key), lossy(value))),
        );
    }
    if let Some(label) = &mount.label {
        options.push(format!("label {}", lossy(label)));
    }
    if propagated {
        options.push("propagation".to_owned());
    }
    let options = if options.is_empty() { String::new() } else { format!(" ({})", options.join(",")) };
    format!("mount {} on {}{options}", lossy(&mount.fstype), rooted(&target.path))
}

fn device(node: &Node) -> String {
    let kind = match node.mode & libc::S_IFMT {
        libc::S_IFBLK => "block device",
        libc::S_IFIFO => "fifo",
        _ => "device",
    };
    let (mode, path) = (node.mode & 0o7777, rooted(&node.path));
    format!(
        "make {kind} {path} {}:{} mode {mode:04o} owner {}:{}",
        node.major, node.minor, node.uid, node.gid
    )
}

fn attributes(attr: &MountAttr, recursive: bool) -> String {
    let prefix = if recursive { "r" } else { "" };
    let mut names = attribute_names(attr.set, prefix);
    if attr.propagation != 0 {
        names.push(propagation(attr.propagation, recursive));
    }
    names.join(",")
}

fn attribute_names(set: u64, prefix: &str) -> Vec<String> {
    let names = [
        (libc::MOUNT_ATTR_RDONLY, "ro"),
        (libc::MOUNT_ATTR_NOSUID, "nosuid"),
        (libc::MOUNT_ATTR_NODEV, "nodev"),
        (libc::MOUNT_ATTR_NOEXEC, "noexec"),
        (libc::MOUNT_ATTR_NOATIME, "noatime"),
        (libc::MOUNT_ATTR_STRICTATIME, "strictatime"),
        (libc::MOUNT_ATTR_NODIRATIME, "nodiratime"),
        (libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
    ];
    names.iter().filter(|(bit, _)| set & bit != 0).map(|(_, name)| format!("{prefix}{name}")).collect()
}

fn propagation(kind: u64, recursive: bool) -> String {
    let name = match kind {
        libc::MS_SHARED => "shared",
        libc::MS_SLAVE => "slave",
        libc::MS_UNBINDABLE => "unbindable",
        _ => "private",
    };
    if recursive { format!("r{name}") } else { name.to_owned() }
}

fn limit_name(resource: u32) -> String {
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let name = NAMES.get(resource as usize);
    name.map_or_else(|| format!("RLIMIT {resource}"), |name| format!("RLIMIT_{name}"))
}

fn lossy(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

/// A path below the root as people write it.
fn rooted(path: &CStr) -> String {
    let path = lossy(path);
    if path == "." { "/".to_owned() } else { format!("/{path}") }
}
