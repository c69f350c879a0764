//! Connections of clients. An accept that fails ends nothing: tonic takes most errors of accept(2) for the end of the
//! server, and a moment without free descriptors would take the daemon's socket away.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Sleep;
use tonic::codegen::tokio_stream::Stream;

/// Pause after a failed accept: what is missing (descriptors, memory) comes back only by others' doing.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepted connections, for ever.
pub(crate) struct Incoming<A> {
    accept: A,
    pause: Option<Pin<Box<Sleep>>>,
    /// The last accept failed: told once, not twenty times a second.
    failing: bool,
}

/// The connections of `listener` by those who may have one: root, and with `group` whoever the socket's own permissions
/// let in. The second look (unix(7), SO_PEERCRED) is for a socket whose permissions somebody changed.
pub(crate) fn of(listener: UnixListener, group: bool) -> impl Stream<Item = io::Result<UnixStream>> {
    Incoming::new(move |context: &mut Context<'_>| {
        loop {
            let (stream, _) = ready!(listener.poll_accept(context))?;
            let peer = stream.peer_cred()?;
            if group || may(peer.uid()) {
                return Poll::Ready(Ok(stream));
            }
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "refused a client that is not root: are the socket's permissions changed? (socket.group lets others in)"
            );
        }
    })
}

/// Root, and whoever runs this daemon.
fn may(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

impl<A> Incoming<A> {
    fn new(accept: A) -> Self {
        Self { accept, pause: None, failing: false }
    }
}

impl<A, T> Stream for Incoming<A>
where
    A: FnMut(&mut Context<'_>) -> Poll<io::Result<T>> + Unpin,
{
    type Item = io::Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!((self.accept)(context)) {
                Ok(stream) => {
                    self.failing = false;
                    return Poll::Ready(Some(Ok(stream)));
                }
                Err(error) => {
                    if !self.failing {
                        tracing::error!("accept a client: {error}; trying again until it works");
                    }
                    self.failing = true;
                    self.pause = Some(Box::pin(tokio::time::sleep(PAUSE)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::tokio_stream::StreamExt as _;

    /// CRI-GEN-01: running out of descriptors for a while must not end the service.
    #[tokio::test]
    async fn a_failed_accept_ends_nothing() {
        let mut tries = 0;
        let mut incoming = Incoming::new(|_: &mut Context<'_>| {
            tries += 1;
            // EMFILE, as accept(2) answers it.
            Poll::Ready(if tries < 4 { Err(io::Error::from_raw_os_error(24)) } else { Ok(tries) })
        });
        let accepted = tokio::time::timeout(Duration::from_secs(60), incoming.next()).await;
        assert!(matches!(accepted, Ok(Some(Ok(4)))), "{accepted:?}");
    }
}
