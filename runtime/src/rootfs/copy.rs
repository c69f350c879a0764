//! Copies a tree of an image into an empty file system: owners, modes, times, links, devices and extended attributes.
//!
//! The source is an image's and may be anything: it is walked by descriptors, no symlink is followed, and its depth is
//! bounded. How much there is, the target's size bounds.

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags, chownat, fgetxattr, flistxattr,
    fsetxattr, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// More directories inside each other than any image has.
const DEEPEST: usize = 256;

/// Copies what is in the directory `from` into the directory `to`.
pub fn copy_tree(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let (from, to) =
        (openat(from, c".", directory, Mode::empty())?, openat(to, c".", directory, Mode::empty())?);
    copy_directory(&from, &to, DEEPEST)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let here = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let flags = here | OFlags::RDONLY | OFlags::DIRECTORY;
            let (source, copy) =
                (openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
            copy_directory(&source, &copy, depth - 1)?;
            copy_attributes(&source, &copy)?;
        }
        FileType::RegularFile => {
            let mut source =
                File::from(openat(from, name, here | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
            let flags = here | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut copy = File::from(openat(to, name, flags, Mode::RWXU)?);
            io::copy(&mut source, &mut copy)?;
            copy_attributes(&source, &copy)?;
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        // A socket without its program is nothing.
        FileType::Socket | FileType::Unknown => return Ok(()),
        _ => mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // After the owner, whose change takes set-uid bits away. No link can be here: we made what the name means.
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    let time = |seconds, nanoseconds| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Extended attributes that the target can hold; those it does not know are not worth failing for.
fn copy_attributes(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    let mut names = vec![0; 65536];
    let length = match flistxattr(from, names.as_mut_slice()) {
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; 65536];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = fgetxattr(from, name, value.as_mut_slice())?;
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};

    /// As root.
    #[test]
    fn a_copy_is_like_its_source() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| from.path().join(name);
        fs::create_dir_all(path("a/b")).unwrap();
        fs::write(path("a/b/tool"), "text").unwrap();
        chown(path("a/b/tool"), Some(7), Some(8)).unwrap();
        fs::set_permissions(path("a/b/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
        symlink("/etc/shadow", path("a/link")).unwrap();
        mknodat(CWD, path("a/pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let (source, target) = (File::open(from.path()).unwrap(), File::open(to.path()).unwrap());
        copy_tree(&source, &target).unwrap();
        let copy = |name: &str| fs::symlink_metadata(to.path().join(name)).unwrap();
        let tool = copy("a/b/tool");
        assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (7, 8, 0o4751));
        assert_eq!(tool.mtime(), fs::metadata(path("a/b/tool")).unwrap().mtime());
        assert_eq!(fs::read_to_string(to.path().join("a/b/tool")).unwrap(), "text");
        assert_eq!(fs::read_link(to.path().join("a/link")).unwrap().to_str(), Some("/etc/shadow"));
        assert!(copy("a/pipe").file_type().is_fifo());
    }
}
