//! The terminal of a container or session: the runtime makes it and sends its master to a socket of ours.

use crate::error::{Error, Result};
use rustix::cmsg_space;
use rustix::fd::OwnedFd;
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A socket that waits for one terminal; its name goes with it.
#[derive(Debug)]
pub(super) struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// In `dir`, by a name no longer than that of the keeper's own socket: socket addresses are short (unix(7)).
    pub(super) fn listen(dir: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = dir.join(format!("t{:03x}", NEXT.fetch_add(1, Ordering::Relaxed) & 0xfff));
        let fail = |e: io::Error| Error::io("listen on", path.display(), &e);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(fail)?;
        // What is to come is there when the runtime has ended.
        listener.set_nonblocking(true).map_err(fail)?;
        Ok(Self { path, listener })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master, which the runtime has sent before it ended.
    pub(super) fn receive(self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        let (mut space, mut bytes) = ([MaybeUninit::uninit(); cmsg_space!(ScmRights(4))], [0; 4096]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let mut received = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let first = received.next().and_then(|mut fds| fds.next());
        first.filter(|fd| rustix::termios::isatty(fd)).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
