//! The descriptors of a launch: every `Prepare` of a program, the streams, the cgroup.
//!
//! All of them are above 2, because the child puts its streams at 0, 1 and 2 while it still needs the others.

use super::bind::{self, Maps};
use super::device::Nodes;
use super::{Launch, Stdio, filesystem};
use crate::cgroup::Join;
use crate::error::Kind;
use crate::namespace::NamespaceKind;
use crate::program::{Prepare, Program};
use crate::seccomp::Filter;
use crate::sys::child::ABSENT;
use crate::sys::raw::MountAttr;
use crate::sys::step::Handle;
use crate::sys::{mount, namespace, process};
use crate::{Error, Result, idmap, rootfs};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicI32;

/// Everything a script borrows. Dropping it unmounts what was not placed.
#[derive(Debug)]
pub(super) struct Prepared<'a> {
    /// By handle; absent where nothing is there and nothing is needed.
    descriptors: Vec<Option<OwnedFd>>,
    target: Option<BorrowedFd<'a>>,
    numbers: Vec<AtomicI32>,
    stdio: [OwnedFd; 3],
    join: Option<Join>,
    listener: Option<OwnedFd>,
    preserved: Vec<i32>,
    filter: Vec<libc::sock_filter>,
    filter_flags: u32,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(program: &Program, mut launch: Launch<'a>) -> Result<Self> {
        let mut maker = Maker {
            root: launch.root.take(),
            user: launch.user.take(),
            given: std::mem::take(&mut launch.given).into_iter().map(Some).collect(),
            maps: Maps::default(),
            nodes: Nodes::default(),
        };
        let mut descriptors = Vec::with_capacity(program.prepare.len());
        for (number, prepare) in program.prepare.iter().enumerate() {
            let made = match prepare {
                Prepare::CopyUp { plan, below, owner } => made_root(program, &descriptors)
                    .and_then(|root| filesystem::copy_up(plan, root, below, *owner))
                    .map(Some),
                _ => maker.make(prepare),
            };
            let made = made.map_err(|error| error.quoting(&program.preparation(number)))?;
            let made = made.map(raise).transpose()?;
            if let (Some((handle, mappings)), Some(user)) = (&program.user, &made)
                && handle.0 == number
            {
                maker.maps.know(mappings, user)?;
            }
            descriptors.push(made);
        }
        let target = launch.target.map(|fd| fd.as_raw_fd());
        let numbers = program.prepare.iter().zip(&descriptors).map(|(prepare, fd)| match prepare {
            Prepare::Target => target.unwrap_or(ABSENT),
            _ => fd.as_ref().map_or(ABSENT, AsRawFd::as_raw_fd),
        });
        let (filter, filter_flags) = filter_words(launch.filter.as_ref())?;
        Ok(Self {
            numbers: numbers.map(AtomicI32::new).collect(),
            target: launch.target,
            stdio: streams(launch.stdio)?,
            join: launch.join.map(raise_join).transpose()?,
            listener: launch.listener.map(raise).transpose()?,
            preserved: launch.preserved,
            descriptors,
            filter,
            filter_flags,
        })
    }

    pub(super) fn numbers(&self) -> &[AtomicI32] {
        &self.numbers
    }

    pub(super) fn get(&self, handle: Handle) -> Result<BorrowedFd<'_>> {
        let made = self.descriptors.get(handle.0).and_then(Option::as_ref).map(AsFd::as_fd);
        let missing =
            || Error::new(Kind::Invalid, "clone the process", "the program names a descriptor it lacks");
        made.or(self.target).ok_or_else(missing)
    }

    pub(super) fn stdio(&self) -> [i32; 3] {
        self.stdio.each_ref().map(AsRawFd::as_raw_fd)
    }

    pub(super) fn tasks(&self) -> Vec<i32> {
        match &self.join {
            Some(Join::WriteTasks(tasks)) => tasks.iter().map(AsRawFd::as_raw_fd).collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        match &self.join {
            Some(Join::CloneInto(group)) => Some(group.as_fd()),
            _ => None,
        }
    }

    pub(super) fn listener(&self) -> i32 {
        self.listener.as_ref().map_or(ABSENT, AsRawFd::as_raw_fd)
    }

    pub(super) fn preserved(&self) -> &[i32] {
        &self.preserved
    }

    pub(super) fn filter(&self) -> &[libc::sock_filter] {
        &self.filter
    }

    pub(super) fn filter_flags(&self) -> u32 {
        self.filter_flags
    }
}

/// The root filesystem among what is made already.
fn made_root<'a>(program: &Program, made: &'a [Option<OwnedFd>]) -> Result<&'a OwnedFd> {
    let at = program.prepare.iter().position(|prepare| matches!(prepare, Prepare::Root(_)));
    let missing = || Error::new(Kind::Invalid, "prepare", "the program names no root filesystem before");
    at.and_then(|at| made.get(at)).and_then(Option::as_ref).ok_or_else(missing)
}

/// What is made once and used by several.
struct Maker {
    root: Option<OwnedFd>,
    user: Option<OwnedFd>,
    given: Vec<Option<OwnedFd>>,
    maps: Maps,
    nodes: Nodes,
}

impl Maker {
    fn make(&mut self, prepare: &Prepare) -> Result<Option<OwnedFd>> {
        match prepare {
            Prepare::Root(rootfs) => match self.root.take() {
                Some(root) => Ok(Some(root)),
                None => rootfs::mount_root(rootfs, None).map(Some),
            },
            Prepare::Bind(plan) => bind::tree(plan, &mut self.maps).map(Some),
            Prepare::NewUser { mappings, setgroups } => match self.user.take() {
                Some(user) => Ok(Some(user)),
                None => idmap::user_namespace(mappings, *setgroups).map(Some),
            },
            Prepare::NewTime { offsets } => time(offsets).map(Some),
            Prepare::Device { plan, label } => self.nodes.make(plan, label.as_deref()).map(Some),
            Prepare::Group { path, readonly } => group(path, *readonly),
            Prepare::FileSystem(plan) => filesystem::foreign(plan).map(Some),
            // Made by the caller, who has the root.
            Prepare::CopyUp { .. } => Ok(None),
            Prepare::Null => null().map(Some),
            Prepare::Namespace { kind, path } => open_namespace(*kind, path).map(Some),
            Prepare::Given { kind, index } => {
                let fd = self.given.get_mut(*index).and_then(Option::take);
                let missing = || {
                    Error::new(Kind::Invalid, "join a namespace", format!("no {kind} descriptor was given"))
                };
                fd.map(Some).ok_or_else(missing)
            }
            Prepare::TargetRoot => {
                let missing =
                    || Error::new(Kind::Invalid, "enter the container", "no root directory was given");
                self.root.take().map(Some).ok_or_else(missing)
            }
            Prepare::Target | Prepare::InChild { .. } => Ok(None),
            Prepare::Reaper => reaper().map(Some),
            Prepare::Empty => empty().map(Some),
        }
    }
}

fn group(path: &Path, readonly: bool) -> Result<Option<OwnedFd>> {
    let group = match mount::clone_path(&c_path(path)?, false) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        other => {
            other.map_err(|e| Error::sys("prepare a control group mount", path.display().to_string(), e))?
        }
    };
    let usual = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let set = usual | if readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attr = MountAttr { set, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount::set_attributes(&group, false, &attr)
        .map_err(|e| Error::sys("set mount attributes", path.display().to_string(), e))?;
    Ok(Some(group))
}

/// The host's /dev/null, checked to be it, as a private mount of its own.
fn null() -> Result<OwnedFd> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let error = |e: io::Error| Error::sys("prepare the mask", "/dev/null", e);
    let file = File::open("/dev/null").map_err(error)?;
    let meta = file.metadata().map_err(error)?;
    if !meta.file_type().is_char_device() || meta.rdev() != libc::makedev(1, 3) {
        let hint = "restore it: mknod -m 666 /dev/null c 1 3";
        return Err(
            Error::new(Kind::Unsupported, "prepare the mask", "/dev/null is not the null device").hint(hint)
        );
    }
    let tree = mount::clone_fd(&file, false).map_err(error)?;
    let attr =
        MountAttr { set: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount::set_attributes(&tree, false, &attr).map_err(error)?;
    Ok(tree)
}

/// The reaper's program: static, and in need of nothing. It is a pause container's, too, for those who need such a thing.
pub static REAPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reaper"));

/// The reaper as a sealed memfd: a program without a path, which nobody can change.
fn reaper() -> Result<OwnedFd> {
    process::sealed_program("slipway-reaper", REAPER)
        .map_err(|e| Error::sys("prepare the reaper", "memfd_create", e))
}

fn empty() -> Result<OwnedFd> {
    let attributes =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let options = [("nr_inodes", Some("1"))];
    mount::fresh("tmpfs", &options, attributes).map_err(|e| Error::sys("prepare an empty root", "tmpfs", e))
}

fn time(offsets: &str) -> Result<OwnedFd> {
    namespace::new_time(offsets).map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::EINVAL) => "this kernel has no time namespaces (CONFIG_TIME_NS)",
            Some(libc::ERANGE) => "the clock would be before 0 or beyond 146 years",
            _ => "see time_namespaces(7)",
        };
        Error::sys("make a time namespace", offsets.trim_end().replace('\n', ", "), e).hint(hint)
    })
}

fn open_namespace(kind: NamespaceKind, path: &Path) -> Result<OwnedFd> {
    let opened = File::open(path).map_err(|e| {
        Error::sys(format!("open the {kind} namespace"), path.display().to_string(), e)
            .hint("the path must name a namespace file, such as one below /proc/<pid>/ns or /run/netns")
    })?;
    Ok(opened.into())
}

/// Three descriptors above 2; what is absent is /dev/null.
fn streams(stdio: Stdio) -> Result<[OwnedFd; 3]> {
    let stream = |given: Option<OwnedFd>| match given {
        Some(fd) => raise(fd),
        None => {
            let null = File::options().read(true).write(true).open("/dev/null");
            raise(null.map_err(|e| Error::sys("open a standard stream", "/dev/null", e))?.into())
        }
    };
    Ok([stream(stdio.stdin)?, stream(stdio.stdout)?, stream(stdio.stderr)?])
}

fn raise(fd: OwnedFd) -> Result<OwnedFd> {
    process::raised(fd).map_err(|e| Error::sys("prepare a descriptor", "fcntl F_DUPFD_CLOEXEC", e))
}

fn raise_join(join: Join) -> Result<Join> {
    Ok(match join {
        Join::CloneInto(group) => Join::CloneInto(raise(group)?),
        Join::WriteTasks(tasks) => Join::WriteTasks(tasks.into_iter().map(raise).collect::<Result<_>>()?),
    })
}

fn filter_words(filter: Option<&Filter>) -> Result<(Vec<libc::sock_filter>, u32)> {
    let Some(filter) = filter else { return Ok((Vec::new(), 0)) };
    let word = |&(code, jt, jf, k): &(u16, u8, u8, u32)| libc::sock_filter { code, jt, jf, k };
    Ok((filter.instructions.iter().map(word).collect(), filter.flags))
}

pub(super) fn c_path(path: &Path) -> Result<CString> {
    let error = || Error::new(Kind::Invalid, "prepare", format!("{}: contains a NUL byte", path.display()));
    CString::new(path.as_os_str().as_bytes()).map_err(|_| error())
}
