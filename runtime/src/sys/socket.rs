//! The one socket between launcher and child: SOCK_SEQPACKET, so that a message is whole or absent.

use super::child::{LEAVE, Report, START};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, bind, connect, listen, recvmsg, send, socket_with, socketpair,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// What arrived.
#[derive(Debug)]
pub enum Message {
    /// A report, with the descriptors sent beside it.
    Report(Report, Vec<OwnedFd>),
    /// The other end is gone: execve closed it, or the process died.
    End,
}

/// Ours and the child's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Waits for the next message.
pub fn receive(socket: impl AsFd) -> io::Result<Message> {
    let mut bytes = [0u8; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut vectors = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut vectors, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(Message::End),
            other => break other?,
        }
    };
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    match received.bytes {
        8 => Ok(Message::Report(Report::from_bytes(bytes), descriptors)),
        0 => Ok(Message::End),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Sends the start byte.
pub fn send_byte(socket: impl AsFd) -> io::Result<()> {
    send(socket, &[START], SendFlags::NOSIGNAL).map(drop).map_err(io::Error::from)
}

/// Tells a child that is parked on a listening socket to leave.
pub fn send_leave(socket: impl AsFd) -> io::Result<()> {
    send(socket, &[LEAVE], SendFlags::NOSIGNAL).map(drop).map_err(io::Error::from)
}

/// A socket bound at `path` that a parked child can accept on. The directory's permissions say who may connect.
pub fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    short_name(path, |address| Ok(bind(&socket, address)?))?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Connects to [`listen_at`]'s socket; `ECONNREFUSED` when nobody listens any more.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    short_name(path, |address| Ok(connect(&socket, address)?))?;
    Ok(socket)
}

/// The address of `path` by way of a descriptor of its directory: socket addresses end at 107 bytes (unix(7)).
fn short_name<T>(path: &Path, act: impl FnOnce(&SocketAddrUnix) -> io::Result<T>) -> io::Result<T> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    act(&SocketAddrUnix::new(short)?)
}
