//! Root filesystems and mounts as values: everything is made detached, as descriptors, and only placed by the child.

mod copy;
mod layers;
mod legacy;
mod options;
mod overlay;

pub use copy::copy_tree;
pub use layers::try_idmapped;
pub use overlay::mount_overlay;

use crate::error::Kind;
use crate::idmap::IdMappings;
use crate::sys::mount;
use crate::sys::raw::MountAttr;
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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
    /// Whose ids the lower layers' files get; the upper directory belongs to mapped ids by itself.
    #[serde(default)]
    pub idmap: Option<IdMappings>,
    /// `context`: the SELinux label of all files in it.
    #[serde(default)]
    pub label: Option<String>,
}

/// The root filesystem as a detached, private mount. `user`: a user namespace that has the maps of an overlay with
/// `idmap`, if the caller has one; else one is made for the moment.
pub fn mount_root(rootfs: &Rootfs, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    match rootfs {
        Rootfs::Overlay(overlay) => overlay::mount_for(overlay, user),
        Rootfs::Directory(path) => clone_directory(path, false, None),
    }
}

/// A detached, private copy of the tree at a directory.
fn clone_directory(path: &Path, readonly: bool, user: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let error = |e| Error::sys("prepare the root filesystem", path.display().to_string(), e);
    if !path.is_dir() {
        let what = path.display().to_string();
        return Err(
            Error::new(Kind::NotFound, "prepare the root filesystem", what).hint("it must be a directory")
        );
    }
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| error(e.into()))?;
    let tree = mount::clone_path(&name, true).map_err(error)?;
    let set = if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attr = MountAttr { set, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount::set_attributes(&tree, true, &attr).map_err(error)?;
    if let Some(user) = user {
        layers::map_ids(&tree, user, path)?;
    }
    Ok(tree)
}

/// Places a detached mount at the directory `path` of the host.
pub fn attach(mount: &impl std::os::fd::AsFd, path: &Path) -> Result<()> {
    rustix::mount::move_mount(
        mount,
        c"",
        rustix::fs::CWD,
        path,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|e| Error::sys("place mount", path.display().to_string(), e))
}

/// The directory `path` below `root`, as if `root` were `/`, by its name on the host.
///
/// # Errors
/// `NotFound`; `Invalid` for what is no directory.
pub fn directory_in_root(root: &Path, path: &Path) -> Result<PathBuf> {
    let error = |e: rustix::io::Errno| {
        let error = Error::sys("find directory", format!("{} in {}", path.display(), root.display()), e);
        if e == rustix::io::Errno::NOTDIR { error.with_kind(Kind::Invalid) } else { error }
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(error)?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let inside = openat2(&opened, path, flags, Mode::empty(), resolve).map_err(error)?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inside));
    std::fs::read_link(&link).map_err(|e| Error::sys("find directory", path.display().to_string(), e))
}

/// Opens the directory `path` below `root` as if `root` were `/`; none if nothing is there.
pub fn open_directory_in_root(root: &impl std::os::fd::AsFd, path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => {
                let what = path.display().to_string();
                return Err(Error::sys("open in the root filesystem", what, errno));
            }
            Ok(directory) => return Ok(Some(directory)),
        }
    }
}

/// Opens the regular file `path` for reading below `root` as if `root` were `/` (openat2 RESOLVE_IN_ROOT): no symlink
/// leaves it, and nothing but a regular file is ever opened (a device's driver would already act on that).
pub fn open_in_root(root: &impl std::os::fd::AsFd, path: &Path) -> Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let shown = || path.display().to_string();
    let error = |e: std::io::Error| Error::sys("open in the root filesystem", shown(), e);
    let opened = loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => break other.map_err(|e| error(e.into()))?,
        }
    };
    let found = File::from(opened);
    if found.metadata().map_err(error)?.is_file() {
        // The file behind the descriptor, wherever its name leads meanwhile.
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(error)
    } else {
        Err(Error::new(Kind::Invalid, "open in the root filesystem", shown()).hint("not a regular file"))
    }
}
