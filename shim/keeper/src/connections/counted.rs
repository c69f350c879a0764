//! Connections of a client that connects again, counted: a keeper that leaves sees when all have heard of it.

use futures_core::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// How many there are. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Connected(Arc<watch::Sender<usize>>);

impl Connected {
    /// Returns when there is none, or after `patience`.
    pub(crate) async fn none_left(&self, patience: Duration) {
        let mut count = self.0.subscribe();
        let _ = tokio::time::timeout(patience, count.wait_for(|count| *count == 0)).await;
    }
}

/// What the server listens to.
#[derive(Debug)]
pub(crate) struct CountedIncoming {
    pub(crate) listener: UnixListener,
    pub(crate) connected: Connected,
}

impl Stream for CountedIncoming {
    type Item = io::Result<Counted>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let (stream, _) = ready!(self.listener.poll_accept(context))?;
        self.connected.0.send_modify(|count| *count += 1);
        Poll::Ready(Some(Ok(Counted { stream, connected: self.connected.clone() })))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: UnixStream,
    connected: Connected,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connected.0.send_modify(|count| *count -= 1);
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
