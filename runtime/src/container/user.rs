//! User namespaces of containers, as far as they must exist or be known before the plan.

use crate::Result;
use crate::host::Host;
use crate::idmap;
use crate::namespace::NamespaceKind;
use crate::plan::{self, NamespaceSource, UserPlan};
use crate::rootfs::Rootfs;
use oci_spec::runtime::Spec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A container's user namespace before its launch.
pub(super) struct User {
    plan: Option<UserPlan>,
    /// A new one: made first, because the root filesystem's layers may be mapped by it.
    pub(super) made: Option<OwnedFd>,
}

pub(super) fn prepare(spec: &Spec, given: &[NamespaceKind], host: &Host) -> Result<User> {
    let plan = plan::user_namespace(spec, given, host)?;
    let made = match &plan {
        Some(UserPlan { source: NamespaceSource::New, mappings: Some(mappings), setgroups, .. }) => {
            Some(idmap::user_namespace(mappings, *setgroups)?)
        }
        _ => None,
    };
    Ok(User { plan, made })
}

impl User {
    /// The namespace, if layers that are to be mapped can be mapped by it.
    pub(super) fn for_layers<'a>(
        &'a self,
        rootfs: &Rootfs,
        given: &'a [(NamespaceKind, OwnedFd)],
    ) -> Option<BorrowedFd<'a>> {
        let Rootfs::Overlay(overlay) = rootfs else { return None };
        let plan = self.plan.as_ref()?;
        if overlay.idmap.is_none() || overlay.idmap != plan.mappings {
            return None;
        }
        match plan.source {
            NamespaceSource::Given(index) => given.get(index).map(|(_, fd)| fd.as_fd()),
            _ => self.made.as_ref().map(AsFd::as_fd),
        }
    }
}

/// The user namespace of a running process as a session needs it; none if it is ours.
pub(super) fn of_running(spec: &Spec, host: &Host, pid: i32) -> Result<Option<UserPlan>> {
    if !differs(pid, "user") {
        return Ok(None);
    }
    let setgroups = std::fs::read(format!("/proc/{pid}/setgroups")).unwrap_or_default();
    let shared = NamespaceKind::ALL.into_iter().filter(|kind| !differs(pid, kind.link()));
    let shared = shared.fold(0, |kinds, kind| kinds | kind.clone_flag());
    plan::of_running(spec, host, setgroups.starts_with(b"deny"), shared).map(Some)
}

/// Whether a process is in another namespace of this kind (`user`, `time`) than we are.
pub(super) fn differs(pid: i32, name: &str) -> bool {
    let of = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}")).ok();
    matches!((of(&pid.to_string()), of("self")), (Some(theirs), Some(ours)) if theirs != ours)
}
