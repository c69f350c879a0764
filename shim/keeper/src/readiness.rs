//! Descriptors on tokio's reactor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that stays open, and the same, for as long as this lives.
#[derive(Debug, Clone)]
pub(crate) struct Held(pub(crate) Arc<OwnedFd>);

impl AsRawFd for Held {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Watches a descriptor; must be called inside the runtime.
pub(crate) fn watch(fd: Held, interest: Interest) -> io::Result<AsyncFd<Held>> {
    // Deprecated because AsRawFd alone does not promise that the descriptor stays open; Held does.
    #[allow(deprecated)]
    AsyncFd::with_interest(fd, interest)
}
