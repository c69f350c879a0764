//! Mount propagation needs a source whose mount has whom to propagate to, or from (mount_namespaces(7)).

use crate::error::{Error, Result};
use cri_proto::v1::{self, MountPropagation};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::path::Path;

/// What the optional fields of mountinfo say of a mount.
#[derive(Debug, Default, PartialEq, Eq)]
struct Peers {
    point: String,
    shared: bool,
    slave: bool,
}

/// # Errors
/// FailedPrecondition where nothing could ever propagate (CRI-MNT-05).
pub(super) fn check(mount: &v1::Mount) -> Result<()> {
    let wanted = mount.propagation();
    if wanted == MountPropagation::PropagationPrivate {
        return Ok(());
    }
    let source = Path::new(&mount.host_path);
    let peers = of(source).map_err(|e| Error::io("look at the mount of", source, &e))?;
    let (enough, lacks) = match wanted {
        MountPropagation::PropagationBidirectional => (peers.shared, "is not a shared mount"),
        _ => (peers.shared || peers.slave, "is not a shared or slave mount"),
    };
    if enough {
        return Ok(());
    }
    Err(Error::state(format!(
        "mount {}: {} needs more: host_path {} is mounted on {} but it {lacks}: `mount --make-rshared {}` makes it one",
        mount.container_path,
        wanted.as_str_name(),
        mount.host_path,
        peers.point,
        if peers.point.starts_with('/') { &peers.point } else { "its mount point" },
    )))
}

/// Of the mount that `path`, its links followed, is on.
fn of(path: &Path) -> std::io::Result<Peers> {
    let facts = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    // What this mount namespace does not list cannot be propagated to either.
    let unlisted =
        || Peers { point: "a mount that this mount namespace does not list".into(), ..Peers::default() };
    Ok(parse(&table, &facts.stx_mnt_id.to_string()).unwrap_or_else(unlisted))
}

/// `36 35 98:0 /root /point rw,noatime shared:1 master:2 - ext3 /dev/root rw` (proc_pid_mountinfo(5)).
fn parse(table: &str, id: &str) -> Option<Peers> {
    let line = table.lines().find(|line| line.split(' ').next() == Some(id))?;
    let mut fields = line.split(" - ").next()?.split(' ').skip(4);
    let point = unescaped(fields.next()?);
    let optional: Vec<_> = fields.skip(1).collect();
    let any = |kind: &str| optional.iter().any(|field| field.starts_with(kind));
    Some(Peers { point, shared: any("shared:"), slave: any("master:") })
}

/// The kernel writes what would break the line as `\\` and three octal digits: a blank is `\\040`.
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-MNT-05.
    #[test]
    fn peers_are_in_the_optional_fields() {
        let table = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime shared:3 master:1 - ext3 /dev/root rw
38 35 98:0 / /a\\040b\\134c\\9 rw - ext3 /dev/root rw
37 35 98:0 / /mnt3 rw master:1 propagate_from:2 - ext3 shared:9 rw
";
        let found = |id: &str| parse(table, id).expect("a line");
        assert_eq!(found("22"), Peers { point: "/proc".into(), ..Peers::default() });
        assert_eq!(found("36"), Peers { point: "/mnt2".into(), shared: true, slave: true });
        assert_eq!(found("37"), Peers { point: "/mnt3".into(), shared: false, slave: true });
        assert_eq!(found("38").point, r"/a b\c\9");
        assert_eq!(parse(table, "2"), None);
    }
}
