//! seccomp(2): a filter installed on the calling thread.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// linux/seccomp.h.
const SET_MODE_FILTER: libc::c_ulong = 1;
const FLAG_TSYNC: u32 = 1;
const FLAG_NEW_LISTENER: u32 = 1 << 3;

/// Whether the kernel knows these flags: with a program at no address it answers EFAULT, for unknown flags EINVAL.
pub fn knows_flag(flags: u32) -> bool {
    // SAFETY: a null program is refused by the kernel with EFAULT; nothing is installed.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, libc::c_ulong::from(flags), std::ptr::null::<u8>())
    };
    answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Installs a filter on the calling thread for good: it outlives execve and is inherited by children.
///
/// Answers the listener if `flags` asks for one. Allocates nothing, so that a child may call it after clone.
///
/// # Errors
/// seccomp(2): EACCES without no_new_privs and CAP_SYS_ADMIN; EINVAL for a malformed program or unknown flags, also
/// for TSYNC, whose answer would be a thread id; EBUSY if a filter with a listener is there already.
pub fn install_filter(instructions: &[libc::sock_filter], flags: u32) -> io::Result<Option<OwnedFd>> {
    let (Ok(len), 0) = (u16::try_from(instructions.len()), flags & FLAG_TSYNC) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let program = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `program` and the instructions it points to outlive the call; the kernel copies and only reads them.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, libc::c_ulong::from(flags), &raw const program)
    };
    match i32::try_from(answer) {
        Ok(fd) if fd >= 0 && flags & FLAG_NEW_LISTENER != 0 => {
            // SAFETY: the kernel has just made this descriptor for us and nobody else knows its number.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        Ok(0) => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}
