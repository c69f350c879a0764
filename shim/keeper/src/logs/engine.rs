//! The engine's thread: an edge-triggered epoll loop over all containers' pipes.

use super::format::{cut, push_time};
use super::journal::{Journal, pipe_id};
use super::listeners::{Listener, Listeners};
use super::peek::{Peeker, Seen};
use super::sink::{Hold, Ready, Sink};
use super::{Command, Drained, Input, Log, Source, Stream};
use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, splice};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// Pipes that stay busy grow to this many bytes.
const BUSY_PIPE: usize = 256 * 1024;
/// A pipe is busy after so many peeks in a row that found it three quarters full.
const BUSY_AFTER: u32 = 3;
/// Batches of one stream before the others get their turn.
const TURN: u32 = 4;
/// Buffers larger than this are given back when nothing happens for a second.
const QUIET_BUFFER: usize = 64 * 1024;
/// A line that is never to be cut is cut here all the same: memory has an end.
const LONGEST_LINE: usize = 16 * 1024 * 1024;
/// After a failure that is not the file's (no memory, say) a stream is served again: its pipe may be full, and then no edge
/// ever comes.
const RETRY: Duration = Duration::from_millis(250);
/// Token of the command bell; streams count upwards from 1.
const BELL: u64 = 0;

/// One output stream of one container.
#[derive(Debug)]
struct Tap {
    log: u64,
    stream: Stream,
    pipe: OwnedFd,
    pipe_id: u64,
    hold: Hold,
    size: usize,
    busy: u32,
    /// The write end is closed everywhere: what is left without newline is all there will be.
    hung_up: bool,
    queued: bool,
    terminal: Option<Terminal>,
}

/// A terminal's master and the way into the tap's pipe.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    into: OwnedFd,
}

/// One container's log.
#[derive(Debug)]
struct Entry {
    id: String,
    sink: Sink,
    max_line: usize,
    taps: Vec<u64>,
}

/// What a turn on a stream ended with.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Turn {
    /// Nothing to do until the next event.
    Idle,
    /// There may be more; let others go first.
    More,
    /// The stream is over.
    End,
}

/// All state of the thread.
#[derive(Debug)]
pub(super) struct Worker {
    journal: Arc<Journal>,
    bell: Arc<OwnedFd>,
    inbox: mpsc::Receiver<Command>,
    epoll: OwnedFd,
    logs: HashMap<u64, Entry>,
    by_id: HashMap<String, u64>,
    taps: HashMap<u64, Tap>,
    listeners: Listeners,
    ready: VecDeque<u64>,
    /// Streams that failed, and since when the oldest of them waits.
    failed: Vec<u64>,
    failed_at: Instant,
    next: u64,
    peeker: Peeker,
    /// Held bytes and peeked ones together, where there are both.
    joined: Vec<u8>,
    text: Vec<u8>,
}

impl Worker {
    pub(super) fn new(
        journal: Arc<Journal>,
        bell: Arc<OwnedFd>,
        inbox: mpsc::Receiver<Command>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(Self {
            journal,
            bell,
            inbox,
            epoll,
            logs: HashMap::new(),
            by_id: HashMap::new(),
            taps: HashMap::new(),
            listeners: Listeners::default(),
            ready: VecDeque::new(),
            failed: Vec::new(),
            failed_at: Instant::now(),
            next: BELL,
            peeker: Peeker::default(),
            joined: Vec::new(),
            text: Vec::new(),
        })
    }

    /// Until told to stop, or until every handle is gone.
    pub(super) fn run(mut self) {
        loop {
            if !self.wait() || !self.obey() {
                return;
            }
            if let Some(token) = self.ready.pop_front() {
                self.turn(token);
            }
        }
    }

    /// Collects events; blocks only when no stream is ready. False: the thread cannot go on.
    fn wait(&mut self) -> bool {
        let kept = self.peeker.kept() + self.joined.capacity() + self.text.capacity();
        let big = kept > QUIET_BUFFER;
        let timeout = match (self.ready.is_empty(), self.failed.is_empty(), big) {
            (false, _, _) => Some(Duration::ZERO),
            (true, false, _) => Some(RETRY),
            (true, true, true) => Some(Duration::from_secs(1)),
            (true, true, false) => None,
        };
        // All are a second at most.
        let timeout = timeout.and_then(|limit| Timespec::try_from(limit).ok());
        let mut events: [epoll::Event; 64] = std::array::from_fn(|_| epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        });
        let count = match epoll::wait(&self.epoll, events.as_mut_slice(), timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => return true,
            Err(error) => {
                tracing::error!("log thread: epoll_wait: {error}");
                return false;
            }
        };
        if !self.failed.is_empty() && self.failed_at.elapsed() >= RETRY {
            self.ready.extend(self.failed.drain(..));
        }
        if count == 0 && self.ready.is_empty() {
            self.peeker.rest();
            (self.joined, self.text) = (Vec::new(), Vec::new());
        }
        for event in &events[..count] {
            let (flags, token) = (event.flags, event.data.u64());
            if token == BELL {
                let _ = rustix::io::read(&*self.bell, &mut [0u8; 8]);
                continue;
            }
            if let Some(tap) = self.taps.get_mut(&token) {
                // For a terminal the event is the master's, and its pipe ends when we close our end.
                tap.hung_up |= tap.terminal.is_none() && flags.contains(epoll::EventFlags::HUP);
                if !tap.queued {
                    tap.queued = true;
                    self.ready.push_back(token);
                }
            } else {
                self.listeners.ready(token, flags.contains(epoll::EventFlags::ERR));
            }
        }
        true
    }

    /// Does what the handles ask. False: stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Add(log, reply)) => {
                    let _ = reply.send(self.add(log));
                }
                Ok(Command::Reopen(id, file, reply)) => {
                    let done = self
                        .entry(&id)
                        .is_some_and(|entry| entry.sink.file().is_some() && entry.sink.replace(file).is_ok());
                    let _ = reply.send(done);
                }
                Ok(Command::Drain(id, reply)) => {
                    let _ = reply.send(self.drain(&id));
                }
                Ok(Command::IsOver(id, reply)) => {
                    let _ = reply.send(self.entry(&id).is_none_or(|entry| entry.taps.is_empty()));
                }
                Ok(Command::Attach(id, listener, reply)) => {
                    let _ = reply.send(self.attach(&id, listener));
                }
                Ok(Command::Leftover(listener)) => self.leftover(listener),
                Ok(Command::Remove(id)) => self.remove(&id),
                Ok(Command::Recovered) => self.journal.end(),
                Ok(Command::Retire(reply)) => {
                    let _ = reply.send(self.listeners.take_all());
                    return false;
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    fn entry(&mut self, id: &str) -> Option<&mut Entry> {
        self.logs.get_mut(self.by_id.get(id)?)
    }

    fn add(&mut self, log: Log) -> io::Result<()> {
        self.remove(&log.id);
        self.next += 1;
        let key = self.next;
        let sink = Sink::new(log.file, log.dropped)?;
        self.by_id.insert(log.id.clone(), key);
        self.logs.insert(key, Entry { id: log.id.clone(), sink, max_line: log.max_line, taps: Vec::new() });
        for input in log.streams {
            if let Err(error) = self.tap(key, input) {
                self.remove(&log.id);
                return Err(error);
            }
        }
        // Nothing has been read yet.
        for client in log.clients {
            self.attach(&log.id, client)?;
        }
        Ok(())
    }

    /// Repairs what a former keeper left of the stream, then listens to it.
    fn tap(&mut self, log: u64, input: Input) -> io::Result<()> {
        let (pipe, terminal) = match input.source {
            Source::Pipe(pipe) => (pipe, None),
            Source::Terminal { master, read, write } => {
                set_nonblocking(&master)?;
                (read, Some(Terminal { master, into: write }))
            }
        };
        set_nonblocking(&pipe)?;
        let Some(entry) = self.logs.get_mut(&log) else { return Ok(()) };
        let hold = File::from(input.hold);
        if let Some(verdict) = self.journal.repair(pipe.as_fd(), entry.sink.file(), &hold)? {
            tracing::info!(id = entry.id, ?verdict, "log batch of the former keeper repaired");
        }
        self.next += 1;
        let token = self.next;
        let (pipe_id, size) = (pipe_id(&pipe)?, fcntl_getpipe_size(&pipe)?);
        let watched = terminal.as_ref().map_or(&pipe, |terminal| &terminal.master);
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, watched, epoll::EventData::new_u64(token), flags)?;
        entry.taps.push(token);
        let tap = Tap {
            log,
            stream: input.stream,
            pipe,
            pipe_id,
            hold: Hold::new(hold)?,
            size,
            busy: 0,
            hung_up: false,
            queued: true,
            terminal,
        };
        self.taps.insert(token, tap);
        self.ready.push_back(token);
        Ok(())
    }

    fn attach(&mut self, id: &str, listener: Listener) -> io::Result<bool> {
        let Some(key) = self.by_id.get(id).copied() else { return Ok(false) };
        self.listeners.add(&self.epoll, key, listener, &mut self.next)?;
        let taps = self.logs.get(&key).map(|entry| entry.taps.as_slice()).unwrap_or_default();
        for stream in [Stream::Stdout, Stream::Stderr] {
            // Its end came before this client.
            if !taps.iter().any(|token| self.taps.get(token).is_some_and(|tap| tap.stream == stream)) {
                self.listeners.end_stream(key, stream);
            }
        }
        Ok(true)
    }

    /// Of a log that is over: no stream has its key.
    fn leftover(&mut self, listener: Listener) {
        self.next += 1;
        let log = self.next;
        if let Err(error) = self.listeners.add(&self.epoll, log, listener, &mut self.next) {
            tracing::warn!("an attached client of a former keeper: {error}");
        }
        self.listeners.end_log(log);
    }

    fn remove(&mut self, id: &str) {
        let Some(key) = self.by_id.remove(id) else { return };
        self.listeners.end_log(key);
        let Some(entry) = self.logs.remove(&key) else { return };
        for token in entry.taps {
            // Closing our end is not enough to leave the epoll set: the guardian has a copy of the description.
            if let Some(tap) = self.taps.remove(&token) {
                self.unwatch(&tap);
            }
        }
    }

    fn unwatch(&self, tap: &Tap) {
        let watched = tap.terminal.as_ref().map_or(&tap.pipe, |terminal| &terminal.master);
        let _ = epoll::delete(&self.epoll, watched);
    }

    /// One stream's share of the thread.
    fn turn(&mut self, token: u64) {
        let Some(tap) = self.taps.get_mut(&token) else { return };
        tap.queued = false;
        let turn = match self.serve(token, false) {
            Ok(turn) => turn,
            Err(error) => {
                tracing::error!("log thread: {error}");
                return self.serve_later(token);
            }
        };
        match turn {
            Turn::Idle => {}
            Turn::More => {
                if let Some(tap) = self.taps.get_mut(&token) {
                    tap.queued = true;
                    self.ready.push_back(token);
                }
            }
            Turn::End => self.end(token),
        }
    }

    fn serve_later(&mut self, token: u64) {
        let Some(tap) = self.taps.get_mut(&token) else { return };
        tap.queued = true;
        if self.failed.is_empty() {
            self.failed_at = Instant::now();
        }
        self.failed.push(token);
    }

    fn end(&mut self, token: u64) {
        let Some(tap) = self.taps.remove(&token) else { return };
        self.unwatch(&tap);
        self.listeners.end_stream(tap.log, tap.stream);
        if let Some(entry) = self.logs.get_mut(&tap.log) {
            entry.taps.retain(|other| *other != token);
        }
    }

    /// All that is in the container's pipes now, the last unfinished lines too. At most as much as the pipes can hold
    /// is waited for, so that a process which goes on printing cannot hold up the answer.
    fn drain(&mut self, id: &str) -> Drained {
        let Some(entry) = self.entry(id) else { return Drained::default() };
        for token in entry.taps.clone() {
            for _ in 0..8 {
                match self.serve(token, true) {
                    Ok(Turn::More) => {}
                    Ok(Turn::Idle) => break,
                    Ok(Turn::End) => {
                        self.end(token);
                        break;
                    }
                    Err(error) => {
                        tracing::error!(id, "log thread: {error}");
                        break;
                    }
                }
            }
        }
        self.entry(id).map_or_else(Drained::default, |entry| Drained {
            dropped: entry.sink.dropped(),
            orphaned: entry.sink.orphaned(),
        })
    }

    /// Moves up to [`TURN`] batches of a stream to its file. `flush`: an unfinished line too.
    fn serve(&mut self, token: u64, flush: bool) -> io::Result<Turn> {
        let Some(tap) = self.taps.get_mut(&token) else { return Ok(Turn::End) };
        let Some(entry) = self.logs.get_mut(&tap.log) else { return Ok(Turn::End) };
        let longest = if entry.max_line == 0 { LONGEST_LINE } else { entry.max_line };
        for _ in 0..TURN {
            let over = match &tap.terminal {
                Some(terminal) => !fill(terminal)?,
                None => tap.hung_up,
            };
            let (input, last) = match self.peeker.peek(tap.pipe.as_fd(), tap.size)? {
                Seen::Bytes(input) => (input, None),
                Seen::Nothing if !over => (&mut [][..], Some(Turn::Idle)),
                Seen::Nothing | Seen::End => (&mut [][..], Some(Turn::End)),
            };
            let flush = match last {
                None => false,
                Some(Turn::End) => true,
                Some(_) => flush,
            };
            if let Some(turn) = last
                && (!flush || tap.hold.len() == 0)
            {
                return Ok(turn);
            }
            let found = input.len();
            if !flush && tap.hold.len() + found <= longest && memchr::memchr(b'\n', input).is_none() {
                if !self.listeners.is_empty() {
                    self.listeners.say(tap.log, tap.stream, input);
                }
                tap.hold.park(&self.journal, tap.pipe.as_fd(), tap.pipe_id, input)?;
                continue;
            }
            self.text.clear();
            let held = tap.hold.len();
            let taken = if held == 0 {
                cut(input, &head(tap.stream), longest, flush, &mut self.text)
            } else {
                self.joined.clear();
                tap.hold.copy_to(&mut self.joined)?;
                self.joined.extend_from_slice(input);
                cut(&self.joined, &head(tap.stream), longest, flush, &mut self.text)
            };
            // The hold has no newline and is no longer than a piece, so whatever was cut has it whole.
            let consume = taken.consumed.saturating_sub(held);
            if !self.listeners.is_empty() {
                self.listeners.say(tap.log, tap.stream, &input[..consume]);
            }
            let ready = Ready {
                pipe: tap.pipe.as_fd(),
                pipe_id: tap.pipe_id,
                hold: &mut tap.hold,
                text: &self.text,
                lines: taken.lines,
                input,
                consume,
            };
            entry.sink.commit(&self.journal, ready)?;
            tap.grow_if_busy(found);
            if let Some(turn) = last {
                return Ok(turn);
            }
        }
        Ok(Turn::More)
    }
}

impl Tap {
    /// A larger pipe lets a busy writer and this thread work in larger batches.
    fn grow_if_busy(&mut self, found: usize) {
        self.busy = if found * 4 >= self.size * 3 { self.busy + 1 } else { 0 };
        if self.busy >= BUSY_AFTER && self.size < BUSY_PIPE {
            // Refused when the user's share of pipe pages is used up: it stays as it is.
            if let Ok(size) = fcntl_setpipe_size(&self.pipe, BUSY_PIPE) {
                self.size = size;
            }
            self.busy = 0;
        }
    }
}

/// `<time now> <stream> `, for all lines of one batch.
fn head(stream: Stream) -> Vec<u8> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let mut head = Vec::with_capacity(48);
    push_time(&mut head, now.tv_sec * 1_000_000_000 + now.tv_nsec);
    head.push(b' ');
    head.extend_from_slice(stream.name().as_bytes());
    head.push(b' ');
    head
}

/// Moves what the terminal has to say into its pipe; false when the last process has closed it.
fn fill(terminal: &Terminal) -> io::Result<bool> {
    let flags = SpliceFlags::NONBLOCK;
    loop {
        match splice(&terminal.master, None, &terminal.into, None, 64 * 1024, flags) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            // The pipe is full or the terminal is silent: either way what is in the pipe comes first.
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::IO) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
