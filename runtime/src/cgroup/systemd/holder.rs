//! The process that keeps a new scope alive until its container is in it: a clone of ours that closes everything, parks,
//! and leaves when told, or when we are gone.

use crate::sys::child::{ABSENT, Script};
use crate::sys::step::Step;
use crate::sys::{clone, process, socket};
use crate::{Error, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Ends and reaps the process when the last copy is dropped.
#[derive(Debug, Clone)]
pub(in crate::cgroup) struct Holder(Arc<Process>);

#[derive(Debug)]
struct Process {
    pid: i32,
    pidfd: OwnedFd,
    /// Should we die, its end is the process's end.
    _socket: OwnedFd,
}

impl Holder {
    pub(in crate::cgroup) fn new() -> Result<Self> {
        let failed = |call: &str, e: std::io::Error| Error::sys("make the scope's first process", call, e);
        let (ours, theirs) = socket::pair().map_err(|e| failed("socketpair", e))?;
        let theirs = process::raised(theirs).map_err(|e| failed("fcntl", e))?;
        let (keep, number) = ([theirs.as_raw_fd()], theirs.as_raw_fd());
        let script = Script {
            steps: &[Step::CloseAll, Step::Park],
            descriptors: &[],
            socket: number,
            listener: ABSENT,
            stdio: [number; 3],
            tasks: &[],
            keep: &keep,
            stay: &keep,
            cgroup: None,
            filter: &[],
            clock: &[],
            filter_flags: 0,
            own_binary: (0, 0),
        };
        let born = clone::spawn(&script, 0, None).map_err(|e| failed("clone3", e))?;
        Ok(Self(Arc::new(Process { pid: born.pid, pidfd: born.pidfd, _socket: ours })))
    }

    pub(in crate::cgroup) fn pid(&self) -> i32 {
        self.0.pid
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        process::end(&self.pidfd);
    }
}

/// Two groups are the same whoever holds them.
impl PartialEq for Holder {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Holder {}
