//! Namespaces made or joined on throw-away threads, so that no thread of the caller is ever changed.

use super::raw;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Runs `act` on a thread that ends right after, whatever happened to it.
pub fn on_own_thread<T: Send>(name: &str, act: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, act)?;
        thread.join().map_err(|_| io::Error::other("the helper thread panicked"))
    })
}

/// unshare(2) for this thread only. Call on a throw-away thread.
pub fn unshare(kinds: u32) -> io::Result<()> {
    let flags = UnshareFlags::from_bits_retain(kinds);
    // SAFETY: the flags are namespace kinds (and CLONE_FS), never CLONE_FILES: no descriptor changes its meaning for code
    // of this thread that relies on a shared table.
    Ok(unsafe { unshare_unsafe(flags) }?)
}

/// setns(2) for this thread only. A pid namespace takes effect for its children. Call on a throw-away thread.
pub fn join(namespace: BorrowedFd<'_>, kind: u32) -> io::Result<()> {
    let kind = match kind as i32 {
        libc::CLONE_NEWPID => LinkNameSpaceType::ProcessID,
        libc::CLONE_NEWNET => LinkNameSpaceType::Network,
        libc::CLONE_NEWIPC => LinkNameSpaceType::InterProcessCommunication,
        libc::CLONE_NEWUTS => LinkNameSpaceType::HostNameAndNISDomainName,
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    Ok(move_into_link_name_space(namespace, Some(kind))?)
}

/// setns(2) by a pidfd: the pid namespace of a process, for this thread's children.
pub fn join_pid_of(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let kind = rustix::thread::ThreadNameSpaceType::PROCESS_ID;
    Ok(rustix::thread::move_into_thread_name_spaces(pidfd, kind)?)
}

/// Brings up the loopback of another network namespace.
pub fn loopback_up_in(netns: BorrowedFd<'_>) -> io::Result<()> {
    on_own_thread("netns", || {
        join(netns, libc::CLONE_NEWNET as u32)?;
        super::network::loopback_up()
    })?
}

/// The user namespace that owns a namespace (ioctl_ns(2)). EPERM: it is none of ours or below.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let args = [raw::word(namespace.as_raw_fd()), libc::NS_GET_USERNS as usize, 0, 0, 0, 0];
    let fd = raw::call(libc::SYS_ioctl, args).map_err(io::Error::from_raw_os_error)?;
    // SAFETY: the kernel just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A new time namespace with these lines of timens_offsets, for processes to join: nobody is ever in it before.
pub fn new_time(offsets: &str) -> io::Result<OwnedFd> {
    on_own_thread("time", || {
        unshare(libc::CLONE_NEWTIME as u32)?;
        if !offsets.is_empty() {
            let thread = rustix::thread::gettid().as_raw_nonzero();
            let path = format!("/proc/{thread}/timens_offsets");
            std::fs::File::options().write(true).open(path)?.write_all(offsets.as_bytes())?;
        }
        own("time_for_children")
    })?
}

/// This thread's own namespace of a kind (`ipc`, `uts`, `net`, …) as a descriptor.
pub fn own(name: &str) -> io::Result<OwnedFd> {
    let path = format!("/proc/thread-self/ns/{name}");
    Ok(std::fs::File::open(path)?.into())
}
