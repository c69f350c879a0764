//! Reading a pipe without taking anything out of it: tee(2) into a private scratch pipe, and read that.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, tee};
use std::io;

/// The scratch pipe, empty between two calls, and the bytes last seen.
#[derive(Debug, Default)]
pub(super) struct Peeker {
    scratch: Option<Scratch>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Scratch {
    size: usize,
    read: OwnedFd,
    write: OwnedFd,
}

/// What a peek found in the pipe.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    /// Nothing now.
    Nothing,
    /// Nothing, and nobody holds the write end.
    End,
    /// These bytes; more may be behind them. The buffer may be overwritten.
    Bytes(&'a mut [u8]),
}

impl Peeker {
    /// Looks at what is in `pipe`, at most `size` bytes of it.
    pub(super) fn peek(&mut self, pipe: BorrowedFd<'_>, size: usize) -> io::Result<Seen<'_>> {
        let scratch = match &mut self.scratch {
            Some(scratch) if scratch.size >= size => scratch,
            stale => stale.insert(Scratch::new(size)?),
        };
        let count = match tee(pipe, &scratch.write, size, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(Seen::End),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Seen::Nothing),
            Err(error) => return Err(error.into()),
        };
        if self.buffer.len() < count {
            self.buffer.resize(count.max(4096), 0);
        }
        let seen = &mut self.buffer[..count];
        if let Err(error) = read_exactly(&scratch.read, seen) {
            // Never leave bytes of one container where the next one's would follow.
            self.scratch = None;
            return Err(error);
        }
        Ok(Seen::Bytes(seen))
    }

    /// Bytes of memory kept between calls.
    pub(super) fn kept(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives buffer and scratch pipe back.
    pub(super) fn rest(&mut self) {
        *self = Self::default();
    }
}

impl Scratch {
    fn new(size: usize) -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        if fcntl_getpipe_size(&write)? < size {
            // Refused beyond fs.pipe-max-size: a smaller scratch only means more rounds.
            let _ = fcntl_setpipe_size(&write, size);
        }
        Ok(Self { size, read, write })
    }
}

fn read_exactly(from: &OwnedFd, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match rustix::io::read(from, &mut *into) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => into = &mut into[n..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn peeking_takes_nothing_and_sees_the_end() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let size = fcntl_getpipe_size(&read).unwrap();
        let mut peeker = Peeker::default();
        assert_eq!(peeker.peek(read.as_fd(), size).unwrap(), Seen::Nothing);
        rustix::io::write(&write, b"abc").unwrap();
        for _ in 0..3 {
            assert_eq!(peeker.peek(read.as_fd(), size).unwrap(), Seen::Bytes(&mut b"abc".to_owned()));
        }
        let mut total = 3;
        while let Ok(n) = rustix::io::write(&write, &vec![b'x'; size]) {
            total += n;
        }
        drop(write);
        let Seen::Bytes(seen) = peeker.peek(read.as_fd(), size).unwrap() else { panic!("nothing") };
        assert_eq!(seen.len(), total);
        let mut sink = vec![0; size];
        while rustix::io::read(&read, &mut sink).unwrap() > 0 {}
        assert_eq!(peeker.peek(read.as_fd(), size).unwrap(), Seen::End);
    }
}
