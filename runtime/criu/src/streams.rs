//! Standard streams over a checkpoint: noted by name beside the images, connected to others at the restore.
//!
//! A pipe has a name of its own for criu. A file or fifo of the host's, which no mount of the container shows, is told to
//! criu as a file from outside.

use crate::images::Images;
use crate::rpc::{InheritedFd, Options};
use anyhow::{Context, Result};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

/// Beside the images; the form is runc's.
const DESCRIPTORS: &str = "descriptors.json";

/// Where a restored process's standard streams come from.
#[derive(Debug)]
pub enum Streams {
    /// Ours, as the command line passes them on.
    Ours,
    /// /dev/null: nothing is restored.
    None,
    /// These; a missing one is /dev/null.
    Given([Option<OwnedFd>; 3]),
}

/// Writes down what the standard streams of process `pid` are, and names to criu those from outside.
pub(crate) fn note(pid: i32, images: &Images, options: &mut Options) -> Result<()> {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mut names = Vec::new();
    for fd in 0..3 {
        let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
        let outside = outside(pid, fd, &mounts);
        options.external.extend(outside.clone().filter(|name| !options.external.contains(name)));
        names.push(outside.unwrap_or_else(|| link.display().to_string()));
    }
    let path = images.directory().join(DESCRIPTORS);
    fs::write(&path, serde_json::to_vec(&names)?).with_context(|| format!("write {}", path.display()))
}

/// Criu's name of a file that lies on none of the process's own mounts. Pipes and sockets have names by themselves, and
/// terminals are its own business.
fn outside(pid: i32, fd: i32, mounts: &str) -> Option<String> {
    let meta = fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok()?;
    let kind = meta.file_type();
    let null = kind.is_char_device() && meta.rdev() == NULL;
    let link = fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()?;
    if !(kind.is_file() || kind.is_fifo() || null) || !link.is_absolute() {
        return None;
    }
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?;
    let mount: u32 = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()?;
    let own = mounts.lines().any(|line| line.split(' ').next() == Some(&mount.to_string()));
    (!own).then(|| format!("file[{mount:x}:{:x}]", meta.ino()))
}

/// Device 1:3.
const NULL: u64 = 0x103;

/// Tells criu to connect its own standard streams in place of the noted ones.
pub(crate) fn connect(images: &Images, options: &mut Options) -> Result<()> {
    let path = images.directory().join(DESCRIPTORS);
    let text =
        fs::read(&path).with_context(|| format!("{}: is this a checkpoint's directory?", path.display()))?;
    let names: Vec<String> =
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?;
    for (fd, key) in (0..3).zip(names) {
        if key.starts_with("pipe:") || key.starts_with("file[") {
            options.inherit_fd.push(InheritedFd { key, fd });
        }
    }
    Ok(())
}
