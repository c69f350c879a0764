//! The keeper's end: what it inherits from the guardian, gives to it, and hears from it.

use super::channel::{self, Received};
use super::wire::{DESCRIPTORS, Exit, KEY, PACKET, Packet, keys, push_key};
use crate::readiness::{self, Held};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a guardian that does not read is waited for.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

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

/// The way to the guardian. When it is gone every call succeeds and does nothing: containers run on without it.
#[derive(Debug, Clone)]
pub(crate) struct Guardian {
    socket: Arc<OwnedFd>,
    alive: Arc<AtomicBool>,
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
        let guardian = Self {
            socket: Arc::new(socket),
            alive: Arc::new(AtomicBool::new(true)),
            pid: inheritance.guardian,
        };
        Ok((guardian, inheritance))
    }

    /// The guardian's pid, 0 when it is gone.
    pub(crate) fn pid(&self) -> i32 {
        if self.alive.load(Ordering::Relaxed) { self.pid } else { 0 }
    }

    /// Gives copies of descriptors; one of the same key is replaced. They are safe as soon as this returns: what is in
    /// the socket belongs to the guardian even if we die.
    pub(crate) fn keep(&self, items: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
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

    /// Drops one descriptor.
    pub(crate) fn forget(&self, key: &str) {
        self.tell(&Packet::Forget(key.as_bytes()));
    }

    /// Drops all descriptors whose key begins with `prefix`.
    pub(crate) fn forget_all(&self, prefix: &str) {
        self.tell(&Packet::ForgetAll(prefix.as_bytes()));
    }

    /// This death needs no more remembering.
    pub(crate) fn recorded(&self, exit: Exit) {
        self.tell(&Packet::Recorded(exit));
    }

    pub(crate) fn ready(&self) {
        self.tell(&Packet::Ready);
    }

    /// End after us.
    pub(crate) fn quit(&self) {
        self.tell(&Packet::Quit);
    }

    fn tell(&self, packet: &Packet<'_>) {
        if let Err(error) = self.send(packet, &[]) {
            tracing::error!("guardian: {error}");
        }
    }

    fn send(&self, packet: &Packet<'_>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut scratch = Vec::with_capacity(128);
        while self.alive.load(Ordering::Relaxed) {
            match channel::send(self.socket.as_fd(), packet, descriptors, &mut scratch) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&*self.socket, PollFlags::OUT)];
                    if poll(&mut fds, Some(&PATIENCE))? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                    self.alive.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What the guardian says from now on.
    pub(crate) fn events(&self) -> io::Result<Events> {
        let socket = readiness::watch(Held(Arc::clone(&self.socket)), Interest::READABLE)?;
        Ok(Events { socket, alive: Arc::clone(&self.alive) })
    }
}

/// The guardian's later messages.
#[derive(Debug)]
pub(crate) struct Events {
    socket: AsyncFd<Held>,
    alive: Arc<AtomicBool>,
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
                Err(error) => {
                    tracing::error!("guardian: {error}");
                    return self.gone();
                }
            }
        }
    }

    fn gone(&self) -> Event {
        self.alive.store(false, Ordering::Relaxed);
        Event::Gone
    }
}
