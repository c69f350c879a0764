//! From files to a stream of tar: the way back of [`crate::unpack`].
//!
//! [`Packer`] writes plain entries; [`tree`] walks a directory, a plain one or one in overlay form ([`Form`]), which it says as an
//! OCI layer does: whiteouts are `.wh.name`, opaque directories hold `.wh..wh..opq`.

pub(crate) mod holes;
pub(crate) mod tree;

use crate::unpack::{Form, Limits, decode, unpack};
use crate::{Error, Kind, Result};
use holes::Regions;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, HEADER_SIZE, SparseEntry};

/// The end marker: two blocks of zeros.
const END: usize = 2 * HEADER_SIZE;
const BUFFER: usize = 256 << 10;
/// What a header's own size field holds; larger content goes without a list of its regions.
const PLAIN_SIZE: u64 = 8 << 30;

/// A tar being written.
#[derive(Debug)]
pub struct Packer<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> Packer<W> {
    pub fn new(out: W) -> Self {
        Self { out, buffer: vec![0; BUFFER] }
    }

    /// A file of root's alone with this content.
    ///
    /// # Errors
    /// `Exhausted` on a full disk, `Io`.
    pub fn bytes(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(name).entry_type(EntryType::Regular);
        self.header(name, entry.mode(0o600).and_then(|e| e.size(content.len() as u64)))?;
        self.write(name, content)?;
        self.pad(name, content.len() as u64)
    }

    /// A directory of root's alone.
    ///
    /// # Errors
    /// As for [`Packer::bytes`].
    pub fn directory(&mut self, name: &str) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(format!("{name}/")).entry_type(EntryType::Directory);
        self.header(name, entry.mode(0o700).and_then(|e| e.size(0)))
    }

    /// The same as [`Packer::bytes`], with the content of an open file, from its beginning.
    ///
    /// # Errors
    /// As for [`Packer::bytes`].
    pub fn file(&mut self, name: &str, file: &File) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(name).entry_type(EntryType::Regular);
        entry.mode(0o600).map_err(|e| unwritable(name, e))?;
        let regions = Regions::of(file).map_err(|e| failed(name, e.into()))?;
        self.content(name, entry, file, &regions)
    }

    /// Writes the end of the archive.
    ///
    /// # Errors
    /// As for [`Packer::bytes`].
    pub fn finish(mut self) -> Result<W> {
        self.write("end of the archive", &[0; END])?;
        self.out.flush().map_err(|e| failed("end of the archive", e))?;
        Ok(self.out)
    }

    /// `entry` has all but its size; a file with holes keeps them.
    pub(crate) fn content(
        &mut self,
        name: &str,
        mut entry: EntryBuilder,
        file: &File,
        Regions { size, data }: &Regions,
    ) -> Result<()> {
        let held: u64 = data.iter().map(|region| region.length).sum();
        if held < *size && held < PLAIN_SIZE {
            entry.sparse(data, *size);
            self.header(name, entry.size(held))?;
            for region in data {
                self.copy(name, file, region)?;
            }
            return self.pad(name, held);
        }
        self.header(name, entry.size(*size))?;
        self.copy(name, file, &SparseEntry { offset: 0, length: *size })?;
        self.pad(name, *size)
    }

    pub(crate) fn header(&mut self, name: &str, entry: tar_core::Result<&mut EntryBuilder>) -> Result<()> {
        let bytes = entry.map_err(|e| unwritable(name, e))?.finish_bytes();
        self.write(name, &bytes)
    }

    /// What has become shorter since it was looked at is filled with zeros: the header is out already.
    fn copy(&mut self, name: &str, file: &File, region: &SparseEntry) -> Result<()> {
        let (mut at, end) = (region.offset, region.offset + region.length);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(BUFFER);
            let count = match file.read_at(&mut self.buffer[..most], at) {
                Ok(0) => {
                    self.buffer[..most].fill(0);
                    most
                }
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(name, e)),
            };
            self.out.write_all(&self.buffer[..count]).map_err(|e| failed(name, e))?;
            at += count as u64;
        }
        Ok(())
    }

    fn pad(&mut self, name: &str, size: u64) -> Result<()> {
        let rest = size.next_multiple_of(HEADER_SIZE as u64) - size;
        let rest = usize::try_from(rest).unwrap_or_default();
        self.write(name, &[0; HEADER_SIZE][..rest])
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| failed(name, e))
    }
}

/// A failed write: nobody reads it any more, or there is no room.
pub(crate) fn failed(name: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Error::new(Kind::Cancelled, "pack", name, error);
    }
    Error::io("pack", name.as_ref(), error)
}

fn unwritable(name: &str, error: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, "pack", name, error)
}

/// Unpacks the tar in `archive`, compressed or not, into the empty directory `into`. Nothing of it can lie outside of
/// there; names, sizes and their number are bounded as for layers (IMG-UNP-23).
///
/// # Errors
/// `Corrupt` for what is no honest archive, `Exhausted` on a full disk, `Io`.
pub fn unpack_archive(archive: impl Read + Send, into: &Path) -> Result<()> {
    unpack_tree(archive, into, Form::Layer)
}

/// The same for what [`tree::Source::pack`] has made of a directory of this form.
pub(crate) fn unpack_tree(archive: impl Read + Send, into: &Path, form: Form) -> Result<()> {
    let plain = decode::decode_unbuffered(archive).map_err(|e| Error::corrupt("decompress", "archive", e))?;
    unpack(plain, into, Limits::default(), form).map(drop)
}
