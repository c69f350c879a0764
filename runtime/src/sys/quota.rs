//! Project quotas of a file system: what the trees of a project hold, and may hold, counted by the kernel
//! (quotactl(2), quotactl_fd(2) of Linux 5.14, FS_IOC_FSSETXATTR of ioctl_xfs_fsgetxattr(2)).
//!
//! ext4 has them with its features `quota` and `project` (mounted with `prjquota` they are limits, too), XFS when mounted
//! with `prjquota`.

use super::raw::{call, word};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const PROJECT: usize = 2;
const Q_GETQUOTA: usize = 0x80_0007;
const Q_SETQUOTA: usize = 0x80_0008;
const Q_XGETQSTATV: usize = ((b'X' as usize) << 8) + 8;
/// `dqb_valid` of a call that sets the limits of blocks.
const QIF_BLIMITS: u32 = 1;
const LIMIT_UNIT: u64 = 1024;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_on_write_extent_size: u32,
    padding: [u8; 8],
}

const FS_IOC_FSGETXATTR: usize = 0x801c_581f;
const FS_IOC_FSSETXATTR: usize = 0x401c_5820;
/// What is made in the directory belongs to its project, and hands it on.
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// `struct if_dqblk` (linux/quota.h); limits in units of 1024 bytes, space in bytes.
#[repr(C)]
#[derive(Default)]
struct Block {
    hard_limit: u64,
    soft_limit: u64,
    space: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// `struct fs_quota_statv` (linux/dqblk_xfs.h).
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    pad: u8,
    flags: u16,
    in_core: u32,
    files: [u64; 9],
    limits_and_spare: [u64; 10],
}

const VERSION_OF_STATE: i8 = 1;
const PROJECTS_COUNTED: u16 = 1 << 4;
const PROJECTS_LIMITED: u16 = 1 << 5;

/// What a file system does with projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Support {
    Nothing,
    /// Counts what they hold.
    Counts,
    /// And refuses (EDQUOT) what goes beyond their limits.
    Limits,
}

/// What a project holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes in allocated blocks.
    pub bytes: u64,
    pub inodes: u64,
    /// Bytes it may hold; 0: any.
    pub limit: u64,
}

/// What the file system of `dir` does with projects; a kernel without quotas does nothing.
pub fn support(dir: BorrowedFd<'_>) -> Support {
    let mut state = State { version: VERSION_OF_STATE, ..State::default() };
    match quotactl(dir, Q_XGETQSTATV, 0, &mut state) {
        Ok(()) if state.flags & PROJECTS_LIMITED != 0 => Support::Limits,
        Ok(()) if state.flags & PROJECTS_COUNTED != 0 => Support::Counts,
        _ => Support::Nothing,
    }
}

/// The project that `dir` belongs to; 0: none.
///
/// # Errors
/// ENOTTY where the file system has no projects.
pub fn project(dir: BorrowedFd<'_>) -> io::Result<u32> {
    attributes(dir).map(|attributes| attributes.project)
}

/// Makes `dir` and what will be made in it part of a project; what is there already stays where it is.
pub fn join(dir: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = attributes(dir)?;
    attributes.project = project;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    ioctl(dir, FS_IOC_FSSETXATTR, &mut attributes)
}

/// What `project` holds on the file system of `dir`.
pub fn held(dir: BorrowedFd<'_>, project: u32) -> io::Result<Held> {
    let mut block = Block::default();
    match quotactl(dir, Q_GETQUOTA, project, &mut block) {
        Ok(()) => {
            let limit = block.hard_limit.saturating_mul(LIMIT_UNIT);
            Ok(Held { bytes: block.space, inodes: block.inodes, limit })
        }
        // XFS knows nothing of a project that never held anything.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Held::default()),
        Err(e) => Err(e),
    }
}

/// Limits `project` to `bytes`, rounded up to 1024; 0 lets it hold any.
pub fn limit(dir: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let mut block = Block { hard_limit: bytes.div_ceil(LIMIT_UNIT), valid: QIF_BLIMITS, ..Block::default() };
    quotactl(dir, Q_SETQUOTA, project, &mut block)
}

fn attributes(dir: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    ioctl(dir, FS_IOC_FSGETXATTR, &mut attributes)?;
    Ok(attributes)
}

fn ioctl(dir: BorrowedFd<'_>, request: usize, attributes: &mut Attributes) -> io::Result<()> {
    let args = [word(dir.as_raw_fd()), request, &raw mut *attributes as usize, 0, 0, 0];
    call(libc::SYS_ioctl, args).map(drop).map_err(io::Error::from_raw_os_error)
}

/// `T` is the structure that `command` reads and writes.
fn quotactl<T>(dir: BorrowedFd<'_>, command: usize, id: u32, data: &mut T) -> io::Result<()> {
    let command = (command << 8) | PROJECT;
    let args = [word(dir.as_raw_fd()), command, id as usize, &raw mut *data as usize, 0, 0];
    call(libc::SYS_quotactl_fd, args).map(drop).map_err(io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Sizes of the kernel's structures: it writes as much as it thinks there is.
    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<Block>(), 72);
        assert_eq!(size_of::<State>(), 160);
    }

    #[test]
    fn a_file_system_without_projects_is_told_as_such() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(support(proc.as_fd()), Support::Nothing);
        assert_eq!(project(proc.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert!(held(proc.as_fd(), 7).is_err());
        assert!(limit(proc.as_fd(), 7, 4096).is_err());
    }
}
