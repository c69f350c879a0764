//! Header blocks: name and value pairs, compressed by one zlib stream for the whole connection (SPDY-08 to SPDY-12).

use super::dictionary::DICTIONARY;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use std::collections::HashSet;

/// Pairs of one block.
const MAX_PAIRS: usize = 1000;
/// Bytes of one block, unpacked: a small frame must not become much memory.
const MAX_BLOCK: usize = 1 << 20;

/// What makes the compression state lost: the connection cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BlockError {
    #[error("a header block does not decompress: {0}")]
    Zlib(String),
    #[error("a header block of more than {MAX_BLOCK} bytes")]
    TooLarge,
}

/// A block that unpacks and is wrong inside: only its stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed header block")]
pub(crate) struct Malformed;

/// Names in lower case, in the order they came; several values of one name are one, joined by NUL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }

    /// The first value of a header, by its name in any case (SPDY-14).
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut push = |length: usize, text: &str| {
            bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        push(self.0.len(), "");
        for (name, value) in &self.0 {
            push(name.len(), name);
            push(value.len(), value);
        }
        bytes
    }

    fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let count = take_length(&mut bytes)?;
        if count > MAX_PAIRS {
            return Err(Malformed);
        }
        let (mut pairs, mut names) = (Vec::with_capacity(count), HashSet::with_capacity(count));
        for _ in 0..count {
            let name = take_text(&mut bytes)?.to_ascii_lowercase();
            let value = take_text(&mut bytes)?;
            if name.is_empty() || !names.insert(name.clone()) {
                return Err(Malformed);
            }
            pairs.push((name, value));
        }
        if bytes.is_empty() { Ok(Self(pairs)) } else { Err(Malformed) }
    }
}

fn take_length(bytes: &mut &[u8]) -> Result<usize, Malformed> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(Malformed)?;
    *bytes = rest;
    Ok(u32::from_be_bytes(*length) as usize)
}

fn take_text(bytes: &mut &[u8]) -> Result<String, Malformed> {
    let length = take_length(bytes)?;
    let (text, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// The receiving half of the compression.
#[derive(Debug)]
pub(crate) struct Unpacker(Decompress);

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Every block must go through here, in order, also those of refused streams (SPDY-10).
    pub(crate) fn unpack(&mut self, block: &[u8]) -> Result<Result<Headers, Malformed>, BlockError> {
        let bytes = self.inflate(block)?;
        Ok(Headers::decode(&bytes))
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, BlockError> {
        let begun = self.0.total_in();
        let mut bytes = Vec::with_capacity(1024);
        loop {
            let taken = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            let before = (taken, bytes.len());
            let rest = block.get(taken..).unwrap_or_default();
            match self.0.decompress_vec(rest, &mut bytes, FlushDecompress::Sync) {
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|e| BlockError::Zlib(e.to_string()))?;
                    continue;
                }
                Err(error) => return Err(BlockError::Zlib(error.to_string())),
            }
            let taken = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            if bytes.len() > MAX_BLOCK {
                return Err(BlockError::TooLarge);
            }
            if bytes.len() == bytes.capacity() {
                bytes.reserve(bytes.len());
            } else if taken >= block.len() {
                return Ok(bytes);
            } else if before == (taken, bytes.len()) {
                return Err(BlockError::Zlib("its data is behind the end of the stream".into()));
            }
        }
    }
}

/// The sending half; used in the order in which frames are written (SPDY-25).
#[derive(Debug)]
pub(crate) struct Packer(Compress);

impl Packer {
    pub(crate) fn new() -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        // It can only fail for a raw stream, or one that has begun.
        let _ = zlib.set_dictionary(&DICTIONARY);
        Self(zlib)
    }

    /// Ends in a sync flush, so that the peer can unpack it at once (SPDY-09).
    pub(crate) fn pack(&mut self, headers: &Headers) -> Vec<u8> {
        let plain = headers.encode();
        let begun = self.0.total_in();
        let mut block = Vec::with_capacity(plain.len() + 64);
        loop {
            let taken = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            let rest = plain.get(taken..).unwrap_or_default();
            let done = self.0.compress_vec(rest, &mut block, FlushCompress::Sync);
            if done.is_err() || block.len() < block.capacity() {
                return block;
            }
            block.reserve(block.len().max(64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both() -> (Packer, Unpacker) {
        (Packer::new(), Unpacker::new())
    }

    /// SPDY-09, STR-TST-02: one state for all blocks, so a block like the last one takes a few bytes.
    #[test]
    fn blocks_share_their_state() {
        let (mut packer, mut unpacker) = both();
        let headers = Headers::from_pairs([("streamType", "data"), ("port", "8080"), ("requestID", "1")]);
        let first = packer.pack(&headers);
        let second = packer.pack(&headers);
        assert!(second.len() * 2 < first.len(), "{} and {}", first.len(), second.len());
        for block in [first, second] {
            assert_eq!(unpacker.unpack(&block), Ok(Ok(headers.clone())));
        }
        assert_eq!(headers.get("StreamType"), Some("data"), "SPDY-14");
    }

    /// SPDY-29.
    #[test]
    fn an_empty_list_is_a_block() {
        let (mut packer, mut unpacker) = both();
        for _ in 0..3 {
            let block = packer.pack(&Headers::default());
            assert!(!block.is_empty());
            assert_eq!(unpacker.unpack(&block), Ok(Ok(Headers::default())));
        }
    }

    fn packed(plain: &[u8]) -> Vec<u8> {
        let mut packer = Packer::new();
        let mut block = Vec::with_capacity(plain.len() + 1024);
        packer.0.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    /// SPDY-08: refused inside, and the next block still unpacks (SPDY-10).
    #[test]
    fn malformed_blocks_cost_only_their_stream() {
        let name = |text: &str| [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
        let twice = [&2u32.to_be_bytes()[..], &name("a"), &name("1"), &name("A"), &name("2")].concat();
        let empty = [&1u32.to_be_bytes()[..], &name(""), &name("1")].concat();
        let many = 1001u32.to_be_bytes().to_vec();
        let short = [&1u32.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
        let long = [&0u32.to_be_bytes()[..], b"x"].concat();
        for plain in [twice, empty, many, short, long, vec![0, 0]] {
            assert_eq!(Unpacker::new().unpack(&packed(&plain)), Ok(Err(Malformed)), "{plain:?}");
        }
        let joined = [&1u32.to_be_bytes()[..], &name("a"), &name("1\x002")].concat();
        let headers = Unpacker::new().unpack(&packed(&joined)).unwrap().unwrap();
        assert_eq!(headers.get("a"), Some("1"), "the first of several values");
    }

    /// SPDY-12: a bomb is stopped at the limit.
    #[test]
    fn bombs_are_refused() {
        let bomb = packed(&vec![0; 64 << 20]);
        assert!(bomb.len() < 1 << 20);
        assert_eq!(Unpacker::new().unpack(&bomb), Err(BlockError::TooLarge));
    }

    /// SPDY-11: another dictionary, or none.
    #[test]
    fn another_dictionary_is_refused() {
        let mut other = Compress::new(Compression::default(), true);
        other.set_dictionary(b"another").unwrap();
        let mut block = Vec::with_capacity(1024);
        other.compress_vec(&[0; 4], &mut block, FlushCompress::Sync).unwrap();
        assert!(matches!(Unpacker::new().unpack(&block), Err(BlockError::Zlib(_))));
        assert!(Unpacker::new().unpack(b"no zlib at all").is_err());
    }

    proptest! {
        #[test]
        fn any_headers_come_back(values in proptest::collection::vec("[^\0]{0,40}", 0..20)) {
            let (mut packer, mut unpacker) = both();
            let names: Vec<_> = (0..values.len()).map(|n| format!("name-{n}")).collect();
            let pairs = names.iter().map(String::as_str).zip(values.iter().map(String::as_str));
            let headers = Headers::from_pairs(pairs);
            for _ in 0..3 {
                let block = packer.pack(&headers);
                prop_assert_eq!(unpacker.unpack(&block), Ok(Ok(headers.clone())));
            }
        }

        /// Neither as zlib streams nor as unpacked blocks do any bytes do harm.
        #[test]
        fn any_bytes_are_unpacked(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Unpacker::new().unpack(&bytes);
            let _ = Unpacker::new().unpack(&packed(&bytes));
        }
    }
}
