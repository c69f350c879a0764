//! What a tree takes, measured by descriptors while its owner may do with it what it likes.
//!
//! A container swaps directories for links, moves them about, and nests them deeper than any path is long: no name is followed
//! but from its parent's descriptor, and few of those are held, however deep it goes.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::{Errno, Result};
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Allocated bytes and inodes of the tree at `path`, hard links once, other file systems not. What vanishes meanwhile does not
/// count.
///
/// # Errors
/// If `path` itself cannot be read.
pub(super) fn usage(path: &Path) -> Result<(u64, u64)> {
    let root = openat(CWD, path, LISTED, Mode::empty())?;
    let mut walk = Walk::new(&root)?;
    let mut here = Some(root);
    while let Some(directory) = here.take() {
        here = match walk.next_below() {
            Some(name) => Some(walk.descend(directory, name)),
            None => walk.ascend(&directory, path),
        };
    }
    Ok((walk.bytes, walk.inodes))
}

/// A directory on the way from the root to where the walk is.
struct Level {
    name: CString,
    /// Device and inode.
    identity: (u64, u64),
    /// Directories in it that are still to be gone through.
    below: Vec<CString>,
}

struct Walk {
    device: u64,
    bytes: u64,
    inodes: u64,
    /// Inodes of files with several names.
    linked: HashSet<u64>,
    levels: Vec<Level>,
}

impl Walk {
    fn new(root: &OwnedFd) -> Result<Self> {
        let stat = fstat(root)?;
        let mut walk =
            Self { device: stat.st_dev, bytes: 0, inodes: 0, linked: HashSet::new(), levels: Vec::new() };
        walk.count(&stat);
        walk.enter(root, CString::default(), &stat);
        Ok(walk)
    }

    fn count(&mut self, stat: &Stat) {
        self.inodes += 1;
        self.bytes += stat.st_blocks.cast_unsigned().saturating_mul(512);
    }

    fn next_below(&mut self) -> Option<CString> {
        self.levels.last_mut().and_then(|level| level.below.pop())
    }

    /// Counts what is in `directory`, and remembers its directories.
    fn enter(&mut self, directory: &OwnedFd, name: CString, stat: &Stat) {
        let mut below = Vec::new();
        for entry in Dir::read_from(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != self.device {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
                continue;
            }
            self.count(&stat);
            if is_directory {
                below.push(name.to_owned());
            }
        }
        self.levels.push(Level { name, identity: (stat.st_dev, stat.st_ino), below });
    }

    /// Into `name` of `directory`, if that is still one of this file system; where the walk is then.
    fn descend(&mut self, directory: OwnedFd, name: CString) -> OwnedFd {
        let opened = openat(&directory, &name, LISTED, Mode::empty()).and_then(|fd| Ok((fstat(&fd)?, fd)));
        match opened {
            Ok((stat, fd)) if stat.st_dev == self.device => {
                self.enter(&fd, name, &stat);
                fd
            }
            _ => directory,
        }
    }

    /// Back to the parent; None at the end. One that was moved meanwhile has another parent: then down again from the root, as
    /// far as the way is still what it was.
    fn ascend(&mut self, directory: &OwnedFd, path: &Path) -> Option<OwnedFd> {
        self.levels.pop();
        let parent = self.levels.last()?;
        match openat(directory, "..", LISTED, Mode::empty()) {
            Ok(fd) if is(&fd, parent) => Some(fd),
            _ => self.again_from_root(path).ok(),
        }
    }

    fn again_from_root(&mut self, path: &Path) -> Result<OwnedFd> {
        let mut here = openat(CWD, path, LISTED, Mode::empty())?;
        let mut reached = 1;
        for level in &self.levels[1..] {
            match openat(&here, &level.name, LISTED, Mode::empty()) {
                Ok(fd) if is(&fd, level) => here = fd,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => break,
                Err(e) => return Err(e),
            }
            reached += 1;
        }
        self.levels.truncate(reached);
        Ok(here)
    }
}

fn is(fd: &OwnedFd, level: &Level) -> bool {
    fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == level.identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn hard_links_count_once_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(dir.path().join("d/file"), dir.path().join("twin")).unwrap();
        symlink("/usr", dir.path().join("usr")).unwrap();
        let own = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap().blocks() * 512;
        let bytes = own("") + own("d") + own("d/file") + own("usr");
        assert_eq!(usage(dir.path()).unwrap(), (bytes, 4));
        assert_eq!(usage(&dir.path().join("absent")), Err(Errno::NOENT));
    }

    #[test]
    fn deeper_than_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut here = openat(CWD, dir.path(), LISTED, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, "deep", Mode::RWXU).unwrap();
            here = openat(&here, "deep", LISTED, Mode::empty()).unwrap();
        }
        let file = openat(&here, "file", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
        rustix::io::write(&file, &vec![1; 1 << 20]).unwrap();
        drop(file);
        let (bytes, inodes) = usage(dir.path()).unwrap();
        assert!(inodes == 3002 && bytes >= 1 << 20, "{bytes} {inodes}");
        // tempfile would go by paths.
        crate::unpack::tree::remove_tree(CWD, dir.path().as_os_str()).unwrap();
    }

    // A directory becomes a link to somewhere else on the same file system, again and again.
    #[test]
    fn what_is_swapped_meanwhile_leads_nowhere() {
        let outside = tempfile::tempdir().unwrap();
        for number in 0..2000 {
            fs::write(outside.path().join(number.to_string()), "").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for number in 0..200 {
            fs::create_dir(at(&format!("d{number}"))).unwrap();
        }
        fs::create_dir(at("v")).unwrap();
        symlink(outside.path(), at("link")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                while !stop.load(Ordering::Relaxed) {
                    rustix::fs::renameat_with(CWD, at("v"), CWD, at("link"), flags).unwrap();
                }
            });
            for _ in 0..200 {
                let (_, inodes) = usage(dir.path()).unwrap();
                assert!(inodes <= 204, "{inodes}: the walk has left the tree");
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
