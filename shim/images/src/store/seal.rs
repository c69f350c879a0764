//! What a layer's directory holds, as one digest: taken once after unpacking, compared whenever somebody wants to know.
//!
//! Covers names, kinds, modes, owners, sizes, times of change, link targets, devices, extended attributes and content; not
//! what reading changes (access times).

use crate::digest::Hasher;
use crate::unpack::tree::os;
use crate::{Error, Result};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fgetxattr, flistxattr, openat, readlinkat, statat,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const PIECE: usize = 256 << 10;

/// The digest of the tree at `directory`; None if `stop` was set meanwhile.
pub(crate) fn seal(directory: &Path, stop: &AtomicBool) -> Result<Option<String>> {
    let mut walk = Walk { hasher: Hasher::sha256(), buffer: vec![0; PIECE], stop };
    let sealed = openat(CWD, directory, DIRECTORY, Mode::empty()).and_then(|root| walk.directory(&root));
    match sealed {
        Ok(true) => Ok(Some(walk.hasher.finish().to_string())),
        Ok(false) => Ok(None),
        Err(e) => Err(Error::io("read layer", directory, e)),
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

struct Walk<'a> {
    hasher: Hasher,
    buffer: Vec<u8>,
    stop: &'a AtomicBool,
}

impl Walk<'_> {
    /// All entries in the order of their names; false when it was stopped.
    fn directory(&mut self, directory: &OwnedFd) -> Result<bool, Errno> {
        self.attributes(directory)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(directory)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        self.text(&names.len().to_le_bytes());
        for name in names {
            if self.stop.load(Ordering::Relaxed) || !self.entry(directory, &name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn entry(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        let stat = statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW)?;
        self.text(name);
        self.stat(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                return self.directory(&openat(directory, os(name), DIRECTORY, Mode::empty())?);
            }
            FileType::RegularFile => {
                return self.file(&openat(directory, os(name), FILE, Mode::empty())?);
            }
            FileType::Symlink => {
                let target = readlinkat(directory, os(name), Vec::new())?;
                self.text(CStr::to_bytes(&target));
            }
            // Devices and pipes are their numbers.
            _ => {}
        }
        Ok(true)
    }

    fn stat(&mut self, stat: &Stat) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // A directory's size is the file system's affair.
        let size = if is_directory { 0 } else { stat.st_size };
        #[allow(clippy::unnecessary_cast, reason = "the field types differ between architectures")]
        let numbers = [
            u64::from(stat.st_mode),
            u64::from(stat.st_uid),
            u64::from(stat.st_gid),
            stat.st_rdev as u64,
            size as u64,
            stat.st_mtime as u64,
            stat.st_mtime_nsec as u64,
        ];
        numbers.iter().for_each(|number| self.hasher.update(&number.to_le_bytes()));
    }

    fn file(&mut self, file: &OwnedFd) -> Result<bool, Errno> {
        self.attributes(file)?;
        while !self.stop.load(Ordering::Relaxed) {
            let count = rustix::io::read(file, &mut self.buffer)?;
            if count == 0 {
                return Ok(true);
            }
            self.hasher.update(self.buffer.get(..count).unwrap_or_default());
        }
        Ok(false)
    }

    fn attributes(&mut self, of: impl AsFd) -> Result<(), Errno> {
        let mut names = vec![0u8; 64 << 10];
        let length = match flistxattr(&of, &mut names) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(e) => return Err(e),
        };
        names.truncate(length);
        let mut names: Vec<&[u8]> = names.split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        let mut value = vec![0u8; 64 << 10];
        for name in names {
            let length = fgetxattr(&of, os(name), &mut value)?;
            self.text(name);
            self.text(value.get(..length).unwrap_or_default());
        }
        Ok(())
    }

    /// With its length: two texts are never one.
    fn text(&mut self, text: &[u8]) {
        self.hasher.update(&text.len().to_le_bytes());
        self.hasher.update(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn sealed(directory: &Path) -> String {
        seal(directory, &AtomicBool::new(false)).unwrap().unwrap()
    }

    #[test]
    fn every_change_is_seen_and_reading_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "content").unwrap();
        symlink("f", root.join("d/l")).unwrap();
        let first = sealed(root);
        fs::read(root.join("d/f")).unwrap();
        assert_eq!(sealed(root), first);
        let time = fs::metadata(root.join("d/f")).unwrap().modified().unwrap();
        let keep_time =
            || fs::File::options().write(true).open(root.join("d/f")).unwrap().set_modified(time).unwrap();

        // One byte, everything else as it was.
        fs::write(root.join("d/f"), "cOntent").unwrap();
        keep_time();
        assert_ne!(sealed(root), first);
        fs::write(root.join("d/f"), "content").unwrap();
        keep_time();
        assert_eq!(sealed(root), first);

        fs::set_permissions(root.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_ne!(sealed(root), first);
        assert!(seal(root, &AtomicBool::new(true)).unwrap().is_none(), "stopped");
    }
}
