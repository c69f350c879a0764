//! Id mappings of user namespaces and of idmapped mounts (user_namespaces(7), mount_setattr(2)), as every room names them.

use crate::error::Kind;
use crate::sys::holder::Holder;
use crate::{Error, Result};
use oci_spec::runtime::LinuxIdMapping;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::fd::OwnedFd;

/// The kernel's own limits on a map: lines, and bytes of one write.
const MOST_LINES: usize = 340;
const MOST_BYTES: usize = 4095;

/// One line of a map. `container` counts inside the namespace (for a mount: in the file system), `host` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMap {
    pub container: u32,
    pub host: u32,
    pub size: u32,
}

/// The two maps of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMappings {
    pub uids: Vec<IdMap>,
    pub gids: Vec<IdMap>,
}

impl IdMappings {
    /// Both maps from a spec's lists, checked.
    ///
    /// # Errors
    /// `Invalid` naming `<field>.uidMappings` or `<field>.gidMappings` and what is wrong in it.
    pub fn from_spec(
        field: &str,
        uids: Option<&[LinuxIdMapping]>,
        gids: Option<&[LinuxIdMapping]>,
    ) -> Result<Self> {
        let convert = |list: Option<&[LinuxIdMapping]>| -> Vec<IdMap> {
            let line =
                |m: &LinuxIdMapping| IdMap { container: m.container_id(), host: m.host_id(), size: m.size() };
            list.unwrap_or_default().iter().map(line).collect()
        };
        let mappings = Self { uids: convert(uids), gids: convert(gids) };
        mappings.check(field, "uidMappings", "gidMappings")?;
        Ok(mappings)
    }

    /// What the kernel would refuse with a bare EINVAL, in words.
    ///
    /// # Errors
    /// `Invalid` naming `<field>.<uids>` or `<field>.<gids>`.
    pub fn check(&self, field: &str, uids: &str, gids: &str) -> Result<()> {
        for (name, list) in [(uids, &self.uids), (gids, &self.gids)] {
            check_list(list).map_err(|why| {
                Error::new(Kind::Invalid, format!("plan {field}.{name}").replace("plan .", "plan "), why)
            })?;
        }
        Ok(())
    }

    /// The host's id of a container's user.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        host_id(&self.uids, uid)
    }

    /// User and group of the host that are root inside; the host's own where the maps leave them out.
    pub fn host_root(&self) -> (u32, u32) {
        (self.host_uid(0).unwrap_or(0), self.host_gid(0).unwrap_or(0))
    }

    /// The host's id of a container's group.
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        host_id(&self.gids, gid)
    }
}

impl fmt::Display for IdMappings {
    /// `0:100000:65536`, and the groups' map after a slash where it differs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&short(&self.uids))?;
        if self.uids == self.gids { Ok(()) } else { write!(f, "/{}", short(&self.gids)) }
    }
}

fn short(list: &[IdMap]) -> String {
    let line = |m: &IdMap| format!("{}:{}:{}", m.container, m.host, m.size);
    list.iter().map(line).collect::<Vec<_>>().join(",")
}

fn host_id(list: &[IdMap], id: u32) -> Option<u32> {
    let line = list.iter().find(|m| id >= m.container && id - m.container < m.size)?;
    Some(line.host + (id - line.container))
}

fn check_list(list: &[IdMap]) -> Result<(), String> {
    if list.is_empty() {
        return Err("missing: users and groups are mapped together".to_owned());
    }
    for line in list {
        let shown = short(std::slice::from_ref(line));
        if line.size == 0 {
            return Err(format!("{shown} has size 0"));
        }
        if line.container.checked_add(line.size).is_none() || line.host.checked_add(line.size).is_none() {
            return Err(format!("{shown} ends beyond the largest id"));
        }
    }
    for (number, a) in list.iter().enumerate() {
        for b in list.iter().skip(number + 1) {
            let overlap = |a: u32, b: u32, sizes: (u32, u32)| a < b + sizes.1 && b < a + sizes.0;
            let sizes = (a.size, b.size);
            if overlap(a.container, b.container, sizes) || overlap(a.host, b.host, sizes) {
                return Err(format!("{} and {} overlap", short(&[*a]), short(&[*b])));
            }
        }
    }
    if list.len() > MOST_LINES || text(list).len() > MOST_BYTES {
        return Err(format!("{} ranges are more than the kernel takes", list.len()));
    }
    Ok(())
}

/// As `/proc/<pid>/uid_map` wants it.
fn text(list: &[IdMap]) -> String {
    list.iter().map(|m| format!("{} {} {}\n", m.container, m.host, m.size)).collect()
}

/// Whether processes of the namespace may change their supplementary groups (`/proc/<pid>/setgroups`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setgroups {
    Allow,
    /// What an ordinary user must do before mapping its group: dropping a group that denies access would be a way in.
    Deny,
}

/// A new user namespace with these maps, held by descriptor, owned by this process's effective user.
pub fn user_namespace(mappings: &IdMappings, setgroups: Setgroups) -> Result<OwnedFd> {
    let holder = mapped_holder(mappings, setgroups, 0)?;
    holder.namespace("user").map_err(|e| Error::sys("hold the user namespace", "open", e))
}

/// A process in a new user namespace with these maps and in new namespaces of `kinds` (CLONE_NEW*) that belong to it.
/// For whoever wants to open the latter; they are gone with the value, unless held.
pub fn mapped_holder(mappings: &IdMappings, setgroups: Setgroups, kinds: u32) -> Result<Holder> {
    let step = "make a user namespace";
    let holder = Holder::new(libc::CLONE_NEWUSER as u32 | kinds).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::ENOSPC) => "raise user.max_user_namespaces (sysctl), or a limit of another kind in /proc/sys/user",
            Some(libc::EPERM) => "this host forbids user namespaces to this user: see kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns",
            Some(libc::EINVAL) => "this kernel has no user namespaces",
            Some(libc::EUSERS) => "user namespaces are nested too deeply",
            _ => "see user_namespaces(7)",
        };
        Error::sys(step, "clone3", e).hint(hint)
    })?;
    let deny = setgroups == Setgroups::Deny;
    holder.map(&text(&mappings.uids), &text(&mappings.gids), deny).map_err(|e| {
        Error::sys(step, format!("map {mappings}"), e)
            .with_kind(Kind::Invalid)
            .hint("an ordinary user may map its own user and group only; root may map ids that it has itself")
    })?;
    Ok(holder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container: u32, host: u32, size: u32) -> IdMap {
        IdMap { container, host, size }
    }

    #[test]
    fn ids_are_translated_inside_the_map_only() {
        let lines = vec![map(0, 100_000, 10), map(10, 5, 1)];
        let mappings = IdMappings { uids: lines.clone(), gids: vec![map(0, 7, 1)] };
        assert_eq!(mappings.host_uid(9), Some(100_009));
        assert_eq!(mappings.host_uid(10), Some(5));
        assert_eq!(mappings.host_uid(11), None);
        assert_eq!(mappings.host_gid(1), None);
        assert_eq!(mappings.to_string(), "0:100000:10,10:5:1/0:7:1");
        assert_eq!(text(&lines), "0 100000 10\n10 5 1\n");
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_with_the_reason() {
        for (bad, why) in [
            (vec![], "missing"),
            (vec![map(0, 1, 0)], "size 0"),
            (vec![map(0, u32::MAX, 2)], "largest"),
            (vec![map(1, 0, u32::MAX)], "largest"),
            (vec![map(0, 100, 10), map(9, 200, 1)], "overlap"),
            (vec![map(0, 100, 10), map(10, 109, 1)], "overlap"),
            ((0..341).map(|n| map(n, n, 1)).collect(), "more than"),
        ] {
            let mappings = IdMappings { uids: vec![map(0, 0, 1)], gids: bad };
            let error = mappings.check("linux", "uidMappings", "gidMappings").unwrap_err().to_string();
            assert!(error.contains("linux.gidMappings") && error.contains(why), "{error}");
        }
        let whole = vec![map(0, 0, u32::MAX)];
        assert!(check_list(&whole).is_ok());
        assert!(check_list(&[map(0, 100, 10), map(10, 90, 10)]).is_ok());
    }
}
