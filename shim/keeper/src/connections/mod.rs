//! Connections that outlive the keeper.
//!
//! To containerd a closed connection is a dead shim: it has everything behind it removed. So the guardian has a copy of
//! each connection, and a request is on record from before it is taken out of the socket until its answer is in it. A
//! new keeper goes on with the same connections and does the open requests again; a client that waits for an exit hears
//! of it, whichever keeper saw it.
//!
//! ```text
//!            peek ──▶ record ──▶ take ──▶ request ──▶ … ──▶ answer ──▶ send ──▶ forget
//!  killed:        again    │ again: once more, marked as repeated            │ again: an answer nobody waits for
//! ```
//!
//! Knows frames (ttrpc's PROTOCOL.md) and no services. Only for clients to which a lost connection means loss
//! ([`crate::events::Publisher::is_wanted`]); our own daemon connects again instead.

mod calls;
mod counted;
mod inbound;

pub(crate) use counted::{Connected, CountedIncoming};

use crate::guardian::client::Guardian;
use crate::layout::Layout;
use crate::readiness::{self, Held};
use calls::Calls;
use futures_core::Stream;
use inbound::Inbound;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::UnixListener;
use ttrpc::r#async::TtrpcContext;

/// Of the connections' keys with the guardian.
const PREFIX: &str = "c/";
/// Metadata of a request that may have been done already.
const REPEATED: &str = "slipway-repeated";
/// How often large messages are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Larger answers may be cut by the socket's buffer.
const WHOLE: usize = 16 * 1024;

/// True if a former keeper may have done this request, or a part of it.
pub(crate) fn is_repeated(context: &TtrpcContext) -> bool {
    context.metadata.contains_key(REPEATED)
}

/// Connections of the former keeper, then new ones: what the server listens to.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: UnixListener,
    resumed: VecDeque<Lasting>,
    guardian: Guardian,
    dir: PathBuf,
    next: u64,
}

impl Incoming {
    /// Takes the connections out of `held`.
    pub(crate) fn new(
        listener: UnixListener,
        held: &mut HashMap<String, OwnedFd>,
        guardian: Guardian,
        dir: PathBuf,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut incoming = Self { listener, resumed: VecDeque::new(), guardian, dir, next: 1 };
        let number = |key: &str| key.strip_prefix(PREFIX)?.parse::<u64>().ok();
        let kept: Vec<_> = held.keys().filter_map(|key| number(key)).collect();
        calls::forget_others(&incoming.dir, &kept)?;
        for connection in kept {
            incoming.next = incoming.next.max(connection + 1);
            let key = format!("{PREFIX}{connection}");
            let Some(fd) = held.remove(&key) else { continue };
            match incoming.resume(fd, connection) {
                Ok(lasting) => incoming.resumed.push_back(lasting),
                Err(error) => {
                    tracing::warn!(connection, "cannot go on with a connection: {error}");
                    incoming.guardian.forget(&key);
                }
            }
        }
        Ok(incoming)
    }

    fn resume(&self, fd: OwnedFd, connection: u64) -> io::Result<Lasting> {
        let mut calls = Calls::new(&self.dir, connection);
        let open = calls.load()?;
        let inbound = Inbound::resume(&fd, open)?;
        Lasting::new(fd, calls, inbound, self.guardian.clone())
    }

    fn accepted(&mut self, stream: tokio::net::UnixStream) -> io::Result<Lasting> {
        let fd = OwnedFd::from(stream.into_std()?);
        let connection = self.next;
        self.next += 1;
        self.guardian.keep(&[(&format!("{PREFIX}{connection}"), fd.as_fd())])?;
        Lasting::new(fd, Calls::new(&self.dir, connection), Inbound::default(), self.guardian.clone())
    }
}

impl Stream for Incoming {
    type Item = io::Result<Lasting>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(resumed) = self.resumed.pop_front() {
            return Poll::Ready(Some(Ok(resumed)));
        }
        let (stream, _) = ready!(self.listener.poll_accept(context))?;
        Poll::Ready(Some(self.accepted(stream)))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Lasting {
    socket: AsyncFd<Held>,
    calls: Calls,
    inbound: Inbound,
    /// A frame on its way out, and how much of it is sent.
    outbound: Vec<u8>,
    sent: usize,
    guardian: Guardian,
}

impl Lasting {
    fn new(fd: OwnedFd, calls: Calls, inbound: Inbound, guardian: Guardian) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        let socket = readiness::watch(Held(Arc::new(fd)), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, calls, inbound, outbound: Vec::new(), sent: 0, guardian })
    }
}

impl Drop for Lasting {
    fn drop(&mut self) {
        self.guardian.forget(&format!("{PREFIX}{}", self.calls.connection()));
        self.calls.forget_all();
    }
}

impl AsyncRead for Lasting {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, calls, inbound, .. } = self.get_mut();
        loop {
            if inbound.hand_out(buffer) {
                return Poll::Ready(Ok(()));
            }
            let mut ready = ready!(socket.poll_read_ready(context))?;
            match inbound.take(&ready.get_inner().0, calls) {
                Ok(true) => {}
                // The end.
                Ok(false) => return Poll::Ready(Ok(())),
                // Nothing will complete what has begun.
                Err(Errno::AGAIN) if ready.ready().is_read_closed() => return Poll::Ready(Ok(())),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

/// The server flushes behind each frame; until then it is only collected, so that it is sent whole.
impl AsyncWrite for Lasting {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().outbound.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.outbound.len() > WHOLE && this.sent == 0 {
            this.calls.tear();
        }
        while this.sent < this.outbound.len() {
            let mut ready = ready!(this.socket.poll_write_ready(context))?;
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(&*ready.get_inner().0, &this.outbound[this.sent..], flags) {
                Ok(count) => this.sent += count,
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        if let Some(header) = inbound::Header::read(&this.outbound) {
            this.calls.answered(header.stream);
        }
        if this.outbound.len() > WHOLE {
            this.calls.mend();
        }
        // A long answer's buffer is given back.
        (this.outbound, this.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

/// Returns when no connection is in the middle of a large message, or after `patience`: who leaves then tears it.
pub(crate) async fn whole(layout: &Layout, patience: Duration) {
    let end = Instant::now() + patience;
    let dir = directory(layout.root());
    while calls::is_any_torn(&dir) && Instant::now() < end {
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a keeper's open requests are.
pub(crate) fn directory(root: &Path) -> PathBuf {
    root.join("calls")
}
