//! Streams inside one connection, whatever carries them: what a session sees of SPDY and of WebSocket alike.
//!
//! Incoming bytes wait in a bounded queue per stream, outgoing ones in one bounded queue per connection; a full queue
//! makes its writer wait (STR-LOAD-02, SPDY-17).

use crate::spdy::frame::Status;
use crate::spdy::headers::Headers;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Longest piece in which bytes travel, so that streams of a connection take turns (SPDY-28).
pub(crate) const PIECE: usize = 32 << 10;
/// Pieces of one stream that wait to be read.
const WAITING_IN: usize = 8;
/// Frames of a connection that wait to be written.
const WAITING_OUT: usize = 16;

/// The client is gone, or has no interest in this stream any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

/// What is to be written to a connection.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// No more data on this stream.
    End {
        stream: u32,
    },
    Reset {
        stream: u32,
        status: Status,
    },
    Reply {
        stream: u32,
    },
    Open {
        stream: u32,
        headers: Headers,
    },
    Ping(u32),
    /// A sign of life that nobody asked for (WebSocket).
    Pong,
    /// Good-bye; nothing is written after it.
    Close,
}

/// A connection as its streams know it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    out: mpsc::Sender<Outgoing>,
    gone: watch::Receiver<bool>,
}

impl Link {
    pub(crate) async fn send(&self, outgoing: Outgoing) -> Result<(), Gone> {
        self.out.send(outgoing).await.map_err(|_| Gone)
    }

    /// Returns when the connection is over, whoever ended it.
    pub(crate) async fn gone(&self) {
        // An error is a connection whose task is gone with its sender.
        let _ = self.gone.clone().wait_for(|gone| *gone).await;
    }
}

/// The other end of a [`Link`]: the connection's own task has it.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    pub(crate) out: mpsc::Receiver<Outgoing>,
    gone: watch::Sender<bool>,
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        self.gone.send_replace(true);
    }
}

pub(crate) fn link() -> (Link, LinkEnd) {
    let (out, written) = mpsc::channel(WAITING_OUT);
    let (tell, gone) = watch::channel(false);
    (Link { out, gone }, LinkEnd { out: written, gone: tell })
}

/// What came in on a stream.
#[derive(Debug)]
pub(crate) enum Inbound {
    Data(Bytes),
    End,
}

/// Bytes from the client.
#[derive(Debug)]
pub struct Input {
    queue: mpsc::Receiver<Inbound>,
    ended: bool,
}

impl Input {
    pub(crate) fn new() -> (mpsc::Sender<Inbound>, Self) {
        let (sender, queue) = mpsc::channel(WAITING_IN);
        (sender, Self { queue, ended: false })
    }

    /// The next bytes; `None` once the client has ended the stream.
    ///
    /// # Errors
    /// [`Gone`]: the connection broke, or the client gave the stream up.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Gone> {
        if self.ended {
            return Ok(None);
        }
        match self.queue.recv().await {
            Some(Inbound::Data(bytes)) => Ok(Some(bytes)),
            Some(Inbound::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(Gone),
        }
    }

    /// Writes all there is to `writer`, until the client has ended the stream or is gone.
    ///
    /// # Errors
    /// Of writing.
    pub async fn copy_to(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<Result<(), Gone>> {
        loop {
            match self.next().await {
                Ok(Some(bytes)) => writer.write_all(&bytes).await?,
                Ok(None) => return Ok(Ok(())),
                Err(Gone) => return Ok(Err(Gone)),
            }
        }
    }
}

/// Bytes to the client.
#[derive(Debug, Clone)]
pub struct Output {
    stream: u32,
    link: Link,
    /// Nothing may be written any more: we ended it, or the client reset it.
    over: Arc<AtomicBool>,
}

impl Output {
    pub(crate) fn new(stream: u32, link: Link, over: Arc<AtomicBool>) -> Self {
        Self { stream, link, over }
    }

    /// Waits until there is room in the connection's queue.
    ///
    /// # Errors
    /// [`Gone`], also when only this stream was given up.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            if self.over.load(Ordering::Relaxed) {
                return Err(Gone);
            }
            let piece = bytes.split_to(bytes.len().min(PIECE));
            self.link.send(Outgoing::Data { stream: self.stream, bytes: piece }).await?;
        }
        Ok(())
    }

    /// No more bytes follow; more than once is once.
    pub async fn finish(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            let _ = self.link.send(Outgoing::End { stream: self.stream }).await;
        }
    }

    /// Gives the stream up, in both directions.
    pub(crate) async fn reset(&self, status: Status) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.link.send(Outgoing::Reset { stream: self.stream, status }).await;
    }
}

/// When something last went over a connection, in either direction (STR-IDLE-01).
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    start: Instant,
    last: Arc<AtomicU64>,
    limit: Duration,
}

impl Activity {
    /// `limit` zero: never idle.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { start: Instant::now(), last: Arc::default(), limit }
    }

    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Returns when nothing has happened for the limit.
    pub(crate) async fn idle(&self) {
        if self.limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let due = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + self.limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}
