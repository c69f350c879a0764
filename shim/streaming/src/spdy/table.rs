//! The open streams of a connection.
//!
//! ```text
//!  open ──FIN from the peer──▶ half ──our FIN──▶ gone
//!    └────our FIN──▶ half ──FIN from the peer──▶ gone          a reset: gone at once (SPDY-23)
//! ```

use crate::mux::{Inbound, Input};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Streams of one connection that may be open at a time.
const MAX_STREAMS: usize = 4096;

/// Why a stream of the peer's is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its number is not one that may come (SPDY-13).
    Number,
    TooMany,
}

#[derive(Debug)]
struct Entry {
    /// `None` once the peer has ended its half.
    input: Option<mpsc::Sender<Inbound>>,
    ended: bool,
    over: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Inner {
    streams: HashMap<u32, Entry>,
    /// Highest number so far: the peer's, or of a client's own.
    last: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<Inner>);

impl Table {
    /// Checks and takes the number of a stream that the peer opens; it is used up even if the stream is refused.
    pub(super) fn admit(&self, stream: u32) -> Result<(), Refused> {
        let mut inner = self.lock();
        if stream.is_multiple_of(2) || stream <= inner.last {
            return Err(Refused::Number);
        }
        inner.last = stream;
        if inner.streams.len() >= MAX_STREAMS { Err(Refused::TooMany) } else { Ok(()) }
    }

    /// Opens a stream. The flag is set when nothing may be written to it any more.
    pub(super) fn open(&self, stream: u32) -> (Input, Arc<AtomicBool>) {
        let (sender, input) = Input::new();
        let over = Arc::new(AtomicBool::new(false));
        let entry = Entry { input: Some(sender), ended: false, over: Arc::clone(&over) };
        let mut inner = self.lock();
        inner.last = inner.last.max(stream);
        inner.streams.insert(stream, entry);
        (input, over)
    }

    /// Where data of the stream goes; `None`: unknown, or ended by the peer.
    pub(super) fn input(&self, stream: u32) -> Option<mpsc::Sender<Inbound>> {
        self.lock().streams.get(&stream)?.input.clone()
    }

    /// True for a stream that was open once, or is.
    pub(super) fn knows(&self, stream: u32) -> bool {
        let inner = self.lock();
        stream <= inner.last || inner.streams.contains_key(&stream)
    }

    pub(super) fn is_open(&self, stream: u32) -> bool {
        self.lock().streams.contains_key(&stream)
    }

    /// The peer's FIN; the queue that has to hear of it.
    pub(super) fn ended_by_peer(&self, stream: u32) -> Option<mpsc::Sender<Inbound>> {
        let mut inner = self.lock();
        let entry = inner.streams.get_mut(&stream)?;
        let input = entry.input.take();
        if entry.ended {
            inner.streams.remove(&stream);
        }
        input
    }

    /// Our FIN was written.
    pub(super) fn ended_by_us(&self, stream: u32) {
        let mut inner = self.lock();
        if let Some(entry) = inner.streams.get_mut(&stream) {
            entry.ended = true;
            if entry.input.is_none() {
                inner.streams.remove(&stream);
            }
        }
    }

    /// A reset from either side.
    pub(super) fn remove(&self, stream: u32) {
        if let Some(entry) = self.lock().streams.remove(&stream) {
            entry.over.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn last(&self) -> u32 {
        self.lock().last
    }

    /// The connection is over: every reader hears so.
    pub(super) fn clear(&self) {
        for (_, entry) in self.lock().streams.drain() {
            entry.over.store(true, Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().streams.len()
    }

    // A poisoned lock only means that another task panicked between two whole changes.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
