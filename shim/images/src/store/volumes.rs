//! `VOLUME`s of an image: directories beside a container's writable layer, filled with what the image has there.
//!
//! They are copied, as every runtime does: a volume may be written to while the root is read-only, and outlives nothing but
//! its container. Copies are made by descriptors below an overlay view of the image, so no link in it leads elsewhere.

use super::Store;
use super::containers::check_owner;
use crate::types::Image;
use crate::unpack::attributes::{Attributes, Times};
use crate::{Error, Result};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, fgetxattr, flistxattr, fstat,
    mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Directories within directories that are copied; each level holds two descriptors.
const DEPTH: usize = 128;

impl Store {
    /// Makes one directory for each of `volumes` (paths in the image) beside the writable layer of `owner`, and answers
    /// them in order. [`Store::release`] removes them with the layer. Blocks.
    ///
    /// # Errors
    /// `Invalid` if the image has something else than a directory at a path; `Exhausted` without space.
    pub fn volumes(&self, image: &Image, owner: &str, volumes: &[String]) -> Result<Vec<PathBuf>> {
        check_owner(owner)?;
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let view = slipway_runtime::rootfs::mount_overlay(&self.view(image)?)
            .map_err(|e| Error::invalid("copy volumes", &image.id, e))?;
        let home = self.inner.layout().container(owner).join("volumes");
        make(&home)?;
        let one = |(number, path): (usize, &String)| {
            let target = home.join(number.to_string());
            make(&target)?;
            fill(&view, path, &target).map(|()| target)
        };
        volumes.iter().enumerate().map(one).collect()
    }
}

pub(super) fn make(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o755).create(path).map_err(|e| Error::io("make volume", path, e))
}

/// What is not in the image makes an empty volume.
fn fill(view: &OwnedFd, path: &str, target: &Path) -> Result<()> {
    let failed = |e: Errno| Error::io("copy volume", Path::new(path), std::io::Error::from(e));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = match openat2(view, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR) => {
            return Err(Error::invalid(
                "copy volume",
                path,
                "the image has a file there, and a volume is a directory",
            ));
        }
        opened => opened.map_err(failed)?,
    };
    let to = openat(CWD, target, flags, Mode::empty()).map_err(failed)?;
    copy_directory(&from, &to, DEPTH).map_err(failed)
}

/// Content, then attributes: times are those of the source.
fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
    let deeper = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            copy_entry(from, to, name, deeper)?;
        }
    }
    attributes(from)?.apply(to)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &OsStr, depth: usize) -> rustix::io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let own = Mode::RWXU;
    let open = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, own)?;
            let flags = open | OFlags::RDONLY | OFlags::DIRECTORY;
            let (from, to) =
                (openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
            copy_directory(&from, &to, depth)
        }
        FileType::RegularFile => {
            let from = openat(from, name, open | OFlags::RDONLY, Mode::empty())?;
            let to = openat(
                to,
                name,
                open | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
                Mode::RUSR | Mode::WUSR,
            )?;
            let attributes = attributes(&from)?;
            let (mut reader, mut writer) = (File::from(from), File::from(to));
            let copied = std::io::copy(&mut reader, &mut writer);
            copied.map_err(|e| e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
            attributes.apply(&writer)
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?;
            plain(&stat, Vec::new()).apply_at(to, name, true)
        }
        kind => {
            mknodat(to, name, kind, own, stat.st_rdev)?;
            plain(&stat, Vec::new()).apply_at(to, name, false)
        }
    }
}

fn attributes(fd: impl AsFd) -> rustix::io::Result<Attributes> {
    let fd = fd.as_fd();
    let mut xattrs = Vec::new();
    for name in names(fd)? {
        let name = OsString::from_vec(name);
        let mut value = vec![0; fgetxattr(fd, &name, &mut [0u8; 0][..]).unwrap_or(0)];
        let length = fgetxattr(fd, &name, &mut value[..])?;
        value.truncate(length);
        xattrs.push((name.into_vec(), value));
    }
    Ok(plain(&fstat(fd)?, xattrs))
}

/// Names of a file's extended attributes; overlayfs hides its own ones.
fn names(fd: impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let fd = fd.as_fd();
    let mut list = match flistxattr(fd, &mut [0u8; 0][..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        length => vec![0u8; length?],
    };
    let length = flistxattr(fd, &mut list[..])?;
    Ok(list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

fn plain(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Attributes {
    let atime = Timespec { tv_sec: stat.st_atime, tv_nsec: i64::try_from(stat.st_atime_nsec).unwrap_or(0) };
    let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        times: Times { atime, mtime },
        xattrs,
    }
}
