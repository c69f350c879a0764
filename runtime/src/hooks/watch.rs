//! Waiting for a hook: its exit, its time, and the end of what it writes.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sys::process;

/// How much of a hook's output an error quotes.
const QUOTED: usize = 512;

/// How a hook ended.
#[derive(Debug)]
pub(super) struct End {
    /// Exit code, or the signal, negative.
    status: i32,
    /// It was killed by us, after this time.
    late: Option<Duration>,
    /// The last bytes that it wrote.
    output: Vec<u8>,
}

impl End {
    /// What was wrong, in words; none when it succeeded.
    pub(super) fn complaint(&self) -> Option<String> {
        let how = match (self.late, self.status) {
            (Some(time), _) => format!("not finished after {} s", time.as_secs()),
            (None, 0) => return None,
            (None, code) if code > 0 => format!("exit code {code}"),
            (None, signal) => format!("killed by signal {}", -signal),
        };
        let output = String::from_utf8_lossy(&self.output);
        let output = output.trim();
        Some(if output.is_empty() { how } else { format!("{how}; it wrote: {output:?}") })
    }
}

/// Waits for the process, whose session it leads, and reaps it. What it has started and left behind lives on, as with
/// every other runtime; but when its time is over its whole process group is killed.
pub(super) fn to_its_end(
    pid: i32,
    pidfd: &OwnedFd,
    output: PipeReader,
    timeout: Option<Duration>,
) -> io::Result<End> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    // Whatever fails here, the process must be reaped: a pid namespace does not end before its last zombie.
    let set = rustix::io::ioctl_fionbio(&output, true);
    let mut tail = Tail { reader: Some(output), bytes: Vec::new() };
    let watched = set.map_err(io::Error::from).and_then(|()| watch(pidfd, &mut tail, deadline));
    let late = if matches!(watched, Ok(true)) { None } else { timeout };
    if !matches!(watched, Ok(true)) {
        if let Some(group) = Pid::from_raw(pid) {
            // The leader is not reaped yet, so that the number still is its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
    let status = process::reap(pidfd)?;
    watched?;
    tail.read();
    Ok(End { status, late, output: tail.bytes })
}

/// True when the process has ended, false when its time has.
fn watch(pidfd: &OwnedFd, tail: &mut Tail, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(
            tail.reader.as_ref().map(|reader| PollFd::from_borrowed_fd(reader.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, wait.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) => tail.read(),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The last bytes of a pipe.
struct Tail {
    /// None after its end.
    reader: Option<PipeReader>,
    bytes: Vec<u8>,
}

impl Tail {
    /// Takes what is there now, one buffer of it.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        let Some(reader) = &mut self.reader else { return };
        match reader.read(&mut buffer) {
            Ok(0) => self.reader = None,
            Ok(length) => {
                self.bytes.extend_from_slice(&buffer[..length]);
                let excess = self.bytes.len().saturating_sub(QUOTED);
                self.bytes.drain(..excess);
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.reader = None,
        }
    }
}
