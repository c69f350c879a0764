//! Facts about this host, probed once per process: cgroup layout, security modules, own capabilities.
//!
//! Plans are made against these facts, so that a plan is a pure function and a test can invent a host.

use crate::rootless;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// How control groups are laid out on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Every controller on version 1 hierarchies (a v2 mount may exist beside them: hybrid).
    V1,
    /// One unified hierarchy at /sys/fs/cgroup.
    V2,
}

/// One mounted version 1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Directory name below /sys/fs/cgroup: `memory`, `cpu,cpuacct`, `systemd`.
    pub name: String,
    /// Mount point on the host.
    pub path: PathBuf,
}

/// Everything a plan may depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub cgroups: CgroupLayout,
    /// Version 1 hierarchies, in mount order; empty on version 2.
    pub hierarchies: Vec<Hierarchy>,
    /// Capabilities this process can give (permitted and in the bounding set), number n at bit n.
    pub capabilities: u64,
    /// Capabilities this kernel knows: what a process has in a user namespace of its own.
    pub known_capabilities: u64,
    /// Supplementary groups may not be changed in our user namespace, nor in any below (user_namespaces(7),
    /// `/proc/<pid>/setgroups`): so it is for an ordinary user's.
    pub setgroups_denied: bool,
    /// The rights that we have are over what we make only ([`crate::rootless`]): a container needs a user namespace of its own.
    pub rights_gained: bool,
    /// Control groups can be made here, as far as their permissions say: not by an ordinary user.
    pub makes_groups: bool,
    /// Where the resctrl file system is mounted (resctrl.rst).
    pub resctrl: Option<PathBuf>,
    pub apparmor: bool,
    pub selinux: bool,
}

impl Host {
    /// The facts of this host; read once.
    pub fn current() -> &'static Self {
        static HOST: OnceLock<Host> = OnceLock::new();
        HOST.get_or_init(Self::probe)
    }

    /// True if this process has no rights over the host's mounts and namespaces: all it can do is inside a user namespace.
    pub fn ordinary_user(&self) -> bool {
        const SYS_ADMIN: u64 = 1 << 21;
        self.capabilities & SYS_ADMIN == 0
    }

    fn probe() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let hierarchies = hierarchies(&mounts);
        let cgroups = if hierarchies.is_empty() { CgroupLayout::V2 } else { CgroupLayout::V1 };
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
        Self {
            rights_gained: rootless::gained(),
            makes_groups: makes_groups(&hierarchies),
            cgroups,
            hierarchies,
            capabilities: capability_line(&status, "CapPrm:") & capability_line(&status, "CapBnd:"),
            known_capabilities: up_to(last.trim().parse().unwrap_or(40)),
            setgroups_denied: fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny")),
            resctrl: mount_of("resctrl", &mounts),
            apparmor: fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|v| v.starts_with(b"Y"))
                && fs::metadata("/proc/self/attr/apparmor/exec").is_ok(),
            selinux: crate::lsm::selinux_enforces().is_some(),
        }
    }
}

/// Version 1 hierarchies in a mountinfo text. One of several mounts of the same hierarchy wins: the first.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        if right.split(' ').next() != Some("cgroup") {
            continue;
        }
        let path = PathBuf::from(point);
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        if !found.iter().any(|known| known.name == name) {
            found.push(Hierarchy { name, path });
        }
    }
    found
}

/// The mask of capabilities 0 to `last`.
fn up_to(last: u32) -> u64 {
    u64::MAX >> 63_u32.saturating_sub(last)
}

fn capability_line(status: &str, key: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
    u64::from_str_radix(value.trim(), 16).unwrap_or(0)
}

/// The first place of a file system of this type.
fn mount_of(fstype: &str, mountinfo: &str) -> Option<PathBuf> {
    let places = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next()? == fstype).then(|| left.split(' ').nth(4).map(PathBuf::from))?
    });
    places.into_iter().next()
}

/// Whether any of the hierarchies lets this process make groups at its top.
fn makes_groups(hierarchies: &[Hierarchy]) -> bool {
    use rustix::fs::{Access, access};
    let makes = |path: &std::path::Path| access(path, Access::WRITE_OK).is_ok();
    makes(std::path::Path::new("/sys/fs/cgroup")) && hierarchies.is_empty()
        || hierarchies.iter().any(|h| makes(&h.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_version_1_hierarchies_and_not_the_unified_one() {
        let text = "33 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = hierarchies(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "cpu,cpuacct");
        assert_eq!(found[0].path, PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn reads_capability_masks() {
        assert_eq!(capability_line("Name:\tx\nCapPrm:\t000001fffeffffff\n", "CapPrm:"), 0x1ff_feff_ffff);
        assert_eq!(capability_line("", "CapPrm:"), 0);
        assert_eq!(up_to(40), 0x1ff_ffff_ffff);
    }
}
