//! Disks: an overlay on the file system of `--root`, its free space, and that `--state` dies with the boot.

use super::Finding;
use crate::config::Config;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use slipway_runtime::sys::quota::{self, Support};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Shares of a disk that is still free, in percent: below the first the kubelet evicts pods by its own defaults
/// (`imagefs.available`), below the second pulls fail soon.
const LOW: u64 = 15;
const VERY_LOW: u64 = 3;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let root = existing(&config.root);
    let mut findings = vec![overlay(root), space(root), state(existing(&config.state))];
    if config.file.containers.layer_limit() > 0 {
        findings.push(quotas(root));
    }
    findings
}

/// Asked only where the configuration limits writable layers.
fn quotas(root: &Path) -> Finding {
    match fs::File::open(root).map(|dir| quota::support(dir.as_fd())) {
        Ok(Support::Limits) => Finding::ok("project quotas", format!("{} enforces them", root.display())),
        _ => Finding::warning(
            "project quotas",
            format!(
                "containers.writable_layer_limit has no effect: {} enforces no project quotas",
                root.display()
            ),
            "put --root on XFS, or on ext4 with its features quota and project (tune2fs -O quota,project), mounted with prjquota",
        ),
    }
}

/// The nearest directory that is there already.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"))
}

fn overlay(root: &Path) -> Finding {
    match try_overlay(root) {
        Ok(()) => Finding::ok("overlay", format!("works on {}", root.display())),
        Err((step, error)) => Finding::failure(
            "overlay",
            format!("{step} on {}: {error}", root.display()),
            "put --root on ext4, xfs (ftype=1) or btrfs of this machine; overlay, NFS and FAT cannot carry layers",
        ),
    }
}

/// A layer below, a container above: writes, and hides a file of the layer. Nothing stays.
fn try_overlay(root: &Path) -> Result<(), (&'static str, io::Error)> {
    let scratch = tempfile::Builder::new().prefix(".slipway-check-").tempdir_in(root);
    let scratch = scratch.map_err(|e| ("make a directory", e))?;
    let dir = |name: &str| scratch.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(dir(name)).map_err(|e| ("make a directory", e))?;
    }
    fs::write(dir("lower/file"), "").map_err(|e| ("write a file", e))?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        dir("lower").display(),
        dir("upper").display(),
        dir("work").display()
    );
    let merged = dir("merged");
    // The mount dies with the thread's namespace.
    let tried = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|e| ("unshare the mount namespace", e.into()))?;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(|e| ("make mounts private", e.into()))?;
        let kind = Some("overlay");
        mount(kind, &merged, kind, MsFlags::empty(), Some(options.as_str()))
            .map_err(|e| ("mount an overlay", e.into()))?;
        fs::write(merged.join("new"), "").map_err(|e| ("write into an overlay", e))?;
        fs::remove_file(merged.join("file")).map_err(|e| ("hide a layer's file (whiteout)", e))
    });
    tried.join().unwrap_or_else(|_| Err(("try an overlay", io::Error::other("the thread panicked"))))
}

fn space(root: &Path) -> Finding {
    let subject = "disk";
    let usage = match statvfs(root) {
        Ok(usage) => usage,
        Err(errno) => {
            return Finding::failure(subject, format!("{}: {errno}", root.display()), "mount it");
        }
    };
    let bytes = percent(usage.blocks_available(), usage.blocks());
    // btrfs counts no inodes.
    let inodes = if usage.files() == 0 { 100 } else { percent(usage.files_available(), usage.files()) };
    free(root, bytes, inodes)
}

fn percent(part: u64, whole: u64) -> u64 {
    part.saturating_mul(100) / whole.max(1)
}

fn free(root: &Path, bytes: u64, inodes: u64) -> Finding {
    let found = format!("{bytes} % of bytes and {inodes} % of inodes of {} are free", root.display());
    let remedy = "free some, or move --root to a larger file system";
    match bytes.min(inodes) {
        ..VERY_LOW => Finding::failure("disk", found, remedy),
        VERY_LOW..LOW => Finding::warning("disk", found, remedy),
        _ => Finding::ok("disk", found),
    }
}

fn state(dir: &Path) -> Finding {
    match statfs(dir) {
        Ok(found) if found.filesystem_type() == TMPFS_MAGIC => {
            Finding::ok("state", format!("{} is a tmpfs", dir.display()))
        }
        Ok(_) => Finding::warning(
            "state",
            format!(
                "{} survives a boot: the next one meets records of processes that are gone",
                dir.display()
            ),
            "put --state on a tmpfs, below /run",
        ),
        Err(errno) => Finding::failure("state", format!("{}: {errno}", dir.display()), "mount it"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_filling_disk_is_told_before_it_is_full() {
        let verdict = |bytes, inodes| free(Path::new("/"), bytes, inodes).verdict;
        assert_eq!(verdict(40, 40), Verdict::Ok);
        assert_eq!(verdict(14, 40), Verdict::Warning);
        assert_eq!(verdict(40, 2), Verdict::Failure);
    }

    #[test]
    fn the_nearest_directory_that_exists_is_looked_at() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(existing(&dir.path().join("not/there")), dir.path());
    }
}
