//! The root directory of a running container, where it is not that of its mount namespace.

use crate::error::Kind;
use crate::sys::signal;
use crate::{Error, Result, plan};
use oci_spec::runtime::Spec;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// For who joins the process; none: joining its mount namespace leads there.
pub(super) fn of_running(spec: &Spec, pid: i32, pidfd: impl AsFd) -> Result<Option<OwnedFd>> {
    if !plan::root_is_elsewhere(spec.linux().as_ref()) {
        return Ok(None);
    }
    let path = format!("/proc/{pid}/root");
    let error = |e: io::Error| {
        Error::sys("open the container's root directory", &path, e)
            .with_kind(Kind::State)
            .hint("the container is not running")
    };
    let mut options = File::options();
    let root =
        options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&path).map_err(error)?;
    // A process that is there now was there when its number was used.
    signal::send(pidfd.as_fd(), 0).map_err(error)?;
    Ok(Some(root.into()))
}
