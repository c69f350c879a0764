//! CRI log files (CRI-LOG-03 to -05): one line's form, joining the pieces of long lines, finding the last N.
//!
//! Owns the format as a reader. Never talks to the daemon; following a growing file is `logs`.

use std::io::{Read as _, Seek as _, SeekFrom};

/// A piece of a line longer than this is passed on before its end has come.
const LONGEST_JOINED: usize = 1 << 20;
const BLOCK: u64 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// `<time> <stream> <tags> <content>`, without the newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) stream: Stream,
    /// The line goes on in the next entry of the same stream.
    pub(crate) partial: bool,
    pub(crate) content: &'a [u8],
}

/// None for what is no CRI log line.
pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let _time = parts.next()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // CRI-LOG-04: the first tag decides, later ones are for others.
    let partial = match parts.next()?.split(|&byte| byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { stream, partial, content: parts.next().unwrap_or_default() })
}

/// Puts the pieces of long lines together, each stream by itself.
#[derive(Debug, Default)]
pub(crate) struct Joiner {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Joiner {
    /// Takes one line of the file; gives back a whole line of output, newline included, when there is one.
    pub(crate) fn push(&mut self, line: &[u8]) -> Option<(Stream, Vec<u8>)> {
        let entry = parse(line)?;
        let held = self.held(entry.stream);
        held.extend_from_slice(entry.content);
        if entry.partial && held.len() < LONGEST_JOINED {
            return None;
        }
        if !entry.partial {
            held.push(b'\n');
        }
        Some((entry.stream, std::mem::take(held)))
    }

    /// What is left when nothing more comes: a last line without its newline.
    pub(crate) fn finish(&mut self) -> Vec<(Stream, Vec<u8>)> {
        let left = [Stream::Stdout, Stream::Stderr].map(|stream| (stream, std::mem::take(self.held(stream))));
        left.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect()
    }

    fn held(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// Offset from which on the file holds its last `count` whole lines (pieces of one line count once). Reads the file
/// backwards, a block at a time.
pub(crate) fn tail_offset(file: &mut std::fs::File, count: usize) -> std::io::Result<u64> {
    let end = file.metadata()?.len();
    if count == 0 {
        return Ok(end);
    }
    let mut found = 0;
    // Bytes from `start` on that belong to a line whose beginning has not been reached.
    let mut carried: Vec<u8> = Vec::new();
    let mut start = end;
    while start > 0 {
        let length = start.min(BLOCK);
        start -= length;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; usize::try_from(length).map_err(std::io::Error::other)?];
        file.read_exact(&mut block)?;
        block.append(&mut carried);
        // Lines of the block from the last to the first; the first may begin in an earlier block.
        let mut line_end = block.len();
        while let Some(newline) = block[..line_end.saturating_sub(1)].iter().rposition(|&byte| byte == b'\n')
        {
            if is_full(&block[newline + 1..line_end]) {
                if found == count {
                    return Ok(start + line_end as u64);
                }
                found += 1;
            }
            line_end = newline + 1;
        }
        block.truncate(line_end);
        carried = block;
    }
    let first_is_one_too_many = found == count && is_full(&carried);
    Ok(if first_is_one_too_many { carried.len() as u64 } else { 0 })
}

fn is_full(line: &[u8]) -> bool {
    parse(line.strip_suffix(b"\n").unwrap_or(line)).is_some_and(|entry| !entry.partial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn lines_of_the_format() {
        // CRI-LOG-03, -04, -09
        let entry = parse(b"2026-11-23T21:00:00.123456789Z stdout F hello  world").unwrap();
        assert_eq!(entry, Entry { stream: Stream::Stdout, partial: false, content: b"hello  world" });
        let entry = parse(b"t stderr P:other x").unwrap();
        assert_eq!(entry, Entry { stream: Stream::Stderr, partial: true, content: b"x" });
        assert_eq!(parse(b"t stdout F ").unwrap().content, b"");
        assert_eq!(parse(b"t stdout F").unwrap().content, b"");
        for bad in [&b""[..], b"t", b"t stdout", b"t stdin F x", b"t stdout Q x", b"not a log line"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn pieces_are_joined_by_stream() {
        // CRI-LOG-05, -07
        let mut joiner = Joiner::default();
        assert_eq!(joiner.push(b"t stdout P one "), None);
        assert_eq!(joiner.push(b"t stderr F other"), Some((Stream::Stderr, b"other\n".to_vec())));
        assert_eq!(joiner.push(b"t stdout F two"), Some((Stream::Stdout, b"one two\n".to_vec())));
        assert_eq!(joiner.push(b"t stdout F "), Some((Stream::Stdout, b"\n".to_vec())));
        assert_eq!(joiner.push(b"t stderr P last"), None);
        assert_eq!(joiner.finish(), [(Stream::Stderr, b"last".to_vec())]);
        assert_eq!(joiner.finish(), []);
        let piece = [&b"t stdout P "[..], &vec![b'x'; LONGEST_JOINED]].concat();
        assert_eq!(joiner.push(&piece).unwrap().1.len(), LONGEST_JOINED, "held back no longer than that");
    }

    #[test]
    fn the_last_lines_of_a_file() {
        let mut file = tempfile::tempfile().unwrap();
        let mut offsets = Vec::new();
        let mut at = 0;
        for n in 0..5000 {
            let line = format!("t stdout P {n} begins\nt stdout F {n} ends {}\n", "y".repeat(n % 90));
            offsets.push(at);
            at += line.len() as u64;
            file.write_all(line.as_bytes()).unwrap();
        }
        for count in [1, 2, 10, 700, 4999] {
            assert_eq!(tail_offset(&mut file, count).unwrap(), offsets[5000 - count], "last {count}");
        }
        assert_eq!(tail_offset(&mut file, 0).unwrap(), at);
        assert_eq!(tail_offset(&mut file, 5000).unwrap(), 0);
        assert_eq!(tail_offset(&mut file, 9000).unwrap(), 0);
        assert_eq!(tail_offset(&mut tempfile::tempfile().unwrap(), 3).unwrap(), 0);
        let mut two = tempfile::tempfile().unwrap();
        two.write_all(b"t stdout F a\nt stdout F b\n").unwrap();
        assert_eq!(tail_offset(&mut two, 1).unwrap(), 13);
    }
}
