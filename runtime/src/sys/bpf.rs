//! bpf(2), as far as device programs of control groups version 2 need it. No maps, no helpers, no BTF.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ffi::c_int;
use std::io;

const PROG_LOAD: c_int = 5;
const PROG_ATTACH: c_int = 8;
const PROG_DETACH: c_int = 9;
const PROG_GET_FD_BY_ID: c_int = 13;
const PROG_QUERY: c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// Each struct below is a prefix of one arm of `union bpf_attr` (include/uapi/linux/bpf.h); the kernel takes prefixes.
/// They hold no padding, so that every byte the kernel reads is initialised.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

#[repr(C)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Calls bpf(2) with `attr` as its argument; answers what it returns.
fn bpf<T>(command: c_int, attr: &mut T) -> io::Result<c_int> {
    // SAFETY: `attr` is one of the repr(C) structs above, live and writable for the call, and its exact size is passed;
    // pointers inside it are set by the callers of this file from slices that outlive the call, with their lengths.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as c_int) }
}

fn owned(fd: c_int) -> OwnedFd {
    // SAFETY: `fd` was returned by a bpf command that makes a new descriptor (O_CLOEXEC), and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Has the kernel verify a device program; `instructions` are `struct bpf_insn` in host byte order.
///
/// # Errors
/// EINVAL or EACCES from the verifier, EPERM without CAP_BPF, ENOSYS or EINVAL on kernels without CONFIG_CGROUP_BPF.
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"slipway_devices\0",
    };
    bpf(PROG_LOAD, &mut attr).map(owned)
}

/// Attaches beside whatever is attached; in place of `replace` when given (atomically, Linux 5.6).
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: if replace.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
        replace_bpf_fd: replace.map_or(0, raw),
    };
    bpf(PROG_ATTACH, &mut attr).map(drop)
}

/// Takes one program off the group.
pub(crate) fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attach {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    bpf(PROG_DETACH, &mut attr).map(drop)
}

/// The device programs attached to this very group (not those of its ancestors).
pub(crate) fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    // The kernel allows 64 programs per group and kind (BPF_CGROUP_MAX_PROGS).
    let mut ids = [0u32; 64];
    let mut query = Query {
        target_fd: raw(cgroup.as_fd()),
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        pad: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = (query.prog_cnt as usize).min(ids.len());
    let by_id =
        |id: &u32| bpf(PROG_GET_FD_BY_ID, &mut ById { prog_id: *id, next_id: 0, open_flags: 0 }).map(owned);
    ids[..count].iter().map(by_id).collect()
}
