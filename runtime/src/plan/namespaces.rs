//! Which namespaces a container is in, and whose.

use super::{MountPlan, Propagation, invalid, unsupported};
use crate::Result;
use crate::namespace::NamespaceKind;
use oci_spec::runtime::{Linux, LinuxNamespaceType};
use std::path::PathBuf;

/// How a kind of namespace comes to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceSource {
    New,
    /// Opened by path at launch.
    Path(PathBuf),
    /// The n-th descriptor of the request.
    Given(usize),
}

/// One namespace of the container; kinds that are not listed are the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePlan {
    pub kind: NamespaceKind,
    pub source: NamespaceSource,
}

/// Whose mount namespace the container is in. Its tree is always made in a new one, where nothing can reach the host: in
/// another's it is there as its processes' root alone, in nobody's table of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountHome {
    Own,
    /// That of this process.
    Runtime,
    /// Opened by path at launch.
    Path(PathBuf),
}

pub(super) fn plan(linux: &Linux, given: &[NamespaceKind]) -> Result<Vec<NamespacePlan>> {
    let mut plans: Vec<NamespacePlan> = given
        .iter()
        .enumerate()
        .map(|(index, &kind)| NamespacePlan { kind, source: NamespaceSource::Given(index) })
        .collect();
    for asked in linux.namespaces().iter().flatten() {
        let kind = kind_of(asked.typ());
        let named_twice =
            plans.iter().any(|p| p.kind == kind && !matches!(p.source, NamespaceSource::Given(_)));
        if named_twice {
            return Err(invalid("linux.namespaces", format!("{kind} is listed twice")));
        }
        if plans.iter().any(|p| p.kind == kind) {
            continue;
        }
        let source = match asked.path() {
            Some(path) if path.is_absolute() => NamespaceSource::Path(path.clone()),
            Some(path) => {
                return Err(invalid("linux.namespaces", format!("{} is not absolute", path.display())));
            }
            None => NamespaceSource::New,
        };
        plans.push(NamespacePlan { kind, source });
    }
    Ok(plans)
}

/// Takes the mount namespace that the container ends up in out of `namespaces`, and leaves the new one in which its tree
/// is made.
pub(super) fn mount_home(namespaces: &mut Vec<NamespacePlan>, user: bool) -> Result<MountHome> {
    let kind = NamespaceKind::Mount;
    let at = namespaces.iter().position(|namespace| namespace.kind == kind);
    let home = match at.map(|at| namespaces.remove(at).source) {
        Some(NamespaceSource::New) => MountHome::Own,
        Some(NamespaceSource::Path(path)) => MountHome::Path(path),
        Some(NamespaceSource::Given(_)) => {
            return Err(unsupported("linux.namespaces", "a mount namespace is joined by its path only"));
        }
        None => MountHome::Runtime,
    };
    if user && home != MountHome::Own {
        let what = "in a user namespace a container needs a mount namespace of its own";
        return Err(invalid("linux.namespaces", what).hint("add {\"type\": \"mount\"}, without a path"));
    }
    namespaces.push(NamespacePlan { kind, source: NamespaceSource::New });
    Ok(home)
}

/// What cannot be taken into another mount namespace.
pub(super) fn check_home(home: &MountHome, mounts: &[MountPlan], root: Option<Propagation>) -> Result<()> {
    let unbindable =
        |propagation: Option<Propagation>| propagation.is_some_and(|(kind, _)| kind == libc::MS_UNBINDABLE);
    let field = if unbindable(root) {
        "linux.rootfsPropagation"
    } else if mounts.iter().any(|mount| unbindable(mount.delivery.propagation())) {
        "mounts.options"
    } else {
        return Ok(());
    };
    if *home == MountHome::Own {
        return Ok(());
    }
    let what = "unbindable needs a mount namespace of the container's own";
    Err(unsupported(field, what).hint("add {\"type\": \"mount\"} to linux.namespaces, without a path"))
}

/// Whether a container's root is not the root of its mount namespace: who joins it must change into it.
pub fn root_is_elsewhere(linux: Option<&Linux>) -> bool {
    let own =
        |n: &oci_spec::runtime::LinuxNamespace| n.typ() == LinuxNamespaceType::Mount && n.path().is_none();
    !linux.and_then(|linux| linux.namespaces().as_ref()).is_some_and(|list| list.iter().any(own))
}

fn kind_of(kind: LinuxNamespaceType) -> NamespaceKind {
    match kind {
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    }
}
