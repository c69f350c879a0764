//! A layer's directory (overlay form) as a tar (OCI image-spec layer.md): the way back from `unpack`.
//!
//! In the order of names, so that the same tree makes the same bytes. PAX where ustar has no room: times below a second, extended
//! attributes, long names, files with holes.

use super::unwritten;
use crate::unpack::settle::{is_overlay_mark, xattrs};
use crate::unpack::tree::{RootAttributes, is_opaque, is_whiteout, joined, open_dir_beneath, os};
use crate::{Error, Result};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, lgetxattr, llistxattr, major, minor, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use tar_core::builder::EntryBuilder;
use tar_core::{EntryType, SparseEntry};

const RECORD: u64 = 512;
const PIECE: usize = 256 << 10;
/// A file in more pieces is written out in full.
const MOST_REGIONS: usize = 4096;
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Where files have data, by inode; found at the first packing and kept, as a file system may think otherwise later.
#[derive(Debug, Default)]
pub(super) struct Holes(HashMap<u64, Option<Vec<SparseEntry>>>);

pub(super) struct Layer {
    path: PathBuf,
    root: OwnedFd,
    attributes: Option<RootAttributes>,
    is_opaque: bool,
}

type Components = Vec<Vec<u8>>;

impl Layer {
    pub(super) fn open(path: &Path, attributes: Option<RootAttributes>, is_opaque: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::io("export layer", path, e))?;
        Ok(Self { path: path.to_owned(), root, attributes, is_opaque })
    }

    fn failed(&self, path: &[Vec<u8>], error: Errno) -> Error {
        Error::io("export layer", &self.path.join(joined(path)), error)
    }

    /// Writes the tar.
    pub(super) fn pack(&self, holes: &mut Holes, out: &mut dyn Write) -> Result<()> {
        let mut packing = Packing { layer: self, holes, links: HashMap::new(), out, buffer: vec![0; PIECE] };
        packing.all()?;
        packing.zeros(2 * RECORD)
    }

    /// The path of the only file: what an artifact's layer is.
    pub(super) fn only_file(&self) -> Result<String> {
        let mut path = Components::new();
        loop {
            let directory = self.directory(&path)?;
            let names = self.names(&path, &directory)?;
            let [name] = names.as_slice() else {
                return Err(Error::corrupt("export artifact", self.path.display(), "it is not one file"));
            };
            let stat = statat(&directory, os(name), AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|e| self.failed(&path, e))?;
            path.push(name.clone());
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(String::from_utf8_lossy(&path.join(&b'/')).into_owned());
            }
        }
    }

    /// The content of the file at `title`.
    pub(super) fn content(&self, title: &str, out: &mut dyn Write) -> Result<()> {
        let path: Components = title.split('/').map(|part| part.as_bytes().to_vec()).collect();
        let (name, parent) = path.split_last().ok_or_else(|| self.failed(&path, Errno::NOENT))?;
        let parent = self.directory(parent)?;
        let file = openat(&parent, os(name), FILE, Mode::empty()).map_err(|e| self.failed(&path, e))?;
        let mut buffer = vec![0; PIECE];
        loop {
            let count = rustix::io::read(&file, &mut buffer[..]).map_err(|e| self.failed(&path, e))?;
            if count == 0 {
                return Ok(());
            }
            out.write_all(&buffer[..count]).map_err(unwritten)?;
        }
    }

    fn directory(&self, path: &[Vec<u8>]) -> Result<OwnedFd> {
        open_dir_beneath(&self.root, &joined(path)).map_err(|e| self.failed(path, e))
    }

    /// Sorted.
    fn names(&self, path: &[Vec<u8>], directory: &OwnedFd) -> Result<Components> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(|e| self.failed(path, e))? {
            let name = entry.map_err(|e| self.failed(path, e))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

struct Packing<'a> {
    layer: &'a Layer,
    holes: &'a mut Holes,
    /// Inode to the first name of a file that has several.
    links: HashMap<u64, Vec<u8>>,
    out: &'a mut dyn Write,
    buffer: Vec<u8>,
}

impl Packing<'_> {
    /// Depth first; a directory before what is in it, its opaque mark before anything else in it.
    fn all(&mut self) -> Result<()> {
        if let Some(root) = self.layer.attributes {
            let stat = rustix::fs::fstat(&self.layer.root).map_err(|e| self.layer.failed(&[], e))?;
            let mut entry = self.entry(b"./", EntryType::Directory, &stat, &[])?;
            let own = entry.mode(root.mode).and_then(|e| e.uid(root.uid.into()));
            own.and_then(|e| e.gid(root.gid.into())).map_err(|e| Error::invalid("export layer", "/", e))?;
            let attributes = xattrs(&self.layer.root).map_err(|e| self.layer.failed(&[], e))?;
            self.finish(entry, &attributes, &[])?;
        }
        if self.layer.is_opaque {
            self.mark(b".wh..wh..opq")?;
        }
        let mut todo: Vec<Components> = self.below(&Components::new())?;
        while let Some(path) = todo.pop() {
            if self.one(&path)? {
                todo.extend(self.below(&path)?);
            }
        }
        Ok(())
    }

    /// What is in a directory, last first.
    fn below(&self, path: &Components) -> Result<Vec<Components>> {
        let names = self.layer.names(path, &self.layer.directory(path)?)?;
        Ok(names.into_iter().rev().map(|name| [&path[..], &[name]].concat()).collect())
    }

    /// Writes one entry; whether it is a directory.
    fn one(&mut self, path: &Components) -> Result<bool> {
        let layer = self.layer;
        let failed = |e| layer.failed(path, e);
        let Some((name, above)) = path.split_last() else { return Ok(false) };
        let parent = layer.directory(above)?;
        let stat = statat(&parent, os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let full = path.join(&b'/');
        if is_whiteout(&stat) {
            let hidden = [&b".wh."[..], name].concat();
            self.mark(&[above, &[hidden]].concat().join(&b'/'))?;
            return Ok(false);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let directory = layer.directory(path)?;
            let attributes = xattrs(&directory).map_err(failed)?;
            let entry = self.entry(&[&full[..], b"/"].concat(), EntryType::Directory, &stat, path)?;
            self.finish(entry, &attributes, path)?;
            if is_opaque(&directory) {
                self.mark(&[&full[..], b"/.wh..wh..opq"].concat())?;
            }
            return Ok(true);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                let mut entry = self.entry(&full, EntryType::Link, &stat, path)?;
                entry.link_name(&first);
                self.finish(entry, &[], path)?;
                return Ok(false);
            }
            self.links.insert(stat.st_ino, full.clone());
        }
        let of_link = || link_xattrs(&parent, name).map_err(failed);
        match kind {
            FileType::RegularFile => self.file(&parent, path, &full, &stat)?,
            FileType::Symlink => {
                let target = readlinkat(&parent, os(name), Vec::new()).map_err(failed)?;
                let mut entry = self.entry(&full, EntryType::Symlink, &stat, path)?;
                entry.link_name(target.to_bytes());
                self.finish(entry, &of_link()?, path)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let is_char = kind == FileType::CharacterDevice;
                let kind = if is_char { EntryType::Char } else { EntryType::Block };
                let mut entry = self.entry(&full, kind, &stat, path)?;
                let device = entry.device(major(stat.st_rdev), minor(stat.st_rdev));
                device.map_err(|e| Error::invalid("export layer", joined(path).display(), e))?;
                self.finish(entry, &of_link()?, path)?;
            }
            FileType::Fifo => {
                let entry = self.entry(&full, EntryType::Fifo, &stat, path)?;
                self.finish(entry, &of_link()?, path)?;
            }
            // No archive holds a socket, so no layer has one.
            _ => {
                return Err(Error::corrupt(
                    "export layer",
                    joined(path).display(),
                    "a file of no kind that layers have",
                ));
            }
        }
        Ok(false)
    }

    fn file(&mut self, parent: &OwnedFd, path: &Components, full: &[u8], stat: &Stat) -> Result<()> {
        let layer = self.layer;
        let failed = |e| layer.failed(path, e);
        let name = path.last().map(Vec::as_slice).unwrap_or_default();
        let file = openat(parent, os(name), FILE, Mode::empty()).map_err(failed)?;
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let regions = match self.holes.0.get(&stat.st_ino) {
            Some(known) => known.clone(),
            None => {
                let found = regions(&file, stat, size).map_err(failed)?;
                self.holes.0.insert(stat.st_ino, found.clone());
                found
            }
        };
        let attributes = xattrs(&file).map_err(failed)?;
        let mut entry = self.entry(full, EntryType::Regular, stat, path)?;
        let regions = match regions {
            None => vec![SparseEntry { offset: 0, length: size }],
            Some(regions) => {
                entry.sparse(&regions, size);
                regions
            }
        };
        let length: u64 = regions.iter().map(|region| region.length).sum();
        entry.size(length).map_err(|e| Error::invalid("export layer", joined(path).display(), e))?;
        self.finish(entry, &attributes, path)?;
        for region in regions {
            let (mut at, end) = (region.offset, region.offset + region.length);
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
                let count = rustix::io::pread(&file, &mut self.buffer[..most], at).map_err(failed)?;
                if count == 0 {
                    let why = "it is shorter than it was: slipway images verify tells more";
                    return Err(Error::corrupt("export layer", joined(path).display(), why));
                }
                self.out.write_all(&self.buffer[..count]).map_err(unwritten)?;
                at += count as u64;
            }
        }
        self.zeros(length.next_multiple_of(RECORD) - length)
    }

    /// An empty file: a whiteout or an opaque mark.
    fn mark(&mut self, name: &[u8]) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(name).entry_type(EntryType::Regular);
        let numbers = entry.mode(0).and_then(|e| e.uid(0)).and_then(|e| e.gid(0)).and_then(|e| e.mtime(0));
        numbers.map_err(|e| Error::invalid("export layer", String::from_utf8_lossy(name), e))?;
        self.out.write_all(&entry.finish_bytes()).map_err(unwritten)
    }

    fn entry(&self, full: &[u8], kind: EntryType, stat: &Stat, path: &[Vec<u8>]) -> Result<EntryBuilder> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(full).entry_type(kind);
        let seconds = u64::try_from(stat.st_mtime).unwrap_or_default();
        let numbers = entry.mode(stat.st_mode & 0o7777).and_then(|e| e.uid(stat.st_uid.into()));
        let numbers = numbers.and_then(|e| e.gid(stat.st_gid.into())).and_then(|e| e.mtime(seconds));
        numbers.map_err(|e| Error::invalid("export layer", joined(path).display(), e))?;
        if let Some(time) = exact(stat) {
            entry.add_pax("mtime", time);
        }
        Ok(entry)
    }

    fn finish(
        &mut self,
        mut entry: EntryBuilder,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        path: &[Vec<u8>],
    ) -> Result<()> {
        let mut sorted: Vec<_> = xattrs.iter().collect();
        sorted.sort();
        for (name, value) in sorted {
            let name = std::str::from_utf8(name).map_err(|_| {
                Error::invalid(
                    "export layer",
                    joined(path).display(),
                    "it has an extended attribute whose name is not UTF-8",
                )
            })?;
            entry.add_pax(&format!("SCHILY.xattr.{name}"), value);
        }
        self.out.write_all(&entry.finish_bytes()).map_err(unwritten)
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        let mut zeros = std::io::Read::take(std::io::repeat(0), count);
        std::io::copy(&mut zeros, &mut self.out).map(drop).map_err(unwritten)
    }
}

/// The time of change as PAX writes it, where whole seconds from 1970 on do not do.
fn exact(stat: &Stat) -> Option<String> {
    #[allow(clippy::unnecessary_cast, reason = "the field types differ between architectures")]
    let (seconds, nanoseconds) = (stat.st_mtime as i64, stat.st_mtime_nsec as i64);
    match (seconds, nanoseconds) {
        (0.., 0) => None,
        (_, 0) => Some(seconds.to_string()),
        (0.., _) => Some(format!("{seconds}.{nanoseconds:09}")),
        // The kernel counts nanoseconds forward from the second before.
        _ => Some(format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds)),
    }
}

/// Where a file with holes has data; None: it has none worth telling.
fn regions(file: &OwnedFd, stat: &Stat, size: u64) -> rustix::io::Result<Option<Vec<SparseEntry>>> {
    #[allow(clippy::unnecessary_cast, reason = "the field types differ between architectures")]
    let allocated = (stat.st_blocks as u64).saturating_mul(512);
    if allocated >= size {
        return Ok(None);
    }
    let mut regions = Vec::new();
    let mut at = 0;
    while at < size {
        let offset = match seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let end = seek(file, SeekFrom::Hole(offset))?.min(size);
        regions.push(SparseEntry { offset, length: end.saturating_sub(offset) });
        at = end;
    }
    let data: u64 = regions.iter().map(|region| region.length).sum();
    Ok((data < size && regions.len() <= MOST_REGIONS).then_some(regions))
}

/// Extended attributes of what cannot be opened.
fn link_xattrs(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(os(name));
    let mut names = vec![0u8; 64 << 10];
    let length = match llistxattr(&path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty() && !is_overlay_mark(name)) {
        let mut value = vec![0u8; 64 << 10];
        let length = lgetxattr(&path, os(name), &mut value[..])?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_pax_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let stat = rustix::fs::stat(dir.path()).unwrap();
        let at = |seconds: i64, nanoseconds: u64| {
            let mut stat = stat;
            (stat.st_mtime, stat.st_mtime_nsec) = (seconds as _, nanoseconds as _);
            exact(&stat)
        };
        assert_eq!(at(5, 0), None);
        assert_eq!(at(5, 7).as_deref(), Some("5.000000007"));
        assert_eq!(at(-5, 0).as_deref(), Some("-5"));
        assert_eq!(at(-2, 500_000_000).as_deref(), Some("-1.500000000"));
        assert_eq!(at(-1, 900_000_000).as_deref(), Some("-0.100000000"));
    }
}
