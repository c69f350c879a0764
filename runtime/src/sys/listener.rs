//! The parent's side of `child_listener`: taking the listener of a filter out of a child that may not make any call.

use super::child_listener::{NUMBER, TAKEN};
use super::shared_page::SharedPage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

/// A child that is loading a filter with a listener.
#[derive(Debug)]
pub struct Loading {
    page: SharedPage,
    /// The child.
    pub pidfd: OwnedFd,
}

impl Loading {
    /// From the descriptors that came with the child's message.
    pub fn new(memfd: &OwnedFd, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { page: SharedPage::map(memfd.as_fd())?, pidfd })
    }

    /// Waits until the filter is loaded and takes its listener; none if the child says something on `socket` or ends
    /// instead.
    pub fn take(&self, socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
        let pause = Timespec { tv_sec: 0, tv_nsec: 50_000 };
        loop {
            let number = self.page.words()[NUMBER].load(Ordering::Acquire);
            if let Some(number) = number.checked_sub(1) {
                let number = i32::try_from(number).map_err(io::Error::other)?;
                return Ok(Some(pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())?));
            }
            let mut fds = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&pause)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Lets the child go on.
    pub fn go_on(&self) {
        self.page.words()[TAKEN].store(1, Ordering::Release);
    }
}
