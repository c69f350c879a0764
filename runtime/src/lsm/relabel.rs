//! Files get another SELinux label, one or a whole tree.
//!
//! A container may be writing in the tree meanwhile: everything is opened below its parent's descriptor without following links,
//! so that nothing outside is ever reached.

use super::failed;
use crate::error::Kind;
use crate::{Error, Result};
use rustix::fs::{Dir, FileType, Mode, OFlags, XattrFlags, getxattr, open, openat, setxattr};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const NAME: &str = "security.selinux";
/// A container may have nested them as it likes; each level holds two descriptors, and a piece of the stack.
const DEPTH: usize = 255;

/// Trees of the host whose label is never changed: the list of go-selinux's chcon.
const NEVER: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// One file or directory, links not followed. A file system without labels is fine.
pub fn set_file_label(path: &Path, label: &str) -> Result<()> {
    let opened = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let opened = opened.map_err(|e| failed(path, label, e.into()))?;
    tolerate(set_by_name(&opened, label)).map_err(|e| failed(path, label, e))
}

/// `path`, which is absolute, and all below it. What has the label already is left alone; file systems without labels are
/// fine.
///
/// # Errors
/// `Invalid` for a tree of the host that must keep its labels; whatever the kernel says, with the path.
pub fn relabel(path: &Path, label: &str) -> Result<()> {
    refuse(path)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = open(path, flags, Mode::empty()).map_err(|e| failed(path, label, e.into()))?;
    let stat = rustix::fs::fstat(&top).map_err(|e| failed(path, label, e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        below(&top, path, label, 0)?;
    }
    // The top last, as go-selinux has it: a walk that was cut short shows.
    tolerate(set_by_name(&top, label)).map_err(|e| failed(path, label, e))
}

fn refuse(path: &Path) -> Result<()> {
    let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
    if NEVER.iter().any(|never| plain == Path::new(never)) {
        let what = format!("{} is the host's own: its label is never changed", plain.display());
        let error = Error::new(Kind::Invalid, "set SELinux label", what);
        return Err(error.hint("mount a directory below it, or mount it without relabelling"));
    }
    Ok(())
}

fn below(directory: &impl AsFd, path: &Path, label: &str, depth: usize) -> Result<()> {
    if depth > DEPTH {
        let what = format!("{}: directories are nested deeper than {DEPTH} levels", path.display());
        return Err(Error::new(Kind::Invalid, "set SELinux label", what).hint("mount it without relabelling"));
    }
    let error = |e: Errno| failed(path, label, e.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let readable = openat(directory, c".", flags, Mode::empty()).map_err(error)?;
    for entry in Dir::read_from(&readable).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        match one(&readable, name, &path, label, depth) {
            // Gone meanwhile, or no directory any more.
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ELOOP | libc::ENOTDIR)) => {}
            done => done?,
        }
    }
    Ok(())
}

fn one(parent: &OwnedFd, name: &std::ffi::CStr, path: &Path, label: &str, depth: usize) -> Result<()> {
    let error = |e: io::Error| failed(path, label, e);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(parent, name, flags, Mode::empty()).map_err(|e| error(e.into()))?;
    let stat = rustix::fs::fstat(&opened).map_err(|e| error(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        below(&opened, path, label, depth + 1)?;
    }
    tolerate(set_by_name(&opened, label)).map_err(error)
}

/// By the descriptor's name in /proc: one of O_PATH, which opens nothing, takes no fsetxattr(2).
fn set_by_name(file: &OwnedFd, label: &str) -> io::Result<()> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut now = vec![0; 4096];
    let length = getxattr(&link, NAME, now.as_mut_slice()).unwrap_or(0);
    // With or without the NUL at its end.
    if now[..length].strip_suffix(b"\0").unwrap_or(&now[..length]) == label.as_bytes() {
        return Ok(());
    }
    Ok(setxattr(&link, NAME, label.as_bytes(), XattrFlags::empty())?)
}

/// A file system that holds no labels has one for all its files: nothing to do, as with go-selinux.
fn tolerate(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_the_host_keep_their_labels() {
        for never in ["/", "/etc", "/etc/", "/usr/.", "//var/lib", "/home"] {
            let error = refuse(Path::new(never)).unwrap_err();
            assert!(error.to_string().contains("never changed"), "{error}");
        }
        for fine in ["/etc/app", "/srv/data", "/var/lib/kubelet/pods/x"] {
            refuse(Path::new(fine)).unwrap();
        }
    }

    /// Without SELinux the kernel keeps the attribute all the same for who may set it; as root.
    #[test]
    fn a_tree_gets_the_label_and_links_lead_nowhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let label = "u:object_r:t:s0:c1,c2";
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/file"), "x").unwrap();
        std::fs::write(outside.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        relabel(dir.path(), label).unwrap();
        let of = |path: PathBuf| {
            let mut value = vec![0; 256];
            let length = getxattr(&path, NAME, value.as_mut_slice()).unwrap_or(0);
            String::from_utf8(value[..length].to_vec()).unwrap()
        };
        if of(dir.path().to_owned()).is_empty() {
            return; // A file system without labels.
        }
        for labelled in ["", "a", "a/b", "a/b/file"] {
            assert_eq!(of(dir.path().join(labelled)).trim_end_matches('\0'), label, "{labelled}");
        }
        assert_ne!(of(outside.path().join("file")), label);
        assert_ne!(of(outside.path().to_owned()), label);
        std::fs::create_dir_all(dir.path().join("d/".repeat(DEPTH + 2))).unwrap();
        let deep = relabel(dir.path(), label).unwrap_err();
        assert!(deep.to_string().contains("nested deeper"), "{deep}");
        let missing = relabel(&dir.path().join("missing"), label).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    }
}
