//! A process that is known to be the recorded one and no later one of the same pid.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Held by descriptor; what is sent to it reaches this process or nobody.
#[derive(Debug)]
pub(crate) struct Verified {
    pidfd: OwnedFd,
}

impl Verified {
    /// None if the process has ended (a zombie has), or the pid is somebody else's.
    pub(crate) fn find(pid: i32, start_time: u64) -> Option<Self> {
        let pidfd = slipway_runtime::sys::process::open(pid).ok()?;
        // Looked at after the descriptor was opened: it speaks of the same process.
        is_alive(pid, start_time).then_some(Self { pidfd })
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Waits for its end (reaped or not); false if it lives longer than `patience`.
    pub(crate) fn ended_within(&self, patience: Duration) -> bool {
        ended_within(self.pidfd.as_fd(), Some(patience))
    }
}

/// A pidfd is readable once its process has ended (pidfd_open(2)). None waits for ever.
pub(crate) fn ended_within(pidfd: BorrowedFd<'_>, patience: Option<Duration>) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let deadline = patience.map(|patience| std::time::Instant::now() + patience);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let left = left.and_then(|left| rustix::event::Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            answer => return answer.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Start time of a living process; none if it has ended.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

pub(crate) fn is_alive(pid: i32, born: u64) -> bool {
    pid > 0 && start_time(pid) == Some(born)
}

/// proc_pid_stat(5): the name in parentheses may hold anything, the state and the 20th field after it are ours.
fn parse(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_state_and_start_time() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(parse(stat), Some(4711));
        assert_eq!(parse(&stat.replace(" S ", " Z ")), None);
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn another_process_of_the_same_pid_is_not_it() {
        let me = std::process::id() as i32;
        let born = start_time(me).unwrap();
        assert!(Verified::find(me, born).is_some());
        assert!(Verified::find(me, born + 1).is_none());
        assert!(!Verified::find(me, born).unwrap().ended_within(Duration::from_millis(1)));
    }
}
