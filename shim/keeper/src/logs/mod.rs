//! The log engine: reads what containers print and writes CRI log files (CRI-LOG-01..19), on one thread of its own.
//!
//! ```text
//!  container ──▶ pipe ──tee──▶ scratch ──read──▶ cut into lines ──▶ append to the log ─┐
//!                  ▲                               └─ no newline yet ──▶ append to the hold ─┤
//!                  └───────────────── consume what was written ◀───────────────────┘
//!                                      (journal around both)
//! ```
//!
//! - Data stays in the container's pipe, whose read end the guardian has too, until its lines are in the file: a killed
//!   keeper loses nothing, and the journal keeps its successor from writing anything twice.
//! - A line without its newline yet goes to the stream's hold, a memfd that the guardian has too, by the same journal.
//!   It must not wait in the pipe: a writer that blocks in the middle of one large write(2) wakes a reader only if the
//!   pipe was empty when it began (pipe_write in fs/pipe.c), so a pipe left half full would hang both.
//! - A terminal cannot be peeked at: its output is first spliced into such a pipe, then goes the same way.
//! - It never blocks on a file that cannot be written: the lines are counted as dropped and draining goes on.
//! - Attached clients ([`listeners`]) get the same bytes beside, and are never waited for.
//!
//! It never opens files and knows no records: files and pipes come in as descriptors.

mod engine;
mod format;
pub(crate) mod journal;
mod listeners;
mod peek;
mod sink;
#[cfg(test)]
mod tests;

pub(crate) use listeners::{End, Listener, Outlet, Who};

use journal::{Counters, Journal};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use tokio::sync::oneshot;

/// One of a process's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// The word in the log line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where a stream's bytes come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Read end of the pipe that is the process's output.
    Pipe(OwnedFd),
    /// Master of the process's terminal, and both ends of a pipe its output goes through.
    Terminal { master: OwnedFd, read: OwnedFd, write: OwnedFd },
}

/// A container's log: one file for its streams.
#[derive(Debug)]
pub(crate) struct Log {
    /// Container id.
    pub(crate) id: String,
    /// None discards (CRI-LOG-02).
    pub(crate) file: Option<File>,
    /// Longest content of one log line in bytes; 0 never cuts.
    pub(crate) max_line: usize,
    /// Lines dropped before, when a former keeper wrote this log.
    pub(crate) dropped: u64,
    pub(crate) streams: Vec<Input>,
    /// Clients that a former keeper has handed over: they miss nothing.
    pub(crate) clients: Vec<Listener>,
}

/// One stream of a container, and its hold: a memfd made by [`hold`], empty or with the beginning of a line.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) stream: Stream,
    pub(crate) source: Source,
    pub(crate) hold: OwnedFd,
}

/// A new hold; give a copy to the guardian.
pub(crate) fn hold() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create("slipway-line", rustix::fs::MemfdFlags::CLOEXEC)?)
}

/// A log whose pipes are empty.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Lines that could not be written.
    pub(crate) dropped: u64,
    /// Nobody can find the file: it was deleted or replaced.
    pub(crate) orphaned: bool,
}

/// What the engine is told.
#[derive(Debug)]
enum Command {
    Add(Log, oneshot::Sender<io::Result<()>>),
    Reopen(String, File, oneshot::Sender<bool>),
    Drain(String, oneshot::Sender<Drained>),
    IsOver(String, oneshot::Sender<bool>),
    Attach(String, Listener, oneshot::Sender<io::Result<bool>>),
    Leftover(Listener),
    Remove(String),
    Recovered,
    Retire(oneshot::Sender<Vec<Listener>>),
    Stop,
}

/// Handle of the engine's thread; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    commands: mpsc::Sender<Command>,
    bell: Arc<OwnedFd>,
    journal: Arc<Journal>,
    /// What is asked from now on is for the next keeper to do: nobody here must believe that it was.
    retired: Arc<AtomicBool>,
}

impl Engine {
    /// Starts the thread. `journal` is the page a former keeper may have left.
    pub(crate) fn start(journal: Journal) -> io::Result<Self> {
        let journal = Arc::new(journal);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = mpsc::channel();
        let worker = engine::Worker::new(Arc::clone(&journal), Arc::clone(&bell), inbox)?;
        thread::Builder::new().name("logs".into()).stack_size(128 * 1024).spawn(move || worker.run())?;
        Ok(Self { commands, bell, journal, retired: Arc::default() })
    }

    /// Takes over a container's output. For a log of a former keeper the interrupted batch is completed first.
    pub(crate) async fn add(&self, log: Log) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Add(log, reply));
        self.answered(answer).await?
    }

    /// Every later line of the container goes to `file` (CRI-LOG-12). False: the container has no open log.
    pub(crate) async fn reopen(&self, id: &str, file: File) -> io::Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Reopen(id.into(), file, reply));
        self.answered(answer).await
    }

    /// Returns once all that was in the pipes is in the file, a last line without newline included. Bounded: a process that
    /// goes on printing does not hold it up (CRI-LOG-15, 16).
    pub(crate) async fn drain(&self, id: &str) -> io::Result<Drained> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Drain(id.into(), reply));
        self.answered(answer).await
    }

    /// Whether all that could write to the container's pipes is gone, and all they wrote is taken.
    pub(crate) async fn is_over(&self, id: &str) -> io::Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::IsOver(id.into(), reply));
        self.answered(answer).await
    }

    /// Lets a client hear what the container prints from now on. False: the container has no open output.
    pub(crate) async fn attach(&self, id: &str, listener: Listener) -> io::Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Attach(id.into(), listener, reply));
        self.answered(answer).await?
    }

    /// A client that a former keeper has handed over, of a container without output by now: it gets what it is behind.
    pub(crate) fn leftover(&self, listener: Listener) {
        self.send(Command::Leftover(listener));
    }

    /// Ends the thread between two batches; what the containers print from now on is for the next keeper. Returns the
    /// attached clients.
    pub(crate) async fn retire(&self) -> io::Result<Vec<Listener>> {
        let (reply, answer) = oneshot::channel();
        self.retired.store(true, Ordering::SeqCst);
        self.send(Command::Retire(reply));
        answer.await.map_err(|_| gone())
    }

    /// Never, once the thread has retired.
    async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> io::Result<T> {
        match answer.await {
            Err(_) if self.retired.load(Ordering::SeqCst) => std::future::pending().await,
            answer => answer.map_err(|_| gone()),
        }
    }

    /// Lets go of the container's pipes and file. Unknown is success.
    pub(crate) fn remove(&self, id: &str) {
        self.send(Command::Remove(id.into()));
    }

    /// All logs of the former keeper have been added: an open journal record that nobody claimed is closed.
    pub(crate) fn recovered(&self) {
        self.send(Command::Recovered);
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.send(Command::Stop);
    }

    pub(crate) fn counters(&self) -> Counters {
        self.journal.counters()
    }

    fn send(&self, command: Command) {
        // A thread that is gone shows itself by the reply that never comes.
        if self.commands.send(command).is_ok() {
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the log thread has ended")
}
