//! What a process finds as descriptors 0, 1 and 2.

use std::os::fd::OwnedFd;

/// The three standard streams of a new process; absent means /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}
