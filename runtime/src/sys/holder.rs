//! A process that holds new namespaces and does nothing: how a user namespace becomes a descriptor.
//!
//! A threaded process cannot make a user namespace for itself, and a map must be written from outside. So a child is born
//! into the namespaces and waits until they have been mapped and opened; then it is gone.

use super::child::{PARKED, Report, Script};
use super::clone::{Born, spawn};
use super::socket::{self, Message};
use super::step::Step;
use super::{process, raw};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

/// A waiting child; dropping the value ends it.
#[derive(Debug)]
pub struct Holder {
    born: Born,
    /// Its end ends the child too.
    _socket: OwnedFd,
}

impl Holder {
    /// A child in new namespaces of these CLONE_NEW* kinds.
    pub fn new(kinds: u32) -> io::Result<Self> {
        let (ours, theirs) = socket::pair()?;
        let theirs = process::raised(theirs)?;
        let socket = theirs.as_raw_fd();
        let script = Script {
            // An ordinary user can write the maps of an inspectable child only.
            steps: &[Step::CloseForeign, Step::AllowInspection, Step::Park],
            descriptors: &[],
            socket,
            stdio: [raw::NONE; 3],
            tasks: &[],
            listener: raw::NONE,
            keep: &[socket],
            stay: &[socket],
            cgroup: None,
            filter: &[],
            clock: &[],
            filter_flags: 0,
            own_binary: (0, 0),
        };
        let holder = Self { born: spawn(&script, kinds, None)?, _socket: ours };
        drop(theirs);
        match socket::receive(&holder._socket)? {
            Message::Report(Report { step: PARKED, .. }, _) => Ok(holder),
            Message::Report(Report { errno, .. }, _) => Err(io::Error::from_raw_os_error(errno)),
            Message::End => Err(io::Error::other("the namespaces' holder died")),
        }
    }

    /// Writes the maps, each in the one write that the kernel allows; before it, if asked, denies setgroups(2).
    pub fn map(&self, uids: &str, gids: &str, deny_setgroups: bool) -> io::Result<()> {
        if deny_setgroups {
            self.write("setgroups", "deny")?;
        }
        self.write("uid_map", uids)?;
        self.write("gid_map", gids)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        let path = format!("/proc/{}/{name}", self.born.pid);
        File::options().write(true).open(path)?.write_all(text.as_bytes())
    }

    /// The path of one of its namespaces (`net`, `user`, …), good as long as the value.
    pub fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.born.pid)
    }

    /// One of its namespaces as a descriptor that outlives it.
    pub fn namespace(&self, name: &str) -> io::Result<OwnedFd> {
        Ok(File::open(self.path(name))?.into())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        process::end(&self.born.pidfd);
    }
}
