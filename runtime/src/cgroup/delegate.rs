//! Who owns a group, so that the container's own user may divide it (cgroups(7), "Delegating a hierarchy").

use super::Cgroup;
use super::files;
use super::layout::Layout;
use crate::{Error, Result};
use rustix::fs::{Uid, chown};

/// Which files a delegate gets, as this kernel has them.
const LIST: &str = "/sys/kernel/cgroup/delegate";
/// Where the kernel does not say (before Linux 4.15).
const USUAL: &str = "cgroup.procs cgroup.subtree_control cgroup.threads";

pub(super) fn give(layout: &Layout, group: &Cgroup, uid: u32) -> Result<()> {
    let Layout::V2(hierarchy) = layout else { return Ok(()) };
    let dir = group.dir(layout, hierarchy);
    let list = files::read(LIST).unwrap_or_else(|_| USUAL.to_owned());
    // memory.oom.group and the like are on the list, too: how the group is used, not how much it gets.
    let files = list.split_whitespace().map(|file| format!("{dir}/{file}"));
    for path in std::iter::once(dir.clone()).chain(files) {
        match chown(&*path, Some(Uid::from_raw(uid)), None) {
            // A controller that the group does not have.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(Error::sys("give the control group to its user", path, errno)),
        }
    }
    Ok(())
}
