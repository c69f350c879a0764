//! The archive itself: a plain tar of few files.

use super::unwritten;
use crate::{Error, Result};
use std::io::Write;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

const RECORD: u64 = 512;

pub(super) struct Files<'a>(&'a mut dyn Write);

impl<'a> Files<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self(out)
    }

    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.stream(name, bytes.len() as u64, |out| out.write_all(bytes).map_err(unwritten))
    }

    /// A file of `size` bytes that `write` writes.
    pub(super) fn stream(
        &mut self,
        name: &str,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(name).entry_type(EntryType::Regular);
        let numbers = entry.mode(0o644).and_then(|e| e.uid(0)).and_then(|e| e.gid(0));
        let numbers = numbers.and_then(|e| e.mtime(0)).and_then(|e| e.size(size));
        numbers.map_err(|e| Error::invalid("export", name, e))?;
        self.0.write_all(&entry.finish_bytes()).map_err(unwritten)?;
        write(self.0)?;
        self.zeros(size.next_multiple_of(RECORD) - size)
    }

    pub(super) fn end(mut self) -> Result<()> {
        self.zeros(2 * RECORD)?;
        self.0.flush().map_err(unwritten)
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        let mut zeros = std::io::Read::take(std::io::repeat(0), count);
        std::io::copy(&mut zeros, &mut self.0).map(drop).map_err(unwritten)
    }
}
