//! Files get another SELinux label, one or a whole tree.
//!
//! A container may be writing in the tree, or beside it, meanwhile: no link is followed on the way to the tree, and everything
//! in it is opened below its parent's descriptor, so that nothing outside is ever reached. What must keep its label is known
//! by what it is (device and inode), not by its name: `/lib` is `/usr/lib` on most hosts, and a bind mount is what it shows.

use super::failed;
use crate::error::Kind;
use crate::{Error, Result};
use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, getxattr, open, openat, openat2,
    setxattr, stat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const NAME: &str = "security.selinux";
/// A container may have nested them as it likes; each level holds three descriptors, and a piece of the stack.
const DEPTH: usize = 255;

/// Trees of the host whose label is never changed: the list of go-selinux's chcon, and what its links lead to on hosts that
/// keep them apart.
const NEVER: [&str; 28] = [
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
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/sbin",
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

/// `path`, which is absolute and leads over no links, and all below it. What has the label already is left alone; file systems
/// without labels are fine. `never`: trees that must keep their labels beside those of every host.
///
/// # Errors
/// `Invalid` for such a tree, or one that holds it; whatever the kernel says, with the path.
pub fn relabel(path: &Path, label: &str, never: &[&Path]) -> Result<()> {
    let error = |e: Errno| failed(path, label, e.into());
    // Without NOFOLLOW, with which a link at the end would be opened itself.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).map_err(error)?;
    let is = rustix::fs::fstat(&top).map_err(error)?;
    refuse(path, &is, never)?;
    if FileType::from_raw_mode(is.st_mode) == FileType::Directory {
        below(&top, path, label, 0)?;
    }
    // The top last, as go-selinux has it: a walk that was cut short shows.
    tolerate(set_by_name(&top, label)).map_err(|e| failed(path, label, e))
}

/// Whether `is`, found at `path`, is one of the trees that keep their labels, or has one in it.
fn refuse(path: &Path, is: &Stat, never: &[&Path]) -> Result<()> {
    let home = std::env::home_dir();
    let of_host = NEVER.iter().map(Path::new).chain(home.as_deref()).chain(never.iter().copied());
    let same = |of: &Path| stat(of).is_ok_and(|of| (of.st_dev, of.st_ino) == (is.st_dev, is.st_ino));
    let holds = |tree: &Path| tree.canonicalize().is_ok_and(|tree| tree.ancestors().any(same));
    let Some(kept) = of_host.into_iter().find(|tree| holds(tree)) else { return Ok(()) };
    let (path, kept) = (path.display(), kept.display());
    let what = format!("{path} is, or holds, the host's own {kept}: its label is never changed");
    let error = Error::new(Kind::Invalid, "set SELinux label", what);
    Err(error.hint("mount a directory below it, or mount it without relabelling"))
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
    use std::path::PathBuf;

    #[test]
    fn trees_of_the_host_keep_their_labels() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (dir.path().join("state/run"), dir.path().join("data"));
        std::fs::create_dir_all(&own).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        let try_it = |path: &Path| refuse(path, &stat(path).unwrap(), &[&own]);
        // The last three are reached over links on a host with a merged /usr.
        let host = ["/", "/etc", "/etc/", "/usr/.", "//var/lib", "/usr/lib", "/lib", "/bin", "/sbin"];
        for never in host.iter().map(Path::new).chain([&*own, own.parent().unwrap(), dir.path()]) {
            let error = try_it(never).unwrap_err();
            assert!(error.to_string().contains("never changed"), "{error}");
        }
        for fine in [&*other, Path::new("/etc/apt"), Path::new("/usr/share")] {
            try_it(fine).unwrap();
        }
    }

    #[test]
    fn no_link_is_followed_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("real/tree")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        for path in ["link", "link/tree"] {
            let path = dir.path().canonicalize().unwrap().join(path);
            let error = relabel(&path, "u:object_r:t:s0", &[]).unwrap_err();
            assert_eq!(error.errno(), Some(libc::ELOOP), "{error}");
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
        relabel(dir.path(), label, &[]).unwrap();
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
        let deep = relabel(dir.path(), label, &[]).unwrap_err();
        assert!(deep.to_string().contains("nested deeper"), "{deep}");
        let missing = relabel(&dir.path().join("missing"), label, &[]).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    }
}
