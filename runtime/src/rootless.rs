//! An ordinary user's way to mounts: a user namespace in which it is itself and nobody else is anybody, with all rights over
//! what is made there, and a mount namespace that belongs to it. Containers are then made as root makes them.

use crate::namespace::NamespaceKind;
use crate::sys::namespace;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

const STEP: &str = "gain rights over mounts";

static GAINED: AtomicBool = AtomicBool::new(false);

/// True after [`gain_rights`] had to make a user namespace: what we may do then is less than root inside one expects.
pub(crate) fn gained() -> bool {
    GAINED.load(Ordering::Relaxed)
}

/// Does nothing where this process has them already: the host's root, and whoever an engine has put into a user namespace with
/// mounts of its own. Call it before any thread is made. After an execve an ordinary user must call it again.
///
/// # Errors
/// `Kernel` where the host forbids it.
pub fn gain_rights() -> Result<()> {
    if has_sys_admin()? {
        return own_mounts();
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let kinds = libc::CLONE_NEWUSER as u32 | NamespaceKind::Mount.clone_flag();
    namespace::unshare(kinds).map_err(|e| {
        Error::sys(STEP, "unshare", e).hint(
            "this host forbids user namespaces to this user: see kernel.unprivileged_userns_clone, user.max_user_namespaces and \
             kernel.apparmor_restrict_unprivileged_userns",
        )
    })?;
    // In this order: a group may be mapped once the right to drop groups is given away (user_namespaces(7)).
    let lines = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    for (file, line) in lines {
        let path = format!("/proc/self/{file}");
        fs::write(&path, line).map_err(|e| Error::sys(STEP, path, e))?;
    }
    GAINED.store(true, Ordering::Relaxed);
    Ok(())
}

/// The same for who has all rights in its user namespace, but is on mounts of another one.
///
/// # Errors
/// `Kernel` where the host forbids it.
pub fn gain_mounts() -> Result<()> {
    if has_sys_admin()? { own_mounts() } else { Ok(()) }
}

fn own_mounts() -> Result<()> {
    if owns_mounts().map_err(|e| Error::sys(STEP, "/proc/self/ns", e))? {
        return Ok(());
    }
    namespace::unshare(NamespaceKind::Mount.clone_flag()).map_err(|e| Error::sys(STEP, "unshare", e))
}

fn owns_mounts() -> io::Result<bool> {
    let ours = fs::metadata("/proc/self/ns/user")?;
    match namespace::owner(namespace::own("mnt")?.as_fd()) {
        Ok(owner) => {
            let owner = fs::File::from(owner).metadata()?;
            Ok((owner.dev(), owner.ino()) == (ours.dev(), ours.ino()))
        }
        // It is further out.
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(e) => Err(e),
    }
}

fn has_sys_admin() -> Result<bool> {
    const SYS_ADMIN: u64 = 1 << 21;
    let status =
        fs::read_to_string("/proc/self/status").map_err(|e| Error::sys(STEP, "/proc/self/status", e))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()).unwrap_or(0);
    Ok(effective & SYS_ADMIN != 0)
}
