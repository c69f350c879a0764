//! A directory as a tar, in the order of names, so that the same tree makes the same bytes.
//!
//! Goes by descriptors: no link in it leads elsewhere. Nobody should write meanwhile; who does gets an old or a new file. PAX
//! where ustar has no room: times below a second, extended attributes, long names, files with holes.

use super::holes::Holes;
use super::{Packer, unwritable};
use crate::unpack::Form;
use crate::unpack::attributes::{OPAQUE, is_overlay_mark};
use crate::unpack::tree::{RootAttributes, is_whiteout, os};
use crate::{Error, Kind, Result};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, lgetxattr, llistxattr, major, minor, openat,
    readlinkat, statat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use tar_core::EntryType;
use tar_core::builder::EntryBuilder;

/// What the unpacker takes; each level holds a descriptor.
const DEPTH: usize = 255;
const MAX_PATH: usize = 4096;
const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// Marks of overlayfs that say: the rest of it lies in another place of the layers below.
const ELSEWHERE: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// What is to be packed.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    root: OwnedFd,
    form: Form,
    top: Top,
}

/// What the archive says of the directory itself.
#[derive(Debug)]
enum Top {
    AsItIs,
    /// As the layer's archive had it; a layer of the store may have another owner and mode than that.
    Recorded {
        attributes: Option<RootAttributes>,
        is_opaque: bool,
    },
}

impl Source {
    /// # Errors
    /// `Io`.
    pub(crate) fn open(path: &Path, form: Form) -> Result<Self> {
        let root = openat(CWD, path, LISTED, Mode::empty()).map_err(|e| Error::io("pack", path, e))?;
        Ok(Self { path: path.to_owned(), root, form, top: Top::AsItIs })
    }

    /// A layer of the store, with what its record says of its root.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn layer(path: &Path, attributes: Option<RootAttributes>, is_opaque: bool) -> Result<Self> {
        Ok(Self { top: Top::Recorded { attributes, is_opaque }, ..Self::open(path, Form::Layer)? })
    }

    /// Writes all of it. `holes`: what a packing before this one found, or nothing.
    ///
    /// # Errors
    /// `Invalid` for what no archive of its form can express, in words; `Exhausted` on a full disk, `Cancelled` if nobody reads
    /// `out` any more, `Io`.
    pub(crate) fn pack<W: Write>(&self, holes: &mut Holes, out: W) -> Result<W> {
        let mut walk = Walk { source: self, packer: Packer::new(out), holes, links: HashMap::new() };
        walk.all()?;
        walk.packer.finish()
    }

    fn failed(&self, path: &[u8], error: Errno) -> Error {
        Error::io("pack", &self.path.join(os(path)), error)
    }
}

struct Walk<'a, W> {
    source: &'a Source,
    packer: Packer<W>,
    holes: &'a mut Holes,
    /// Files with several names: where the first one was written.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// A directory that is being gone through.
struct Level {
    fd: OwnedFd,
    /// "", or with a slash at its end.
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refuse(path: &[u8], why: &str) -> Error {
    Error::new(Kind::Invalid, "pack", shown(path), why)
}

impl<W: Write> Walk<'_, W> {
    fn all(&mut self) -> Result<()> {
        let source = self.source;
        let mut stat = fstat(&source.root).map_err(|e| source.failed(b"", e))?;
        let xattrs = xattrs(&source.root, b".").map_err(|e| source.failed(b"", e))?;
        let (is_told, is_opaque) = match &source.top {
            Top::AsItIs => (true, self.is_opaque(&xattrs)),
            Top::Recorded { attributes, is_opaque } => {
                if let Some(root) = attributes {
                    (stat.st_mode, stat.st_uid, stat.st_gid) = (root.mode, root.uid, root.gid);
                }
                (attributes.is_some(), *is_opaque)
            }
        };
        if is_told {
            self.plain(b"./", &stat, EntryType::Directory, &xattrs, |_| {})?;
        }
        if is_opaque {
            self.mark(b".wh..wh..opq")?;
        }
        let root = source.root.try_clone().map_err(|e| Error::io("pack", &source.path, e))?;
        let mut open = vec![self.level(root, Vec::new())?];
        while let Some(level) = open.last_mut() {
            let Some(name) = level.names.next() else {
                open.pop();
                continue;
            };
            let path = [&level.path[..], &name].concat();
            let Some((fd, path)) = self.entry(&level.fd, &path, &name)? else { continue };
            if open.len() > DEPTH {
                return Err(refuse(&path, "directories are nested deeper than 255 levels"));
            }
            open.push(self.level(fd, path)?);
        }
        Ok(())
    }

    fn is_opaque(&self, xattrs: &Xattrs) -> bool {
        self.source.form == Form::Layer
            && xattrs.iter().any(|(name, value)| name == OPAQUE.as_bytes() && value == b"y")
    }

    fn level(&self, fd: OwnedFd, path: Vec<u8>) -> Result<Level> {
        let mut names = Dir::read_from(&fd)
            .and_then(|entries| {
                let names = entries.map(|entry| entry.map(|e| e.file_name().to_bytes().to_vec()));
                names.collect::<rustix::io::Result<Vec<_>>>()
            })
            .map_err(|e| self.source.failed(&path, e))?;
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        Ok(Level { fd, path, names: names.into_iter() })
    }

    /// Writes what is at `path`; a directory is answered, with its path, to be gone through next.
    fn entry(&mut self, parent: &OwnedFd, path: &[u8], name: &[u8]) -> Result<Option<(OwnedFd, Vec<u8>)>> {
        let source = self.source;
        let failed = |e| source.failed(path, e);
        let stat = match statat(parent, os(name), AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since it was listed.
            Err(Errno::NOENT) => return Ok(None),
            stat => stat.map_err(failed)?,
        };
        if path.len() > MAX_PATH {
            return Err(refuse(path, "its path is longer than 4096 bytes"));
        }
        if source.form == Form::Layer {
            if is_whiteout(&stat) {
                let (directory, _) = path.split_at(path.len() - name.len());
                return self.mark(&[directory, b".wh.", name].concat()).map(|()| None);
            }
            if name.starts_with(b".wh.") {
                let why = "a name that begins with .wh. means a deleted file in a layer: rename it";
                return Err(refuse(path, why));
            }
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let fd = openat(parent, os(name), LISTED, Mode::empty()).map_err(failed)?;
            let path = [path, b"/"].concat();
            self.directory(&fd, &path, &stat)?;
            return Ok(Some((fd, path)));
        }
        self.leaf(parent, path, name, &stat)?;
        Ok(None)
    }

    fn leaf(&mut self, parent: &OwnedFd, path: &[u8], name: &[u8], stat: &Stat) -> Result<()> {
        let source = self.source;
        let failed = |e| source.failed(path, e);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            // Worth nothing without the process that listens there.
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key).cloned() {
                return self.plain(path, stat, EntryType::Link, &[], |entry| {
                    entry.link_name(&first);
                });
            }
            self.links.insert(key, path.to_vec());
        }
        let xattrs = xattrs(parent, name).map_err(failed)?;
        match kind {
            FileType::RegularFile => {
                let file: File = openat(parent, os(name), READ, Mode::empty()).map_err(failed)?.into();
                let regions = self.holes.of(stat.st_ino, &file).map_err(failed)?;
                let entry = self.described(path, stat, EntryType::Regular, &xattrs)?;
                self.packer.content(&shown(path), entry, &file, &regions)
            }
            FileType::Symlink => {
                let target = readlinkat(parent, os(name), Vec::new()).map_err(failed)?;
                self.plain(path, stat, EntryType::Symlink, &xattrs, |entry| {
                    entry.link_name(target.as_bytes());
                })
            }
            FileType::Fifo => self.plain(path, stat, EntryType::Fifo, &xattrs, |_| {}),
            FileType::CharacterDevice => self.plain(path, stat, EntryType::Char, &xattrs, |_| {}),
            FileType::BlockDevice => self.plain(path, stat, EntryType::Block, &xattrs, |_| {}),
            _ => Err(refuse(path, "is of a kind that no archive holds")),
        }
    }

    /// The entry of a directory, and its mark.
    fn directory(&mut self, fd: &OwnedFd, path: &[u8], stat: &Stat) -> Result<()> {
        let xattrs = xattrs(fd, b".").map_err(|e| self.source.failed(path, e))?;
        self.plain(path, stat, EntryType::Directory, &xattrs, |_| {})?;
        if self.is_opaque(&xattrs) {
            self.mark(&[path, b".wh..wh..opq"].concat())?;
        }
        Ok(())
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
        let mut entry = self.described(path, stat, kind, xattrs)?;
        more(&mut entry);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let numbers = (major(stat.st_rdev), minor(stat.st_rdev));
            entry.device(numbers.0, numbers.1).map_err(|e| unwritable(&shown(path), e))?;
        }
        self.packer.header(&shown(path), entry.size(0))
    }

    /// An empty file whose name alone says something.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(EntryType::Regular);
        self.packer.header(&shown(path), entry.mode(0).and_then(|e| e.size(0)))
    }

    /// All but the size.
    fn described(&self, path: &[u8], stat: &Stat, kind: EntryType, xattrs: &Xattrs) -> Result<EntryBuilder> {
        let is_layer = self.source.form == Form::Layer;
        if is_layer && let Some((name, _)) = xattrs.iter().find(|(name, _)| ELSEWHERE.contains(&&name[..])) {
            let name = shown(name);
            let why =
                format!("overlayfs keeps a part of it elsewhere ({name}): it was moved, or changed in part");
            return Err(refuse(path, &why));
        }
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(kind);
        let set = |entry: &mut EntryBuilder| -> tar_core::Result<()> {
            entry.mode(stat.st_mode & 0o7777)?.uid(stat.st_uid.into())?.gid(stat.st_gid.into())?;
            entry.mtime(u64::try_from(stat.st_mtime).unwrap_or_default())?;
            Ok(())
        };
        set(&mut entry).map_err(|e| unwritable(&shown(path), e))?;
        if let Some(time) = exact(stat) {
            entry.add_pax("mtime", time);
        }
        for (name, value) in xattrs.iter().filter(|(name, _)| !(is_layer && is_overlay_mark(name))) {
            let name = std::str::from_utf8(name)
                .map_err(|_| refuse(path, "it has an extended attribute whose name is not UTF-8"))?;
            entry.add_pax(&format!("SCHILY.xattr.{name}"), value);
        }
        Ok(entry)
    }
}

type Xattrs = [(Vec<u8>, Vec<u8>)];

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

/// Of `name` itself, not of what a link leads to; sorted.
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
    let mut found: Vec<_> = names.filter_map(|name| one(name).transpose()).collect::<Result<_, Errno>>()?;
    found.sort();
    Ok(found)
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

    fn packed(dir: &Path, form: Form) -> Result<Vec<u8>> {
        Source::open(dir, form)?.pack(&mut Holes::default(), Vec::new())
    }

    fn unpacked(tar: &[u8], form: Form) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tree = unpack(tar, dir.path(), Limits::default(), form).unwrap();
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
        let tar = packed(dir.path(), Form::Layer).unwrap();
        assert!(tar.len() < 1 << 20, "holes stay holes: {}", tar.len());

        let back = unpacked(&tar, Form::Layer);
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

    // A volume may hold another engine's layers (Docker in a container): they are nothing of ours.
    #[test]
    fn in_plain_form_nothing_stands_for_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("layer")).unwrap();
        std::fs::write(at("layer/.wh.file"), "x").unwrap();
        mknodat(CWD, at("layer/gone"), FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
        for (name, value) in [(OPAQUE, &b"y"[..]), ("trusted.overlay.redirect", b"/a")] {
            setxattr(at("layer"), name, value, XattrFlags::empty()).unwrap();
        }
        let back = unpacked(&packed(dir.path(), Form::Plain).unwrap(), Form::Plain);
        let layer = back.path().join("layer");
        assert_eq!(std::fs::read(layer.join(".wh.file")).unwrap(), b"x");
        assert!(is_whiteout(&rustix::fs::lstat(layer.join("gone")).unwrap()));
        for name in [OPAQUE, "trusted.overlay.redirect"] {
            assert!(grown(|buffer| lgetxattr(&layer, name, buffer)).is_ok(), "{name}");
        }
    }

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

    #[test]
    fn what_a_layer_cannot_say_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = || packed(dir.path(), Form::Layer).unwrap_err().to_string();
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
