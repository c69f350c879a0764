//! Where files have data and where they have holes.

use rustix::fs::{SeekFrom, fstat, seek};
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::fs::File;
use tar_core::SparseEntry;

/// Regions of one file that are told apart; with more holes it is written in full.
const MOST: usize = 4096;

/// One file's, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Regions {
    pub(crate) size: u64,
    /// Those with data; one for all of it where there are no holes, or the file system does not tell.
    pub(crate) data: Vec<SparseEntry>,
}

/// The regions of files with holes, by inode: found at the first packing and kept for the second one, as the file system may
/// think otherwise by then (delayed allocation).
#[derive(Debug, Default)]
pub(crate) struct Holes(HashMap<u64, Regions>);

impl Holes {
    /// # Errors
    /// Of fstat(2).
    pub(crate) fn of(&mut self, inode: u64, file: &File) -> Result<Regions> {
        if let Some(known) = self.0.get(&inode) {
            return Ok(known.clone());
        }
        let found = Regions::of(file)?;
        self.0.insert(inode, found.clone());
        Ok(found)
    }
}

impl Regions {
    /// # Errors
    /// Of fstat(2).
    pub(crate) fn of(file: &File) -> Result<Self> {
        let stat = fstat(file)?;
        let size = stat.st_size.cast_unsigned();
        let whole = vec![SparseEntry { offset: 0, length: size }];
        #[allow(clippy::unnecessary_cast, reason = "the field types differ between architectures")]
        let allocated = (stat.st_blocks as u64).saturating_mul(512);
        let data = if allocated < size { with_data(file, size).unwrap_or(whole) } else { whole };
        Ok(Self { size, data })
    }
}

/// None where the file system does not tell, or there are too many.
fn with_data(file: &File, size: u64) -> Option<Vec<SparseEntry>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < size => data,
            // A hole up to the end.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        at = seek(file, SeekFrom::Hole(data)).ok()?.min(size);
        found.push(SparseEntry { offset: data, length: at - data });
        if found.len() > MOST {
            return None;
        }
    }
    Some(found)
}
