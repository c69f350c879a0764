//! One synchronous netlink conversation: one request, its answers. Knows no protocol's messages.
//!
//! A socket belongs to the network namespace of the thread that opened it.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use std::io::{Error, ErrorKind, Result};

#[derive(Debug)]
pub struct Talk {
    socket: Socket,
    sequence: u32,
}

impl Talk {
    pub fn open(protocol: isize) -> Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and gathers the answers up to the acknowledgement or the end of the dump.
    pub fn ask<M>(&mut self, message: M, flags: u16) -> Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
        NetlinkPayload<M>: From<M>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.read(&datagram, flags, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Takes one datagram apart; true when the answer is complete.
    fn read<M: NetlinkDeserializable>(
        &self,
        datagram: &[u8],
        flags: u16,
        answers: &mut Vec<M>,
    ) -> Result<bool> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map_err(garbled)?.length() as usize;
            let parsed = NetlinkMessage::<M>::deserialize(rest).map_err(garbled)?;
            rest = rest.get((length.max(16) + 3) & !3..).unwrap_or_default();
            if parsed.header.sequence_number != self.sequence {
                continue; // the tail of a request that was given up
            }
            match parsed.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(e) if e.code.is_none() => return Ok(true),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(message) => {
                    answers.push(message);
                    if flags & (NLM_F_ACK | NLM_F_DUMP) == 0 {
                        return Ok(true); // a plain GET has exactly one answer
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }
}

fn garbled(e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidData, format!("unreadable netlink answer: {e}"))
}
