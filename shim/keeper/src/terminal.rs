//! Terminals whose peer is a fifo, a file or a logging program: bytes in both directions, and the window's size. (A terminal that is logged belongs to
//! the log engine.)

use crate::readiness::{self, Held};
use crate::stdio::{Kept, key};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use std::io;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// Starts copying between the terminal and the client's fifos, where there are both. The output's copying ends with the
/// terminal; the input's is to be ended by the answer, as the client may keep its end open for ever.
pub(crate) fn connect(kept: &Kept) -> io::Result<Option<AbortHandle>> {
    let Some(pty) = kept.get(key::PTY) else { return Ok(None) };
    let mut copies = Vec::new();
    for (from, to) in [(kept.get(key::TTY_IN), Some(pty)), (Some(pty), kept.get(key::TTY_OUT))] {
        let (Some(from), Some(to)) = (from, to) else { continue };
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        rustix::io::ioctl_fionbio(&from, true)?;
        rustix::io::ioctl_fionbio(&to, true)?;
        let from = readiness::watch(Held(Arc::new(from)), Interest::READABLE)?;
        let to = Sink::new(Held(Arc::new(to)))?;
        let copying = tokio::spawn(async move {
            if let Err(error) = copy(&from, &to).await {
                tracing::debug!("terminal: {error}");
            }
        });
        copies.push(copying.abort_handle());
    }
    // The input's comes first, if there is one.
    Ok(copies.into_iter().next().filter(|_| kept.contains_key(key::TTY_IN)))
}

/// Sets the window's size in characters; without a terminal nothing happens (SHIM-TSK-25).
pub(crate) fn resize(kept: &Kept, width: u32, height: u32) -> io::Result<()> {
    let Some(pty) = kept.get(key::PTY) else { return Ok(()) };
    let cut = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let size = Winsize { ws_row: cut(height), ws_col: cut(width), ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(pty, size)?)
}

/// Where bytes go.
pub(crate) enum Sink {
    /// A fifo, pipe or terminal, which may have to be waited for.
    Waiting(AsyncFd<Held>),
    /// A file, which never has to be; epoll refuses it.
    Ready(Held),
}

impl Sink {
    pub(crate) fn new(fd: Held) -> io::Result<Self> {
        match readiness::watch(fd.clone(), Interest::WRITABLE) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Self::Ready(fd)),
            result => result.map(Self::Waiting),
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let to = match self {
            Self::Ready(fd) => return Ok(rustix::io::write(&*fd.0, bytes)?),
            Self::Waiting(to) => to,
        };
        loop {
            let mut ready = to.writable().await?;
            match rustix::io::write(to, bytes) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                result => return Ok(result?),
            }
        }
    }
}

/// Until either end is gone. A fifo without a reader holds the terminal up, as it would a plain process.
pub(crate) async fn copy(from: &AsyncFd<Held>, to: &Sink) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    loop {
        let count = loop {
            let mut ready = from.readable().await?;
            match rustix::io::read(from, &mut buffer) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                // A terminal whose last process is gone says so with EIO.
                Ok(0) | Err(Errno::IO) => return Ok(()),
                result => break result?,
            }
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            rest = &rest[to.write(rest).await?..];
        }
    }
}

/// Reads a pipe to its end and throws away what was in it.
pub(crate) async fn discard(from: OwnedFd) -> io::Result<()> {
    let from = readiness::watch(Held(Arc::new(from)), Interest::READABLE)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut ready = from.readable().await?;
        match rustix::io::read(&from, &mut buffer) {
            Err(Errno::AGAIN) => ready.clear_ready(),
            Ok(0) => return Ok(()),
            result => drop(result?),
        }
    }
}
