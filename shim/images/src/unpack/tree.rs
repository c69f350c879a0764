//! One layer being written, alone, in overlay form: whiteout = char device 0/0, opaque = xattr (IMG-WH-07).
//!
//! Every path goes through openat2(2) relative to the layer's root descriptor with RESOLVE_IN_ROOT: no name and no
//! symlink leaves it (IMG-UNP-04, -05). Never sees other layers: what depends on them is kept in [`Pending`].

use super::Form;
use super::archive::{Archive, Components, Entry, Sparse, What};
use super::attributes::{Attributes, OPAQUE, Times};
use crate::{Error, Result};
use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fsetxattr, fstat, ftruncate,
    futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a layer alone cannot know, settled by [`super::settle`] once the layers below are there.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Directories made only because something lies in them: inode number → path. Their mode, owner and xattrs are
    /// those of the directory below (IMG-UNP-07).
    pub(crate) implicit: HashMap<u64, Components>,
    /// Hard links whose target is not in this layer: copied up from below, then linked (IMG-UNP-10).
    pub(crate) links: Vec<DeferredLink>,
}

impl Pending {
    /// Nothing in this layer depends on the ones below: it may be shared by every image that has it.
    pub(crate) fn is_empty(&self) -> bool {
        self.implicit.is_empty() && self.links.is_empty()
    }
}

#[derive(Debug)]
pub(crate) struct DeferredLink {
    pub(crate) link: Components,
    pub(crate) target: Components,
}

/// What the layer says about `/`: overlayfs shows the topmost layer's root whatever lies below, so the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RootAttributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Blocks of 4 KiB and inodes; counted while writing, as the file system allocates later.
#[derive(Debug, Default, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
    form: Form,
    /// Parent of the last entry; dropped whenever anything is removed, as a directory may have become a symlink.
    last_parent: Option<(Components, Arc<OwnedFd>)>,
    /// Explicit directories; their times are set last (IMG-UNP-15).
    times: Vec<(Components, u64, Times)>,
    pub(crate) pending: Pending,
    pub(crate) root_attributes: Option<RootAttributes>,
    /// overlayfs does not look at the mark on a root: the store leaves out the layers below.
    pub(crate) root_opaque: bool,
    pub(crate) usage: Usage,
}

const MAX_SYMLINKS: usize = 40;

pub(crate) fn os(component: &[u8]) -> &OsStr {
    OsStr::from_bytes(component)
}

pub(crate) fn joined(path: &[Vec<u8>]) -> PathBuf {
    if path.is_empty() { PathBuf::from(".") } else { path.iter().map(|c| os(c)).collect() }
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(super) fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn missing_is_none<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn stat_at(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<Option<Stat>> {
    missing_is_none(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory below `root`; symlinks are followed inside it.
fn open_dir_in_root(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    retry(|| {
        openat2(
            root.as_fd(),
            path,
            DIRECTORY,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    })
}

/// Opens a directory below `root` by its real path.
pub(crate) fn open_dir_beneath(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    retry(|| openat2(root.as_fd(), path, DIRECTORY, Mode::empty(), how))
}

/// openat2 may answer EAGAIN when something is renamed meanwhile (openat2(2)).
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

impl Tree {
    /// `path` is an empty directory of ours.
    pub(crate) fn new(path: &Path, form: Form) -> Result<Self> {
        let root = openat(CWD, path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
            .map_err(|e| Error::io("open layer", path, e))?;
        Ok(Self {
            root,
            path: path.to_owned(),
            form,
            last_parent: None,
            times: Vec::new(),
            pending: Pending::default(),
            root_attributes: None,
            root_opaque: false,
            usage: Usage { bytes: 4096, inodes: 1 },
        })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Writes one entry; its content is read from `archive`.
    pub(crate) fn add<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let Some((name, parent)) = entry.path.split_last() else {
            return self.set_root(entry);
        };
        if let Some(marker) = name.strip_prefix(b".wh.").filter(|_| self.form == Form::Layer) {
            return self.whiteout(parent, marker, &entry.path);
        }
        let parent = self.parent(parent)?;
        let name = os(name);
        match &entry.what {
            What::Directory => self.directory(entry, &parent, name),
            What::Link(target) => self.link(entry, &parent, name, target),
            What::File { sparse } => self.file(entry, &parent, name, sparse.as_ref(), archive),
            What::Symlink(target) => {
                self.other(entry, &parent, name, |parent, name| symlinkat(os(target), parent, name))
            }
            What::Fifo => self.node(entry, &parent, name, FileType::Fifo, 0),
            What::Block(major, minor) => {
                self.node(entry, &parent, name, FileType::BlockDevice, makedev(*major, *minor))
            }
            What::Char(0, 0) if self.form == Form::Layer => Err(Error::corrupt(
                "unpack",
                joined(&entry.path).display(),
                "a character device 0/0 is overlayfs's own mark for a deleted file; the archive may not hold one",
            )),
            What::Char(major, minor) => {
                self.node(entry, &parent, name, FileType::CharacterDevice, makedev(*major, *minor))
            }
        }
    }

    fn io(&self, path: &[Vec<u8>], error: Errno) -> Error {
        Error::io("unpack", &self.path.join(joined(path)), error)
    }

    /// IMG-UNP-06.
    fn set_root(&mut self, entry: &Entry) -> Result<()> {
        if !matches!(entry.what, What::Directory) {
            return Err(Error::corrupt("unpack", "/", "the root is not a directory"));
        }
        let attributes = Attributes::of(entry, self.form);
        attributes.apply(&self.root).map_err(|e| self.io(&[], e))?;
        self.root_attributes = Some(RootAttributes { mode: entry.mode, uid: entry.uid, gid: entry.gid });
        self.times.push((Components::new(), self.inode(&self.root)?, attributes.times));
        Ok(())
    }

    fn inode(&self, fd: impl AsFd) -> Result<u64> {
        fstat(fd).map(|stat| stat.st_ino).map_err(|e| self.io(&[], e))
    }

    /// The directory an entry lies in; what is missing is made 0755 root:root and remembered.
    fn parent(&mut self, path: &[Vec<u8>]) -> Result<Arc<OwnedFd>> {
        if let Some((cached, fd)) = &self.last_parent
            && cached == path
        {
            return Ok(fd.clone());
        }
        let fd = match open_dir_in_root(&self.root, &joined(path)) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(e) => return Err(self.io(path, e)),
        };
        let fd = Arc::new(fd);
        self.last_parent = Some((path.to_vec(), fd.clone()));
        Ok(fd)
    }

    /// Walks `path` as a chroot would, making what is missing; also behind symlinks to what only lower layers have.
    fn make_parents(&mut self, path: &[Vec<u8>]) -> Result<OwnedFd> {
        let mut todo: VecDeque<Vec<u8>> = path.iter().cloned().collect();
        let mut real = Components::new();
        let mut links = 0;
        while let Some(component) = todo.pop_front() {
            if component == b".." {
                real.pop();
                continue;
            }
            let parent = open_dir_beneath(&self.root, &joined(&real)).map_err(|e| self.io(&real, e))?;
            let name = os(&component);
            let stat = stat_at(&parent, name).map_err(|e| self.io(path, e))?;
            match stat {
                Some(stat) if is_dir(&stat) => real.push(component),
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(self.io(path, Errno::LOOP));
                    }
                    let target =
                        readlinkat(&parent, name, Vec::new()).map_err(|e| self.io(path, e))?.into_bytes();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    let parts = target.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b"."));
                    for part in parts.rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                found => {
                    real.push(component.clone());
                    self.make_implicit(&parent, name, &real, found.as_ref())?;
                }
            }
        }
        open_dir_beneath(&self.root, &joined(&real)).map_err(|e| self.io(&real, e))
    }

    fn make_implicit(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        real: &[Vec<u8>],
        found: Option<&Stat>,
    ) -> Result<()> {
        match found {
            Some(stat) if self.form == Form::Plain || !is_whiteout(stat) => {
                return Err(self.io(real, Errno::NOTDIR));
            }
            Some(_) => self.remove(parent, name, real)?,
            None => {}
        }
        let fd = self.make_directory(parent, name).map_err(|e| self.io(real, e))?;
        let zero = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = Times { atime: zero, mtime: zero };
        let plain = Attributes { mode: 0o755, uid: 0, gid: 0, times, xattrs: Vec::new() };
        plain.apply(&fd).map_err(|e| self.io(real, e))?;
        if found.is_some() {
            // Deleted below and made anew: nothing of the old one is to be seen or copied.
            return self.set_opaque(&fd).map_err(|e| self.io(real, e));
        }
        let inode = self.inode(&fd)?;
        self.pending.implicit.insert(inode, real.to_vec());
        Ok(())
    }

    fn make_directory(&mut self, parent: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        mkdirat(&parent, name, Mode::RWXU)?;
        self.usage.bytes += 4096;
        self.usage.inodes += 1;
        openat(&parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
    }

    /// Directory over directory keeps the children (IMG-UNP-08); over anything else it hides what lies below.
    fn directory(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        let made = self.make_directory_once(parent, name);
        let fd = match made.map_err(|e| self.io(&entry.path, e))? {
            Some(fd) => fd,
            None => {
                let stat = stat_at(parent, name).map_err(|e| self.io(&entry.path, e))?;
                if stat.is_some_and(|stat| is_dir(&stat)) {
                    openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                        .map_err(|e| self.io(&entry.path, e))?
                } else {
                    self.remove(parent, name, &entry.path)?;
                    let fd = self.make_directory(parent, name).map_err(|e| self.io(&entry.path, e))?;
                    self.set_opaque(&fd).map_err(|e| self.io(&entry.path, e))?;
                    fd
                }
            }
        };
        let attributes = Attributes::of(entry, self.form);
        attributes.apply(&fd).map_err(|e| self.io(&entry.path, e))?;
        let inode = self.inode(&fd)?;
        self.pending.implicit.remove(&inode);
        self.times.push((entry.path.clone(), inode, attributes.times));
        Ok(())
    }

    /// A new directory where something else was: what lies below it in other layers is hidden.
    fn set_opaque(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        match self.form {
            Form::Layer => set_opaque(fd),
            Form::Plain => Ok(()),
        }
    }

    fn make_directory_once(&mut self, parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<OwnedFd>> {
        match self.make_directory(parent, name) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::EXIST) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        sparse: Option<&Sparse>,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let fd = self.create(entry, parent, name, |parent, name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(parent, name, flags, Mode::RUSR | Mode::WUSR)
        })?;
        let failed = |e: Errno| Error::io("unpack", &self.path.join(joined(&entry.path)), e);
        match sparse {
            None => write_region(&fd, 0, entry.size, archive, &failed)?,
            Some(sparse) => {
                for region in &sparse.map {
                    write_region(&fd, region.offset, region.length, archive, &failed)?;
                }
                ftruncate(&fd, sparse.size).map_err(failed)?;
            }
        }
        Attributes::of(entry, self.form).apply(&fd).map_err(failed)?;
        self.usage.bytes += entry.size.next_multiple_of(4096);
        Ok(())
    }

    fn node(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        kind: FileType,
        device: Dev,
    ) -> Result<()> {
        self.other(entry, parent, name, |parent, name| {
            mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)
        })
    }

    fn other(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<()>,
    ) -> Result<()> {
        self.create(entry, parent, name, make)?;
        let is_symlink = matches!(entry.what, What::Symlink(_));
        Attributes::of(entry, self.form)
            .apply_at(parent, name, is_symlink)
            .map_err(|e| self.io(&entry.path, e))
    }

    /// Makes something that is no directory; what was there goes first, with all below it (IMG-UNP-08, -09).
    fn create<T>(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let made = match make(parent, name) {
            Err(Errno::EXIST) => {
                self.remove(parent, name, &entry.path)?;
                make(parent, name)
            }
            other => other,
        };
        self.usage.inodes += 1;
        made.map_err(|e| self.io(&entry.path, e))
    }

    /// IMG-UNP-10: the target is resolved inside the root; its last component is not followed.
    fn link(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr, target: &[Vec<u8>]) -> Result<()> {
        let Some((target_name, target_parent)) = target.split_last() else {
            return Err(Error::corrupt("unpack", joined(&entry.path).display(), "hard link to the root"));
        };
        let directory = match open_dir_in_root(&self.root, &joined(target_parent)) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return self.defer_link(entry, parent, name, target),
            Err(e) => return Err(self.io(target, e)),
        };
        let target_name = os(target_name);
        let stat = match stat_at(&directory, target_name).map_err(|e| self.io(target, e))? {
            Some(stat) if !is_whiteout(&stat) => stat,
            _ => return self.defer_link(entry, parent, name, target),
        };
        if is_dir(&stat) {
            return Err(Error::corrupt("unpack", joined(&entry.path).display(), "hard link to a directory"));
        }
        if let Some(there) = stat_at(parent, name).map_err(|e| self.io(&entry.path, e))? {
            if there.st_ino == stat.st_ino {
                return Ok(());
            }
            self.remove(parent, name, &entry.path)?;
        }
        linkat(&directory, target_name, parent, name, AtFlags::empty()).map_err(|e| self.io(&entry.path, e))
    }

    fn defer_link(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &OsStr,
        target: &[Vec<u8>],
    ) -> Result<()> {
        let exists = stat_at(parent, name).map_err(|e| self.io(&entry.path, e))?;
        if exists.is_some_and(|stat| !is_whiteout(&stat)) {
            self.remove(parent, name, &entry.path)?;
        }
        let mut link = self.real_path(parent)?;
        link.push(name.as_bytes().to_vec());
        self.pending.links.push(DeferredLink { link, target: target.to_vec() });
        Ok(())
    }

    /// Where below the root `fd` really is.
    fn real_path(&self, fd: &OwnedFd) -> Result<Components> {
        let show = |fd: BorrowedFd<'_>| {
            readlinkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())
                .map_err(|e| self.io(&[], e))
        };
        let (root, path) = (show(self.root.as_fd())?.into_bytes(), show(fd.as_fd())?.into_bytes());
        let below = path.strip_prefix(root.as_slice()).unwrap_or_default();
        Ok(below.split(|b| *b == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// `.wh.<marker>` in `parent` (IMG-WH-*).
    fn whiteout(&mut self, parent: &[Vec<u8>], marker: &[u8], path: &[Vec<u8>]) -> Result<()> {
        if matches!(marker, b"" | b"." | b"..") {
            return Err(Error::corrupt(
                "unpack",
                joined(path).display(),
                "a whiteout needs the name of what it removes",
            ));
        }
        if marker == b".wh..opq" {
            if parent.is_empty() {
                self.root_opaque = true;
                return Ok(());
            }
            let fd = self.parent(parent)?;
            return set_opaque(&*fd).map_err(|e| self.io(parent, e));
        }
        if marker.starts_with(b".wh.") {
            // aufs' own files (IMG-WH-08).
            return Ok(());
        }
        let parent = self.parent(parent)?;
        let name = os(marker);
        match stat_at(&parent, name).map_err(|e| self.io(path, e))? {
            None => {
                self.usage.inodes += 1;
                mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|e| self.io(path, e))
            }
            // Of this layer, so it stays (IMG-WH-04); a directory stops showing what lies below.
            Some(stat) if is_dir(&stat) => {
                let fd = openat(&parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                fd.and_then(set_opaque).map_err(|e| self.io(path, e))
            }
            Some(_) => Ok(()),
        }
    }

    /// Removes `name` and all below it.
    fn remove(&mut self, parent: impl AsFd, name: &OsStr, path: &[Vec<u8>]) -> Result<()> {
        self.last_parent = None;
        remove_tree(parent, name).map_err(|e| self.io(path, e))
    }

    /// Sets the times of directories: last, as writing into them changed them. Forgets implicit ones that are gone.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.last_parent = None;
        let root = &self.root;
        self.pending.implicit.retain(|inode, path| {
            open_dir_beneath(root, &joined(path))
                .is_ok_and(|fd| fstat(&fd).is_ok_and(|stat| stat.st_ino == *inode) && !is_opaque(&fd))
        });
        self.set_times()
    }

    pub(crate) fn set_times(&self) -> Result<()> {
        for (path, inode, times) in &self.times {
            let fd = match open_dir_in_root(&self.root, &joined(path)) {
                Ok(fd) => fd,
                // Replaced or removed by a later entry.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(e) => return Err(self.io(path, e)),
            };
            if self.inode(&fd)? == *inode {
                futimens(&fd, &times.stamps()).map_err(|e| self.io(path, e))?;
            }
        }
        Ok(())
    }
}

fn write_region<R: Read>(
    fd: &OwnedFd,
    offset: u64,
    length: u64,
    archive: &mut Archive<R>,
    failed: &impl Fn(Errno) -> Error,
) -> Result<()> {
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let mut piece = archive.content(end - at)?;
        if piece.is_empty() {
            return Err(Error::corrupt("read tar", "content", "a file is shorter than its header says"));
        }
        while !piece.is_empty() {
            let written = rustix::io::pwrite(fd, piece, at).map_err(failed)?;
            at += written as u64;
            piece = &piece[written..];
        }
    }
    Ok(())
}

fn set_opaque(fd: impl AsFd) -> rustix::io::Result<()> {
    fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty())
}

pub(crate) fn is_opaque(fd: impl AsFd) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::fgetxattr(fd, OPAQUE, &mut value), Ok(1) if value[0] == b'y')
}

/// Removes `name` in `parent` and all below it, by descriptors; symlinks are removed, not followed. Missing is fine.
///
/// Any depth takes one descriptor and a constant stack: entries behind symlinks can lie thousands of levels deeper than
/// their names (archive::Limits bounds those only). The tree must be the caller's alone: the way up is `..`.
pub(crate) fn remove_tree(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
    match unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(e) => return Err(e),
    }
    let mut here = openat(&parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let mut way = Vec::new();
    loop {
        if let Some(below) = empty_but_for_a_directory(&here)? {
            here = openat(&here, os(&below), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
            way.push(below);
        } else if let Some(emptied) = way.pop() {
            here = openat(&here, "..", DIRECTORY, Mode::empty())?;
            unlinkat(&here, os(&emptied), AtFlags::REMOVEDIR)?;
        } else {
            return unlinkat(&parent, name, AtFlags::REMOVEDIR);
        }
    }
}

/// Removes what is no directory until it meets one, whose name is the answer; none: the directory is empty.
fn empty_but_for_a_directory(dir: &OwnedFd) -> rustix::io::Result<Option<Vec<u8>>> {
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        match unlinkat(dir, os(name), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => return Ok(Some(name.to_vec())),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
