//! Clients that watch a container's output beside its log (STR-ATT-03).
//!
//! Each gets the bytes as they leave the container's pipe. One that does not keep up has a backlog of bounded size; beyond
//! it the client is cut off and told so: neither the log nor the container ever waits for it, and no bytes are left out in
//! the middle.

use super::Stream;
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use tokio::sync::oneshot;

/// Bytes that a client may be behind, its pipe not counted.
const BACKLOG: usize = 16 << 20;
/// What a client's pipe is asked to hold.
const PIPE: usize = 1 << 20;

/// Why a client is no longer attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// There is no more output.
    Over,
    TooSlow,
    /// It closed its pipes.
    Gone,
}

/// A client: where its bytes go, and who waits for the end.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) who: Who,
    pub(crate) stdout: Option<Outlet>,
    pub(crate) stderr: Option<Outlet>,
    pub(crate) end: oneshot::Sender<End>,
}

/// Tells clients apart, also for the next keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Who {
    /// Container id.
    pub(crate) container: String,
    pub(crate) client: String,
}

/// Write end of a client's pipe, and what has not gone into it yet.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) pipe: OwnedFd,
    pub(crate) behind: VecDeque<u8>,
}

impl From<OwnedFd> for Outlet {
    fn from(pipe: OwnedFd) -> Self {
        Self { pipe, behind: VecDeque::new() }
    }
}

/// One pipe of a client.
#[derive(Debug)]
struct Out {
    client: u64,
    stream: Stream,
    outlet: Outlet,
    /// Nothing is added any more: it goes once the backlog is written.
    last: bool,
}

#[derive(Debug)]
struct Client {
    log: u64,
    who: Who,
    outs: Vec<u64>,
    end: oneshot::Sender<End>,
}

/// All clients of all containers. Tokens are the epoll loop's.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    outs: HashMap<u64, Out>,
    clients: HashMap<u64, Client>,
}

impl Listeners {
    /// Adds a client of the log `log`; `next` is the last token that was used.
    pub(super) fn add(
        &mut self,
        epoll: &OwnedFd,
        log: u64,
        listener: Listener,
        next: &mut u64,
    ) -> io::Result<()> {
        *next += 1;
        let client = *next;
        self.clients.insert(client, Client { log, who: listener.who, outs: Vec::new(), end: listener.end });
        for (stream, outlet) in [(Stream::Stdout, listener.stdout), (Stream::Stderr, listener.stderr)] {
            let Some(outlet) = outlet else { continue };
            *next += 1;
            // Refused when the user's share of pipe pages is used up: it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(&outlet.pipe, PIPE);
            let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(epoll, &outlet.pipe, epoll::EventData::new_u64(*next), flags) {
                self.drop_client(client, End::Gone);
                return Err(error.into());
            }
            self.outs.insert(*next, Out { client, stream, outlet, last: false });
            if let Some(client) = self.clients.get_mut(&client) {
                client.outs.push(*next);
            }
        }
        Ok(())
    }

    /// All clients, as they are now, for the next keeper.
    pub(super) fn take_all(&mut self) -> Vec<Listener> {
        let outs = &mut self.outs;
        let left = self.clients.drain().map(|(_, client)| {
            let mut listener = Listener { who: client.who, stdout: None, stderr: None, end: client.end };
            for out in client.outs.into_iter().filter_map(|token| outs.remove(&token)) {
                match out.stream {
                    Stream::Stdout => listener.stdout = Some(out.outlet),
                    Stream::Stderr => listener.stderr = Some(out.outlet),
                }
            }
            listener
        });
        left.collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Bytes that are about to leave the container's pipe.
    pub(super) fn say(&mut self, log: u64, stream: Stream, bytes: &[u8]) {
        let hearing = |client: &Client| client.log == log;
        let tokens: Vec<u64> =
            self.clients.values().filter(|c| hearing(c)).flat_map(|c| c.outs.iter().copied()).collect();
        for token in tokens {
            let Some(out) = self.outs.get_mut(&token).filter(|out| out.stream == stream && !out.last) else {
                continue;
            };
            if let Err(end) = out.outlet.push(bytes) {
                let client = out.client;
                self.drop_client(client, end);
            }
        }
    }

    /// The pipe has room, or nobody reads it any more. False: not one of ours.
    pub(super) fn ready(&mut self, token: u64, hung_up: bool) -> bool {
        let Some(out) = self.outs.get_mut(&token) else { return false };
        let client = out.client;
        let flushed = if hung_up { Err(End::Gone) } else { out.outlet.flush() };
        match flushed {
            Err(end) => self.drop_client(client, end),
            Ok(()) if out.last && out.outlet.behind.is_empty() => self.drop_out(token),
            Ok(()) => {}
        }
        true
    }

    /// A stream of the container is over; clients get what they have not read yet, then the end.
    pub(super) fn end_stream(&mut self, log: u64, stream: Stream) {
        let outs = self.clients.values().filter(|c| c.log == log).flat_map(|c| c.outs.iter().copied());
        for token in outs.collect::<Vec<_>>() {
            let Some(out) = self.outs.get_mut(&token).filter(|out| out.stream == stream) else { continue };
            out.last = true;
            if out.outlet.behind.is_empty() {
                self.drop_out(token);
            }
        }
    }

    /// The whole log is over.
    pub(super) fn end_log(&mut self, log: u64) {
        self.end_stream(log, Stream::Stdout);
        self.end_stream(log, Stream::Stderr);
        // Those without any output were waiting for this alone.
        let silent = self.clients.iter().filter(|(_, c)| c.log == log && c.outs.is_empty());
        for client in silent.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.drop_client(client, End::Over);
        }
    }

    fn drop_out(&mut self, token: u64) {
        let Some(out) = self.outs.remove(&token) else { return };
        let Some(client) = self.clients.get_mut(&out.client) else { return };
        client.outs.retain(|other| *other != token);
        if client.outs.is_empty() {
            self.drop_client(out.client, End::Over);
        }
    }

    fn drop_client(&mut self, client: u64, end: End) {
        if let Some(client) = self.clients.remove(&client) {
            for token in client.outs {
                // Closes our only copy, which takes it out of the epoll set.
                self.outs.remove(&token);
            }
            let _ = client.end.send(end);
        }
    }
}

impl Outlet {
    /// Writes what fits and keeps the rest.
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), End> {
        if self.behind.is_empty() {
            bytes = &bytes[write(&self.pipe, bytes)?..];
        }
        if self.behind.len() + bytes.len() > BACKLOG {
            return Err(End::TooSlow);
        }
        self.behind.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), End> {
        while !self.behind.is_empty() {
            let count = write(&self.pipe, self.behind.as_slices().0)?;
            if count == 0 {
                return Ok(());
            }
            self.behind.drain(..count);
        }
        // Give back what a burst took.
        self.behind = VecDeque::new();
        Ok(())
    }
}

/// How much the pipe took; 0 when it is full.
fn write(pipe: impl AsFd, bytes: &[u8]) -> Result<usize, End> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(&pipe, &bytes[written..]) {
            Ok(count) => written += count,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(_) => return Err(End::Gone),
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::io::Read as _;

    struct Reader {
        pipe: std::fs::File,
        end: oneshot::Receiver<End>,
    }

    fn attach(listeners: &mut Listeners, next: &mut u64) -> Reader {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let (tell, end) = oneshot::channel();
        let who = Who { container: "c".into(), client: "a".into() };
        let listener = Listener { who, stdout: Some(write.into()), stderr: None, end: tell };
        listeners.add(&epoll, 1, listener, next).unwrap();
        Reader { pipe: read.into(), end }
    }

    impl Reader {
        fn take(&mut self) -> Vec<u8> {
            let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
            while let Ok(count @ 1..) = self.pipe.read(&mut buffer) {
                all.extend_from_slice(&buffer[..count]);
            }
            all
        }
    }

    /// STR-ATT-03: all get the same, and who does not keep up is cut off without a gap.
    #[test]
    fn slow_clients_are_cut_off_and_others_are_not() {
        let (mut listeners, mut next) = (Listeners::default(), 10);
        let mut fast = attach(&mut listeners, &mut next);
        let mut slow = attach(&mut listeners, &mut next);
        let piece = vec![7; 1 << 20];
        let mut heard = 0;
        for _ in 0..40 {
            listeners.say(1, Stream::Stdout, &piece);
            listeners.say(2, Stream::Stdout, b"of another container");
            listeners.say(1, Stream::Stderr, b"not asked for");
            heard += fast.take().len();
            for token in 11..next + 1 {
                listeners.ready(token, false);
            }
        }
        heard += fast.take().len();
        assert_eq!(heard, 40 << 20);
        assert_eq!(slow.end.try_recv(), Ok(End::TooSlow));
        assert!(fast.end.try_recv().is_err());
        listeners.end_log(1);
        assert_eq!(fast.end.try_recv(), Ok(End::Over));
        assert!(listeners.is_empty() && listeners.outs.is_empty());
    }

    /// What is behind is written before the end.
    #[test]
    fn the_backlog_outlives_the_log() {
        let (mut listeners, mut next) = (Listeners::default(), 0);
        let mut reader = attach(&mut listeners, &mut next);
        let text: Vec<u8> = (0..3 << 20).map(|n| (n % 251) as u8).collect();
        listeners.say(1, Stream::Stdout, &text);
        listeners.end_log(1);
        assert!(reader.end.try_recv().is_err(), "there is a backlog");
        let mut all = Vec::new();
        while reader.end.try_recv().is_err() {
            all.extend(reader.take());
            listeners.ready(next, false);
        }
        all.extend(reader.take());
        assert_eq!(all, text);
    }

    /// DESIGN 4: to a client the next keeper's listeners go on where these stopped.
    #[test]
    fn clients_are_handed_over_with_what_they_are_behind() {
        let (mut listeners, mut next) = (Listeners::default(), 0);
        let mut reader = attach(&mut listeners, &mut next);
        let text: Vec<u8> = (0..3 << 20).map(|n| (n % 251) as u8).collect();
        listeners.say(1, Stream::Stdout, &text);
        let [mut left] = <[Listener; 1]>::try_from(listeners.take_all()).unwrap();
        assert!(listeners.is_empty() && listeners.outs.is_empty());
        assert!(left.stdout.as_ref().is_some_and(|outlet| !outlet.behind.is_empty()));
        let (tell, end) = oneshot::channel();
        (left.end, reader.end) = (tell, end);
        let (mut listeners, mut next) = (Listeners::default(), 0);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        listeners.add(&epoll, 7, left, &mut next).unwrap();
        listeners.say(7, Stream::Stdout, b"more");
        listeners.end_log(7);
        let mut all = Vec::new();
        while reader.end.try_recv().is_err() {
            all.extend(reader.take());
            listeners.ready(next, false);
        }
        all.extend(reader.take());
        assert_eq!(all, [&text[..], b"more"].concat());
    }

    /// STR-ATT-08.
    #[test]
    fn a_client_that_leaves_is_forgotten() {
        let (mut listeners, mut next) = (Listeners::default(), 0);
        let Reader { pipe, mut end } = attach(&mut listeners, &mut next);
        drop(pipe);
        listeners.say(1, Stream::Stdout, b"hello?");
        assert_eq!(end.try_recv(), Ok(End::Gone));
        assert!(listeners.is_empty());
        assert!(!listeners.ready(next, true));
    }
}
