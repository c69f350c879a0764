//! A tar stream as entries. Parsing is tar-core's; this module reads, bounds and cleans, and touches no file system.

use crate::{Error, Result};
use rustix::fs::Timespec;
use std::io::{self, Read};
use tar_core::parse::{ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, PaxExtensions, SparseEntry};

/// Bounds against bombs (IMG-UNP-23).
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of the uncompressed stream.
    pub(crate) stream: u64,
    /// Logical size of all files together; sparse files count in full.
    pub(crate) files: u64,
    pub(crate) entries: u64,
    pub(crate) depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stream: 256 << 30, files: 1 << 40, entries: 4 << 20, depth: 256 }
    }
}

/// Headers of one entry together may not be longer (PAX, long names, sparse maps).
const MAX_HEADERS: usize = 4 << 20;
const BUFFER: usize = 256 << 10;

/// A path below the root: no empty, `.` or `..` components, no NUL.
pub(crate) type Components = Vec<Vec<u8>>;

#[derive(Debug)]
pub(crate) enum What {
    File {
        sparse: Option<Sparse>,
    },
    Directory,
    Symlink(Vec<u8>),
    /// The target's path below the root.
    Link(Components),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Debug)]
pub(crate) struct Sparse {
    pub(crate) map: Vec<SparseEntry>,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) struct Entry {
    /// Empty for the root itself.
    pub(crate) path: Components,
    pub(crate) what: What,
    /// Permission bits only.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    pub(crate) atime: Timespec,
    /// Bytes of content that follow.
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct Archive<R> {
    source: R,
    parser: Parser,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
    /// Content of the current entry not yet read, and the padding after it.
    content: u64,
    padding: u64,
    read: u64,
    files: u64,
    entries: u64,
    limits: Limits,
}

fn refuse(object: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::corrupt("read tar", object, why)
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(source: R, limits: Limits) -> Self {
        let parser = tar_core::parse::Limits {
            max_path_len: Some(4096),
            max_metadata_size: 1 << 20,
            ..tar_core::parse::Limits::default()
        };
        let mut parser = Parser::new(parser);
        // Values that are of no consequence may be odd (negative times); those that matter are checked in `convert`.
        parser.set_ignore_pax_errors(true);
        let (buffer, start, end) = (vec![0; BUFFER], 0, 0);
        Self {
            source,
            parser,
            buffer,
            start,
            end,
            at_end: false,
            content: 0,
            padding: 0,
            read: 0,
            files: 0,
            entries: 0,
            limits,
        }
    }

    /// The next entry; None after the end marker or a clean end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip_rest()?;
        loop {
            let available = self.end - self.start;
            // The borrow of `parse` ends with each arm: what is kept is owned.
            let wanted = match self.parser.parse(&self.buffer[self.start..self.end]) {
                Ok(ParseEvent::NeedData { min_bytes }) => min_bytes.max(available + 1),
                Ok(ParseEvent::GlobalExtensions { consumed, .. }) => {
                    self.start += consumed;
                    continue;
                }
                Ok(ParseEvent::End { consumed }) => {
                    self.start += consumed;
                    return Ok(None);
                }
                Ok(ParseEvent::Entry { consumed, entry }) => {
                    let entry = convert(&entry, None, &self.limits)?;
                    return self.accept(consumed, entry).map(Some);
                }
                Ok(ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size }) => {
                    let sparse = Sparse { map: sparse_map, size: real_size };
                    let entry = convert(&entry, Some(sparse), &self.limits)?;
                    return self.accept(consumed, entry).map(Some);
                }
                Err(e) => return Err(refuse("header", e)),
            };
            if wanted > MAX_HEADERS {
                return Err(refuse("header", "headers of one entry are longer than 4 MiB"));
            }
            if !self.fill(wanted)? {
                return self.finish();
            }
        }
    }

    /// The stream ended where a header was expected: fine between entries, also after a lone or cut end marker.
    fn finish(&mut self) -> Result<Option<Entry>> {
        if self.buffer[self.start..self.end].iter().all(|b| *b == 0) {
            self.start = self.end;
            return Ok(None);
        }
        Err(refuse("header", "unexpected end of the archive"))
    }

    fn accept(&mut self, consumed: usize, entry: Entry) -> Result<Entry> {
        self.start += consumed;
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(refuse("archive", format!("more than {} entries", self.limits.entries)));
        }
        let logical = match &entry.what {
            What::File { sparse: Some(sparse) } => sparse.size,
            _ => entry.size,
        };
        self.files = self.files.saturating_add(logical);
        if self.files > self.limits.files {
            return Err(refuse("archive", format!("files of more than {} bytes", self.limits.files)));
        }
        // After the bounds: a size near 2^64 has no next multiple.
        self.content = entry.size;
        self.padding = entry.size.next_multiple_of(HEADER_SIZE as u64) - entry.size;
        Ok(entry)
    }

    /// Where in the stream the content not yet read begins.
    pub(crate) fn position(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// The next piece of the current entry's content, at most `most` bytes; empty at its end.
    pub(crate) fn content(&mut self, most: u64) -> Result<&[u8]> {
        let wanted = self.content.min(most);
        if wanted == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && !self.fill(1)? {
            return Err(refuse("content", "unexpected end of the archive"));
        }
        let take = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.end - self.start);
        self.content -= take as u64;
        self.start += take;
        Ok(&self.buffer[self.start - take..self.start])
    }

    fn skip_rest(&mut self) -> Result<()> {
        while !self.content(u64::MAX)?.is_empty() {}
        self.content = std::mem::take(&mut self.padding);
        while !self.content(u64::MAX)?.is_empty() {}
        Ok(())
    }

    /// Reads on to the end of the stream, so that digests cover all of it (IMG-UNP-01, -02).
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.start = self.end;
        while self.fill(1)? {
            self.start = self.end;
        }
        Ok(())
    }

    /// Makes `wanted` bytes available; false if the stream ends before.
    fn fill(&mut self, wanted: usize) -> Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted.next_power_of_two(), 0);
            }
        }
        while self.end - self.start < wanted && !self.at_end {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.at_end = true,
                Ok(count) => {
                    self.end += count;
                    self.read += count as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(refuse("stream", e)),
            }
            if self.read > self.limits.stream {
                return Err(refuse("stream", format!("more than {} bytes", self.limits.stream)));
            }
        }
        Ok(self.end - self.start >= wanted)
    }
}

fn convert(entry: &ParsedEntry<'_>, sparse: Option<Sparse>, limits: &Limits) -> Result<Entry> {
    let name = entry.path_lossy();
    let path = clean(&entry.path, limits)?;
    let pax = Pax::read(entry, sparse.is_some())?;
    let what = what(entry, sparse, limits)?;
    // Go's reader, and so every builder, knows no content after links, directories and devices.
    let size = if matches!(what, What::File { .. }) { entry.size } else { 0 };
    let id = |value: u64, which: &str| {
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| refuse(&name, format!("{which} {value} is out of range")))
    };
    // GNU's base-256 times may be negative: the two's complement is what tar-core hands on.
    let mtime = pax.mtime.unwrap_or(Timespec { tv_sec: entry.mtime.cast_signed(), tv_nsec: 0 });
    let later = |a: Timespec, b: Timespec| if (a.tv_sec, a.tv_nsec) > (b.tv_sec, b.tv_nsec) { a } else { b };
    Ok(Entry {
        what,
        mode: entry.mode & 0o7777,
        uid: id(entry.uid, "uid")?,
        gid: id(entry.gid, "gid")?,
        mtime,
        atime: pax.atime.map_or(mtime, |atime| later(atime, mtime)),
        size,
        xattrs: pax.xattrs,
        path,
    })
}

fn what(entry: &ParsedEntry<'_>, sparse: Option<Sparse>, limits: &Limits) -> Result<What> {
    let name = entry.path_lossy();
    let device = || match (entry.dev_major, entry.dev_minor) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err(refuse(&name, "device without numbers")),
    };
    let target = || match &entry.link_target {
        Some(target) if !target.contains(&0) => Ok(target.to_vec()),
        _ => Err(refuse(&name, "link without a usable target")),
    };
    if let Some(sparse) = &sparse {
        check_sparse(entry, sparse)?;
    }
    Ok(match entry.entry_type {
        EntryType::Regular if entry.path.ends_with(b"/") && sparse.is_none() => What::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => What::File { sparse },
        EntryType::Directory => What::Directory,
        EntryType::Symlink => What::Symlink(target()?),
        EntryType::Link => What::Link(clean(&target()?, limits)?),
        EntryType::Char => device().map(|(major, minor)| What::Char(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| What::Block(major, minor))?,
        EntryType::Fifo => What::Fifo,
        other => return Err(refuse(&name, format!("unknown entry type {other:?}"))),
    })
}

/// Regions in order, inside the file, and as long together as the content.
fn check_sparse(entry: &ParsedEntry<'_>, sparse: &Sparse) -> Result<()> {
    let mut at = 0u64;
    let mut sum = 0u64;
    for region in &sparse.map {
        let end = region.offset.checked_add(region.length);
        match end {
            Some(end) if region.offset >= at && end <= sparse.size => at = end,
            _ => return Err(refuse(entry.path_lossy(), "sparse regions overlap or leave the file")),
        }
        sum += region.length;
    }
    if sum != entry.size || i64::try_from(sparse.size).is_err() {
        return Err(refuse(
            entry.path_lossy(),
            format!("sparse regions hold {sum} bytes, the entry {}", entry.size),
        ));
    }
    Ok(())
}

/// What PAX records say beyond tar-core's fields, and a second look at those that must not be misread.
#[derive(Default)]
struct Pax {
    mtime: Option<Timespec>,
    atime: Option<Timespec>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    fn read(entry: &ParsedEntry<'_>, is_sparse: bool) -> Result<Self> {
        let mut pax = Self::default();
        let mut libarchive = Vec::new();
        for record in PaxExtensions::new(entry.pax.unwrap_or_default()) {
            let record = record.map_err(|e| refuse(entry.path_lossy(), e))?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            match key {
                b"mtime" => pax.mtime = time(value),
                b"atime" => pax.atime = time(value),
                b"size" | b"uid" | b"gid" => {
                    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
                    if number.is_none() || (key == b"size" && is_sparse) {
                        return Err(refuse(entry.path_lossy(), "unusable number in a PAX record"));
                    }
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        pax.xattrs.push((name.to_vec(), value.to_vec()));
                    } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                        libarchive.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        // libarchive writes each attribute in both forms: its own only counts alone.
        if pax.xattrs.is_empty() {
            pax.xattrs =
                libarchive.into_iter().filter_map(|(name, value)| from_libarchive(&name, &value)).collect();
        }
        Ok(pax)
    }
}

/// libarchive's form: the name percent-encoded, the value base64 without padding.
fn from_libarchive(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    use base64::Engine;
    let mut decoded = Vec::new();
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        if *first == b'%' && tail.len() >= 2 {
            decoded.extend(hex::decode(&tail[..2]).ok()?);
            rest = &tail[2..];
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    let value = value.strip_suffix(b"==").or(value.strip_suffix(b"=")).unwrap_or(value);
    Some((decoded, base64::engine::general_purpose::STANDARD_NO_PAD.decode(value).ok()?))
}

/// `[-]seconds[.fraction]`; None if it is no time. The kernel clamps what the file system cannot hold (IMG-UNP-16).
fn time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = digits.parse().ok().filter(|nanos| *nanos >= 0)?;
    Some(if negative && nanos > 0 {
        Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanos }
    } else {
        Timespec { tv_sec: seconds, tv_nsec: nanos }
    })
}

/// A name as a path below the root (IMG-UNP-03): leading `/` and `./` fall away, `a/../b` is `b`; climbing above the
/// root is no honest name and refused.
pub(crate) fn clean(name: &[u8], limits: &Limits) -> Result<Components> {
    let shown = || String::from_utf8_lossy(name).into_owned();
    let mut path = Components::new();
    for component in name.split(|b| *b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                path.pop().ok_or_else(|| refuse(shown(), "the name leaves the root"))?;
            }
            _ if component.contains(&0) => return Err(refuse(shown(), "NUL in a name")),
            _ if component.len() > 255 => {
                return Err(refuse(shown(), "a component is longer than 255 bytes"));
            }
            _ => path.push(component.to_vec()),
        }
    }
    if path.len() > limits.depth {
        return Err(refuse(shown(), format!("more than {} components", limits.depth)));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    // IMG-UNP-03
    #[test]
    fn names_stay_below_the_root() {
        let shown = |name: &str| clean(name.as_bytes(), &Limits::default()).map(|path| path.join(&b"/"[..]));
        assert_eq!(shown("/etc//./passwd/").unwrap(), b"etc/passwd");
        assert_eq!(shown("./a/../b").unwrap(), b"b");
        assert_eq!(shown("./").unwrap(), b"");
        for bad in ["..", "../x", "a/../../b", "/..", "a\0b", &"x".repeat(256), &"d/".repeat(300)] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }

    // IMG-UNP-16
    #[test]
    fn times() {
        let shown = |text: &str| time(text.as_bytes()).map(|t| (t.tv_sec, t.tv_nsec));
        assert_eq!(shown("12.5"), Some((12, 500_000_000)));
        assert_eq!(shown("12"), Some((12, 0)));
        assert_eq!(shown("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(shown("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(shown("x"), None);
        assert_eq!(shown("1.-5"), None);
    }

    // IMG-UNP-17
    #[test]
    fn libarchive_xattrs() {
        let (name, value) = from_libarchive(b"user.a%3db", b"aGk").unwrap();
        assert_eq!((name.as_slice(), value.as_slice()), (&b"user.a=b"[..], &b"hi"[..]));
        assert!(from_libarchive(b"user.%zz", b"aGk").is_none());
    }
}
