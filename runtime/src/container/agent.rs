//! The seccomp agent: a program of the host that answers, at a listener, for the calls a profile does not decide
//! (SCMP_ACT_NOTIFY). It is given the listener through the socket at `linux.seccomp.listenerPath`.

use crate::error::Kind;
use crate::hooks::Subject;
use crate::{Error, Result};
use oci_spec::runtime::{ContainerProcessState, ContainerState, LinuxSeccomp, SECCOMP_FD_NAME};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with, sockopt,
};
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an agent may take to accept what it is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Refuses a profile whose listener would have no taker: every call it is asked about would fail.
pub(super) fn check(profile: &LinuxSeccomp, notify: bool) -> Result<()> {
    let refuse = |what: &str, hint: &str| {
        Err(Error::new(Kind::Invalid, "plan linux.seccomp.listenerPath", what).hint(hint))
    };
    match profile.listener_path() {
        None if notify => refuse("missing", "SCMP_ACT_NOTIFY needs the socket of a seccomp agent"),
        None if profile.listener_metadata().is_some() => {
            refuse("missing", "listenerMetadata is for the agent at that socket")
        }
        Some(path) if notify && !path.is_absolute() => {
            refuse(&format!("{} is not absolute", path.display()), "name the agent's socket")
        }
        _ => Ok(()),
    }
}

/// Sends the listener of `pid`'s filter to the agent, with the container process state of OCI.
pub(super) fn hand_over(
    subject: &Subject<'_>,
    status: ContainerState,
    container_pid: i32,
    pid: i32,
    listener: &OwnedFd,
) -> Result<()> {
    let profile = subject.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let Some((profile, path)) = profile.and_then(|p| Some((p, p.listener_path().as_ref()?))) else {
        let what = "linux.seccomp.listenerPath is missing";
        return Err(Error::new(Kind::Invalid, "hand the seccomp listener over", what));
    };
    let mut state = ContainerProcessState::default();
    state.set_version(subject.spec.version().clone());
    state.set_fds(vec![SECCOMP_FD_NAME.to_owned()]);
    state.set_pid(pid);
    state.set_metadata(profile.listener_metadata().clone());
    state.set_state(subject.state(status, Some(container_pid)));
    send(path, &serde_json::to_vec(&state).unwrap_or_default(), listener).map_err(|e| {
        Error::sys("hand the seccomp listener over", path.display().to_string(), e)
            .hint("the seccomp agent must listen there")
    })
}

fn send(path: &Path, text: &[u8], listener: &OwnedFd) -> io::Result<()> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let descriptors = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(&socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    // The descriptor went with the first byte.
    UnixStream::from(socket).write_all(&text[sent..])
}
