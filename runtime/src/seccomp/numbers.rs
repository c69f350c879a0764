//! System calls by name, for each architecture.
//!
//! Source: the `syscalls` crate (kernel tables), completed here by what it lacks: x32, the private calls of ARM and
//! s390x's `setup`.

use super::abi::{Abi, X32_BIT};
use std::collections::HashMap;

/// The calls of one architecture. Made for one profile and asked for each of its names: the crate's own search compares a name
/// with each it knows, which took most of a compilation.
pub(super) struct Numbers(HashMap<&'static str, u32>);

/// (name, number) of all calls in one of the crate's tables. Its own iterator leaves the last one out (0.8.1).
macro_rules! table {
    ($arch:ident) => {{
        use syscalls::$arch::Sysno;
        let ids = Sysno::first().id()..=Sysno::last().id();
        let calls = ids.filter_map(|id| Sysno::new(usize::try_from(id).ok()?));
        calls.filter_map(|call| Some((call.name(), u32::try_from(call.id()).ok()?))).collect()
    }};
}

impl Numbers {
    pub(super) fn of(abi: Abi) -> Self {
        let mut calls: HashMap<&'static str, u32> = match abi {
            Abi::X86_64 | Abi::X32 => table!(x86_64),
            Abi::X86 => table!(x86),
            Abi::Aarch64 => table!(aarch64),
            Abi::Arm => table!(arm),
            Abi::Riscv64 => table!(riscv64),
            Abi::S390x => table!(s390x),
            Abi::Ppc64le => table!(powerpc64),
            Abi::Loongarch64 => table!(loongarch64),
        };
        match abi {
            Abi::X32 => calls = x32(calls),
            Abi::Arm => calls.extend(PRIVATE_ARM.map(|(name, number)| (name, ARM_BASE + number))),
            Abi::S390x => {
                calls.insert("setup", 0);
            }
            // The crate calls number 79 `fstatat` here; programs and profiles say `newfstatat`.
            Abi::Aarch64 | Abi::Loongarch64 => {
                if let Some(number) = calls.remove("fstatat") {
                    calls.insert("newfstatat", number);
                }
            }
            Abi::X86_64 | Abi::X86 | Abi::Riscv64 | Abi::Ppc64le => {}
        }
        Self(calls)
    }

    /// The number of the call `name`, as `seccomp_data.nr` shows it.
    pub(super) fn get(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}

/// arch/arm/include/uapi/asm/unistd.h, `__ARM_NR_BASE`.
const ARM_BASE: u32 = 0x0f_0000;
const PRIVATE_ARM: [(&str, u32); 6] =
    [("breakpoint", 1), ("cacheflush", 2), ("usr26", 3), ("usr32", 4), ("set_tls", 5), ("get_tls", 6)];

/// x32 is the x86_64 table with bit 30 set, but for calls whose structures differ: those start at 512, and some
/// obsolete ones are missing (arch/x86/entry/syscalls/syscall_64.tbl, "64" and "x32").
fn x32(of_64: HashMap<&'static str, u32>) -> HashMap<&'static str, u32> {
    let shared = of_64.into_iter().filter(|(name, _)| !X32_MISSING.contains(name));
    let own = X32_OWN.iter().zip(512..).map(|(name, number)| (*name, number));
    shared.chain(own).map(|(name, number)| (name, X32_BIT | number)).collect()
}

/// From number 512 on, in order.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

const X32_MISSING: [&str; 13] = [
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
    "uretprobe",
    "map_shadow_stack",
];
