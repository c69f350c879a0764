//! The one socket between launcher and child: SOCK_SEQPACKET, so that a message is whole or absent.

use super::child::Report;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
    recvmsg, send, socketpair,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

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
    send(socket, &[1], SendFlags::NOSIGNAL).map(drop).map_err(io::Error::from)
}
