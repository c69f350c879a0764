//! Steps of the child that change its file system tree.
//!
//! After [`Step::EnterRoot`] the working directory is the container's root, and every path is resolved below it by
//! openat2 RESOLVE_IN_ROOT without magic links; what is then acted on is the descriptor, never the path again.

use super::child::{ABSENT, Child, Fd, Report, TERMINAL, forgive, open_host};
use super::raw::{self, MountAttr, OpenHow, Raw, call, ptr, word};
use super::step::{FreshMount, Node, Step, Target, TargetKind};
use std::ffi::CStr;

const HERE: i32 = libc::AT_FDCWD;
const IN_ROOT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
const PATH: u64 = (libc::O_PATH | libc::O_CLOEXEC) as u64;
const FSCONFIG_SET_FLAG: usize = 0;
const FSCONFIG_SET_STRING: usize = 1;
const FSCONFIG_CMD_CREATE: usize = 6;
const PATH_BYTES: usize = libc::PATH_MAX as usize;

impl Child<'_> {
    pub(super) fn file_system_step(&mut self, step: &Step) -> Raw<()> {
        match step {
            Step::DetachPropagation => {
                let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
                raw::mount_setattr(HERE, c"/", true, &private).map(drop)
            }
            Step::GoToPlace(at) => call(libc::SYS_chdir, [ptr(at), 0, 0, 0, 0, 0]).map(drop),
            Step::EnterRoot(root) => {
                // A devpts of the tree that is left behind is not the container's.
                self.devpts = None;
                enter_root(self.descriptor(*root)?)
            }
            Step::HangRoot { root, at } => hang_root(self.descriptor(*root)?, at),
            Step::Pivot => pivot(),
            Step::MoveRoot(root) => move_root(root.map(|root| self.descriptor(root)).transpose()?),
            Step::CopyRoot { into } => self.keep(*into, raw::clone_tree(HERE, c"/", true)?),
            Step::ChangeRoot(root) => change_root(self.descriptor(*root)?),
            Step::MountFresh { mount, target, propagation, recursive } => {
                self.mount_fresh(mount, target, propagation.as_ref().map(|p| (p, *recursive)))
            }
            Step::MakeMount { mount, into, propagation, recursive } => {
                let made = make_mount(mount, None)?;
                if let Some(attr) = propagation {
                    raw::mount_setattr(made.0, c"", *recursive, attr)?;
                }
                self.keep(*into, made.0)?;
                core::mem::forget(made);
                Ok(())
            }
            Step::Place { from, target } => {
                let from = self.descriptor(*from)?;
                if from == ABSENT {
                    return Ok(());
                }
                let onto = open_target(target, target_is_directory(target.kind, from)?)?;
                raw::move_mount(from, onto.0, c"").map(drop)
            }
            Step::MakeDirectory(path) => make_directories(path),
            Step::Symlink { target, path } => with_parent(path, |parent, name| {
                let made = call(libc::SYS_symlinkat, [ptr(target), word(parent), ptr(name), 0, 0, 0]);
                forgive(made, libc::EEXIST)
            }),
            Step::MakeNode(node) => make_node(node),
            Step::SetAttributes { path, recursive, attr } => {
                let at = open_existing(path, 0)?;
                raw::mount_setattr(at.0, c"", *recursive, attr).map(drop)
            }
            Step::Mask { path, null, label } => self.mask(path, self.descriptor(*null)?, label.as_deref()),
            Step::ReadOnly(path) => read_only(path),
            Step::OpenTerminal => self.open_terminal(),
            Step::BindConsole => self.bind_console(),
            // The dispatcher in `child` sends only the steps above here.
            _ => Err(libc::ENOSYS),
        }
    }

    fn mount_fresh(
        &mut self,
        mount: &FreshMount,
        target: &Target,
        propagation: Option<(&MountAttr, bool)>,
    ) -> Raw<()> {
        let mode = if mount.inherit_mode { existing_mode(target)? } else { None };
        let made = make_mount(mount, mode)?;
        if let Some((attr, recursive)) = propagation {
            raw::mount_setattr(made.0, c"", recursive, attr)?;
        }
        let onto = open_target(target, true)?;
        raw::move_mount(made.0, onto.0, c"")?;
        if mount.fstype.as_c_str() == c"devpts" {
            // Kept for the terminal; CloseAll ends it.
            self.devpts = Some(made.0);
            core::mem::forget(made);
        }
        Ok(())
    }

    /// Covers a path. The first cover of each kind is placed itself, the later ones are clones of it: only a mount of our
    /// own namespace can be cloned.
    fn mask(&mut self, path: &CStr, null: i32, label: Option<&CStr>) -> Raw<()> {
        let onto = match open_existing(path, 0) {
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            opened => opened?,
        };
        if mode_of(onto.0)? & libc::S_IFMT == libc::S_IFDIR {
            self.empty_cover = Some(cover(self.empty_cover, onto.0, || make_empty_directory(label))?);
        } else {
            self.null_cover = Some(cover(self.null_cover, onto.0, || Ok(null))?);
        }
        Ok(())
    }

    /// Opens the multiplexer of the container's own devpts, and sends its master to the parent.
    fn open_terminal(&mut self) -> Raw<()> {
        let rights = (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
        let how = OpenHow { flags: rights, mode: 0, resolve: IN_ROOT | libc::RESOLVE_NO_SYMLINKS };
        let master = match self.devpts {
            Some(devpts) => raw::openat2(devpts, c"ptmx", how)?,
            None => raw::openat2(HERE, c"dev/pts/ptmx", how)?,
        };
        let master = Fd(master);
        if file_system_of(master.0)? != libc::DEVPTS_SUPER_MAGIC as u64 {
            return Err(libc::ENODEV);
        }
        let unlocked = 0i32;
        let lock = [word(master.0), libc::TIOCSPTLCK as usize, &raw const unlocked as usize, 0, 0, 0];
        call(libc::SYS_ioctl, lock)?;
        let peer = [word(master.0), libc::TIOCGPTPEER as usize, rights as usize, 0, 0, 0];
        self.terminal = Some(call(libc::SYS_ioctl, peer)? as i32);
        self.send(Report { step: TERMINAL, errno: 0 }, Some(master.0))
    }

    fn bind_console(&self) -> Raw<()> {
        let Some(terminal) = self.terminal else { return Err(libc::EBADF) };
        let copy = Fd(raw::clone_tree(terminal, c"", false)?);
        let onto = match open_existing(c"dev/console", libc::RESOLVE_NO_SYMLINKS) {
            Err(libc::ENOENT) => {
                make_file(c"dev/console")?;
                open_existing(c"dev/console", libc::RESOLVE_NO_SYMLINKS)?
            }
            opened => opened?,
        };
        raw::move_mount(copy.0, onto.0, c"").map(drop)
    }
}

/// Covers `/` of our private mount namespace by the new root, makes it the root, and lets the old tree go. The old root
/// ends up on top of the new one, where `.` finds it (pivot_root(2), "pivot_root(".", ".")").
fn enter_root(root: i32) -> Raw<()> {
    raw::move_mount(root, HERE, c"/")?;
    call(libc::SYS_fchdir, [word(root), 0, 0, 0, 0, 0])?;
    pivot()
}

fn hang_root(root: i32, at: &CStr) -> Raw<()> {
    let onto = Fd(open_host(at, libc::O_PATH | libc::O_DIRECTORY)?);
    raw::move_mount(root, onto.0, c"")?;
    call(libc::SYS_fchdir, [word(root), 0, 0, 0, 0, 0]).map(drop)
}

/// Makes the working directory, which is a mount, the root.
fn pivot() -> Raw<()> {
    call(libc::SYS_pivot_root, [ptr(c"."), ptr(c"."), 0, 0, 0, 0])?;
    call(libc::SYS_umount2, [ptr(c"."), libc::MNT_DETACH as usize, 0, 0, 0, 0])?;
    call(libc::SYS_chdir, [ptr(c"/"), 0, 0, 0, 0, 0]).map(drop)
}

/// chroot(2) can be left by who may call it again: then at least the host's procfs and sysfs are not there.
fn move_root(root: Option<i32>) -> Raw<()> {
    for path in [c"/proc", c"/sys"] {
        // EINVAL where nothing is mounted.
        let _ = call(libc::SYS_umount2, [ptr(path), libc::MNT_DETACH as usize, 0, 0, 0, 0]);
    }
    match root {
        Some(root) => {
            raw::move_mount(root, HERE, c"/")?;
            call(libc::SYS_fchdir, [word(root), 0, 0, 0, 0, 0])?;
        }
        None => {
            let here = Fd(open_host(c".", libc::O_PATH | libc::O_DIRECTORY)?);
            raw::move_mount(here.0, HERE, c"/")?;
        }
    }
    call(libc::SYS_chroot, [ptr(c"."), 0, 0, 0, 0, 0])?;
    call(libc::SYS_chdir, [ptr(c"/"), 0, 0, 0, 0, 0]).map(drop)
}

fn change_root(root: i32) -> Raw<()> {
    call(libc::SYS_fchdir, [word(root), 0, 0, 0, 0, 0])?;
    call(libc::SYS_chroot, [ptr(c"."), 0, 0, 0, 0, 0]).map(drop)
}

/// Permission bits of a directory, if it is there.
fn existing_mode(target: &Target) -> Raw<Option<u32>> {
    match open_existing(&target.path, 0) {
        Ok(at) => Ok(Some(mode_of(at.0)? & 0o7777)),
        Err(libc::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn make_mount(mount: &FreshMount, mode: Option<u32>) -> Raw<Fd> {
    const CLOEXEC: usize = 1;
    let context = Fd(call(libc::SYS_fsopen, [ptr(&mount.fstype), CLOEXEC, 0, 0, 0, 0])? as i32);
    let configure = |command: usize, key: usize, value: usize| {
        call(libc::SYS_fsconfig, [word(context.0), command, key, value, 0, 0]).map(drop)
    };
    configure(FSCONFIG_SET_STRING, ptr(c"source"), ptr(&mount.source))?;
    if let Some(mode) = mode {
        let digit = |shift: u32| b'0' + (mode >> shift & 7) as u8;
        let octal = [digit(9), digit(6), digit(3), digit(0), 0];
        configure(FSCONFIG_SET_STRING, ptr(c"mode"), octal.as_ptr() as usize)?;
    }
    for (key, value) in &mount.options {
        match value {
            Some(value) => configure(FSCONFIG_SET_STRING, ptr(key), ptr(value))?,
            None => configure(FSCONFIG_SET_FLAG, ptr(key), 0)?,
        }
    }
    configure(FSCONFIG_CMD_CREATE, 0, 0)?;
    let made = call(libc::SYS_fsmount, [word(context.0), CLOEXEC, mount.attributes as usize, 0, 0, 0])?;
    let made = Fd(made as i32);
    match mount.label.as_ref().map(|label| label_root(made.0, label)) {
        // No labels there; or the root of a pod's message queues is the host's, whom a user namespace does not know: what is made
        // in it has the policy's label for message queues then.
        None | Some(Ok(()) | Err(libc::EOPNOTSUPP | libc::EPERM)) => Ok(made),
        Some(Err(errno)) => Err(errno),
    }
}

/// Sets the SELinux label of a mount's root (xattr(7), security.selinux).
fn label_root(mount: i32, label: &CStr) -> Raw<()> {
    let flags = (libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    let root = Fd(raw::openat2(mount, c".", OpenHow { flags, mode: 0, resolve: 0 })?);
    let value = [ptr(label), label.to_bytes().len()];
    call(libc::SYS_fsetxattr, [word(root.0), ptr(c"security.selinux"), value[0], value[1], 0, 0]).map(drop)
}

/// An empty read-only tmpfs.
fn make_empty_directory(label: Option<&CStr>) -> Raw<i32> {
    const CLOEXEC: usize = 1;
    let context = Fd(call(libc::SYS_fsopen, [ptr(c"tmpfs"), CLOEXEC, 0, 0, 0, 0])? as i32);
    let configure = |command: usize, key: usize, value: usize| {
        call(libc::SYS_fsconfig, [word(context.0), command, key, value, 0, 0]).map(drop)
    };
    configure(FSCONFIG_SET_STRING, ptr(c"nr_inodes"), ptr(c"1"))?;
    if let Some(label) = label {
        configure(FSCONFIG_SET_STRING, ptr(c"context"), ptr(label))?;
    }
    configure(FSCONFIG_CMD_CREATE, 0, 0)?;
    let attributes =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    Ok(call(libc::SYS_fsmount, [word(context.0), CLOEXEC, attributes as usize, 0, 0, 0])? as i32)
}

/// Places `first()` on `onto`, or a clone of what it gave before. Answers the placed original.
fn cover(placed: Option<i32>, onto: i32, first: impl FnOnce() -> Raw<i32>) -> Raw<i32> {
    if let Some(original) = placed {
        let copy = Fd(raw::clone_tree(original, c"", false)?);
        raw::move_mount(copy.0, onto, c"")?;
        return Ok(original);
    }
    let original = first()?;
    raw::move_mount(original, onto, c"")?;
    Ok(original)
}

fn read_only(path: &CStr) -> Raw<()> {
    let at = match open_existing(path, 0) {
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
        opened => opened?,
    };
    let copy = Fd(raw::clone_tree(at.0, c"", true)?);
    let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    raw::mount_setattr(copy.0, c"", true, &attr)?;
    raw::move_mount(copy.0, at.0, c"").map(drop)
}

fn make_node(node: &Node) -> Raw<()> {
    with_parent(&node.path, |parent, name| {
        let device = libc::makedev(node.major, node.minor) as usize;
        let args = [word(parent), ptr(name), node.mode as usize, device, 0, 0];
        match call(libc::SYS_mknodat, args) {
            Err(libc::EEXIST) => return Ok(()),
            made => made?,
        };
        if node.uid == 0 && node.gid == 0 {
            return Ok(());
        }
        let flags = libc::AT_SYMLINK_NOFOLLOW as usize;
        let owner = [word(parent), ptr(name), node.uid as usize, node.gid as usize, flags, 0];
        call(libc::SYS_fchownat, owner).map(drop)
    })
}

/// Opens a mount target, made as a directory or an empty file if it is missing.
fn open_target(target: &Target, directory: bool) -> Raw<Fd> {
    let resolve = if target.no_symlinks { libc::RESOLVE_NO_SYMLINKS } else { 0 };
    let opened = match open_existing(&target.path, resolve) {
        Err(libc::ENOENT) => {
            if directory {
                make_directories(&target.path)?;
            } else {
                make_file(&target.path)?;
            }
            open_existing(&target.path, resolve)?
        }
        opened => opened?,
    };
    if target.refuse_procfs && file_system_of(opened.0)? == libc::PROC_SUPER_MAGIC as u64 {
        return Err(libc::EXDEV);
    }
    Ok(opened)
}

fn target_is_directory(kind: TargetKind, source: i32) -> Raw<bool> {
    match kind {
        TargetKind::Directory => Ok(true),
        TargetKind::File => Ok(false),
        TargetKind::LikeSource => Ok(mode_of(source)? & libc::S_IFMT == libc::S_IFDIR),
    }
}

fn open_existing(path: &CStr, resolve: u64) -> Raw<Fd> {
    open_below(HERE, path, PATH, resolve)
}

fn open_below(dir: i32, path: &CStr, flags: u64, resolve: u64) -> Raw<Fd> {
    let how = OpenHow { flags, mode: 0, resolve: IN_ROOT | resolve };
    loop {
        match raw::openat2(dir, path, how) {
            // EAGAIN: a rename elsewhere raced with the walk; the kernel asks to try again.
            Err(libc::EAGAIN | libc::EINTR) => {}
            answer => return answer.map(Fd),
        }
    }
}

/// mkdir -p below the root. Each prefix is opened from the root again, so that symlinks inside it resolve in it.
fn make_directories(path: &CStr) -> Raw<()> {
    let mut buffer = PathBuffer::new(path)?;
    let mut parent = open_existing(c".", 0)?;
    let directory = PATH | libc::O_DIRECTORY as u64;
    let mut start = 0;
    while let Some(end) = buffer.component_end(start) {
        let ended = buffer.cut(end);
        parent = match open_below(HERE, buffer.from(0), directory, 0) {
            Err(libc::ENOENT) => {
                let args = [word(parent.0), ptr(buffer.from(start)), 0o755, 0, 0, 0];
                forgive(call(libc::SYS_mkdirat, args), libc::EEXIST)?;
                open_below(HERE, buffer.from(0), directory, 0)?
            }
            opened => opened?,
        };
        buffer.restore(end, ended);
        start = end + 1;
    }
    Ok(())
}

fn make_file(path: &CStr) -> Raw<()> {
    with_parent(path, |parent, name| {
        let flags =
            (libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_WRONLY) as usize;
        let made = call(libc::SYS_openat, [word(parent), ptr(name), flags, 0o644, 0, 0])?;
        raw::close(made as i32);
        Ok(())
    })
}

/// Runs `act` with the directory that holds `path` (made if missing) and the last component.
fn with_parent(path: &CStr, act: impl FnOnce(i32, &CStr) -> Raw<()>) -> Raw<()> {
    let mut buffer = PathBuffer::new(path)?;
    let Some(slash) = buffer.last_slash() else {
        return act(HERE, path);
    };
    let ended = buffer.cut(slash);
    let parent = match open_existing(buffer.from(0), 0) {
        Err(libc::ENOENT) => {
            make_directories(buffer.from(0))?;
            open_existing(buffer.from(0), 0)?
        }
        opened => opened?,
    };
    buffer.restore(slash, ended);
    act(parent.0, buffer.from(slash + 1))
}

fn mode_of(fd: i32) -> Raw<u32> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH as usize;
    call(libc::SYS_newfstatat, [word(fd), ptr(c""), &raw mut stat as usize, flags, 0, 0])?;
    Ok(stat.st_mode)
}

fn file_system_of(fd: i32) -> Raw<u64> {
    // SAFETY: all-zero is a valid statfs.
    let mut stat: libc::statfs = unsafe { core::mem::zeroed() };
    call(libc::SYS_fstatfs, [word(fd), &raw mut stat as usize, 0, 0, 0, 0])?;
    Ok(stat.f_type as u64)
}

/// A path on the stack that can be cut at a slash and mended again. Out-of-range positions act on nothing.
struct PathBuffer {
    bytes: [u8; PATH_BYTES],
}

impl PathBuffer {
    fn new(path: &CStr) -> Raw<Self> {
        let mut bytes = [0; PATH_BYTES];
        let source = path.to_bytes_with_nul();
        let room = bytes.get_mut(..source.len()).ok_or(libc::ENAMETOOLONG)?;
        room.copy_from_slice(source);
        Ok(Self { bytes })
    }

    /// The path from `start` to the next NUL.
    fn from(&self, start: usize) -> &CStr {
        let tail = self.bytes.get(start..).unwrap_or_default();
        CStr::from_bytes_until_nul(tail).unwrap_or_default()
    }

    /// Where the component beginning at `start` ends (a slash or the NUL); none past the end.
    fn component_end(&self, start: usize) -> Option<usize> {
        let tail = self.bytes.get(start..)?;
        let length = tail.iter().position(|&b| b == b'/' || b == 0)?;
        if length == 0 { None } else { Some(start + length) }
    }

    fn last_slash(&self) -> Option<usize> {
        let length = self.from(0).count_bytes();
        self.bytes.get(..length)?.iter().rposition(|&b| b == b'/')
    }

    fn cut(&mut self, at: usize) -> u8 {
        self.bytes.get_mut(at).map_or(0, |byte| core::mem::replace(byte, 0))
    }

    fn restore(&mut self, at: usize, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(at) {
            *slot = byte;
        }
    }
}
