//! Network namespaces pinned as files, because CNI and node agents name them by path.

use crate::error::Kind;
use crate::idmap::{self, IdMappings, Setgroups};
use crate::sys::{namespace, network};
use crate::{Error, Result};
use rustix::fs::{FlockOperation, Mode, OFlags, StatxFlags, flock, openat, statx};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

/// Makes a network namespace (with `lo` up) and pins it at `path` (bind mount on an O_EXCL file), so that CNI and
/// agents can name it. The directory must be a shared mount for others to see it (CNI-RT-15): made so if needed, by a
/// bind of the directory on itself, which stays for the pods that follow until [`release_netns_dir`].
///
/// `user`: the pod gets a user namespace with these maps, and the network namespace belongs to it. The pin keeps both;
/// [`super::Sandbox::create`] finds the former through the latter.
pub fn pin_netns(path: &Path, user: Option<&IdMappings>) -> Result<()> {
    let shown = || path.display().to_string();
    let error = |e: io::Error| Error::sys("pin the network namespace", shown(), e);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let no_directory =
        || Error::new(Kind::Invalid, "pin the network namespace", format!("{} has no directory", shown()));
    share_directory(directory.ok_or_else(no_directory)?).map_err(error)?;
    create_exclusively(path).map_err(error)?;
    let pinned = match user {
        None => pin_own(path).map_err(error),
        Some(user) => pin_owned_by(path, user),
    };
    pinned.inspect_err(|_| {
        // The file is ours: it was not there before.
        let _ = fs::remove_file(path);
    })
}

fn pin_own(path: &Path) -> io::Result<()> {
    namespace::on_own_thread("netns", || {
        namespace::unshare(libc::CLONE_NEWNET as u32)?;
        network::loopback_up()?;
        Ok(mount_bind("/proc/thread-self/ns/net", path)?)
    })?
}

/// A network namespace of a new user namespace.
fn pin_owned_by(path: &Path, user: &IdMappings) -> Result<()> {
    let error = |e: io::Error| Error::sys("pin the network namespace", path.display().to_string(), e);
    let holder = idmap::mapped_holder(user, Setgroups::Allow, libc::CLONE_NEWNET as u32)?;
    let netns = holder.namespace("net").map_err(error)?;
    namespace::loopback_up_in(netns.as_fd()).map_err(error)?;
    mount_bind(holder.path("net").as_str(), path).map_err(|e| error(e.into()))
}

/// Unpins: detach, unlink; missing is success (CNI-RT-16).
pub fn unpin_netns(path: &Path) -> Result<()> {
    let error = |e: io::Error| Error::sys("unpin the network namespace", path.display().to_string(), e);
    loop {
        // Again until nothing is mounted there: a pin that was repeated must not hide a second one.
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(error(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(e)),
        _ => Ok(()),
    }
}

/// Runs `act` inside a pinned network namespace, on a thread of its own that ends with it (STR-PF-13): sockets made there
/// stay there. Blocks.
pub fn inside_netns<T: Send>(path: &Path, act: impl FnOnce() -> T + Send) -> Result<T> {
    let error = |e: io::Error| Error::sys("enter the network namespace", path.display().to_string(), e);
    let namespace = File::open(path).map_err(error)?;
    let done = namespace::on_own_thread("inside-netns", || {
        namespace::join(namespace.as_fd(), libc::CLONE_NEWNET as u32)?;
        Ok(act())
    });
    done.and_then(|inner| inner).map_err(error)
}

/// Takes away the bind of a directory on itself that [`pin_netns`] made. For whoever owns the directory, at its own end
/// of life (an uninstall, a test); pins below it must be gone, else `State`. Not a mount point, or missing, is success.
pub fn release_netns_dir(directory: &Path) -> Result<()> {
    match unmount(directory, UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => {
            let error =
                Error::sys("release the network namespace directory", directory.display().to_string(), errno);
            if errno == rustix::io::Errno::BUSY {
                return Err(error.with_kind(Kind::State).hint("namespaces are still pinned below it"));
            }
            Err(error)
        }
    }
}

fn create_exclusively(path: &Path) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(rustix::fs::CWD, path, flags, Mode::from_raw_mode(0o444)).map(drop)?)
}

/// Makes `directory` exist and lie on a shared mount. Held under a lock on the directory itself, which is the same
/// inode before and after the bind, so that two callers do not both bind it.
fn share_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let lock = File::open(directory)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if is_shared(directory)? {
        return Ok(());
    }
    mount_bind(directory, directory)?;
    mount_change(directory, MountPropagationFlags::SHARED).map_err(|errno| {
        let _ = unmount(directory, UnmountFlags::DETACH);
        io::Error::from(errno)
    })
}

/// Whether the mount that `path` is on has peers to propagate to (`shared:` in mountinfo).
fn is_shared(path: &Path) -> io::Result<bool> {
    let stat = statx(rustix::fs::CWD, path, rustix::fs::AtFlags::empty(), StatxFlags::MNT_ID)?;
    let id = stat.stx_mnt_id.to_string();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(&id));
    let optional = line.and_then(|line| line.split(" - ").next()).unwrap_or_default();
    Ok(optional.split(' ').skip(6).any(|field| field.starts_with("shared:")))
}
