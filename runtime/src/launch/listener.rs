//! A child's message that it loads a filter with a listener, answered: the listener is in the right hands before the
//! child makes its next call.

use super::Failure;
use crate::sys::listener::Loading;
use crate::sys::process;
use crate::{Error, Result};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Takes the listener, has it handed over, and lets the child go on. None when the child failed instead, which its next
/// message or its end tells. After an error of ours the child is dead.
pub(super) fn take(
    socket: impl AsFd,
    rights: Vec<OwnedFd>,
    hand_over: &mut dyn FnMut(&OwnedFd) -> Result<()>,
) -> Result<Option<OwnedFd>, Failure> {
    let error = |e: io::Error| {
        let hint = "needs pidfd_getfd(2), which asks for CAP_SYS_PTRACE over the container";
        Failure::Told(Error::sys("take the seccomp listener", "SCMP_ACT_NOTIFY", e).hint(hint))
    };
    let [page, pidfd] =
        <[OwnedFd; 2]>::try_from(rights).map_err(|_| error(io::ErrorKind::InvalidData.into()))?;
    let loading = Loading::new(&page, pidfd).map_err(error)?;
    let taken = loading.take(socket).map_err(error).and_then(|listener| {
        let Some(listener) = listener else { return Ok(None) };
        hand_over(&listener).map_err(Failure::Told)?;
        Ok(Some(listener))
    });
    match &taken {
        Ok(_) => loading.go_on(),
        Err(_) => process::kill(&loading.pidfd),
    }
    taken
}
