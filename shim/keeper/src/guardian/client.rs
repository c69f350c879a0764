//! The keeper's end: what it inherits from the guardian, gives to it, and hears from it.

use super::channel::{self, Received};
use super::wire::{DESCRIPTORS, Exit, KEY, PACKET, Packet, keys, push_key};
use crate::readiness::{self, Held};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a guardian that does not read is waited for.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Pause after a failure to hear it that is none of its own.
const AGAIN: Duration = Duration::from_secs(1);

/// All that a new keeper gets. The deaths it has to hear of follow as [`Event`]s.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// 1 for the first keeper of this guardian.
    pub(crate) generation: u32,
    pub(crate) guardian: i32,
    pub(crate) held: HashMap<String, OwnedFd>,
}

/// What the guardian says later.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Died(Exit),
    /// It was sent SIGTERM.
    Terminate,
    /// It is gone; this is the last event.
    Gone,
}

/// The way to the guardian. While there is none every call succeeds: containers run on without it, and the next guardian
/// gets what it has missed.
#[derive(Debug, Clone)]
pub(crate) struct Guardian(Arc<Mutex<State>>);

/// One lock over both, so that no guardian holds what we have let go, or lacks what we count on.
#[derive(Debug)]
struct State {
    line: Option<Line>,
    /// What the guardian holds for us: the same open files, for its successor.
    copies: HashMap<String, OwnedFd>,
}

/// A living guardian, as far as we know.
#[derive(Debug, Clone)]
struct Line {
    socket: Arc<OwnedFd>,
    pid: i32,
}

impl Guardian {
    /// Receives the inheritance over the socket the guardian gave us; blocks until it is complete.
    pub(crate) fn meet(socket: OwnedFd) -> io::Result<(Self, Inheritance)> {
        let mut inheritance = Inheritance { generation: 0, guardian: 0, held: HashMap::new() };
        let (mut buffer, mut descriptors) = ([0; PACKET], Vec::with_capacity(DESCRIPTORS));
        loop {
            let mut fds = [PollFd::new(&socket, PollFlags::IN)];
            poll(&mut fds, None)?;
            match channel::receive(&socket, &mut buffer, &mut descriptors)? {
                Received::Nothing => {}
                Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                Received::Packet(length) => match Packet::decode(&buffer[..length]) {
                    Some(Packet::Hello { generation, guardian }) => {
                        (inheritance.generation, inheritance.guardian) = (generation, guardian);
                    }
                    Some(Packet::Descriptors(keys)) => {
                        let keys = keys.map(|key| String::from_utf8_lossy(key).into_owned());
                        inheritance.held.extend(keys.zip(descriptors.drain(..)));
                    }
                    Some(Packet::Complete) => break,
                    other => {
                        return Err(io::Error::other(format!("unexpected from the guardian: {other:?}")));
                    }
                },
            }
        }
        let mut copies = HashMap::new();
        for (key, fd) in &inheritance.held {
            copies.insert(key.clone(), fd.try_clone()?);
        }
        let line = Line { socket: Arc::new(socket), pid: inheritance.guardian };
        Ok((Self(Arc::new(Mutex::new(State { line: Some(line), copies }))), inheritance))
    }

    /// The guardian's pid, 0 when it is gone.
    pub(crate) fn pid(&self) -> i32 {
        self.lock().line.as_ref().map_or(0, |line| line.pid)
    }

    /// Gives copies of descriptors; one of the same key is replaced. They are safe as soon as this returns: what is in
    /// the socket belongs to the guardian even if we die.
    pub(crate) fn keep(&self, items: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
        let mut state = self.lock();
        state.give(items)?;
        for (key, fd) in items {
            state.copies.insert((*key).to_owned(), fd.try_clone_to_owned()?);
        }
        Ok(())
    }

    /// Makes a guardian in place of one that is gone, which `start` does with the socket it is to have as standard input,
    /// and gives it everything. Blocks.
    pub(crate) fn succeed(
        &self,
        generation: u32,
        start: impl FnOnce(OwnedFd) -> io::Result<i32>,
    ) -> io::Result<()> {
        let (ours, theirs) = channel::pair()?;
        let mut state = self.lock();
        let pid = start(theirs)?;
        state.line = Some(Line { socket: Arc::new(ours), pid });
        state.send(&Packet::Hello { generation, guardian: pid }, &[])?;
        let copies = std::mem::take(&mut state.copies);
        let items: Vec<_> = copies.iter().map(|(key, fd)| (key.as_str(), fd.as_fd())).collect();
        let given = state.give(&items);
        drop(items);
        state.copies = copies;
        given.and_then(|()| state.send(&Packet::Ready, &[]))
    }

    /// Drops one descriptor.
    pub(crate) fn forget(&self, key: &str) {
        let mut state = self.lock();
        state.copies.remove(key);
        state.tell(&Packet::Forget(key.as_bytes()));
    }

    /// Drops all descriptors whose key begins with `prefix`.
    pub(crate) fn forget_all(&self, prefix: &str) {
        let mut state = self.lock();
        state.copies.retain(|key, _| !key.starts_with(prefix));
        state.tell(&Packet::ForgetAll(prefix.as_bytes()));
    }

    /// This death needs no more remembering.
    pub(crate) fn recorded(&self, exit: Exit) {
        self.lock().tell(&Packet::Recorded(exit));
    }

    pub(crate) fn ready(&self) {
        self.lock().tell(&Packet::Ready);
    }

    /// Later keepers are to be started from `path`.
    ///
    /// # Errors
    /// The guardian does not listen, or the path does not fit into a packet.
    pub(crate) fn start_from(&self, path: &Path) -> io::Result<()> {
        let path = path.as_os_str().as_bytes();
        if path.is_empty() || path.len() >= PACKET {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        self.lock().send(&Packet::Binary(path), &[])
    }

    /// Asks it to become the program that we are.
    pub(crate) fn renew(&self) {
        self.lock().tell(&Packet::Renew { keeper: std::process::id().cast_signed() });
    }

    /// End after us.
    pub(crate) fn quit(&self) {
        self.lock().tell(&Packet::Quit);
    }

    /// What the guardian says from now on.
    pub(crate) fn events(&self) -> io::Result<Events> {
        let line = self.lock().line.clone().ok_or(io::ErrorKind::NotConnected)?;
        let socket = readiness::watch(Held(line.socket), Interest::READABLE)?;
        Ok(Events { socket, guardian: self.clone() })
    }

    /// The one at the other end of this socket is gone.
    fn lost(&self, socket: &Arc<OwnedFd>) {
        self.lock().line.take_if(|line| Arc::ptr_eq(&line.socket, socket));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give(&mut self, items: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
        for items in items.chunks(DESCRIPTORS.min(PACKET / (KEY + 1) - 1)) {
            let mut pushed = Vec::new();
            for (key, _) in items {
                if !push_key(&mut pushed, key.as_bytes()) {
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("bad key {key:?}")));
                }
            }
            let descriptors: Vec<_> = items.iter().map(|(_, fd)| *fd).collect();
            self.send(&Packet::Descriptors(keys(&pushed)), &descriptors)?;
        }
        Ok(())
    }

    fn tell(&mut self, packet: &Packet<'_>) {
        if let Err(error) = self.send(packet, &[]) {
            tracing::error!("guardian: {error}");
        }
    }

    fn send(&mut self, packet: &Packet<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut scratch = Vec::with_capacity(128);
        while let Some(line) = &self.line {
            match channel::send(line.socket.as_fd(), packet, descriptors, &mut scratch) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&*line.socket, PollFlags::OUT)];
                    if poll(&mut fds, Some(&PATIENCE))? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => self.line = None,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The guardian's later messages.
#[derive(Debug)]
pub(crate) struct Events {
    socket: AsyncFd<Held>,
    guardian: Guardian,
}

impl Events {
    /// The next message; cancel-safe.
    pub(crate) async fn next(&mut self) -> Event {
        let (mut buffer, mut descriptors) = ([0; PACKET], Vec::new());
        loop {
            let Ok(mut guard) = self.socket.readable().await else { return self.gone() };
            match channel::receive(&*self.socket.get_ref().0, &mut buffer, &mut descriptors) {
                Ok(Received::Nothing) => guard.clear_ready(),
                Ok(Received::End) => return self.gone(),
                Ok(Received::Packet(length)) => match Packet::decode(&buffer[..length]) {
                    Some(Packet::Died(exit)) => return Event::Died(exit),
                    Some(Packet::Terminate) => return Event::Terminate,
                    Some(Packet::Refused(key)) => {
                        let key = String::from_utf8_lossy(key);
                        tracing::error!(%key, "the guardian could not keep a descriptor: out of descriptors or memory");
                    }
                    other => tracing::error!("unexpected from the guardian: {other:?}"),
                },
                // It lives: nobody else may take its place.
                Err(error) => {
                    tracing::error!("guardian: {error}");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn gone(&self) -> Event {
        self.guardian.lost(&self.socket.get_ref().0);
        Event::Gone
    }
}
