//! Small calls on processes and terminals.

use super::child_process::{set_io_priority, set_schedule};
use super::raw::call;
use super::step::Schedule;
use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// SIGKILL; a process that has ended already is no error.
pub fn kill(pidfd: impl AsFd) {
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
}

/// Kills and reaps a child that failed before anybody else knew of it.
pub fn end(pidfd: impl AsFd) {
    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    let _ = reap(pidfd);
}

/// Waits for a child's end. The status word is as waitid(2) tells: the exit code, or the signal, negative.
pub fn reap(pidfd: impl AsFd) -> io::Result<i32> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(None) => return Ok(0),
            Ok(Some(status)) => {
                let signal = status.terminating_signal().map(|signal| -signal);
                return Ok(status.exit_status().or(signal).unwrap_or(0));
            }
        }
    }
}

/// How a process ended that somebody else has reaped: 0-255, or 128+signal. None while it lives or is a zombie.
///
/// # Errors
/// ENOTTY or EINVAL before Linux 6.15, which does not tell.
pub fn exit_status(pidfd: impl AsFd) -> io::Result<Option<u32>> {
    /// `struct pidfd_info` of linux/pidfd.h, first version.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`.
    const GET_INFO: usize = 3 << 30 | size_of::<Info>() << 16 | 0xff << 8 | 11;
    let mut info = Info { mask: EXIT, ..Info::default() };
    let fd = pidfd.as_fd().as_raw_fd() as usize;
    let args = [fd, GET_INFO, std::ptr::from_mut(&mut info) as usize, 0, 0, 0];
    match call(libc::SYS_ioctl, args) {
        // Of a zombie: nobody has reaped it yet.
        Err(libc::ESRCH) => return Ok(None),
        answered => answered.map_err(io::Error::from_raw_os_error)?,
    };
    let status = info.exit_code;
    Ok((info.mask & EXIT != 0).then(|| match status & 0x7f {
        0 => (status >> 8 & 0xff).cast_unsigned(),
        signal => 128 + signal.cast_unsigned(),
    }))
}

/// pidfd_open(2).
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Columns and rows of a terminal.
pub fn set_window(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// A copy of a descriptor that is above the standard streams, whatever is closed in this process.
pub fn above_streams(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// The same, for a descriptor that may already be high enough.
pub fn raised(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { above_streams(fd) }
}

/// Descriptors above the standard streams that will outlive execve. Ask first thing in a program: what its caller passed.
pub fn inherited() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // SAFETY: F_GETFD reads one flag of a number; of one that is not open (the listing's own) it fails with EBADF.
    let kept = |fd: &i32| *fd > 2 && unsafe { libc::fcntl(*fd, libc::F_GETFD) } == 0;
    let mut kept: Vec<i32> = numbers.filter(kept).collect();
    kept.sort_unstable();
    kept
}

/// Nobody inside a container may look into this process or its children before execve: memory, descriptors, `exe`.
pub fn forbid_inspection() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?)
}

/// A program in memory that can be executed and never changed (memfd_create(2), file seals).
pub fn sealed_program(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::io::Write;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = match memfd_create(name, flags | MemfdFlags::EXEC) {
        // Before 6.3 every memfd is executable and the flag unknown.
        Err(rustix::io::Errno::INVAL) => memfd_create(name, flags)?,
        made => made?,
    };
    let mut file = std::fs::File::from(memory);
    file.write_all(content)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}

/// sched_setaffinity(2) for this thread and its children to come: CPU n at bit n, low word first.
pub fn run_on(cpus: &[u64]) -> io::Result<()> {
    let args = [0, size_of_val(cpus), cpus.as_ptr() as usize, 0, 0, 0];
    call(libc::SYS_sched_setaffinity, args).map(drop).map_err(io::Error::from_raw_os_error)
}

/// sched_setattr(2) of another process.
pub fn schedule(pid: i32, schedule: &Schedule) -> io::Result<()> {
    set_schedule(pid, schedule).map_err(io::Error::from_raw_os_error)
}

/// ioprio_set(2) of another process: class and level as the kernel packs them.
pub fn io_priority(pid: i32, word: u32) -> io::Result<()> {
    set_io_priority(pid, word).map_err(io::Error::from_raw_os_error)
}

/// A file in memory with this content, ready to be read from its beginning.
pub fn memory_file(name: &str, content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let mut file = std::fs::File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

/// Device and inode of the program this process runs.
pub fn own_binary() -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata("/proc/self/exe")?;
    Ok((meta.dev(), meta.ino()))
}
