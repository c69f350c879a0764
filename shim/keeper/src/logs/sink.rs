//! The end of a container's log: its file, or nothing, and what could not be written.

use super::journal::{Batch, FileId, Journal};
use std::fs::File;
use std::io::{self, BufRead as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

/// A batch: lines formatted and ready, and where they came from.
#[derive(Debug)]
pub(super) struct Ready<'a> {
    pub(super) pipe: BorrowedFd<'a>,
    pub(super) pipe_id: u64,
    /// Beginning of the first line; emptied with the batch.
    pub(super) hold: &'a mut Hold,
    /// The batch as it goes to the file.
    pub(super) text: &'a [u8],
    pub(super) lines: u64,
    /// What was peeked; overwritten.
    pub(super) input: &'a mut [u8],
    /// How much of `input` is in `text`.
    pub(super) consume: usize,
}

/// A memfd with the beginning of a line whose newline has not come yet.
#[derive(Debug)]
pub(super) struct Hold {
    file: File,
    id: FileId,
    len: usize,
}

impl Hold {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        Ok(Self { id: identity(&file)?, file, len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Appends the held bytes to `into`.
    pub(super) fn copy_to(&self, into: &mut Vec<u8>) -> io::Result<()> {
        let at = into.len();
        into.resize(at + self.len, 0);
        self.file.read_exact_at(&mut into[at..], 0)
    }

    /// Moves all of `input` from the pipe here, exactly once. Fails without having taken anything.
    pub(super) fn park(
        &mut self,
        journal: &Journal,
        pipe: BorrowedFd<'_>,
        pipe_id: u64,
        input: &mut [u8],
    ) -> io::Result<()> {
        let Some(first) = input.first().copied() else { return Ok(()) };
        let (offset, length) = (self.len as u64, input.len() as u64);
        journal.begin(&Batch { pipe: pipe_id, file: self.id, offset, length, consume: length, first });
        let written = self.file.write_all_at(input, offset);
        if let Err(error) = written {
            let _ = self.file.set_len(offset);
            journal.end();
            return Err(error);
        }
        let taken = journal.consume(pipe, input.len(), input);
        journal.end();
        self.len += input.len();
        taken
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.len > 0 {
            self.file.set_len(0)?;
            self.len = 0;
        }
        Ok(())
    }
}

/// One container's log file, shared by its streams.
#[derive(Debug)]
pub(super) struct Sink {
    file: Option<File>,
    id: FileId,
    dropped: u64,
}

impl Sink {
    pub(super) fn new(file: Option<File>, dropped: u64) -> io::Result<Self> {
        let id = file.as_ref().map(identity).transpose()?.unwrap_or_default();
        Ok(Self { file, id, dropped })
    }

    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Later batches go to `file`. Lines that no name leads to any more come along: whoever rotates puts the old file back
    /// over ours if the answer to its reopening got lost on the way (the kubelet does), and asks again later.
    pub(super) fn replace(&mut self, mut file: File) -> io::Result<()> {
        self.id = identity(&file)?;
        if let Some(former) = self.file.as_ref().filter(|_| self.orphaned()) {
            match bring_along(former, &mut file, ORPHAN) {
                Ok(left) => self.dropped += left,
                Err(error) => tracing::error!("lines of a log whose file was replaced are lost: {error}"),
            }
        }
        self.file = Some(file);
        Ok(())
    }

    /// The file has no name any more.
    pub(super) fn orphaned(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|meta| meta.nlink() == 0))
    }

    /// Appends the batch and takes its input out of pipe and hold, exactly once whatever happens to us in between. A file
    /// that cannot be written costs the lines, never the draining (CRI-LOG-10), and no torn line stays in it.
    pub(super) fn commit(&mut self, journal: &Journal, ready: Ready<'_>) -> io::Result<()> {
        let Ready { pipe, pipe_id, hold, text, lines, input, consume } = ready;
        let Some(file) = &mut self.file else {
            journal.consume(pipe, consume, input)?;
            return hold.clear();
        };
        let offset = file.metadata()?.len();
        journal.begin(&Batch {
            pipe: pipe_id,
            file: self.id,
            offset,
            length: text.len() as u64,
            consume: consume as u64,
            first: input.first().copied().unwrap_or_default(),
        });
        let (bytes, kept) = match append(file, text) {
            Ok(()) => (text.len(), lines),
            Err(written) => keep_whole_lines(file, offset, &text[..written]),
        };
        let taken = journal.consume(pipe, consume, input).and_then(|()| hold.clear());
        journal.end();
        self.dropped += lines - kept;
        journal.count(bytes as u64, kept, lines - kept);
        taken
    }
}

/// So much, in bytes, comes along at most: the end of it. More was hardly written between two rotations, but deleted to
/// make room; and all other logs wait meanwhile.
const ORPHAN: u64 = 64 << 20;

/// Moves what `former`, which nobody else can open, holds to the end of `file`, whole lines from the end and at most `most`
/// bytes. Answers how many lines before them were left behind.
fn bring_along(former: &File, file: &mut File, most: u64) -> io::Result<u64> {
    // Ours is open for writing only.
    let mut text = File::open(format!("/proc/self/fd/{}", former.as_raw_fd()))?;
    let end = file.metadata()?.len();
    let left = skip_lines(&mut text, former.metadata()?.len().saturating_sub(most))?;
    if left > 0 {
        tracing::warn!(lines = left, "the beginning of a log that was deleted is dropped");
    }
    if let Err(error) = io::copy(&mut text, file) {
        let _ = file.set_len(end);
        return Err(error);
    }
    // The next keeper may find it among what it was left, and must not move it again.
    former.set_len(0).map(|()| left)
}

/// Goes to the first line that begins at `bytes` or behind it; answers how many lines are before it.
fn skip_lines(text: &mut File, bytes: u64) -> io::Result<u64> {
    let (mut lines, mut read) = (0, 0);
    let mut reader = io::BufReader::with_capacity(1 << 16, &*text);
    while read < bytes {
        match reader.skip_until(b'\n')? {
            0 => break,
            length => read += length as u64,
        }
        lines += 1;
    }
    text.seek(io::SeekFrom::Start(read))?;
    Ok(lines)
}

/// Writes all of `text`; the error is how much of it was written.
fn append(file: &mut File, text: &[u8]) -> Result<(), usize> {
    let mut written = 0;
    while written < text.len() {
        match file.write(&text[written..]) {
            Ok(0) => return Err(written),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(written),
        }
    }
    Ok(())
}

/// Cuts a torn line off a batch that began at `offset` and of which `written` made it. Answers bytes and lines kept.
fn keep_whole_lines(file: &File, offset: u64, written: &[u8]) -> (usize, u64) {
    let whole = memchr::memrchr(b'\n', written).map_or(0, |end| end + 1);
    if whole < written.len() {
        // Making a file shorter needs no space; if even that fails, the next batch still begins behind it.
        let _ = file.set_len(offset + whole as u64);
    }
    (whole, memchr::memchr_iter(b'\n', &written[..whole]).count() as u64)
}

fn identity(file: &File) -> io::Result<FileId> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-LOG-10: what is too long comes along as far as it may, and the rest is counted.
    #[test]
    fn the_end_of_a_long_orphan_comes_along_in_whole_lines() {
        let all = "one\ntwo\nthree\n";
        for (most, expected, left) in
            [(100, all, 0), (14, all, 0), (13, "two\nthree\n", 1), (6, "three\n", 2), (5, "", 3), (0, "", 3)]
        {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            let mut options = File::options();
            options.create(true).append(true);
            let mut former = options.open(&path).unwrap();
            former.write_all(all.as_bytes()).unwrap();
            std::fs::remove_file(&path).unwrap();
            let mut file = options.open(&path).unwrap();
            file.write_all(b"old\n").unwrap();
            assert_eq!(bring_along(&former, &mut file, most).unwrap(), left, "{most}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("old\n{expected}"), "{most}");
            assert_eq!(former.metadata().unwrap().len(), 0);
        }
    }
}
