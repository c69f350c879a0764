//! Block devices by name, and the file system that writable layers are on.

use super::families as f;
use super::sheet::Sheet;
use nix::sys::stat::{major, minor, stat};
use nix::sys::statvfs::{Statvfs, statvfs};
use std::path::Path;

/// The file system of the writable layers, read once for all containers.
#[derive(Debug)]
pub(super) struct Disk {
    device: String,
    facts: Option<Statvfs>,
}

impl Disk {
    pub(super) fn of(root: &Path) -> Self {
        let device = stat(root).map(|s| (major(s.st_dev), minor(s.st_dev)));
        Self { device: device.map_or_else(|_| String::new(), |(a, b)| name(a, b)), facts: statvfs(root).ok() }
    }

    /// `used`: bytes of the container's own layer, if they are known.
    pub(super) fn fill(&self, sheet: &mut Sheet, used: Option<u64>) {
        let device = self.device.as_str();
        if let Some(used) = used {
            sheet.put_with(&f::FS_USAGE, &[device], used);
        }
        if let Some(facts) = &self.facts {
            let size = facts.blocks().saturating_mul(facts.fragment_size());
            sheet.put_with(&f::FS_LIMIT, &[device], size);
            sheet.put_with(&f::FS_INODES_TOTAL, &[device], facts.files());
            sheet.put_with(&f::FS_INODES_FREE, &[device], facts.files_available());
        }
    }
}

/// `/dev/sda1`; for what is no block device the source of its mount (`tmpfs`), as cAdvisor does.
pub(super) fn name(major: u64, minor: u64) -> String {
    let event = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    if let Some(name) = event.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
        return format!("/dev/{name}");
    }
    let number = format!("{major}:{minor}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let source = line.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1));
    source.map_or(number.clone(), str::to_owned)
}
