//! Terminals whose peer is a fifo, a file or a logging program: bytes in both directions, and the window's size. (A terminal that is logged belongs to
//! the log engine.)
//!
//! The kernel moves them from one to the other, so that none is here when a keeper ends. Only where it cannot, between a
//! terminal and a file, they are read and written.

use crate::readiness::{self, Held};
use crate::stdio::{Kept, key};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use rustix::termios::{Winsize, tcsetwinsize};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinHandle};

/// How long a deletion waits for the rest of a terminal's output: a client that does not read must not hold it up.
const DRAINED: Duration = Duration::from_secs(2);

/// Moved at a time, in bytes.
const PIECE: usize = 64 * 1024;
/// Between two tries where both ends say that they are ready and the kernel says that they are not.
const SHORT: Duration = Duration::from_millis(1);

/// What moves a terminal's bytes; nothing where there is no terminal.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    input: Option<AbortHandle>,
    output: Option<JoinHandle<()>>,
}

impl Copying {
    /// Nobody types any more. To be called at the end: the client may keep its end open for ever.
    pub(crate) fn stop_input(&mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
    }

    /// Returns when all that the terminal's processes wrote is with the client (SHIM-EXIT-07), or it took too long. They have
    /// ended: the output's copying ends with the terminal.
    pub(crate) async fn drained(self) {
        if let Some(mut output) = self.output {
            let _ = tokio::time::timeout(DRAINED, &mut output).await;
            // A client that does not read must not keep terminal and fifo for ever.
            output.abort();
        }
    }
}

/// Starts copying between the terminal and the client's fifos, where there are both.
pub(crate) fn connect(kept: &Kept) -> io::Result<Copying> {
    let Some(pty) = kept.get(key::PTY) else { return Ok(Copying::default()) };
    let start = |from: Option<&OwnedFd>, to: Option<&OwnedFd>| {
        from.zip(to).map(|(from, to)| copy_aside(from, to)).transpose()
    };
    Ok(Copying {
        input: start(kept.get(key::TTY_IN), Some(pty))?.map(|input| input.abort_handle()),
        output: start(Some(pty), kept.get(key::TTY_OUT))?,
    })
}

fn copy_aside(from: &OwnedFd, to: &OwnedFd) -> io::Result<JoinHandle<()>> {
    let (from, to) = (from.try_clone()?, to.try_clone()?);
    rustix::io::ioctl_fionbio(&from, true)?;
    rustix::io::ioctl_fionbio(&to, true)?;
    let from = readiness::watch(Held(Arc::new(from)), Interest::READABLE)?;
    let to = Sink::new(Held(Arc::new(to)))?;
    Ok(tokio::spawn(async move {
        if let Err(error) = copy(&from, &to).await {
            tracing::debug!("terminal: {error}");
        }
    }))
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

    /// Nobody can tell whether it has room but by trying, if it never has to be waited for.
    fn waiting(&self) -> Option<&AsyncFd<Held>> {
        match self {
            Self::Waiting(to) => Some(to),
            Self::Ready(_) => None,
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
    match to.waiting() {
        Some(waiting) if hand_through(from, waiting).await? => Ok(()),
        _ => copy_by_hand(from, to).await,
    }
}

/// splice(2) until either end is gone. False: it cannot be done between these two, and nothing was.
async fn hand_through(from: &AsyncFd<Held>, to: &AsyncFd<Held>) -> io::Result<bool> {
    loop {
        let (mut readable, mut writable) = (from.readable().await?, to.writable().await?);
        match splice(from, None, to, None, PIECE, SpliceFlags::NONBLOCK) {
            // A terminal whose last process is gone says so with EIO.
            Ok(0) | Err(Errno::IO) => return Ok(true),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::INVAL) => return Ok(false),
            // It does not say which of the two is to be waited for.
            Err(Errno::AGAIN) => match (is(from, PollFlags::IN), is(to, PollFlags::OUT)) {
                (true, true) => tokio::time::sleep(SHORT).await,
                (in_ready, out_ready) => {
                    if !in_ready {
                        readable.clear_ready();
                    }
                    if !out_ready {
                        writable.clear_ready();
                    }
                }
            },
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ready now for `what`, or never again for anything else.
fn is(fd: &AsyncFd<Held>, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(&*fd.get_ref().0, what)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

async fn copy_by_hand(from: &AsyncFd<Held>, to: &Sink) -> io::Result<()> {
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
