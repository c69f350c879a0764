//! A directory in overlay form, the writable layer of a container, as an OCI layer.
//!
//! Goes by descriptors: no link in it leads elsewhere. Nobody should write meanwhile; who does gets an old or a new file.

use super::Packer;
use crate::unpack::attributes::{OPAQUE, is_overlay_mark};
use crate::unpack::tree::{is_whiteout, os};
use crate::{Error, Kind, Result};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, lgetxattr, llistxattr, major, minor, openat, readlinkat,
    statat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

/// What the unpacker takes; each level holds a descriptor.
const DEPTH: usize = 255;
const MAX_PATH: usize = 4096;
const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Marks of overlayfs that say: the rest of it lies in another place of the layers below.
const ELSEWHERE: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// Writes all of `directory`, its own mode and owner first.
///
/// # Errors
/// `Invalid` for what no layer can express, in words; `Exhausted` on a full disk, `Io`.
pub(crate) fn pack<W: Write>(directory: &Path, out: W) -> Result<W> {
    let root = openat(CWD, directory, LISTED, Mode::empty()).map_err(|e| Error::io("pack", directory, e))?;
    let mut walk = Walk { packer: Packer::new(out), links: HashMap::new() };
    let stat = statat(&root, ".", AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::io("pack", directory, e))?;
    walk.directory(&root, b".", &stat, 0)?;
    walk.packer.finish()
}

struct Walk<W> {
    packer: Packer<W>,
    /// Files with several names: where the first one was written.
    links: HashMap<(u64, u64), Vec<u8>>,
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refuse(path: &[u8], why: &str) -> Error {
    Error::new(Kind::Invalid, "pack", shown(path), why)
}

fn io(path: &[u8], error: Errno) -> Error {
    Error::io("pack", shown(path).as_ref(), error)
}

impl<W: Write> Walk<W> {
    fn directory(&mut self, fd: &OwnedFd, path: &[u8], stat: &Stat, depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(refuse(path, "directories are nested deeper than 255 levels"));
        }
        let xattrs = xattrs(fd, b".").map_err(|e| io(path, e))?;
        let opaque = xattrs.iter().any(|(name, value)| name == OPAQUE.as_bytes() && value == b"y");
        let name = [path, b"/"].concat();
        self.plain(&name, stat, EntryType::Directory, &xattrs, |_| {})?;
        if opaque {
            self.mark(&[&name[..], b".wh..wh..opq"].concat())?;
        }
        let mut names = Dir::read_from(fd)
            .and_then(|entries| {
                let names = entries.map(|entry| entry.map(|e| e.file_name().to_bytes().to_vec()));
                names.collect::<rustix::io::Result<Vec<_>>>()
            })
            .map_err(|e| io(path, e))?;
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        for name in names {
            self.entry(fd, &[path, b"/", &name].concat(), &name, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, parent: &OwnedFd, path: &[u8], name: &[u8], depth: usize) -> Result<()> {
        let stat = match statat(parent, os(name), AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since it was listed.
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.map_err(|e| io(path, e))?,
        };
        if path.len() > MAX_PATH {
            return Err(refuse(path, "its path is longer than 4096 bytes"));
        }
        if is_whiteout(&stat) {
            let (directory, _) = path.split_at(path.len() - name.len());
            return self.mark(&[directory, b".wh.", name].concat());
        }
        if name.starts_with(b".wh.") {
            return Err(refuse(
                path,
                "a name that begins with .wh. means a deleted file in a layer: rename it",
            ));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let fd = openat(parent, os(name), LISTED, Mode::empty()).map_err(|e| io(path, e))?;
            return self.directory(&fd, path, &stat, depth + 1);
        }
        if kind == FileType::Socket {
            // Worth nothing without the process that listens there.
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key).cloned() {
                return self.plain(path, &stat, EntryType::Link, &[], |entry| {
                    entry.link_name(&first);
                });
            }
            self.links.insert(key, path.to_vec());
        }
        let xattrs = xattrs(parent, name).map_err(|e| io(path, e))?;
        match kind {
            FileType::RegularFile => self.file(parent, path, name, &stat, &xattrs),
            FileType::Symlink => {
                let target = readlinkat(parent, os(name), Vec::new()).map_err(|e| io(path, e))?;
                self.plain(path, &stat, EntryType::Symlink, &xattrs, |entry| {
                    entry.link_name(target.as_bytes());
                })
            }
            FileType::Fifo => self.plain(path, &stat, EntryType::Fifo, &xattrs, |_| {}),
            FileType::CharacterDevice => self.plain(path, &stat, EntryType::Char, &xattrs, |_| {}),
            FileType::BlockDevice => self.plain(path, &stat, EntryType::Block, &xattrs, |_| {}),
            _ => Err(refuse(path, "is of a kind that no archive holds")),
        }
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        path: &[u8],
        name: &[u8],
        stat: &Stat,
        xattrs: &Xattrs,
    ) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: File = openat(parent, os(name), flags, Mode::empty()).map_err(|e| io(path, e))?.into();
        let entry = described(path, stat, EntryType::Regular, xattrs)?;
        self.packer.content(&shown(path), entry, &file)
    }

    /// An entry without content.
    fn plain(
        &mut self,
        path: &[u8],
        stat: &Stat,
        kind: EntryType,
        xattrs: &Xattrs,
        more: impl FnOnce(&mut EntryBuilder),
    ) -> Result<()> {
        let mut entry = described(path, stat, kind, xattrs)?;
        more(&mut entry);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let numbers = (major(stat.st_rdev), minor(stat.st_rdev));
            entry.device(numbers.0, numbers.1).map_err(|e| refuse(path, &e.to_string()))?;
        }
        self.packer.header(&shown(path), entry.size(0))
    }

    /// An empty file whose name alone says something.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(EntryType::Regular);
        self.packer.header(&shown(path), entry.mode(0).and_then(|e| e.size(0)))
    }
}

type Xattrs = [(Vec<u8>, Vec<u8>)];

/// All but the size.
fn described(path: &[u8], stat: &Stat, kind: EntryType, xattrs: &Xattrs) -> Result<EntryBuilder> {
    if let Some((name, _)) = xattrs.iter().find(|(name, _)| ELSEWHERE.contains(&name.as_slice())) {
        let why = format!(
            "overlayfs keeps a part of it elsewhere ({}): it was moved, or changed in part",
            shown(name)
        );
        return Err(refuse(path, &why));
    }
    let mut entry = EntryBuilder::new_ustar();
    entry.path(path).entry_type(kind);
    let set = |entry: &mut EntryBuilder| -> tar_core::Result<()> {
        entry.mode(stat.st_mode & 0o7777)?.uid(stat.st_uid.into())?.gid(stat.st_gid.into())?;
        entry.mtime(u64::try_from(stat.st_mtime).unwrap_or_default())?;
        Ok(())
    };
    set(&mut entry).map_err(|e| refuse(path, &e.to_string()))?;
    if stat.st_mtime >= 0 && stat.st_mtime_nsec != 0 {
        entry.add_pax("mtime", format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec));
    }
    for (name, value) in xattrs.iter().filter(|(name, _)| !is_overlay_mark(name)) {
        // Names of extended attributes are text wherever they come from (xattr(7)); others cannot be said here.
        if let Ok(name) = std::str::from_utf8(name) {
            entry.add_pax(&format!("SCHILY.xattr.{name}"), value);
        }
    }
    Ok(entry)
}

/// Of `name` itself, not of what a link leads to.
fn xattrs(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let path = Path::new(os(&path));
    let names = match grown(|buffer| llistxattr(path, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        names => names?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let one = |name: &[u8]| match grown(|buffer| lgetxattr(path, os(name), buffer)) {
        Err(Errno::NODATA) => Ok(None),
        value => value.map(|value| Some((name.to_vec(), value))),
    };
    names.filter_map(|name| one(name).transpose()).collect()
}

/// As much as there is; a list may grow between two calls.
fn grown(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1024];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 4, 0),
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::{Limits, unpack};
    use rustix::fs::{XattrFlags, mknodat, setxattr};
    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

    fn unpacked(tar: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tree = unpack(tar, dir.path(), Limits::default()).unwrap();
        assert!(tree.pending.is_empty(), "every directory has an entry of its own");
        dir
    }

    // The unpacker is the oracle: what it makes of our tar is what was there.
    #[test]
    fn a_layer_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
        for name in ["sub", "opaque", &"d".repeat(120)] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("sub/file"), "hello").unwrap();
        std::fs::set_permissions(at("sub/file"), std::fs::Permissions::from_mode(0o4750)).unwrap();
        std::os::unix::fs::chown(at("sub/file"), Some(4_000_000), Some(7)).unwrap();
        std::fs::hard_link(at("sub/file"), at("sub/twin")).unwrap();
        std::fs::write(at(&long), "long").unwrap();
        symlink("/nowhere", at("link")).unwrap();
        let node = |name: &str, kind, device| mknodat(CWD, at(name), kind, Mode::RUSR, device).unwrap();
        node("gone", FileType::CharacterDevice, 0);
        node("tty", FileType::CharacterDevice, rustix::fs::makedev(5, 0));
        node("fifo", FileType::Fifo, 0);
        setxattr(at("opaque"), OPAQUE, b"y", XattrFlags::empty()).unwrap();
        setxattr(at("sub/file"), "trusted.test", b"a\nb", XattrFlags::empty()).unwrap();
        let holes = File::create(at("holes")).unwrap();
        holes.set_len(64 << 20).unwrap();
        holes.write_all_at(b"data", 1 << 20).unwrap();
        std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let tar = pack(dir.path(), Vec::new()).unwrap();
        assert!(tar.len() < 1 << 20, "holes stay holes: {}", tar.len());

        let back = unpacked(&tar);
        let (was, is) = (
            |n: &str| std::fs::symlink_metadata(at(n)).unwrap(),
            |n: &str| std::fs::symlink_metadata(back.path().join(n)).unwrap(),
        );
        for name in ["sub", "opaque", "sub/file", "sub/twin", &long, "link", "tty", "fifo", "holes"] {
            let (a, b) = (was(name), is(name));
            assert_eq!(
                (a.mode(), a.uid(), a.gid(), a.rdev()),
                (b.mode(), b.uid(), b.gid(), b.rdev()),
                "{name}"
            );
            assert_eq!((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec()), "{name}");
        }
        for name in ["sub/file", &long, "holes"] {
            assert!(
                std::fs::read(at(name)).unwrap() == std::fs::read(back.path().join(name)).unwrap(),
                "{name}"
            );
        }
        assert_eq!(is("sub/file").ino(), is("sub/twin").ino());
        assert_eq!(std::fs::read_link(back.path().join("link")).unwrap(), Path::new("/nowhere"));
        let gone = is("gone");
        assert!(gone.rdev() == 0 && gone.mode() & 0o170_000 == 0o020_000, "a whiteout");
        assert!(!back.path().join("socket").exists());
        let value = |name: &str, key: &str| {
            grown(|buffer| lgetxattr(back.path().join(name), key, buffer)).unwrap_or_default()
        };
        assert_eq!(
            (value("opaque", OPAQUE), value("sub/file", "trusted.test")),
            (b"y".into(), b"a\nb".into())
        );
    }

    #[test]
    fn what_a_layer_cannot_say_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = || pack(dir.path(), Vec::new()).unwrap_err().to_string();
        std::fs::write(dir.path().join(".wh.x"), "").unwrap();
        assert!(refused().contains(".wh."));
        std::fs::remove_file(dir.path().join(".wh.x")).unwrap();
        std::fs::create_dir(dir.path().join("moved")).unwrap();
        setxattr(dir.path().join("moved"), "trusted.overlay.redirect", b"/a", XattrFlags::empty()).unwrap();
        assert!(refused().contains("redirect"));
        std::fs::remove_dir(dir.path().join("moved")).unwrap();
        std::fs::create_dir_all(dir.path().join("d/".repeat(300))).unwrap();
        assert!(refused().contains("255"));
    }
}
