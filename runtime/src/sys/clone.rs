//! clone3(2): one new process, born into its namespaces and (on version 2) its cgroup.

use super::child::{self, Script};
use super::raw::{Raw, call, word};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(super) const CLONE_PIDFD: u64 = 0x1000;
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2).
#[repr(C)]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

/// A new process that runs the script.
#[derive(Debug)]
pub struct Born {
    /// As the calling thread's pid namespace names it.
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Makes the process. It is a child of this process (of the thread group, not of this thread), gets a copy of memory and
/// descriptors, and is born with all signals blocked.
///
/// A copy, not CLONE_VM: when a memory cgroup with `memory.oom.group` kills its members it kills everybody who shares
/// their memory too, and for a moment before execve that would be us.
pub fn spawn(script: &Script<'_>, namespaces: u32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Born> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: u64::from(namespaces) | CLONE_PIDFD,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let former = block_signals().map_err(io::Error::from_raw_os_error)?;
    let size = size_of::<CloneArgs>();
    let answer = call(libc::SYS_clone3, [&raw const args as usize, size, 0, 0, 0, 0]);
    if answer == Ok(0) {
        // SAFETY: this is the child of a clone3 without CLONE_VM; the script is in its own copy of memory.
        unsafe { child::run(script) }
    }
    restore_signals(former);
    let pid = answer.map_err(io::Error::from_raw_os_error)? as i32;
    // SAFETY: the kernel wrote a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Born { pid, pidfd })
}

/// Blocks every signal of this thread, libc's internal ones included (which libc's own wrapper would leave open).
fn block_signals() -> Raw<u64> {
    let all = u64::MAX;
    let mut former = 0u64;
    let (new, old) = (&raw const all as usize, &raw mut former as usize);
    call(libc::SYS_rt_sigprocmask, [word(libc::SIG_SETMASK), new, old, 8, 0, 0])?;
    Ok(former)
}

fn restore_signals(former: u64) {
    let _ = call(libc::SYS_rt_sigprocmask, [word(libc::SIG_SETMASK), &raw const former as usize, 0, 8, 0, 0]);
}
