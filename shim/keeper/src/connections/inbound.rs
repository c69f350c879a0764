//! What comes in: whole frames, looked at in the socket, put on record, and only then taken.

use super::REPEATED;
use super::calls::Calls;
use protobuf::Message as _;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::collections::VecDeque;
use std::io;
use tokio::io::ReadBuf;
use ttrpc::proto::{
    KeyValue, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MessageHeader, Request,
};

/// Frames up to this size are taken in one step; a socket's buffer holds more.
const WHOLE: usize = 64 * 1024;
/// Looked at first; most frames are smaller.
const GLANCE: usize = 4096;

/// The fields of a header that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) stream: u32,
    is_request: bool,
    /// Header and payload, in bytes.
    total: usize,
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let header = MessageHeader::from(bytes.get(..MESSAGE_HEADER_LENGTH)?);
        Some(Self {
            stream: header.stream_id,
            is_request: header.type_ == MESSAGE_TYPE_REQUEST,
            total: MESSAGE_HEADER_LENGTH + header.length as usize,
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// For the server.
    bytes: VecDeque<u8>,
    large: Option<Large>,
}

/// A frame that is taken in pieces.
#[derive(Debug)]
struct Large {
    header: Header,
    left: usize,
    /// Collected to be put on record; not for what the server will refuse.
    frame: Option<Vec<u8>>,
}

impl Inbound {
    /// Goes on where a former keeper stopped; `open` are the frames that were not answered.
    pub(super) fn resume(socket: &OwnedFd, mut open: Vec<Vec<u8>>) -> io::Result<Self> {
        // The last one may be only on record yet, or only half of it: it is still in the socket, and comes again.
        open.retain(|frame| Header::read(frame).is_some_and(|header| header.total == frame.len()));
        let glance = &mut vec![0; WHOLE];
        let seen = match recv(socket, &mut glance[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, count)) => count,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(error.into()),
        };
        open.retain(|frame| !glance[..seen].starts_with(frame));
        let frames: io::Result<Vec<_>> = open.iter().map(|frame| mark(frame)).collect();
        Ok(Self { bytes: frames?.concat().into(), large: None })
    }

    /// Gives the server what there is. False: nothing.
    pub(super) fn hand_out(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        while buffer.remaining() > 0 && !self.bytes.is_empty() {
            let (first, _) = self.bytes.as_slices();
            let count = first.len().min(buffer.remaining());
            buffer.put_slice(&first[..count]);
            self.bytes.drain(..count);
        }
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
        true
    }

    /// Takes what the socket has. False: the client is gone.
    ///
    /// # Errors
    /// `AGAIN` while a frame is not complete.
    pub(super) fn take(&mut self, socket: &OwnedFd, calls: &mut Calls) -> Result<bool, Errno> {
        if let Some(large) = &mut self.large {
            let piece = take_some(socket, large.left)?;
            if piece.is_empty() {
                return Ok(false);
            }
            large.left -= piece.len();
            if let Some(frame) = &mut large.frame {
                frame.extend_from_slice(&piece);
            }
            self.bytes.extend(&piece);
            if large.left == 0 {
                let (header, frame) = (large.header, large.frame.take());
                self.large = None;
                if let Some(frame) = frame.filter(|_| header.is_request) {
                    calls.begun(header.stream, &frame);
                }
                calls.mend();
            }
            return Ok(true);
        }
        let (header, frame) = match look(socket)? {
            Seen::End => return Ok(false),
            Seen::Frame(header, frame) => (header, frame),
            Seen::Large(header) => {
                calls.tear();
                let accepted = header.total - MESSAGE_HEADER_LENGTH <= MESSAGE_LENGTH_MAX;
                self.large = Some(Large { header, left: header.total, frame: accepted.then(Vec::new) });
                return Ok(true);
            }
        };
        if header.is_request {
            calls.begun(header.stream, &frame);
        }
        let mut left = frame.len();
        while left > 0 {
            left -= take_some(socket, left)?.len();
        }
        self.bytes.extend(frame);
        Ok(true)
    }
}

/// What is next in the socket, and stays there.
enum Seen {
    End,
    Frame(Header, Vec<u8>),
    Large(Header),
}

fn look(socket: &OwnedFd) -> Result<Seen, Errno> {
    let mut glance = [0; GLANCE];
    let (_, seen) = recv(socket, &mut glance[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    if seen == 0 {
        return Ok(Seen::End);
    }
    let header = Header::read(&glance[..seen]).ok_or(Errno::AGAIN)?;
    if header.total <= seen {
        return Ok(Seen::Frame(header, glance[..header.total].to_vec()));
    }
    if header.total > WHOLE {
        return Ok(Seen::Large(header));
    }
    let mut frame = vec![0; header.total];
    let (_, seen) = recv(socket, &mut frame[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    if seen < header.total { Err(Errno::AGAIN) } else { Ok(Seen::Frame(header, frame)) }
}

fn take_some(socket: &OwnedFd, most: usize) -> Result<Vec<u8>, Errno> {
    let mut piece = vec![0; most.min(WHOLE)];
    let (_, count) = recv(socket, &mut piece[..], RecvFlags::DONTWAIT)?;
    piece.truncate(count);
    Ok(piece)
}

/// The same request with a note that it comes again.
fn mark(frame: &[u8]) -> io::Result<Vec<u8>> {
    let mut request = Request::parse_from_bytes(&frame[MESSAGE_HEADER_LENGTH..])?;
    request.metadata.push(KeyValue { key: REPEATED.into(), value: "1".into(), ..Default::default() });
    let payload = request.write_to_bytes()?;
    let mut header = MessageHeader::from(&frame[..MESSAGE_HEADER_LENGTH]);
    header.length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut marked: Vec<u8> = header.into();
    marked.extend(payload);
    Ok(marked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendFlags, send};
    use std::os::unix::net::UnixStream;

    fn request(stream: u32, payload: usize) -> Vec<u8> {
        let request = Request {
            service: "s".into(),
            method: "m".into(),
            payload: vec![7; payload],
            ..Default::default()
        };
        let payload = request.write_to_bytes().unwrap();
        let mut frame: Vec<u8> = MessageHeader::new_request(stream, payload.len() as u32).into();
        frame.extend(payload);
        frame
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs.into())
    }

    fn handed_out(inbound: &mut Inbound) -> Vec<u8> {
        let mut all = Vec::new();
        let mut memory = [0; 1000];
        loop {
            let mut buffer = ReadBuf::new(&mut memory);
            if !inbound.hand_out(&mut buffer) {
                return all;
            }
            all.extend_from_slice(buffer.filled());
        }
    }

    #[test]
    fn frames_are_on_record_until_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = pair();
        let mut calls = Calls::new(dir.path(), 3);
        let mut inbound = Inbound::default();
        assert_eq!(inbound.take(&ours, &mut calls), Err(Errno::AGAIN));
        let (first, second) = (request(1, 10), request(3, 20_000));
        send(&theirs, &first[..4], SendFlags::empty()).unwrap();
        assert_eq!(inbound.take(&ours, &mut calls), Err(Errno::AGAIN), "half a header");
        send(&theirs, &first[4..], SendFlags::empty()).unwrap();
        send(&theirs, &second, SendFlags::empty()).unwrap();
        assert_eq!(inbound.take(&ours, &mut calls), Ok(true));
        assert_eq!(inbound.take(&ours, &mut calls), Ok(true));
        assert_eq!(handed_out(&mut inbound), [first.clone(), second.clone()].concat());
        calls.answered(3);

        let mut calls = Calls::new(dir.path(), 3);
        let open = calls.load().unwrap();
        assert_eq!(open, [first]);
        let mut resumed = Inbound::resume(&ours, open).unwrap();
        let bytes = handed_out(&mut resumed);
        let again = Request::parse_from_bytes(&bytes[MESSAGE_HEADER_LENGTH..]).unwrap();
        assert_eq!(again.metadata[0].key, REPEATED);
        drop(theirs);
        assert_eq!(resumed.take(&ours, &mut calls), Ok(false));
        calls.forget_all();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_recorded_but_not_taken_comes_once() {
        let (ours, theirs) = pair();
        let frame = request(5, 100);
        send(&theirs, &frame, SendFlags::empty()).unwrap();
        let half = frame[..30].to_vec();
        for open in [vec![frame.clone()], vec![half]] {
            assert_eq!(handed_out(&mut Inbound::resume(&ours, open).unwrap()), b"");
        }
    }

    #[test]
    fn a_large_frame_tears_the_connection_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = pair();
        let frame = request(7, 100_000);
        let mut calls = Calls::new(dir.path(), 1);
        let mut inbound = Inbound::default();
        send(&theirs, &frame[..50_000], SendFlags::empty()).unwrap();
        assert_eq!(inbound.take(&ours, &mut calls), Ok(true));
        assert_eq!(inbound.take(&ours, &mut calls), Ok(true));
        assert!(Calls::new(dir.path(), 1).load().is_err());
        send(&theirs, &frame[50_000..], SendFlags::empty()).unwrap();
        while inbound.take(&ours, &mut calls).is_ok() {}
        assert_eq!(handed_out(&mut inbound), frame);
        assert_eq!(Calls::new(dir.path(), 1).load().unwrap(), [frame]);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = pair();
        send(&theirs, b"GET / HTTP/1.1\r\n\r\n", SendFlags::empty()).unwrap();
        let mut calls = Calls::new(dir.path(), 1);
        let mut inbound = Inbound::default();
        assert_eq!(inbound.take(&ours, &mut calls), Ok(true));
        assert!(inbound.large.as_ref().is_some_and(|large| large.frame.is_none()));
    }
}
