//! Mode, owner, extended attributes and times of one file, applied in the order that keeps them all:
//! create → chown → xattrs → chmod → times (IMG-UNP-14: chown clears setuid bits and file capabilities).

use super::Form;
use super::archive::Entry;
use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fsetxattr,
    futimens, lsetxattr, utimensat,
};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

/// The mark of an opaque directory in a layer in overlay form (kernel overlayfs.rst).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

#[derive(Debug, Clone)]
pub(crate) struct Attributes {
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) times: Times,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) atime: Timespec,
    pub(crate) mtime: Timespec,
}

impl Times {
    pub(crate) fn stamps(self) -> Timestamps {
        Timestamps { last_access: self.atime, last_modification: self.mtime }
    }
}

impl Attributes {
    pub(super) fn of(entry: &Entry, form: Form) -> Self {
        let times = Times { atime: entry.atime, mtime: entry.mtime };
        let kept = |name: &[u8]| form == Form::Plain || !is_overlay_mark(name);
        let xattrs = entry.xattrs.iter().filter(|(name, _)| kept(name)).cloned().collect();
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, times, xattrs }
    }
}

/// Marks from an archive would forge opaque directories, redirects and metacopies (IMG-UNP-18).
pub(crate) fn is_overlay_mark(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

impl Attributes {
    /// On an open file or directory.
    pub(crate) fn apply(&self, fd: impl AsFd) -> Result<()> {
        let fd = fd.as_fd();
        fchown(fd, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        for (name, value) in &self.xattrs {
            tolerate(fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()), name, true)?;
        }
        fchmod(fd, Mode::from_raw_mode(self.mode))?;
        futimens(fd, &self.times.stamps())
    }

    /// On `name` in `parent`, just made there by us, that cannot be opened (symlink, device, fifo). Nothing follows a
    /// link: the modes of links are not set, and the others are known not to be links.
    pub(crate) fn apply_at(&self, parent: impl AsFd, name: &OsStr, is_symlink: bool) -> Result<()> {
        let parent = parent.as_fd();
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        if !self.xattrs.is_empty() {
            let mut path = OsString::from(format!("/proc/self/fd/{}/", parent.as_raw_fd()));
            path.push(name);
            for (name, value) in &self.xattrs {
                tolerate(lsetxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty()), name, false)?;
            }
        }
        if !is_symlink {
            chmodat(parent, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        utimensat(parent, name, &self.times.stamps(), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// IMG-UNP-17: what the file system cannot hold is left out, loudly; user.* does not exist on links and devices.
fn tolerate(result: Result<()>, name: &[u8], is_plain: bool) -> Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) => {
            tracing::warn!(xattr = %String::from_utf8_lossy(name), "file system without this extended attribute: left out");
            Ok(())
        }
        Err(Errno::PERM) if !is_plain && name.starts_with(b"user.") => Ok(()),
        other => other,
    }
}
