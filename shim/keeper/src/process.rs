//! A process held by descriptor, and how it ended: our own child, or one that a former keeper left to the guardian.

use crate::guardian::Exit;
use crate::readiness::{self, Held};
use crate::records::Ended;
use crate::shims;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use slipway_runtime::sys::process::exit_status;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::oneshot;

/// How long the guardian's word on a dead process is waited for.
const GUARDIAN_PATIENCE: Duration = Duration::from_secs(2);

/// How long a dead process may be held by who traces it, and how often that is looked at.
const TRACER_PATIENCE: Duration = Duration::from_secs(10);
const TRACER_PAUSE: Duration = Duration::from_millis(10);
/// How long init's reaping of a dead process is waited for.
const REAPER_PATIENCE: Duration = Duration::from_secs(10);

/// Between two questions to the kernel, and before the first one.
const KERNEL_PAUSE: Duration = Duration::from_millis(100);

/// A process, alive or not reaped yet.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// A shim's may be anything, or 0: it is told on, and no more.
    pub(crate) pid: i32,
    held: Hold,
}

/// By what.
#[derive(Debug, Clone)]
enum Hold {
    Descriptor(Arc<OwnedFd>),
    /// It is told of by its shim alone.
    Shim(Arc<shims::Process>),
}

impl Process {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, held: Hold::Descriptor(Arc::new(pidfd)) }
    }

    pub(crate) fn of_shim(pid: i32, process: Arc<shims::Process>) -> Self {
        Self { pid, held: Hold::Shim(process) }
    }

    /// Its descriptor; none for a shim's.
    pub(crate) fn pidfd(&self) -> Option<&Arc<OwnedFd>> {
        match &self.held {
            Hold::Descriptor(pidfd) => Some(pidfd),
            Hold::Shim(_) => None,
        }
    }

    /// The same for what only our own processes can do.
    pub(crate) fn own_pidfd(&self) -> io::Result<&Arc<OwnedFd>> {
        self.pidfd().ok_or_else(|| io::Error::other("it is a shim's"))
    }

    /// Sends a signal by its kernel number. A shim's processes hear by their shim.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        slipway_runtime::sys::signal::send(self.own_pidfd()?.as_fd(), signal)
    }

    /// Returns when it has ended.
    async fn ended(&self) -> io::Result<()> {
        let fd = readiness::watch(Held(Arc::clone(self.own_pidfd()?)), Interest::READABLE)?;
        fd.readable().await.map(drop)
    }

    /// It is dead, reaped or not.
    pub(crate) fn has_ended(&self) -> bool {
        let pidfd = match &self.held {
            Hold::Descriptor(pidfd) => pidfd,
            Hold::Shim(process) => return process.has_ended(),
        };
        let mut fds = [PollFd::new(&**pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// How our own child ended; it stays a zombie until [`Process::reap`], so that its status cannot get lost between
    /// reading it here and writing it down.
    fn peek_status(&self) -> io::Result<Option<u32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::PidFd(self.own_pidfd()?.as_fd()), options)?;
        Ok(status.and_then(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(code.cast_unsigned() & 0xff),
            (_, Some(signal)) => Some(128 + signal.cast_unsigned()),
            _ => None,
        }))
    }

    /// Ends our own child and lets go of it. Blocks.
    pub(crate) fn kill_and_reap(&self) {
        let Some(pidfd) = self.pidfd() else { return };
        let _ = self.signal(9);
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    }

    /// Returns when it has ended; our own child is let go of.
    pub(crate) async fn reap_at_end(&self) {
        let _ = self.ended().await;
        self.reap();
    }

    /// Lets go of our own dead child. Not ours: nothing.
    pub(crate) fn reap(&self) {
        let Some(pidfd) = self.pidfd() else { return };
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// Deaths of processes that a former keeper started, as the guardian reports them.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    awaited: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
}

/// A place to hear of one such death.
#[derive(Debug)]
pub(crate) struct Awaited(oneshot::Receiver<Exit>);

impl Deaths {
    /// Announces that the end of `pid` is of interest. Only for children of the guardian: their pids cannot be those of
    /// our own children, whose pids the guardian never reports.
    pub(crate) fn expect(&self, pid: i32) -> Awaited {
        let (sender, receiver) = oneshot::channel();
        self.lock().insert(pid, sender);
        Awaited(receiver)
    }

    /// The guardian's report; false if nobody cares.
    pub(crate) fn report(&self, exit: Exit) -> bool {
        self.lock().remove(&exit.pid).is_some_and(|awaited| awaited.send(exit).is_ok())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An end, and the guardian's report to acknowledge once it is on record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) ended: Ended,
    pub(crate) report: Option<Exit>,
}

/// Waits for the end of `process`; `adopted` if it is not our own child.
pub(crate) async fn wait_end(process: &Process, adopted: Option<Awaited>) -> End {
    if let Hold::Shim(process) = &process.held {
        return End { ended: process.follow().await, report: None };
    }
    if let Err(error) = process.ended().await {
        tracing::error!(pid = process.pid, "wait for process: {error}");
    }
    let end = |status, at, known, report| End { ended: Ended { status, at, known, oom: None }, report };
    let lost = end(255, now(), false, None);
    match adopted {
        None => match peek_once_let_go(process).await {
            Ok(Some(status)) => end(status, now(), true, None),
            other => {
                tracing::error!(pid = process.pid, "exit status is lost: {other:?}");
                lost
            }
        },
        Some(Awaited(receiver)) => tokio::select! {
            biased;
            Ok(exit) = receiver => end(exit.status, exit.time, true, Some(exit)),
            status = status_by_kernel(process) => end(status, now(), true, None),
            () = tokio::time::sleep(patience(process)) => lost,
        },
    }
}

/// The status of a dead child. While somebody traces it (criu at a checkpoint, a debugger) it is theirs first.
async fn peek_once_let_go(process: &Process) -> io::Result<Option<u32>> {
    let end = tokio::time::Instant::now() + TRACER_PATIENCE;
    loop {
        match process.peek_status() {
            Ok(None) if tokio::time::Instant::now() < end => tokio::time::sleep(TRACER_PAUSE).await,
            result => return result,
        }
    }
}

/// A kernel that tells does so once somebody has reaped the process, and a busy host's init takes its time.
fn patience(process: &Process) -> Duration {
    match process.own_pidfd().and_then(exit_status) {
        Ok(_) => REAPER_PATIENCE,
        Err(_) => GUARDIAN_PATIENCE,
    }
}

/// For a process whose parent was a guardian that is gone: init has reaped it, and the kernel still says how it ended
/// (Linux 6.15). Never returns on older ones. The guardian's word, if there is one, comes with the time: it goes first.
async fn status_by_kernel(process: &Process) -> u32 {
    loop {
        tokio::time::sleep(KERNEL_PAUSE).await;
        if let Ok(Some(status)) = process.own_pidfd().and_then(exit_status) {
            return status;
        }
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Field 22 of /proc/<pid>/stat: together with the pid it names one process for ever (proc_pid_stat(5)).
pub(crate) fn born(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may contain anything, also parentheses: fields begin behind the last one.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The process by its number, if it is still the same one.
pub(crate) fn reopen(pid: i32, expected: u64) -> Option<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid)?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok()?;
    // Asked after opening: had the pid been taken over in between, the answer would be the other's.
    (born(pid) == Some(expected)).then_some(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    #[allow(clippy::zombie_processes, reason = "the tests wait by pidfd")]
    fn spawn(script: &str) -> Process {
        let child = std::process::Command::new("sh").args(["-c", script]).spawn().unwrap();
        let pid = child.id().cast_signed();
        Process::new(pid, pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap())
    }

    #[tokio::test]
    async fn own_children() {
        // CRI-EXIT-01, SHIM-PROC-07, SHIM-EXIT-04
        for (script, status) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143), ("true", 0)] {
            let process = spawn(script);
            let end = wait_end(&process, None).await;
            assert_eq!((end.ended.status, end.ended.known), (status, true), "{script}");
            assert!(born(process.pid).is_some(), "reaped before it was written down");
            process.reap();
            assert!(born(process.pid).is_none());
        }
    }

    #[tokio::test]
    async fn a_number_names_a_process_only_with_its_birth() {
        // SHIM-EXIT-05: else an exit could be that of a later process with the same pid.
        let process = spawn("exec sleep 1000");
        let birth = born(process.pid).unwrap();
        assert!(reopen(process.pid, birth).is_some());
        assert!(reopen(process.pid, birth + 1).is_none(), "another process's");
        process.kill_and_reap();
        assert!(reopen(process.pid, birth).is_none(), "nobody's");
    }

    #[tokio::test]
    async fn adopted_ones_are_reported() {
        let (deaths, process) = (Deaths::default(), spawn("sleep 0.05; exit 3"));
        let awaited = deaths.expect(process.pid);
        let exit = Exit { pid: process.pid, status: 3, time: 99 };
        assert!(deaths.report(exit) && !deaths.report(exit));
        let end = wait_end(&process, Some(awaited)).await;
        assert_eq!((end.ended.status, end.ended.at, end.report), (3, 99, Some(exit)));
        process.reap();
    }

    #[tokio::test]
    async fn what_a_stranger_reaped_is_asked_of_the_kernel() {
        for (script, status) in [("exit 3", 3), ("kill -9 $$", 137)] {
            let (deaths, process) = (Deaths::default(), spawn(script));
            process.reap_at_end().await;
            if exit_status(process.own_pidfd().unwrap()).is_err() {
                eprintln!("skipped: this kernel does not say how a process ended (before Linux 6.15)");
                return;
            }
            let end = wait_end(&process, Some(deaths.expect(process.pid))).await;
            assert_eq!((end.ended.status, end.ended.known, end.report), (status, true, None), "{script}");
        }
    }

    #[tokio::test]
    async fn a_lost_status_is_said_to_be_lost() {
        // CRI-EXIT-02: a zombie that somebody else is to reap, so that not even the kernel says it.
        let (deaths, process) = (Deaths::default(), spawn("exit 3"));
        let end = wait_end(&process, Some(deaths.expect(process.pid))).await;
        assert_eq!((end.ended.status, end.ended.known), (255, false));
        process.reap();
    }
}
