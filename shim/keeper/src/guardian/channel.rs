//! One end of the pair: packets with descriptors, in and out.

use super::wire::{DESCRIPTORS, PACKET, Packet};
use rustix::cmsg_space;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io;
use std::mem::MaybeUninit;

/// Room for the descriptors of one packet.
const SPACE: usize = cmsg_space!(ScmRights(DESCRIPTORS));

/// A connected pair, non-blocking and closed on exec.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one packet. `scratch` is only memory.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    packet: &Packet<'_>,
    descriptors: &[BorrowedFd<'_>],
    scratch: &mut Vec<u8>,
) -> Result<(), Errno> {
    scratch.clear();
    packet.encode(scratch);
    let mut space = [MaybeUninit::<u8>::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(scratch)], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// What [`receive`] found.
#[derive(Debug)]
pub(super) enum Received {
    /// Length of the packet in the buffer.
    Packet(usize),
    /// Nothing now.
    Nothing,
    /// The other end is closed.
    End,
}

/// Receives one packet into `buffer` and its descriptors into `descriptors` (cleared first).
pub(super) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8; PACKET],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Received, Errno> {
    descriptors.clear();
    let mut space = [MaybeUninit::<u8>::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let result = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    match result {
        Ok(message) if message.bytes == 0 => Ok(Received::End),
        Ok(message) => Ok(Received::Packet(message.bytes)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
        Err(Errno::CONNRESET) => Ok(Received::End),
        Err(error) => Err(error),
    }
}
