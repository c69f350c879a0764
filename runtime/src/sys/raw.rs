//! The system call instruction itself.
//!
//! Owns: turning a number and six words into a result. Never touches libc, errno, thread-local storage, the heap or a
//! lock, so every function here may be used between clone3 and execve in a child of a threaded process.

use std::ffi::CStr;

/// An errno, positive.
pub type Errno = i32;

/// Result of a raw call.
pub type Raw<T = usize> = core::result::Result<T, Errno>;

/// Makes one system call.
///
/// # Safety
/// The arguments must be what the kernel expects for `number`: every pointer valid for the access the call makes.
#[cfg(target_arch = "x86_64")]
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> Raw {
    let value: isize;
    // SAFETY: the caller vouches for the arguments; rcx and r11 are what the instruction clobbers.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => value,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    answer(value)
}

/// Makes one system call.
///
/// # Safety
/// The arguments must be what the kernel expects for `number`: every pointer valid for the access the call makes.
#[cfg(target_arch = "aarch64")]
#[inline]
pub unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> Raw {
    let value: isize;
    // SAFETY: the caller vouches for the arguments; x0 is the only register the kernel changes.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => value,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5],
            options(nostack),
        );
    }
    answer(value)
}

#[inline]
fn answer(value: isize) -> Raw {
    if (-4095..0).contains(&value) { Err(-value as Errno) } else { Ok(value as usize) }
}

/// [`syscall`] for this room only, where every word is a plain number or the address of something borrowed for the call.
#[inline]
pub(super) fn call(number: libc::c_long, args: [usize; 6]) -> Raw {
    // SAFETY: callers are in `sys` alone; each derives pointer words from references or C strings that live across the
    // call, with the length of the same object beside them.
    unsafe { syscall(number, args) }
}

/// The address of a C string as a register word.
#[inline]
pub fn ptr(text: &CStr) -> usize {
    text.as_ptr() as usize
}

/// A descriptor as a register word (sign-extended, so that AT_FDCWD works).
#[inline]
pub fn word(fd: i32) -> usize {
    fd as isize as usize
}

/// close(2); the answer tells nothing one could act on.
#[inline]
pub fn close(fd: i32) {
    let _ = call(libc::SYS_close, [word(fd), 0, 0, 0, 0, 0]);
}

/// `struct open_how` of openat2(2).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct OpenHow {
    pub flags: u64,
    pub mode: u64,
    pub resolve: u64,
}

/// openat2(2).
#[inline]
pub fn openat2(dir: i32, path: &CStr, how: OpenHow) -> Raw<i32> {
    let size = core::mem::size_of::<OpenHow>();
    let fd = call(libc::SYS_openat2, [word(dir), ptr(path), &raw const how as usize, size, 0, 0])?;
    Ok(fd as i32)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub userns_fd: u64,
}

/// Ends the process without a system call: an instruction no processor knows (SIGILL, which cannot be blocked then).
pub fn trap() -> ! {
    // SAFETY: the instruction raises an exception and touches nothing.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("ud2", options(noreturn, nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("udf #0", options(noreturn, nomem, nostack));
    }
}

/// mount_setattr(2) on the mount `fd` names, and below it with `recursive`.
#[inline]
pub fn mount_setattr(fd: i32, path: &CStr, recursive: bool, attr: &MountAttr) -> Raw {
    let flags = libc::AT_EMPTY_PATH as usize | if recursive { libc::AT_RECURSIVE as usize } else { 0 };
    let size = core::mem::size_of::<MountAttr>();
    call(libc::SYS_mount_setattr, [word(fd), ptr(path), flags, attr as *const MountAttr as usize, size, 0])
}

/// move_mount(2): places the mount `from` on what `to` names.
#[inline]
pub fn move_mount(from: i32, to_dir: i32, to: &CStr) -> Raw {
    const BOTH_EMPTY: usize = 0x4 | 0x40;
    call(libc::SYS_move_mount, [word(from), ptr(c""), word(to_dir), ptr(to), BOTH_EMPTY, 0])
}

/// open_tree(2) with OPEN_TREE_CLONE: a detached copy of what `fd` and `path` name.
#[inline]
pub fn clone_tree(fd: i32, path: &CStr, recursive: bool) -> Raw<i32> {
    const OPEN_TREE_CLONE: usize = 1;
    let flags = OPEN_TREE_CLONE
        | libc::O_CLOEXEC as usize
        | libc::AT_EMPTY_PATH as usize
        | if recursive { libc::AT_RECURSIVE as usize } else { 0 };
    Ok(call(libc::SYS_open_tree, [word(fd), ptr(path), flags, 0, 0, 0])? as i32)
}
