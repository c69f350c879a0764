//! Sending any signal, real-time ones included, to a process held by descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// pidfd_send_signal(2); `signal` as the kernel numbers it (0 only asks whether the process is there).
///
/// # Errors
/// `ESRCH` when the process has been reaped, `EINVAL` for a number that is no signal.
pub fn send(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: plain integers and a null siginfo, which the kernel fills in itself; no memory of ours is touched.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
