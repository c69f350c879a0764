//! An artifact's layer: a directory that holds one file, and stands for that file's content.

use super::unwritten;
use crate::unpack::tree::{joined, open_dir_beneath, os};
use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

pub(super) struct Artifact {
    path: PathBuf,
    root: OwnedFd,
}

impl Artifact {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let root = openat(CWD, path, DIRECTORY, Mode::empty());
        Ok(Self { path: path.to_owned(), root: root.map_err(|e| Error::io("export artifact", path, e))? })
    }

    /// Where the file is.
    pub(super) fn title(&self) -> Result<String> {
        let mut path = Vec::new();
        loop {
            let directory = self.directory(&path)?;
            let name = self.only(&path, &directory)?;
            let stat = statat(&directory, os(&name), AtFlags::SYMLINK_NOFOLLOW);
            let stat = stat.map_err(|e| self.failed(&path, e))?;
            path.push(name);
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(String::from_utf8_lossy(&path.join(&b'/')).into_owned());
            }
        }
    }

    /// Writes what is in the file at `title`.
    pub(super) fn content(&self, title: &str, out: &mut dyn Write) -> Result<()> {
        let path: Vec<_> = title.split('/').map(|part| part.as_bytes().to_vec()).collect();
        let (name, parent) = path.split_last().ok_or_else(|| self.failed(&path, Errno::NOENT))?;
        let parent = self.directory(parent)?;
        let file = openat(&parent, os(name), FILE, Mode::empty()).map_err(|e| self.failed(&path, e))?;
        io::copy(&mut File::from(file), out).map(drop).map_err(unwritten)
    }

    fn directory(&self, path: &[Vec<u8>]) -> Result<OwnedFd> {
        open_dir_beneath(&self.root, &joined(path)).map_err(|e| self.failed(path, e))
    }

    fn only(&self, path: &[Vec<u8>], directory: &OwnedFd) -> Result<Vec<u8>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(|e| self.failed(path, e))? {
            let name = entry.map_err(|e| self.failed(path, e))?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        match <[Vec<u8>; 1]>::try_from(names) {
            Ok([name]) => Ok(name),
            Err(_) => Err(Error::corrupt("export artifact", self.path.display(), "it is not one file")),
        }
    }

    fn failed(&self, path: &[Vec<u8>], error: Errno) -> Error {
        Error::io("export artifact", &self.path.join(joined(path)), error)
    }
}
