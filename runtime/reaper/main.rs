//! The first process of a pod's shared PID namespace: reaps what is orphaned to it, leaves on SIGTERM, does nothing else.
//!
//! Free-standing: no libc, no heap, a few KB, built by `build.rs` and carried inside the library.

#![no_std]
#![no_main]

use core::arch::asm;

const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    leave(70)
}

/// Entry point; the stack is aligned enough, since nothing here uses vectors.
#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    // Blocked signals are kept for a namespace's init, where unblocked ones without a handler are thrown away.
    let signals: u64 = 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
    let set = &raw const signals as usize;
    syscall(number::RT_SIGPROCMASK, [SIG_BLOCK, set, 0, 8]);
    loop {
        // Children may have ended before the mask was set: reap first, then wait.
        while syscall(number::WAIT4, [usize::MAX, 0, WNOHANG, 0]) > 0 {}
        if syscall(number::RT_SIGTIMEDWAIT, [set, 0, 0, 8]) == SIGTERM as isize {
            leave(0)
        }
    }
}

fn leave(code: usize) -> ! {
    loop {
        syscall(number::EXIT_GROUP, [code, 0, 0, 0]);
    }
}

#[cfg(target_arch = "x86_64")]
fn syscall(number: usize, args: [usize; 4]) -> isize {
    let value: isize;
    // SAFETY: the calls above pass numbers and one address of a live local; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => value, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    value
}

#[cfg(target_arch = "aarch64")]
fn syscall(number: usize, args: [usize; 4]) -> isize {
    let value: isize;
    // SAFETY: the calls above pass numbers and one address of a live local; the kernel changes x0 only.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") args[0] => value, in("x1") args[1], in("x2") args[2],
            in("x3") args[3], options(nostack));
    }
    value
}
