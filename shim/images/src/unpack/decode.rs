//! Compression found from magic bytes, never from media types (IMG-MT-03), undone while reading.

use std::io::{self, BufRead, BufReader, Read};

/// Reads `source` decompressed: gzip with any number of members (IMG-MT-05), zstd with any number of frames and
/// skippable ones (IMG-MT-04), or as it is.
pub(crate) fn decode<'a>(source: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let (magic, source) = peek(source)?;
    Ok(match magic {
        [0x1f, 0x8b, 0x08, _] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(source)?)
        }
        _ => Box::new(source),
    })
}

/// A source whose first bytes were looked at.
type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// The first four bytes (zeros where there are fewer) and a reader that still begins with them. The source may give
/// its first bytes one at a time.
fn peek<R: BufRead>(mut source: R) -> io::Result<([u8; 4], Peeked<R>)> {
    let mut head = Vec::new();
    while head.len() < 4 {
        let available = source.fill_buf()?;
        if available.is_empty() {
            break;
        }
        let take = available.len().min(4 - head.len());
        head.extend_from_slice(&available[..take]);
        source.consume(take);
    }
    let mut magic = [0; 4];
    magic[..head.len()].copy_from_slice(&head);
    Ok((magic, io::Cursor::new(head).chain(source)))
}

/// As [`decode`], for sources without a buffer of their own (files).
pub(crate) fn decode_unbuffered<'a>(source: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    decode(BufReader::with_capacity(256 << 10, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn read(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // One byte at a time: magic bytes may come in pieces.
        decode(BufReader::with_capacity(1, data))?.read_to_end(&mut out)?;
        Ok(out)
    }

    // IMG-MT-03, -04, -05
    #[test]
    fn all_forms() {
        let zstd = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        assert_eq!(read(b"plain").unwrap(), b"plain");
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(&[gzip(b"one"), gzip(b"two")].concat()).unwrap(), b"onetwo");
        assert_eq!(
            read(&[skippable.clone(), zstd(b"one"), skippable, zstd(b"two")].concat()).unwrap(),
            b"onetwo"
        );
        let cut = gzip(&[7; 10_000]);
        assert!(read(&cut[..cut.len() - 3]).is_err());
        assert!(read(&zstd(&[7; 10_000])[..12]).is_err());
        assert!(read(&[gzip(b"one"), b"garbage".to_vec()].concat()).is_err());
    }
}
