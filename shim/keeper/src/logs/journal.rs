//! The journal that makes a log batch happen exactly once although its writer may be killed between any two
//! instructions: one record in a shared page which the guardian holds.
//!
//! ```text
//!  begin ──▶ append the batch (L bytes at X) ──▶ consume n bytes from the pipe ──▶ end
//!              size: X … X+L                      first byte lands on the sentinel
//! ```
//!
//! One log thread, one batch in flight, so one record is enough. It also keeps the counters, which survive with it.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use slipway_runtime::sys::shared_page::SharedPage;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which word of the page holds what.
mod word {
    pub(super) const PENDING: usize = 0;
    pub(super) const PIPE: usize = 1;
    pub(super) const FILE_DEV: usize = 2;
    pub(super) const FILE_INO: usize = 3;
    pub(super) const OFFSET: usize = 4;
    pub(super) const LENGTH: usize = 5;
    pub(super) const CONSUME: usize = 6;
    /// Complement of the batch's first input byte until that byte is consumed, which overwrites it.
    pub(super) const SENTINEL: usize = 7;
    pub(super) const UNTOUCHED: usize = 8;
    pub(super) const BYTES: usize = 9;
    pub(super) const LINES: usize = 10;
    pub(super) const DROPPED: usize = 11;
}

/// What a crash left of a batch.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Verdict {
    /// Nothing was written: the data is still in the pipe and will be written again.
    NotWritten,
    /// A part was written: cut the file back, then as above.
    Torn,
    /// All was written and nothing consumed: consume now.
    Written,
    /// Written and consumed.
    Done,
}

/// The truth table. `size` is the file's now, `offset` and `length` the batch's, `untouched` says the sentinel is intact.
pub(crate) fn verdict(size: u64, offset: u64, length: u64, untouched: bool) -> Verdict {
    if !untouched {
        return Verdict::Done;
    }
    match size {
        _ if size <= offset => Verdict::NotWritten,
        _ if size < offset + length => Verdict::Torn,
        _ => Verdict::Written,
    }
}

/// Identity of a file: device and inode.
pub(crate) type FileId = (u64, u64);

/// One batch as the journal describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    /// Inode of the pipe the data comes from.
    pub(crate) pipe: u64,
    pub(crate) file: FileId,
    /// Size of the file before the batch.
    pub(crate) offset: u64,
    /// Bytes of the formatted batch.
    pub(crate) length: u64,
    /// Bytes to consume from the pipe afterwards.
    pub(crate) consume: u64,
    /// First of them.
    pub(crate) first: u8,
}

/// Counters over the life of the guardian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
    pub(crate) dropped: u64,
}

/// The journal's page.
#[derive(Debug)]
pub(crate) struct Journal {
    page: SharedPage,
}

impl Journal {
    /// A memfd for a new journal; give it to the guardian.
    pub(crate) fn memfd() -> io::Result<OwnedFd> {
        SharedPage::memfd("slipway-log-journal")
    }

    /// Maps a journal made here or by a former keeper.
    pub(crate) fn open(memfd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { page: SharedPage::map(memfd)? })
    }

    /// Notes what is about to be written and consumed.
    pub(crate) fn begin(&self, batch: &Batch) {
        let sentinel = u64::from_ne_bytes([!batch.first; 8]);
        for (word, value) in [
            (word::PIPE, batch.pipe),
            (word::FILE_DEV, batch.file.0),
            (word::FILE_INO, batch.file.1),
            (word::OFFSET, batch.offset),
            (word::LENGTH, batch.length),
            (word::CONSUME, batch.consume),
            (word::SENTINEL, sentinel),
            (word::UNTOUCHED, sentinel),
        ] {
            self.word(word).store(value, Ordering::Release);
        }
        self.word(word::PENDING).store(1, Ordering::Release);
    }

    /// Takes the batch's input out of the pipe; the act itself destroys the sentinel. `spare` is overwritten and must be
    /// at least `n - 1` bytes.
    pub(crate) fn consume(&self, pipe: BorrowedFd<'_>, n: usize, spare: &mut [u8]) -> io::Result<()> {
        let Some(rest) = n.checked_sub(1) else { return Ok(()) };
        let mut taken = self.page.read_over(word::SENTINEL, pipe, &mut spare[..rest])?;
        // Short only if the container reads its own output; the pipe's end is non-blocking, so this ends.
        while taken > 0 && taken < n {
            let left = n - taken;
            match rustix::io::read(pipe, &mut spare[..left])? {
                0 => break,
                more => taken += more,
            }
        }
        Ok(())
    }

    /// The batch is complete (or given up).
    pub(crate) fn end(&self) {
        self.word(word::PENDING).store(0, Ordering::Release);
    }

    /// Adds to the counters.
    pub(crate) fn count(&self, bytes: u64, lines: u64, dropped: u64) {
        self.word(word::BYTES).fetch_add(bytes, Ordering::Relaxed);
        self.word(word::LINES).fetch_add(lines, Ordering::Relaxed);
        self.word(word::DROPPED).fetch_add(dropped, Ordering::Relaxed);
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            bytes: self.word(word::BYTES).load(Ordering::Relaxed),
            lines: self.word(word::LINES).load(Ordering::Relaxed),
            dropped: self.word(word::DROPPED).load(Ordering::Relaxed),
        }
    }

    /// After a crash: if the open record is about this pipe and either its log or its hold (see [`super`]), completes or
    /// undoes it, so that hold and pipe contain exactly what is missing in the log.
    pub(crate) fn repair(
        &self,
        pipe: BorrowedFd<'_>,
        log: Option<&File>,
        hold: &File,
    ) -> io::Result<Option<Verdict>> {
        if let Some(log) = log
            && let Some(verdict) = self.repair_file(pipe, log)?
        {
            if matches!(verdict, Verdict::Written | Verdict::Done) {
                hold.set_len(0)?;
            }
            self.end();
            return Ok(Some(verdict));
        }
        let verdict = self.repair_file(pipe, hold)?;
        if verdict.is_some() {
            self.end();
        }
        Ok(verdict)
    }

    fn repair_file(&self, pipe: BorrowedFd<'_>, file: &File) -> io::Result<Option<Verdict>> {
        let read = |word| self.word(word).load(Ordering::Acquire);
        let meta = file.metadata()?;
        let about_these = read(word::PENDING) == 1
            && read(word::PIPE) == pipe_id(pipe)?
            && (read(word::FILE_DEV), read(word::FILE_INO)) == (meta.dev(), meta.ino());
        if !about_these {
            return Ok(None);
        }
        let offset = read(word::OFFSET);
        let untouched = read(word::SENTINEL) == read(word::UNTOUCHED);
        let verdict = verdict(meta.len(), offset, read(word::LENGTH), untouched);
        match verdict {
            Verdict::NotWritten | Verdict::Done => {}
            Verdict::Torn => file.set_len(offset)?,
            Verdict::Written => {
                let n = usize::try_from(read(word::CONSUME)).unwrap_or(0);
                self.consume(pipe, n, &mut vec![0; n])?;
            }
        }
        Ok(Some(verdict))
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        &self.page.words()[word]
    }
}

/// The inode of a pipe, which no other living pipe has.
pub(crate) fn pipe_id(pipe: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(pipe)?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn truth_table() {
        // (size, sentinel intact) of a batch of 10 bytes at 100.
        for (size, untouched, expected) in [
            (100, true, Verdict::NotWritten),
            (40, true, Verdict::NotWritten),
            (101, true, Verdict::Torn),
            (109, true, Verdict::Torn),
            (110, true, Verdict::Written),
            (300, true, Verdict::Written),
            (110, false, Verdict::Done),
            (100, false, Verdict::Done),
            (0, false, Verdict::Done),
        ] {
            assert_eq!(verdict(size, 100, 10, untouched), expected, "size {size} untouched {untouched}");
        }
    }

    /// Stops the work after each step in turn, repairs with a second mapping, finishes the work, and compares.
    #[test]
    fn a_crash_after_any_step_neither_loses_nor_doubles() {
        let line = b"T stdout F hello\n";
        for stop in 0..6 {
            let hold = tempfile::tempfile().unwrap();
            hold.set_len(3).unwrap();
            let memfd = Journal::memfd().unwrap();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(b"before\n").unwrap();
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
            rustix::io::write(&writer, b"hello\nrest").unwrap();
            let meta = file.metadata().unwrap();
            let batch = Batch {
                pipe: pipe_id(&reader).unwrap(),
                file: (meta.dev(), meta.ino()),
                offset: meta.len(),
                length: line.len() as u64,
                consume: 6,
                first: b'h',
            };
            let work = |file: &mut File, steps: usize| {
                let journal = Journal::open(memfd.as_fd()).unwrap();
                if steps > 0 {
                    journal.begin(&batch);
                }
                if steps > 1 {
                    file.write_all(&line[..5]).unwrap();
                }
                if steps > 2 {
                    file.write_all(&line[5..]).unwrap();
                }
                if steps > 3 {
                    journal.consume(reader.as_fd(), 6, &mut [0; 16]).unwrap();
                }
                if steps > 4 {
                    journal.end();
                }
            };
            work(&mut file, stop);
            let verdict =
                Journal::open(memfd.as_fd()).unwrap().repair(reader.as_fd(), Some(&file), &hold).unwrap();
            let expected = [
                None,
                Some(Verdict::NotWritten),
                Some(Verdict::Torn),
                Some(Verdict::Written),
                Some(Verdict::Done),
                None,
            ];
            assert_eq!(verdict, expected[stop], "stop {stop}");
            // What was held goes with the batch that contains it, and only then.
            assert_eq!(hold.metadata().unwrap().len() == 0, (3..5).contains(&stop), "stop {stop}");
            if file.metadata().unwrap().len() == meta.len() {
                std::io::Seek::seek(&mut file, io::SeekFrom::End(0)).unwrap();
                work(&mut file, 5);
            }
            let mut text = String::new();
            std::io::Seek::rewind(&mut file).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "before\nT stdout F hello\n", "stop {stop}");
            let mut rest = [0; 16];
            let n = rustix::io::read(&reader, &mut rest).unwrap();
            assert_eq!(&rest[..n], b"rest", "stop {stop}");
        }
    }

    #[test]
    fn a_record_about_another_stream_is_left_alone() {
        let memfd = Journal::memfd().unwrap();
        let journal = Journal::open(memfd.as_fd()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        journal.begin(&Batch { pipe: 1, file: (1, 1), offset: 0, length: 1, consume: 1, first: 0 });
        assert_eq!(journal.repair(reader.as_fd(), Some(&file), &file).unwrap(), None);
    }
}
