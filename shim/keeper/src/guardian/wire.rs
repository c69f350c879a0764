//! What keeper and guardian say to each other over their SOCK_SEQPACKET pair. One message is one packet: a letter, then
//! fixed fields or length-prefixed keys; descriptors ride along in the order of the keys. Pure; decoding borrows.

/// Longest packet.
pub(super) const PACKET: usize = 4096;
/// Most descriptors in one packet.
pub(super) const DESCRIPTORS: usize = 12;
/// Longest key; container and exec ids are at most 76 bytes each (SHIM-BUN-02).
pub(super) const KEY: usize = 255;

/// Keys of descriptors, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keys<'a>(&'a [u8]);

impl<'a> Iterator for Keys<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first()?;
        let (key, rest) = rest.split_at_checked(usize::from(*length))?;
        self.0 = rest;
        Some(key)
    }
}

/// A death the guardian has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) pid: i32,
    /// 0-255; 128+signal.
    pub(crate) status: u32,
    /// Nanoseconds since the epoch.
    pub(crate) time: i64,
}

/// One packet, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// Keeper: keep copies of these. Guardian, to a new keeper: these are kept.
    Descriptors(Keys<'a>),
    /// Keeper: forget the descriptor of this key.
    Forget(&'a [u8]),
    /// Keeper: forget all whose key begins so.
    ForgetAll(&'a [u8]),
    /// Keeper: this death is on record.
    Recorded(Exit),
    /// Keeper: started, serving.
    Ready,
    /// Keeper: nothing is left; end when I have ended.
    Quit,
    /// Keeper: start the next one from this path.
    Binary(&'a [u8]),
    /// Keeper: become what I am, the process with this pid; see [`super::renew`]. Guardians that do not know it say so in the log.
    Renew { keeper: i32 },
    /// Guardian, first packet to a new keeper.
    Hello { generation: u32, guardian: i32 },
    /// Guardian: all descriptors have been sent.
    Complete,
    /// Guardian: a child of the guardian has died.
    Died(Exit),
    /// Guardian: this descriptor could not be kept.
    Refused(&'a [u8]),
    /// Guardian: it was asked to end (SIGTERM).
    Terminate,
}

impl<'a> Packet<'a> {
    /// Appends the packet to an empty buffer.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Descriptors(keys) => {
                out.push(b'D');
                out.extend_from_slice(keys.0);
            }
            Self::Forget(key) => tagged(out, b'F', key),
            Self::ForgetAll(prefix) => tagged(out, b'A', prefix),
            Self::Refused(key) => tagged(out, b'N', key),
            Self::Binary(path) => tagged(out, b'B', path),
            Self::Renew { keeper } => tagged(out, b'W', &keeper.to_ne_bytes()),
            Self::Recorded(exit) => exit_packet(out, b'R', exit),
            Self::Died(exit) => exit_packet(out, b'X', exit),
            Self::Hello { generation, guardian } => {
                out.push(b'H');
                out.extend_from_slice(&generation.to_ne_bytes());
                out.extend_from_slice(&guardian.to_ne_bytes());
            }
            Self::Ready => out.push(b'Y'),
            Self::Quit => out.push(b'Q'),
            Self::Complete => out.push(b'C'),
            Self::Terminate => out.push(b'T'),
        }
    }

    /// None for anything that is not a packet.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (tag, body) = bytes.split_first()?;
        Some(match (tag, body.len()) {
            (b'D', _) => Self::Descriptors(Keys(body)),
            (b'F', _) => Self::Forget(body),
            (b'A', _) => Self::ForgetAll(body),
            (b'N', _) => Self::Refused(body),
            (b'B', 1..) => Self::Binary(body),
            (b'W', 4) => Self::Renew { keeper: u32_at(body, 0)?.cast_signed() },
            (b'R', 16) => Self::Recorded(exit(body)?),
            (b'X', 16) => Self::Died(exit(body)?),
            (b'H', 8) => {
                Self::Hello { generation: u32_at(body, 0)?, guardian: u32_at(body, 4)?.cast_signed() }
            }
            (b'Y', 0) => Self::Ready,
            (b'Q', 0) => Self::Quit,
            (b'C', 0) => Self::Complete,
            (b'T', 0) => Self::Terminate,
            _ => return None,
        })
    }
}

/// Appends one length-prefixed key; false (and nothing appended) if it is empty or too long.
pub(super) fn push_key(out: &mut Vec<u8>, key: &[u8]) -> bool {
    match u8::try_from(key.len()) {
        Ok(length) if length > 0 => {
            out.push(length);
            out.extend_from_slice(key);
            true
        }
        _ => false,
    }
}

/// Keys pushed with [`push_key`].
pub(super) fn keys(pushed: &[u8]) -> Keys<'_> {
    Keys(pushed)
}

fn tagged(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    out.push(tag);
    out.extend_from_slice(body);
}

fn exit_packet(out: &mut Vec<u8>, tag: u8, exit: &Exit) {
    out.push(tag);
    out.extend_from_slice(&exit.pid.to_ne_bytes());
    out.extend_from_slice(&exit.status.to_ne_bytes());
    out.extend_from_slice(&exit.time.to_ne_bytes());
}

fn exit(body: &[u8]) -> Option<Exit> {
    Some(Exit {
        pid: u32_at(body, 0)?.cast_signed(),
        status: u32_at(body, 4)?,
        time: i64::from_ne_bytes(body.get(8..16)?.try_into().ok()?),
    })
}

fn u32_at(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_survive_the_way() {
        let mut pushed = Vec::new();
        assert!(push_key(&mut pushed, b"t/a/pidfd") && push_key(&mut pushed, &[b'k'; KEY]));
        assert!(!push_key(&mut pushed, b"") && !push_key(&mut pushed, &[b'k'; KEY + 1]));
        let exit = Exit { pid: 77, status: 137, time: -5 };
        for packet in [
            Packet::Descriptors(keys(&pushed)),
            Packet::Forget(b"t/a/pidfd"),
            Packet::ForgetAll(b"t/a/"),
            Packet::Refused(b"x"),
            Packet::Binary(b"/usr/local/bin/shim"),
            Packet::Renew { keeper: 77 },
            Packet::Recorded(exit),
            Packet::Died(exit),
            Packet::Hello { generation: 3, guardian: 12 },
            Packet::Ready,
            Packet::Quit,
            Packet::Complete,
            Packet::Terminate,
        ] {
            let mut bytes = Vec::new();
            packet.encode(&mut bytes);
            assert_eq!(Packet::decode(&bytes), Some(packet));
        }
        assert_eq!(keys(&pushed).map(<[u8]>::len).collect::<Vec<_>>(), [9, KEY]);
    }

    #[test]
    fn rubbish_is_no_packet_and_never_panics() {
        for bytes in [&b""[..], b"Z", b"R123", b"H1234567", b"Y1", b"B", b"W123"] {
            assert_eq!(Packet::decode(bytes), None);
        }
        // A key that claims more than there is ends the list.
        assert_eq!(keys(&[1, b'a', 200, b'b']).count(), 1);
    }
}
