//! What a layer owes to the layers below it: attributes of implicit directories, hard links to lower files.

use super::archive::Components;
pub(crate) use super::attributes::is_overlay_mark;
use super::attributes::{Attributes, Times};
use super::tree::{Tree, is_dir, is_opaque, is_whiteout, joined, open_dir_beneath, os, remove_tree, stat_at};
use crate::{Error, Result};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, Timespec, fgetxattr, flistxattr, futimens, linkat, mkdirat,
    mknodat, openat, readlinkat, renameat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Layers as overlayfs would show them, top first.
pub(crate) struct Stack<'a> {
    pub(crate) layers: Vec<BorrowedFd<'a>>,
}

/// Something in a stack: in which layer's directory, under which name.
struct Found {
    parent: OwnedFd,
    name: Vec<u8>,
    stat: Stat,
}

impl Found {
    fn attributes(&self) -> rustix::io::Result<Attributes> {
        let xattrs = match FileType::from_raw_mode(self.stat.st_mode) {
            FileType::Directory | FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                xattrs(&openat(&self.parent, os(&self.name), flags, Mode::empty())?)?
            }
            _ => Vec::new(),
        };
        let stat = &self.stat;
        #[allow(clippy::unnecessary_cast, reason = "the field types differ between architectures")]
        let times = Times {
            atime: Timespec { tv_sec: stat.st_atime as i64, tv_nsec: stat.st_atime_nsec as _ },
            mtime: Timespec { tv_sec: stat.st_mtime as i64, tv_nsec: stat.st_mtime_nsec as _ },
        };
        Ok(Attributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, times, xattrs })
    }
}

/// Extended attributes of an open file, without overlayfs' own marks.
pub(crate) fn xattrs(fd: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0u8; 64 << 10];
    let length = match flistxattr(fd, &mut names) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty() && !is_overlay_mark(name)) {
        let mut value = vec![0u8; 64 << 10];
        let length = fgetxattr(fd, os(name), &mut value)?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

impl Stack<'_> {
    /// What is at `path` (real components); None if nothing, or hidden.
    fn at(&self, path: &[Vec<u8>]) -> rustix::io::Result<Option<Found>> {
        for layer in &self.layers {
            match in_layer(*layer, path)? {
                Lookup::Found(found) => return Ok(Some(found)),
                Lookup::Hidden => return Ok(None),
                Lookup::Absent => {}
            }
        }
        Ok(None)
    }

    /// The real path of `path`, symlinks followed inside the root, and what is there. The last component is followed
    /// only if `follow`. Missing components are kept as they are written.
    fn resolve(&self, path: &[Vec<u8>], follow: bool) -> rustix::io::Result<(Components, Option<Found>)> {
        let mut todo: VecDeque<Vec<u8>> = path.iter().cloned().collect();
        let mut real = Components::new();
        let mut found = None;
        let mut links = 0;
        while let Some(component) = todo.pop_front() {
            if component == b".." {
                real.pop();
                continue;
            }
            real.push(component);
            found = self.at(&real)?;
            let is_link = |found: &Found| FileType::from_raw_mode(found.stat.st_mode) == FileType::Symlink;
            let Some(link) = found.as_ref().filter(|found| is_link(found) && (follow || !todo.is_empty()))
            else {
                continue;
            };
            links += 1;
            if links > 40 {
                return Err(Errno::LOOP);
            }
            let target = readlinkat(&link.parent, os(&link.name), Vec::new())?.into_bytes();
            real.pop();
            if target.starts_with(b"/") {
                real.clear();
            }
            for part in target.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).rev() {
                todo.push_front(part.to_vec());
            }
        }
        Ok((real, found))
    }
}

enum Lookup {
    Found(Found),
    /// A whiteout, an opaque directory or a file in the way: lower layers do not count.
    Hidden,
    Absent,
}

fn in_layer(layer: BorrowedFd<'_>, path: &[Vec<u8>]) -> rustix::io::Result<Lookup> {
    let mut directory = open_dir_beneath(layer, &joined(&[]))?;
    let mut opaque = false;
    for (index, component) in path.iter().enumerate() {
        let Some(stat) = stat_at(&directory, os(component))? else {
            return Ok(if opaque { Lookup::Hidden } else { Lookup::Absent });
        };
        if is_whiteout(&stat) {
            return Ok(Lookup::Hidden);
        }
        if index + 1 == path.len() {
            return Ok(Lookup::Found(Found { parent: directory, name: component.clone(), stat }));
        }
        if !is_dir(&stat) {
            return Ok(Lookup::Hidden);
        }
        directory = open_dir_beneath(&directory, &joined(std::slice::from_ref(component)))?;
        opaque |= is_opaque(&directory);
    }
    Ok(Lookup::Absent)
}

/// Settles what `tree` left open, with `lower` below it (top first).
pub(crate) fn settle(tree: &mut Tree, lower: &Stack<'_>) -> Result<()> {
    if tree.pending.is_empty() {
        return Ok(());
    }
    let mut late_times = Vec::new();
    implicit_directories(tree, lower, &mut late_times)?;
    for link in std::mem::take(&mut tree.pending.links) {
        deferred_link(tree, lower, &link.link, &link.target, &mut late_times)?;
    }
    tree.pending.implicit.clear();
    tree.set_times()?;
    for (path, times) in late_times {
        let set = open_dir_beneath(tree.root(), &joined(&path)).and_then(|fd| futimens(&fd, &times.stamps()));
        match set {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(failed(&path, e)),
        }
    }
    Ok(())
}

type LateTimes = Vec<(Components, Times)>;

fn failed(path: &[Vec<u8>], error: Errno) -> Error {
    Error::io("settle layer", &joined(path), error)
}

fn implicit_directories(tree: &mut Tree, lower: &Stack<'_>, late: &mut LateTimes) -> Result<()> {
    let mut paths: Vec<Components> = tree.pending.implicit.values().cloned().collect();
    paths.sort();
    let mut queue: VecDeque<Components> = paths.into();
    while let Some(path) = queue.pop_front() {
        let (real, found) = lower.resolve(&path, true).map_err(|e| failed(&path, e))?;
        let Some(found) = found.filter(|found| is_dir(&found.stat)) else {
            continue;
        };
        if real != path {
            graft(tree, lower, &path, &real, late)?;
            for other in &mut queue {
                if other.starts_with(&path) {
                    let tail = other.split_off(path.len());
                    *other = real.iter().cloned().chain(tail).collect();
                }
            }
            continue;
        }
        // A graft may have moved it away.
        match open_dir_beneath(tree.root(), &joined(&path)) {
            Ok(fd) => copy_attributes(&fd, &found, &path, late).map_err(|e| failed(&path, e))?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(&path, e)),
        }
    }
    Ok(())
}

fn copy_attributes(
    fd: &OwnedFd,
    from: &Found,
    path: &[Vec<u8>],
    late: &mut LateTimes,
) -> rustix::io::Result<()> {
    let attributes = from.attributes()?;
    attributes.apply(fd)?;
    late.push((path.to_vec(), attributes.times));
    Ok(())
}

/// Below, `from` is a symlink to the directory `to`: what lies in our `from` belongs there.
fn graft(
    tree: &Tree,
    lower: &Stack<'_>,
    from: &[Vec<u8>],
    to: &[Vec<u8>],
    late: &mut LateTimes,
) -> Result<()> {
    let target = make_directories(tree, lower, to, late)?;
    let source = open_dir_beneath(tree.root(), &joined(from)).map_err(|e| failed(from, e))?;
    merge(&source, &target).map_err(|e| failed(from, e))?;
    drop(source);
    let Some((name, parent)) = from.split_last() else { return Ok(()) };
    let parent = open_dir_beneath(tree.root(), &joined(parent)).map_err(|e| failed(from, e))?;
    remove_tree(&parent, os(name)).map_err(|e| failed(from, e))
}

/// Moves all that is in `from` into `to`. Goes down and up by names, so that depth costs neither stack nor descriptors;
/// nobody else is in these directories.
fn merge(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let below = |dir: &OwnedFd, name: &[u8]| open_dir_beneath(dir, &joined(&[name.to_vec()]));
    let above = |dir: &OwnedFd| {
        openat(dir, "..", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let (mut from, mut to) = (below(from, b".")?, below(to, b".")?);
    let mut way = Vec::new();
    loop {
        if let Some(name) = moved_but_for_a_directory(&from, &to)? {
            (from, to) = (below(&from, &name)?, below(&to, &name)?);
            way.push(name);
        } else if let Some(emptied) = way.pop() {
            (from, to) = (above(&from)?, above(&to)?);
            unlinkat(&from, os(&emptied), AtFlags::REMOVEDIR)?;
        } else {
            return Ok(());
        }
    }
}

/// Moves entries until it meets a directory that is one in `to`, too, whose name is the answer; none: `from` is empty.
fn moved_but_for_a_directory(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<Option<Vec<u8>>> {
    let entries = rustix::fs::Dir::read_from(from)?.collect::<rustix::io::Result<Vec<_>>>()?;
    for entry in entries {
        let bytes = entry.file_name().to_bytes();
        if matches!(bytes, b"." | b"..") {
            continue;
        }
        let name = os(bytes);
        let (ours, theirs) = (stat_at(from, name)?, stat_at(to, name)?);
        if ours.as_ref().is_some_and(is_dir) && theirs.as_ref().is_some_and(is_dir) {
            return Ok(Some(bytes.to_vec()));
        }
        if theirs.is_some() {
            remove_tree(to, name)?;
        }
        renameat(from, name, to, name)?;
    }
    Ok(None)
}

/// The directory `path` in our layer, made with the attributes it has below where it is missing.
fn make_directories(
    tree: &Tree,
    lower: &Stack<'_>,
    path: &[Vec<u8>],
    late: &mut LateTimes,
) -> Result<OwnedFd> {
    let mut directory = open_dir_beneath(tree.root(), &joined(&[])).map_err(|e| failed(path, e))?;
    for (index, component) in path.iter().enumerate() {
        let here = &path[..=index];
        let one = joined(std::slice::from_ref(component));
        let next = match open_dir_beneath(&directory, &one) {
            Err(Errno::NOENT) => {
                mkdirat(&directory, os(component), Mode::RWXU).map_err(|e| failed(here, e))?;
                let made = open_dir_beneath(&directory, &one).map_err(|e| failed(here, e))?;
                if let Some(below) = lower.at(here).map_err(|e| failed(here, e))? {
                    copy_attributes(&made, &below, here, late).map_err(|e| failed(here, e))?;
                }
                made
            }
            other => other.map_err(|e| failed(here, e))?,
        };
        directory = next;
    }
    Ok(directory)
}

/// Links `link` to `target`, which is copied up if only lower layers have it.
fn deferred_link(
    tree: &Tree,
    lower: &Stack<'_>,
    link: &[Vec<u8>],
    target: &[Vec<u8>],
    late: &mut LateTimes,
) -> Result<()> {
    let Some((link_name, link_parent)) = link.split_last() else { return Ok(()) };
    let parent = match open_dir_beneath(tree.root(), &joined(link_parent)) {
        Ok(parent) => parent,
        // Its directory moved to where a lower symlink leads: so does the link.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            let (real, _) = lower.resolve(link_parent, true).map_err(|e| failed(link, e))?;
            make_directories(tree, lower, &real, late)?
        }
        Err(e) => return Err(failed(link, e)),
    };
    match stat_at(&parent, os(link_name)).map_err(|e| failed(link, e))? {
        Some(stat) if is_whiteout(&stat) => {
            remove_tree(&parent, os(link_name)).map_err(|e| failed(link, e))?
        }
        // A later entry took the name.
        Some(_) => return Ok(()),
        None => {}
    }
    let all = Stack { layers: std::iter::once(tree.root()).chain(lower.layers.iter().copied()).collect() };
    let (real, found) = all.resolve(target, false).map_err(|e| failed(target, e))?;
    let missing = |why| {
        Error::corrupt("unpack", joined(link).display(), format!("{why}: {}", joined(target).display()))
    };
    let found = found.ok_or_else(|| missing("hard link to what no layer has"))?;
    if is_dir(&found.stat) {
        return Err(missing("hard link to a directory"));
    }
    let Some((name, above)) = real.split_last() else { return Ok(()) };
    let directory = make_directories(tree, lower, above, late)?;
    if stat_at(&directory, os(name)).map_err(|e| failed(target, e))?.is_none() {
        copy_up(&found, &directory, name).map_err(|e| failed(target, e))?;
    }
    linkat(&directory, os(name), &parent, os(link_name), AtFlags::empty()).map_err(|e| failed(link, e))
}

/// Copies a file that is no directory from a lower layer to `name` in `directory`.
fn copy_up(from: &Found, directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    let name = os(name);
    let attributes = from.attributes()?;
    let read_write = Mode::RUSR | Mode::WUSR;
    match FileType::from_raw_mode(from.stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut source = std::fs::File::from(openat(&from.parent, os(&from.name), flags, Mode::empty())?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut target = std::fs::File::from(openat(directory, name, flags, read_write)?);
            std::io::copy(&mut source, &mut target)
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
            attributes.apply(target.as_fd())
        }
        FileType::Symlink => {
            let target = readlinkat(&from.parent, os(&from.name), Vec::new())?;
            symlinkat(&target, directory, name)?;
            attributes.apply_at(directory, name, true)
        }
        kind => {
            mknodat(directory, name, kind, read_write, from.stat.st_rdev)?;
            attributes.apply_at(directory, name, false)
        }
    }
}
