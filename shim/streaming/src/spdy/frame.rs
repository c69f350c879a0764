//! Frames of SPDY/3.1 as bytes; pure. Never reads, never compresses.
//!
//! ```text
//!  data     0|stream 31         flags 8|length 24  …
//!  control  1|version 15|type 16 flags 8|length 24  …
//! ```

use std::fmt;

/// Bytes of every frame's head.
pub(crate) const HEAD: usize = 8;
/// Longest body of a control frame that is read; theirs have a few hundred bytes (SPDY-12).
pub(crate) const MAX_CONTROL: u32 = 1 << 20;

const VERSION: u16 = 3;
const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset (SPDY-21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    ProtocolError = 1,
    InvalidStream = 2,
    RefusedStream = 3,
    Cancel = 5,
}

/// What makes the framing lost: the connection cannot go on (SPDY-26, SPDY-27).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a control frame of version {0}, not 3")]
    Version(u16),
    #[error("a control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: u32 },
    #[error("stream 0 in a frame of type {0}")]
    StreamZero(u16),
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Data { stream: u32, fin: bool, length: u32 },
    Control { kind: u16, flags: u8, length: u32 },
}

impl Head {
    /// SPDY-01.
    pub(crate) fn parse(bytes: [u8; HEAD]) -> Result<Self, FrameError> {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let length = u32::from_be_bytes([0, e, f, g]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Self::Data { stream, fin: flags & FIN != 0, length });
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = u16::from_be_bytes([c, d]);
        if length > MAX_CONTROL {
            return Err(FrameError::Length { kind, length });
        }
        Ok(Self::Control { kind, flags, length })
    }
}

/// A control frame; header blocks are still compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        block: &'a [u8],
    },
    SynReply {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway,
    Headers {
        stream: u32,
        fin: bool,
        block: &'a [u8],
    },
    /// Read and without meaning for us: SETTINGS, WINDOW_UPDATE (SPDY-16), and what SPDY does not know.
    Other,
}

impl<'a> Control<'a> {
    /// SPDY-02 to SPDY-07.
    pub(crate) fn parse(kind: u16, flags: u8, body: &'a [u8]) -> Result<Self, FrameError> {
        let wrong = || FrameError::Length { kind, length: u32::try_from(body.len()).unwrap_or(u32::MAX) };
        let word = |at: usize| body.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
        let stream = || match word(0).map(|word| word & STREAM_MASK) {
            None => Err(wrong()),
            Some(0) => Err(FrameError::StreamZero(kind)),
            Some(stream) => Ok(stream),
        };
        let fin = flags & FIN != 0;
        Ok(match kind {
            SYN_STREAM => {
                // Associated stream, priority and slot mean nothing here (SPDY-30).
                let block = body.get(10..).ok_or_else(wrong)?;
                Self::SynStream { stream: stream()?, fin, unidirectional: flags & UNIDIRECTIONAL != 0, block }
            }
            SYN_REPLY => Self::SynReply { stream: stream()?, fin, block: body.get(4..).ok_or_else(wrong)? },
            HEADERS => Self::Headers { stream: stream()?, fin, block: body.get(4..).ok_or_else(wrong)? },
            RST_STREAM if body.len() == 8 => {
                Self::Reset { stream: stream()?, status: word(4).ok_or_else(wrong)? }
            }
            PING if body.len() == 4 => Self::Ping(word(0).ok_or_else(wrong)?),
            GOAWAY if body.len() == 8 => Self::GoAway,
            WINDOW_UPDATE if body.len() == 8 => Self::Other,
            SETTINGS => {
                let entries = word(0).ok_or_else(wrong)? as usize;
                if entries.checked_mul(8).and_then(|bytes| bytes.checked_add(4)) != Some(body.len()) {
                    return Err(wrong());
                }
                Self::Other
            }
            RST_STREAM | PING | GOAWAY | WINDOW_UPDATE => return Err(wrong()),
            _ => Self::Other,
        })
    }
}

/// The head of a DATA frame. `length`: at most 2^24 - 1.
pub(crate) fn data(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    head((stream & STREAM_MASK).to_be_bytes(), if fin { FIN } else { 0 }, length)
}

/// A SYN_STREAM of a client; `block` is compressed.
pub(crate) fn syn_stream(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut body = [0; 10];
    body[..4].copy_from_slice(&(stream & STREAM_MASK).to_be_bytes());
    control(SYN_STREAM, &body, block)
}

/// SPDY-04.
pub(crate) fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control(SYN_REPLY, &(stream & STREAM_MASK).to_be_bytes(), block)
}

pub(crate) fn rst_stream(stream: u32, status: Status) -> Vec<u8> {
    control(RST_STREAM, &(stream & STREAM_MASK).to_be_bytes(), &(status as u32).to_be_bytes())
}

pub(crate) fn ping(id: u32) -> Vec<u8> {
    control(PING, &id.to_be_bytes(), &[])
}

/// GOAWAY with status OK.
pub(crate) fn go_away(last_good: u32) -> Vec<u8> {
    control(GOAWAY, &(last_good & STREAM_MASK).to_be_bytes(), &[0; 4])
}

fn control(kind: u16, fixed: &[u8], rest: &[u8]) -> Vec<u8> {
    let [c, d] = kind.to_be_bytes();
    let mut frame = Vec::with_capacity(HEAD + fixed.len() + rest.len());
    frame.extend_from_slice(&head([0x80, VERSION as u8, c, d], 0, fixed.len() + rest.len()));
    frame.extend_from_slice(fixed);
    frame.extend_from_slice(rest);
    frame
}

fn head(first: [u8; 4], flags: u8, length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = first;
    let [_, e, f, g] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [a, b, c, d, flags, e, f, g]
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(frame: &[u8]) -> Control<'_> {
        match Head::parse(frame[..HEAD].try_into().unwrap()).unwrap() {
            Head::Control { kind, flags, length } => {
                assert_eq!(length as usize, frame.len() - HEAD);
                Control::parse(kind, flags, &frame[HEAD..]).unwrap()
            }
            Head::Data { .. } => panic!("a data frame"),
        }
    }

    /// SPDY-01 to SPDY-07: bytes as the draft draws them.
    #[test]
    fn frames_are_the_drafts_bytes() {
        assert_eq!(data(5, true, 0x01_02_03), [0, 0, 0, 5, 1, 1, 2, 3]);
        assert_eq!(ping(7), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]);
        assert_eq!(rst_stream(9, Status::RefusedStream), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 3]);
        assert_eq!(go_away(3), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0]);
        assert_eq!(parse(&syn_reply(1, b"xy")), Control::SynReply { stream: 1, fin: false, block: b"xy" });
        let opened = Control::SynStream { stream: 3, fin: false, unidirectional: false, block: b"b" };
        assert_eq!(parse(&syn_stream(3, b"b")), opened);
        let flags = [0x80, 3, 0, 1, 3, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0xe0, 0];
        assert_eq!(
            parse(&flags),
            Control::SynStream { stream: 1, fin: true, unidirectional: true, block: b"" }
        );
    }

    /// SPDY-16: read, and nothing else; also what the draft does not name.
    #[test]
    fn settings_and_windows_are_passed_over() {
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 1, 0];
        assert_eq!(parse(&settings), Control::Other);
        assert_eq!(parse(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]), Control::Other);
        assert_eq!(parse(&[0x80, 3, 0, 99, 0, 0, 0, 1, 7]), Control::Other);
    }

    /// SPDY-26, SPDY-27.
    #[test]
    fn lost_framing_is_told() {
        assert_eq!(Head::parse([0x80, 2, 0, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert!(Head::parse([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err(), "16 MiB of headers");
        for (kind, body) in
            [(1, &[0; 9][..]), (2, &[0; 3]), (3, &[0; 7]), (6, &[0; 5]), (7, &[0; 4]), (9, &[])]
        {
            assert!(matches!(Control::parse(kind, 0, body), Err(FrameError::Length { .. })), "{kind}");
        }
        assert!(Control::parse(4, 0, &[0xff; 12]).is_err(), "settings that are not as many as they say");
        assert_eq!(Control::parse(3, 0, &[0; 8]), Err(FrameError::StreamZero(3)));
    }

    proptest! {
        /// No bytes make the parser fail other than by an error.
        #[test]
        fn any_bytes_are_parsed(head: [u8; HEAD], body in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Head::Control { kind, flags, .. }) = Head::parse(head) {
                let _ = Control::parse(kind, flags, &body);
            }
        }

        #[test]
        fn data_heads_come_back(stream in 0..=STREAM_MASK, fin: bool, length in 0usize..1 << 24) {
            let back = Head::Data { stream, fin, length: u32::try_from(length).unwrap() };
            prop_assert_eq!(Head::parse(data(stream, fin, length)), Ok(back));
        }
    }
}
