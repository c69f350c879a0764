//! Root filesystems and mounts as values: everything is made detached, as descriptors, and only placed by the child.

use crate::Result;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Where a container's root filesystem comes from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub enum Rootfs {
    /// A directory that is already complete (OCI bundle).
    Directory(PathBuf),
    /// An overlay of image layers, mounted detached by fsopen(2) and never visible on the host.
    Overlay(Overlay),
}

/// One overlay mount (kernel Documentation/filesystems/overlayfs.rst).
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Overlay {
    /// Lower layers, topmost first; at most 500.
    pub lower: Vec<PathBuf>,
    /// Upper and work directory on one file system; none makes a read-only view.
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    /// `volatile`: no sync on upper, faster; only for containers' writable layers.
    pub volatile: bool,
}

/// Mounts `overlay` detached: the descriptor is the mount, closing it is the unmount. For reading
/// `/etc/passwd` of an image (open below it with [`open_in_root`]) and for launching.
pub fn mount_overlay(overlay: &Overlay) -> Result<OwnedFd> {
    let _ = overlay;
    todo!()
}

/// Opens `path` for reading below `root` as if `root` were `/` (openat2 RESOLVE_IN_ROOT): no symlink leaves it.
pub fn open_in_root(root: &impl std::os::fd::AsFd, path: &std::path::Path) -> Result<std::fs::File> {
    let _ = (root.as_fd(), path);
    todo!()
}
