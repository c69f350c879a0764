//! Mounts and user namespaces: id-mapped binds, and file systems that a user namespace cannot have of its own.

use super::mounts::{BindPlan, Context, IdmapPlan};
use super::{UserPlan, invalid};
use crate::Result;
use crate::idmap::IdMappings;
use crate::namespace::NamespaceKind;
use crate::sys::raw::MountAttr;
use oci_spec::runtime::Mount;
use std::path::PathBuf;

/// What `idmap`, `ridmap`, `uidMappings` and `gidMappings` of a mount ask for (config.md, "Linux mount options"); `word`:
/// one of the options was there, and whether the recursive one.
pub(super) fn idmap(
    mount: &Mount,
    word: Option<bool>,
    bind: bool,
    user: Option<&UserPlan>,
) -> Result<Option<IdmapPlan>> {
    let (uids, gids) = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    let said = uids.is_some_and(|l| !l.is_empty()) || gids.is_some_and(|l| !l.is_empty());
    if word.is_none() && !said {
        return Ok(None);
    }
    let shown = mount.destination().display();
    if !bind {
        return Err(invalid("mounts.options", format!("idmap on {shown}: only bind mounts are id-mapped")));
    }
    let mappings = if said {
        IdMappings::from_spec("mounts", uids, gids)?
    } else {
        user.and_then(|user| user.mappings.clone()).ok_or_else(|| {
            invalid("mounts.options", format!("idmap on {shown}: mapped to what?")).hint(
                "give the mount uidMappings and gidMappings, or the container a user namespace with mappings",
            )
        })?
    };
    Ok(Some(IdmapPlan { mappings, recursive: word.unwrap_or(false) }))
}

/// A file system whose instance belongs to a namespace can be mounted by its owner only: where the container shares that
/// of the host, a user namespace gets the host's own mount instead.
pub(super) fn in_place_of(
    fstype: &str,
    attributes: MountAttr,
    propagation: Option<(u64, bool)>,
    context: &Context<'_>,
) -> Option<BindPlan> {
    context.user?;
    let (kind, source) = match fstype {
        "proc" => (NamespaceKind::Pid, "/proc"),
        "sysfs" => (NamespaceKind::Network, "/sys"),
        "mqueue" => (NamespaceKind::Ipc, "/dev/mqueue"),
        _ => return None,
    };
    if context.namespaces.iter().any(|namespace| namespace.kind == kind) {
        return None;
    }
    Some(BindPlan {
        source: PathBuf::from(source),
        recursive: true,
        attributes,
        // What is mounted below is not to be more open than what was asked for.
        recursive_attributes: MountAttr { set: attributes.set, ..MountAttr::default() },
        propagation,
        idmap: None,
    })
}

/// Refuses owners that are nobody inside; the kernel would say EINVAL of the whole mount.
pub(super) fn check_owners(
    options: &[(String, Option<String>)],
    shown: impl std::fmt::Display,
    user: Option<&UserPlan>,
) -> Result<()> {
    let Some(mappings) = user.and_then(|user| user.mappings.as_ref()) else { return Ok(()) };
    for (key, value) in options {
        let Some(id) = value.as_deref().and_then(|value| value.parse().ok()) else { continue };
        let host = match key.as_str() {
            "uid" => mappings.host_uid(id),
            "gid" => mappings.host_gid(id),
            _ => continue,
        };
        if host.is_none() {
            let what = format!("{key}={id} on {shown} is outside the mapping {mappings}");
            return Err(invalid("mounts.options", what).hint("leave it out, or map more ids"));
        }
    }
    Ok(())
}
