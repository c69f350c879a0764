//! Terminals: the master goes to whoever listens on the console socket, or is connected to our own terminal.

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType, connect,
    sendmsg, socket,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Sends the master to the console socket as runc does: its name as the text, the descriptor as SCM_RIGHTS.
pub(crate) fn send(path: &Path, master: &OwnedFd) -> Result<()> {
    let about = || format!("send the terminal to the console socket {}", path.display());
    let stream = socket(AddressFamily::UNIX, SocketType::STREAM, None).with_context(about)?;
    let address = SocketAddrUnix::new(path).with_context(about)?;
    connect(&stream, &address).with_context(about)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&stream, &[IoSlice::new(b"/dev/ptmx")], &mut control, SendFlags::NOSIGNAL).with_context(about)?;
    Ok(())
}

/// Our own terminal in raw mode, put back when dropped.
#[derive(Debug)]
struct Raw(Termios);

impl Raw {
    /// None if standard input is no terminal.
    fn enter() -> Option<Self> {
        let former = tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = former.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(former))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Gives the master the size of our own terminal, if there is one.
pub(crate) fn copy_size(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

/// A container's terminal connected to our standard streams.
#[derive(Debug)]
pub(crate) struct Proxy<'a> {
    master: &'a OwnedFd,
    input_open: bool,
    output_open: bool,
    _raw: Option<Raw>,
}

impl<'a> Proxy<'a> {
    pub(crate) fn new(master: &'a OwnedFd) -> Self {
        let raw = Raw::enter();
        copy_size(master);
        Self { master, input_open: true, output_open: true, _raw: raw }
    }

    /// What to wait for: first the terminal, then our input, as far as they are open.
    pub(crate) fn watched(&self) -> Vec<PollFd<'a>> {
        let master = self.output_open.then(|| PollFd::new(self.master, PollFlags::IN));
        let input = self.input_open.then(|| PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        master.into_iter().chain(input).collect()
    }

    /// Copies what is ready, in the order of [`Proxy::watched`].
    pub(crate) fn pump(&mut self, ready: &[bool]) -> io::Result<()> {
        let mut ready = ready.iter().copied();
        if self.output_open && ready.next() == Some(true) {
            self.output_open = copy(self.master.as_fd(), rustix::stdio::stdout())?;
        }
        if self.input_open && ready.next() == Some(true) {
            self.input_open = copy(rustix::stdio::stdin(), self.master.as_fd())?;
        }
        Ok(())
    }

    /// Copies what the ended process wrote last.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.output_open && poll(&mut [PollFd::new(self.master, PollFlags::IN)], Some(&now))? > 0 {
            self.output_open = copy(self.master.as_fd(), rustix::stdio::stdout())?;
        }
        Ok(())
    }
}

/// One buffer; false at the end (a terminal whose last process is gone says so with EIO).
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<bool> {
    let mut buffer = [0u8; 8192];
    let count = match rustix::io::read(from, &mut buffer) {
        Ok(0) | Err(Errno::IO) => return Ok(false),
        Err(Errno::INTR | Errno::AGAIN) => return Ok(true),
        count => count?,
    };
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None)?;
            }
            Err(Errno::IO) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
