//! Mounts as values: made detached by the parent, as descriptors; closing one is its unmount.

use super::raw::{self, MountAttr};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A detached copy of the tree at `path` (of one mount, or with all below it). `path` is opened as given: symlinks are
/// followed, as mount(8) does on the host.
pub fn clone_path(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    owned(raw::clone_tree(libc::AT_FDCWD, path, recursive))
}

/// A detached copy of what `fd` names.
pub fn clone_fd(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    owned(raw::clone_tree(fd.as_fd().as_raw_fd(), c"", recursive))
}

/// Attaches a detached mount in this thread's mount namespace, on whatever `place` shows.
pub fn attach(mount: impl AsFd, place: &CStr) -> io::Result<()> {
    let moved = raw::move_mount(mount.as_fd().as_raw_fd(), libc::AT_FDCWD, place);
    moved.map(drop).map_err(io::Error::from_raw_os_error)
}

/// Whether a descriptor is of procfs.
pub fn is_procfs(fd: impl AsFd) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == libc::PROC_SUPER_MAGIC)
}

/// Whether this kernel has mount_setattr(2) (Linux 5.12): recursive attributes and id-mapped mounts.
pub fn has_attributes() -> bool {
    raw::mount_setattr(-1, c"", false, &MountAttr::default()) != Err(libc::ENOSYS)
}

/// mount_setattr(2) on a detached tree.
pub fn set_attributes(mount: impl AsFd, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    let fd = mount.as_fd().as_raw_fd();
    raw::mount_setattr(fd, c"", recursive, attr).map(drop).map_err(io::Error::from_raw_os_error)
}

/// Shows the files of a detached tree (or of its top mount alone) with the ids that the user namespace's maps give them
/// (mount_setattr(2), MOUNT_ATTR_IDMAP). EINVAL: its file system cannot; EPERM: it is mapped already.
pub fn map_ids(mount: impl AsFd, recursive: bool, user: impl AsFd) -> io::Result<()> {
    let userns_fd = user.as_fd().as_raw_fd() as u64;
    let attr = MountAttr { set: libc::MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    set_attributes(mount, recursive, &attr)
}

/// Makes all mounts of this thread's namespace private. For a namespace of its own.
pub fn make_tree_private() -> io::Result<()> {
    let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    raw::mount_setattr(libc::AT_FDCWD, c"/", true, &attr).map(drop).map_err(io::Error::from_raw_os_error)
}

/// A new file system instance, detached. Options with a value are strings, others flags.
pub fn fresh(fstype: &str, options: &[(&str, Option<&str>)], attributes: u64) -> io::Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value)?,
            None => fsconfig_set_flag(&context, *key)?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn owned(answer: raw::Raw<i32>) -> io::Result<OwnedFd> {
    let fd = answer.map_err(io::Error::from_raw_os_error)?;
    // SAFETY: the kernel just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
