//! User namespaces: which ids of the container are which of the host, and what an ordinary user may ask for.

use super::{DevicePlan, NamespacePlan, NamespaceSource, invalid};
use crate::Result;
use crate::host::Host;
use crate::idmap::{IdMappings, Setgroups};
use crate::namespace::NamespaceKind;
use oci_spec::runtime::{Linux, Process};

/// The user namespace of a container, decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserPlan {
    pub source: NamespaceSource,
    /// None: joined, and the spec does not say how it is mapped.
    pub mappings: Option<IdMappings>,
    pub setgroups: Setgroups,
    /// We are an ordinary user: all is done inside, after joining.
    pub ordinary: bool,
    /// CLONE_NEW* of what the container shares with us. Who has no rights over those cannot join them, and is there already.
    pub shared: u32,
}

/// Takes the user namespace out of `namespaces`, if there is one.
pub(super) fn plan(
    linux: &Linux,
    namespaces: &mut Vec<NamespacePlan>,
    host: &Host,
) -> Result<Option<UserPlan>> {
    let (uids, gids) = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
    let said = uids.is_some_and(|l| !l.is_empty()) || gids.is_some_and(|l| !l.is_empty());
    let at = namespaces.iter().position(|namespace| namespace.kind == NamespaceKind::User);
    let Some(at) = at else {
        if said {
            return Err(invalid("linux.uidMappings", "there is no user namespace that they could be of")
                .hint("add {\"type\": \"user\"} to linux.namespaces"));
        }
        return if host.ordinary_user() || host.rights_gained {
            Err(needs_user_namespace())
        } else {
            Ok(None)
        };
    };
    let source = namespaces.remove(at).source;
    let mappings = said.then(|| IdMappings::from_spec("linux", uids, gids)).transpose()?;
    if source == NamespaceSource::New {
        let Some(mappings) = &mappings else {
            return Err(invalid("linux.uidMappings", "missing for the new user namespace"));
        };
        if mappings.host_uid(0).is_none() {
            return Err(invalid("linux.uidMappings", "container id 0 is not mapped: nobody could set it up"));
        }
        if mappings.host_gid(0).is_none() {
            return Err(invalid("linux.gidMappings", "container id 0 is not mapped: nobody could set it up"));
        }
    }
    let user = NamespaceKind::User.clone_flag();
    let own = namespaces.iter().fold(user, |kinds, namespace| kinds | namespace.kind.clone_flag());
    let (setgroups, ordinary) = (setgroups(host), host.ordinary_user());
    Ok(Some(UserPlan { source, mappings, setgroups, ordinary, shared: !own }))
}

/// What exec needs to know of a container's user namespace. `denied`: nobody in it may change groups; `shared` as in
/// [`UserPlan`].
pub fn of_running(
    spec: &oci_spec::runtime::Spec,
    host: &Host,
    denied: bool,
    shared: u32,
) -> Result<UserPlan> {
    let linux = spec.linux().as_ref();
    let uids = linux.and_then(|l| l.uid_mappings().as_deref()).filter(|list| !list.is_empty());
    let gids = linux.and_then(|l| l.gid_mappings().as_deref());
    let mappings = uids.map(|uids| IdMappings::from_spec("linux", Some(uids), gids)).transpose()?;
    let source = NamespaceSource::Given(0);
    let setgroups = if denied { Setgroups::Deny } else { setgroups(host) };
    Ok(UserPlan { source, mappings, setgroups, ordinary: host.ordinary_user(), shared })
}

fn setgroups(host: &Host) -> Setgroups {
    const SETGID: u64 = 1 << 6;
    let denied = host.capabilities & SETGID == 0 || host.setgroups_denied;
    if denied { Setgroups::Deny } else { Setgroups::Allow }
}

fn needs_user_namespace() -> crate::Error {
    invalid("linux.namespaces", "this user has no rights on the host, so a container needs a user namespace")
        .hint("add {\"type\": \"user\"} and map container id 0 to this user's own id in linux.uidMappings and linux.gidMappings")
}

impl UserPlan {
    /// Refuses ids of the process that are nobody inside.
    pub(super) fn check_process(&self, process: &Process) -> Result<()> {
        let user = process.user();
        let groups = user.additional_gids().as_deref().unwrap_or_default();
        let Some(mappings) = &self.mappings else { return Ok(()) };
        let outside = |field: &str, id: u32| {
            let hint = "choose an id inside the mapping, or map more";
            Err(invalid(field, format!("{id} is outside the mapping {mappings}")).hint(hint))
        };
        if mappings.host_uid(user.uid()).is_none() {
            return outside("process.user.uid", user.uid());
        }
        for (field, gid) in [("process.user.gid", user.gid())]
            .into_iter()
            .chain(groups.iter().map(|&gid| ("process.user.additionalGids", gid)))
        {
            if mappings.host_gid(gid).is_none() {
                return outside(field, gid);
            }
        }
        Ok(())
    }

    /// A device with the owners that the host sees. Unknown maps leave it to the host's root, as nobody inside.
    pub fn on_host(&self, device: &DevicePlan) -> DevicePlan {
        let maps = self.mappings.as_ref();
        let uid = maps.and_then(|m| m.host_uid(device.uid)).unwrap_or(0);
        let gid = maps.and_then(|m| m.host_gid(device.gid)).unwrap_or(0);
        DevicePlan { uid, gid, ..device.clone() }
    }

    /// User and group of the host that are root inside; the host's own where the mapping is not known.
    pub fn host_root(&self) -> (u32, u32) {
        self.mappings.as_ref().map_or((0, 0), IdMappings::host_root)
    }

    /// The host's id of a user inside, where the mapping is known.
    pub(super) fn host_uid(&self, uid: u32) -> Option<u32> {
        self.mappings.as_ref()?.host_uid(uid)
    }
}
