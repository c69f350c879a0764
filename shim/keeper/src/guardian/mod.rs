//! The guardian: the process above the keeper. It holds a copy of every descriptor that matters, reaps what the keeper
//! leaves behind, and starts a new keeper when one dies (DESIGN 1B).
//!
//! ```text
//!                 ┌──────────── descriptors, exits ────────────┐
//!  guardian ──fork, exec──▶ keeper ──clone3──▶ containers      │
//!   (subreaper)               │ dies               │ become ours: we reap them,
//!      └──── starts another ──┘                    └─ their status goes to the next keeper
//! ```
//!
//! One thread, no network, no parsing but of our own packets, nothing to configure. Tables grow by `try_reserve`: without
//! memory a descriptor is refused and the guardian lives. It never looks into a descriptor and knows no containers.

mod channel;
pub(crate) mod client;
mod renew;
mod wire;

pub(crate) use wire::Exit;

use crate::binary;

use channel::Received;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use std::collections::VecDeque;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wire::{DESCRIPTORS, PACKET, Packet};

/// Key of the socket at which clients reach whichever keeper lives.
pub(crate) const LISTENER: &str = "listener";

/// Deaths remembered until a keeper has recorded them; beyond it the oldest is forgotten.
const EXITS: usize = 4096;
/// A keeper that lived this long is replaced at once.
const HEALTHY: Duration = Duration::from_secs(1);
/// Keepers in a row that never served before the guardian's own file, which did once, is tried in turn.
const STUMBLES: u32 = 2;
/// Longest pause before the next keeper.
const PAUSE: Duration = Duration::from_secs(5);

/// A descriptor kept for the keeper.
#[derive(Debug)]
struct Held {
    key: Vec<u8>,
    fd: OwnedFd,
}

/// The living keeper.
#[derive(Debug)]
struct Keeper {
    /// Its pid. None for the one that made us, in place of a guardian that died: the end of its socket is its death.
    child: Option<i32>,
    socket: OwnedFd,
    since: Instant,
    /// It serves.
    ready: bool,
    /// How many of the kept descriptors it has been given; `None` once it has them all.
    given: Option<usize>,
    /// How many of the deaths it has been told.
    told: usize,
    terminate: bool,
}

/// How its processes are started.
pub(crate) trait Launch: std::fmt::Debug {
    /// A keeper of the program at `program`, which finds its socket as standard input.
    fn keeper(&self, program: &Path) -> Command;
    /// The guardian itself, of another program; its state is standard input.
    fn renewed(&self, program: &Path) -> Command;
}

/// The guardian's whole state.
#[derive(Debug)]
pub(crate) struct Guardian {
    launch: Box<dyn Launch>,
    /// Where the program is installed: a new keeper is what lies there now.
    path: PathBuf,
    signals: SignalFd,
    keeper: Option<Keeper>,
    held: Vec<Held>,
    exits: VecDeque<Exit>,
    generation: u32,
    /// Keepers in a row that died young.
    failures: u32,
    /// Keepers in a row that died before they served, or could not be started.
    stumbled: u32,
    next_start: Option<Instant>,
    quitting: bool,
    scratch: Vec<u8>,
}

impl Guardian {
    /// Becomes subreaper and takes the signals over. A keeper finds `listener` under the key `listener`.
    pub(crate) fn new(launch: Box<dyn Launch>, listener: OwnedFd) -> io::Result<Self> {
        let mut guardian = Self::bare(launch)?;
        guardian.held.push(Held { key: LISTENER.into(), fd: listener });
        guardian.next_start = Some(Instant::now());
        Ok(guardian)
    }

    /// In place of a guardian that died: the keeper at the other end of `socket` lives, and tells what is to be held. Its
    /// containers are nobody's children here when it dies; how they end, the kernel tells its successor.
    pub(crate) fn adopt(launch: Box<dyn Launch>, socket: OwnedFd) -> io::Result<Self> {
        let mut guardian = Self::bare(launch)?;
        guardian.keeper = Some(Keeper {
            child: None,
            socket,
            since: Instant::now(),
            ready: false,
            given: None,
            told: 0,
            terminate: false,
        });
        Ok(guardian)
    }

    fn bare(launch: Box<dyn Launch>) -> io::Result<Self> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // Needs CAP_SYS_RESOURCE; without it the score stays as it is.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
        let mut mask = SigSet::empty();
        // SIGUSR1 asks shims what they are doing; the keeper answers (SHIM-PROC-05).
        let ours = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];
        for signal in ours {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            launch,
            path: binary::installed(),
            signals,
            keeper: None,
            held: Vec::new(),
            exits: VecDeque::with_capacity(EXITS),
            generation: 0,
            failures: 0,
            stumbled: 0,
            next_start: None,
            quitting: false,
            scratch: Vec::with_capacity(PACKET),
        })
    }

    /// Until a keeper says that nothing is left.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            self.start_if_due();
            if self.quitting && self.keeper.is_none() {
                return Ok(());
            }
            self.speak();
            self.wait()?;
            self.hear_signals()?;
            let ended = self.hear_keeper();
            if ended && self.keeper.as_ref().is_some_and(|keeper| keeper.child.is_none()) {
                self.keeper_died();
            }
        }
    }

    fn start_if_due(&mut self) {
        if self.keeper.is_some() || self.quitting || self.next_start.is_some_and(|at| at > Instant::now()) {
            return;
        }
        match self.start() {
            Ok(keeper) => {
                self.next_start = None;
                self.keeper = Some(keeper);
            }
            Err(error) => {
                tracing::error!("guardian: start a keeper: {}: {error}", self.program().display());
                self.stumbled += 1;
                self.plan_restart(Duration::ZERO);
            }
        }
    }

    fn start(&mut self) -> io::Result<Keeper> {
        let (socket, theirs) = channel::pair()?;
        let program = self.program();
        if program != self.path {
            tracing::error!(
                "guardian: {} does not serve: this keeper is of the former program",
                self.path.display()
            );
        }
        let mut command = self.launch.keeper(program);
        command.env(binary::VARIABLE, &self.path).stdin(Stdio::from(theirs));
        let child = command.spawn()?.id().cast_signed();
        // It has the keeper's end of the socket, whose closing is to be seen.
        drop(command);
        self.generation += 1;
        let hello = Packet::Hello {
            generation: self.generation,
            guardian: rustix::process::getpid().as_raw_nonzero().get(),
        };
        let since = Instant::now();
        channel::send(socket.as_fd(), &hello, &[], &mut self.scratch)?;
        Ok(Keeper {
            child: Some(child),
            socket,
            since,
            ready: false,
            given: Some(0),
            told: 0,
            terminate: false,
        })
    }

    /// What the next keeper is to be: the file that is installed; in turn with our own where that one does not get to serve,
    /// be it that it is broken, half-copied or gone.
    fn program(&self) -> &Path {
        let way_back = self.stumbled >= STUMBLES && self.stumbled.is_multiple_of(2);
        if way_back { Path::new(binary::OURS) } else { &self.path }
    }

    fn plan_restart(&mut self, lived: Duration) {
        self.failures = if lived >= HEALTHY { 0 } else { self.failures + 1 };
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            n => PAUSE.min(Duration::from_millis(50) * 2u32.saturating_pow(n.min(16))),
        };
        self.next_start = Some(Instant::now() + pause);
    }

    /// Sends what the keeper does not know yet, as far as its socket takes it.
    fn speak(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let scratch = &mut self.scratch;
        while let Some(given) = keeper.given {
            let batch = &self.held[given..self.held.len().min(given + DESCRIPTORS)];
            let sent = if batch.is_empty() {
                channel::send(keeper.socket.as_fd(), &Packet::Complete, &[], scratch)
            } else {
                give(keeper.socket.as_fd(), batch, scratch)
            };
            if sent.is_err() {
                return;
            }
            keeper.given = (!batch.is_empty()).then_some(given + batch.len());
        }
        while let Some(exit) = self.exits.get(keeper.told) {
            if channel::send(keeper.socket.as_fd(), &Packet::Died(*exit), &[], scratch).is_err() {
                return;
            }
            keeper.told += 1;
        }
        if keeper.terminate && channel::send(keeper.socket.as_fd(), &Packet::Terminate, &[], scratch).is_ok()
        {
            keeper.terminate = false;
        }
    }

    /// Until a signal, a packet, room for a packet, or the time for the next keeper.
    fn wait(&self) -> io::Result<()> {
        let timeout = self.next_start.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut fds = Vec::with_capacity(2);
        fds.push(PollFd::new(&self.signals, PollFlags::IN));
        if let Some(keeper) = &self.keeper {
            let more = keeper.given.is_some() || keeper.told < self.exits.len() || keeper.terminate;
            let flags = if more { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(&keeper.socket, flags));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn hear_signals(&mut self) -> io::Result<()> {
        let mut reap = false;
        while let Some(signal) = self.signals.read_signal()? {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => reap = true,
                Ok(Signal::SIGTERM) => match &mut self.keeper {
                    Some(keeper) => keeper.terminate = true,
                    None => self.quitting = true,
                },
                _ => {}
            }
        }
        if reap {
            self.reap();
        }
        Ok(())
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            if self.keeper.as_ref().is_some_and(|keeper| keeper.child == Some(pid)) {
                self.keeper_died();
                continue;
            }
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code.cast_unsigned(),
                (_, Some(signal)) => 128 + signal.cast_unsigned(),
                _ => continue,
            };
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
            let time = now.tv_sec * 1_000_000_000 + now.tv_nsec;
            if self.exits.len() == EXITS {
                self.forget_exit(0);
            }
            self.exits.push_back(Exit { pid, status, time });
        }
    }

    /// Takes in what the dead keeper still had to say, then prepares for the next one.
    fn keeper_died(&mut self) {
        self.hear_keeper();
        let Some(keeper) = self.keeper.take() else { return };
        self.stumbled = if keeper.ready { 0 } else { self.stumbled + 1 };
        if !self.held.iter().any(|held| held.key == LISTENER.as_bytes()) {
            // One that was adopted and died before it told anything: nobody could reach its successor.
            tracing::error!(
                "guardian: the keeper died before it was taken over: whoever needs one starts it anew"
            );
            self.quitting = true;
        }
        if !self.quitting {
            self.plan_restart(keeper.since.elapsed());
        }
    }

    /// True at the end of its socket: it is dead, or about to be.
    fn hear_keeper(&mut self) -> bool {
        let (mut buffer, mut descriptors) = ([0; PACKET], Vec::new());
        if descriptors.try_reserve(DESCRIPTORS).is_err() {
            return false;
        }
        while let Some(keeper) = &self.keeper {
            match channel::receive(&keeper.socket, &mut buffer, &mut descriptors) {
                Ok(Received::Packet(length)) => {
                    self.obey(Packet::decode(&buffer[..length]), &mut descriptors)
                }
                // The death of a child comes as a signal, too.
                Ok(Received::End) => return true,
                Ok(Received::Nothing) | Err(_) => return false,
            }
        }
        false
    }

    fn obey(&mut self, packet: Option<Packet<'_>>, descriptors: &mut Vec<OwnedFd>) {
        match packet {
            Some(Packet::Descriptors(keys)) => {
                let mut descriptors = descriptors.drain(..);
                for key in keys {
                    let kept = descriptors.next().is_some_and(|fd| self.keep(key, fd));
                    if !kept && let Some(keeper) = &self.keeper {
                        let refused = Packet::Refused(key);
                        let _ = channel::send(keeper.socket.as_fd(), &refused, &[], &mut self.scratch);
                    }
                }
            }
            Some(Packet::Forget(key)) => self.held.retain(|held| held.key != key),
            Some(Packet::ForgetAll(prefix)) => self.held.retain(|held| !held.key.starts_with(prefix)),
            Some(Packet::Recorded(exit)) => {
                if let Some(at) = self.exits.iter().position(|known| *known == exit) {
                    self.forget_exit(at);
                }
            }
            Some(Packet::Ready) => {
                self.failures = 0;
                if let Some(keeper) = &mut self.keeper {
                    keeper.ready = true;
                }
            }
            Some(Packet::Binary(path)) => self.path = std::ffi::OsStr::from_bytes(path).into(),
            Some(Packet::Renew { keeper }) => self.renew(keeper),
            // From the keeper that made us.
            Some(Packet::Hello { generation, .. }) => self.generation = generation,
            Some(Packet::Quit) => self.quitting = true,
            _ => tracing::error!("guardian: a packet that is none"),
        }
    }

    /// False when there is no memory for it.
    fn keep(&mut self, key: &[u8], fd: OwnedFd) -> bool {
        if let Some(known) = self.held.iter_mut().find(|held| held.key == key) {
            known.fd = fd;
            return true;
        }
        let mut owned = Vec::new();
        if owned.try_reserve_exact(key.len()).is_err() || self.held.try_reserve(1).is_err() {
            return false;
        }
        owned.extend_from_slice(key);
        self.held.push(Held { key: owned, fd });
        true
    }

    fn forget_exit(&mut self, at: usize) {
        self.exits.remove(at);
        if let Some(keeper) = &mut self.keeper
            && at < keeper.told
        {
            keeper.told -= 1;
        }
    }
}

fn give(socket: BorrowedFd<'_>, batch: &[Held], scratch: &mut Vec<u8>) -> Result<(), Errno> {
    let mut pushed = Vec::new();
    for held in batch {
        wire::push_key(&mut pushed, &held.key);
    }
    let descriptors: Vec<_> = batch.iter().map(|held| held.fd.as_fd()).collect();
    channel::send(socket, &Packet::Descriptors(wire::keys(&pushed)), &descriptors, scratch)
}
