//! Mounts and user namespaces: id-mapped binds, and file systems that a user namespace cannot have of its own.

use super::mounts::{BindPlan, Context, Delivery, IdmapPlan};
use super::{UserPlan, invalid};
use crate::Result;
use crate::idmap::IdMappings;
use crate::namespace::NamespaceKind;
use crate::sys::raw::MountAttr;
use oci_spec::runtime::Mount;
use std::path::{Path, PathBuf};

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
    propagation: Option<super::Propagation>,
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
        procfs: fstype == "proc",
        idmap: None,
    })
}

/// The `uid` and `gid` of a file system, whose values are the container's ids. Who makes it inside may say them as they
/// are, and for a tmpfs that is filled by the parent they become the host's. Other file systems of the host's keep theirs.
///
/// # Errors
/// `Invalid` for owners that are nobody inside; the kernel would say EINVAL of the whole mount.
pub(super) fn owners(delivery: Delivery, shown: &Path, user: Option<&UserPlan>) -> Result<Delivery> {
    let Some(mappings) = user.and_then(|user| user.mappings.as_ref()) else { return Ok(delivery) };
    match delivery {
        Delivery::Fresh(plan) => {
            host_owners(&plan.options, shown, mappings)?;
            Ok(Delivery::Fresh(plan))
        }
        Delivery::CopyUp(mut plan) => {
            plan.options = host_owners(&plan.options, shown, mappings)?;
            Ok(Delivery::CopyUp(plan))
        }
        other => Ok(other),
    }
}

type DataOptions = Vec<(String, Option<String>)>;

fn host_owners(
    options: &[(String, Option<String>)],
    shown: &Path,
    mappings: &IdMappings,
) -> Result<DataOptions> {
    let on_host = |(key, value): &(String, Option<String>)| {
        let same = (key.clone(), value.clone());
        let Some(id) = value.as_deref().and_then(|value| value.parse().ok()) else { return Ok(same) };
        let host = match key.as_str() {
            "uid" => mappings.host_uid(id),
            "gid" => mappings.host_gid(id),
            _ => return Ok(same),
        };
        let host = host.ok_or_else(|| {
            let what = format!("{key}={id} on {} is outside the mapping {mappings}", shown.display());
            invalid("mounts.options", what).hint("leave it out, or map more ids")
        })?;
        Ok((key.clone(), Some(host.to_string())))
    };
    options.iter().map(on_host).collect()
}
