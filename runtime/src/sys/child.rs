//! The interpreter that runs in the child between clone3 and execve.
//!
//! Owns: walking the list of steps, and the 8-byte report. It never allocates, frees, locks, formats or panics: the child
//! is a copy of one thread of a process whose other threads may hold any lock at the moment of the copy (malloc's
//! included). All it touches is its own stack and what the parent prepared; it leaves by exit_group or execve only.

use super::raw::{self, Errno, Raw, call, ptr, word};
use super::step::{Handle, Step};
use super::step_clock::now;
use core::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

/// `Report::step` of a child that has reached [`Step::Park`].
pub const PARKED: u32 = u32::MAX;
/// `Report::step` of the message that carries the terminal's master.
pub const TERMINAL: u32 = u32::MAX - 1;
/// `Report::step` of a child that waits at [`Step::Meet`].
pub const MET: u32 = u32::MAX - 2;

/// `Report::step` of a child about to load a filter with a listener; a page to share and its own pidfd come beside it.
pub const LISTENER: u32 = u32::MAX - 3;

/// `Report::step` of the message that carries the process that goes on; its pid is in `errno`.
pub const REBORN: u32 = u32::MAX - 4;

/// The byte that starts a parked child.
pub const START: u8 = 1;
/// The byte that makes a child parked on a listening socket leave.
pub const LEAVE: u8 = 0;

/// A descriptor of the script for something that is not there and need not be: its placement is skipped.
pub const ABSENT: i32 = raw::NONE;

/// All a child can say: 8 bytes, one message.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Index of the failed step, or one of the marks above.
    pub step: u32,
    pub errno: i32,
}

impl Report {
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { step: u32::from_ne_bytes([a, b, c, d]), errno: i32::from_ne_bytes([e, f, g, h]) }
    }
}

/// What the parent hands over: the steps, and what became known only at launch.
#[derive(Debug)]
pub struct Script<'a> {
    pub steps: &'a [Step],
    /// By [`Handle`]; the child adds its own.
    pub descriptors: &'a [AtomicI32],
    /// Child's end of the report socket; above 2.
    pub socket: i32,
    /// A listening SOCK_SEQPACKET socket on which the start byte arrives, or [`ABSENT`]: then it comes by `socket`.
    pub listener: i32,
    /// What becomes 0, 1, 2; above 2.
    pub stdio: [i32; 3],
    /// Version 1 `tasks` files.
    pub tasks: &'a [i32],
    /// Version 2 group for [`Step::Rebirth`].
    pub cgroup: Option<i32>,
    /// Every descriptor above and those that the process keeps through execve, sorted ascending.
    pub keep: &'a [i32],
    /// What is still needed once the tree is made: the sockets, and what is kept through execve; sorted.
    pub stay: &'a [i32],
    pub filter: &'a [libc::sock_filter],
    pub filter_flags: u32,
    /// Of a [`super::step_clock::StepClock`]; empty: nothing is clocked.
    pub clock: &'a [AtomicU64],
    /// Device and inode of our own program, which no container may run (CVE-2019-5736).
    pub own_binary: (u64, u64),
}

/// What the child learns on its way.
pub(super) struct Child<'a> {
    pub(super) script: &'a Script<'a>,
    /// Already placed covers, cloned for the masks that follow.
    pub(super) null_cover: Option<i32>,
    pub(super) empty_cover: Option<i32>,
    /// The container's devpts mount, from which its ptmx is opened without any path of the image.
    pub(super) devpts: Option<i32>,
    /// Slave side of the terminal.
    pub(super) terminal: Option<i32>,
    pub(super) in_directory: bool,
    /// Address of the chosen command's path.
    pub(super) command: usize,
}

/// Runs the script; never returns.
///
/// # Safety
/// Only in a child made by clone3 without CLONE_VM, whose memory is a private copy, and only once.
pub unsafe fn run(script: &Script<'_>) -> ! {
    let _ = call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 0, 0, 0, 0, 0]);
    let _ = call(libc::SYS_umask, [0; 6]);
    let mut child = Child {
        script,
        null_cover: None,
        empty_cover: None,
        devpts: None,
        terminal: None,
        in_directory: false,
        command: 0,
    };
    child.clock(0);
    let mut index: u32 = 0;
    for step in script.steps {
        if let Err(errno) = child.step(step) {
            child.report(Report { step: index, errno });
            break;
        }
        index = index.wrapping_add(1);
        // From then on the container's own filter decides what may be called: execve, nothing of ours.
        if !matches!(step, Step::Seccomp) {
            child.clock(index);
        }
    }
    exit()
}

/// exit_group(2) with the shells' "command not run"; nobody reads it when the report arrived.
pub(super) fn exit() -> ! {
    loop {
        let _ = call(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]);
    }
}

impl Child<'_> {
    fn clock(&self, word: u32) {
        if let Some(word) = self.script.clock.get(word as usize) {
            word.store(now(), Relaxed);
        }
    }

    fn step(&mut self, step: &Step) -> Raw<()> {
        match step {
            Step::MountFresh { .. }
            | Step::MakeMount { .. }
            | Step::Place { .. }
            | Step::EnterRoot(_)
            | Step::GoToPlace(_)
            | Step::HangRoot { .. }
            | Step::Pivot
            | Step::MoveRoot(_)
            | Step::CopyRoot { .. }
            | Step::ChangeRoot(_)
            | Step::DetachPropagation
            | Step::MakeDirectory(_)
            | Step::Symlink { .. }
            | Step::MakeNode(_)
            | Step::SetAttributes { .. }
            | Step::Mask { .. }
            | Step::ReadOnly(_)
            | Step::OpenTerminal
            | Step::BindConsole => self.file_system_step(step),
            Step::Park => self.park(),
            Step::Rebirth { .. } => self.rebirth(),
            Step::Meet => self.meet(),
            _ => self.process_step(step),
        }
    }

    /// The descriptor behind a handle; EBADF if the launcher prepared too few.
    pub(super) fn descriptor(&self, handle: Handle) -> Raw<i32> {
        self.script.descriptors.get(handle.0).map(|fd| fd.load(Relaxed)).ok_or(libc::EBADF)
    }

    /// Fills a place that the launcher left [`ABSENT`].
    pub(super) fn keep(&self, handle: Handle, fd: i32) -> Raw<()> {
        let place = self.script.descriptors.get(handle.0).ok_or(libc::EBADF)?;
        place.store(fd, Relaxed);
        Ok(())
    }

    fn report(&self, report: Report) {
        let _ = self.send(report, None);
    }

    pub(super) fn send(&self, report: Report, descriptor: Option<i32>) -> Raw<()> {
        match descriptor {
            Some(descriptor) => self.send_with(report, [descriptor]),
            None => self.send_with(report, []),
        }
    }

    /// One message on the socket, with descriptors beside it. MSG_NOSIGNAL: a parent that is gone must not kill us by
    /// SIGPIPE before we can leave.
    pub(super) fn send_with<const N: usize>(&self, report: Report, descriptors: [i32; N]) -> Raw<()> {
        let mut vector =
            libc::iovec { iov_base: (&raw const report).cast_mut().cast(), iov_len: size_of::<Report>() };
        let mut control = Rights::new(descriptors);
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        if N > 0 {
            message.msg_control = (&raw mut control).cast();
            message.msg_controllen = size_of::<Rights<N>>() as _;
        }
        let flags = libc::MSG_NOSIGNAL as usize;
        let socket = word(self.script.socket);
        call(libc::SYS_sendmsg, [socket, &raw const message as usize, flags, 0, 0, 0]).map(drop)
    }

    /// Says that the namespaces are there and waits for the parent, whose end is ours.
    fn meet(&self) -> Raw<()> {
        self.send(Report { step: MET, errno: 0 }, None)?;
        self.wait_for_byte();
        Ok(())
    }

    /// Says "parked" and waits for one byte. No byte but an end: whoever could start us is gone, so we go too.
    fn park(&self) -> Raw<()> {
        self.send(Report { step: PARKED, errno: 0 }, None)?;
        if self.script.listener != ABSENT {
            return self.park_listening();
        }
        self.wait_for_byte();
        Ok(())
    }

    pub(super) fn wait_for_byte(&self) {
        if receive_byte(self.script.socket).is_none() {
            exit()
        }
    }

    /// Whoever can reach the listening socket may start us, now or after our maker's death. A visitor that leaves without
    /// a word only looked whether we wait.
    fn park_listening(&self) -> Raw<()> {
        let listener = self.script.listener;
        loop {
            let accepted = match call(libc::SYS_accept4, [word(listener), 0, 0, CLOEXEC, 0, 0]) {
                Ok(accepted) => Fd(accepted as i32),
                Err(libc::EINTR | libc::ECONNABORTED) => continue,
                Err(errno) => return Err(errno),
            };
            match receive_byte(accepted.0) {
                Some(START) => {
                    // From here on reports go to whoever started us, and nobody else can.
                    let onto = [word(accepted.0), word(self.script.socket), CLOEXEC, 0, 0, 0];
                    call(libc::SYS_dup3, onto)?;
                    raw::close(listener);
                    return Ok(());
                }
                Some(_) => exit(),
                None => {}
            }
        }
    }
}

const CLOEXEC: usize = libc::O_CLOEXEC as usize;

/// The byte of the next message; none at the end, or when reading fails.
fn receive_byte(socket: i32) -> Option<u8> {
    let mut byte = 0u8;
    loop {
        match call(libc::SYS_recvfrom, [word(socket), &raw mut byte as usize, 1, 0, 0, 0]) {
            Ok(1) => return Some(byte),
            Err(libc::EINTR) => {}
            _ => return None,
        }
    }
}

/// A control message with descriptors, laid out as CMSG_SPACE asks (the alignment pads the end).
#[repr(C, align(8))]
struct Rights<const N: usize> {
    header: libc::cmsghdr,
    descriptors: [i32; N],
}

impl<const N: usize> Rights<N> {
    fn new(descriptors: [i32; N]) -> Self {
        // SAFETY: all-zero is a valid cmsghdr.
        let mut header: libc::cmsghdr = unsafe { core::mem::zeroed() };
        header.cmsg_len = (size_of::<libc::cmsghdr>() + N * size_of::<i32>()) as _;
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        Self { header, descriptors }
    }
}

/// Writes all of `bytes` or fails.
pub(super) fn write_all(fd: i32, bytes: &[u8]) -> Raw<()> {
    let written = call(libc::SYS_write, [word(fd), bytes.as_ptr() as usize, bytes.len(), 0, 0, 0])?;
    if written == bytes.len() { Ok(()) } else { Err(libc::EIO) }
}

/// Success for one errno besides success.
pub(super) fn forgive<T: Copy>(result: Raw<T>, errno: Errno) -> Raw<()> {
    match result {
        Err(e) if e != errno => Err(e),
        _ => Ok(()),
    }
}

/// Opens a path of the host's tree (before the root changes).
pub(super) fn open_host(path: &std::ffi::CStr, flags: i32) -> Raw<i32> {
    let at = word(libc::AT_FDCWD);
    Ok(call(libc::SYS_openat, [at, ptr(path), (flags | libc::O_CLOEXEC) as usize, 0, 0, 0])? as i32)
}

/// Closes on every way out; holds no heap.
pub(super) struct Fd(pub(super) i32);

impl Drop for Fd {
    fn drop(&mut self) {
        raw::close(self.0);
    }
}
