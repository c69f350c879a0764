//! Architectures: their audit numbers and their tables of system calls.
//!
//! Source: the `syscalls` crate (kernel tables), completed here by what it lacks: x32, the private calls of ARM and
//! s390x's `setup`.

use oci_spec::runtime::Arch;
use std::str::FromStr;

/// Bit 30 of the number marks a call of the x32 ABI (linux/unistd.h `__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One way to make system calls. x32 shares its audit number with x86_64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
    Riscv64,
    S390x,
    Ppc64le,
    Loongarch64,
}

/// What [`Abi::from_oci`] takes, in OCI's words.
pub(super) const OCI_NAMES: [&str; 9] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

impl Abi {
    /// The architecture this program was built for.
    pub(super) fn native() -> Option<Self> {
        Some(match std::env::consts::ARCH {
            "x86_64" => Self::X86_64,
            "x86" => Self::X86,
            "aarch64" => Self::Aarch64,
            "arm" => Self::Arm,
            "riscv64" => Self::Riscv64,
            "s390x" => Self::S390x,
            "powerpc64" if cfg!(target_endian = "little") => Self::Ppc64le,
            "loongarch64" => Self::Loongarch64,
            _ => return None,
        })
    }

    /// `None` for an architecture without a table, which therefore stays refused.
    pub(super) fn from_oci(arch: Arch, native: Self) -> Option<Self> {
        Some(match arch {
            Arch::ScmpArchNative => native,
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX86 => Self::X86,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            Arch::ScmpArchArm => Self::Arm,
            Arch::ScmpArchRiscv64 => Self::Riscv64,
            Arch::ScmpArchS390x => Self::S390x,
            Arch::ScmpArchPpc64le => Self::Ppc64le,
            Arch::ScmpArchLoongarch64 => Self::Loongarch64,
            _ => return None,
        })
    }

    /// Whether a machine of architecture `self` can run programs that call by `other`.
    pub(super) fn runs(self, other: Self) -> bool {
        self == other
            || matches!((self, other), (Self::X86_64, Self::X86 | Self::X32) | (Self::Aarch64, Self::Arm))
    }

    /// AUDIT_ARCH_* (linux/audit.h), `seccomp_data.arch`.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
            Self::S390x => 0x8000_0016,
            Self::Ppc64le => 0xc000_0015,
            Self::Loongarch64 => 0xc000_0102,
        }
    }

    /// Arguments are 32 bits wide: the high half of `seccomp_data.args` says nothing.
    pub(super) fn narrow(self) -> bool {
        matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    pub(super) fn big_endian(self) -> bool {
        self == Self::S390x
    }

    /// The number of the call `name`, as `seccomp_data.nr` shows it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        use syscalls::{aarch64, arm, loongarch64, powerpc64, riscv64, s390x, x86, x86_64};
        match self {
            Self::X86_64 => id(x86_64::Sysno::from_str(name).map(|nr| nr.id())),
            Self::X86 => id(x86::Sysno::from_str(name).map(|nr| nr.id())),
            Self::X32 => x32(name),
            Self::Aarch64 => id(aarch64::Sysno::from_str(generic(name)).map(|nr| nr.id())),
            Self::Arm => private_arm(name).or_else(|| id(arm::Sysno::from_str(name).map(|nr| nr.id()))),
            Self::Riscv64 => id(riscv64::Sysno::from_str(generic(name)).map(|nr| nr.id())),
            Self::S390x if name == "setup" => Some(0),
            Self::S390x => id(s390x::Sysno::from_str(name).map(|nr| nr.id())),
            Self::Ppc64le => id(powerpc64::Sysno::from_str(name).map(|nr| nr.id())),
            Self::Loongarch64 => id(loongarch64::Sysno::from_str(generic(name)).map(|nr| nr.id())),
        }
    }

    /// The multiplexer that also reaches `name` here, and the number it goes by in its first argument.
    pub(super) fn multiplexed(self, name: &str) -> Option<(&'static str, u32)> {
        if !matches!(self, Self::X86 | Self::S390x | Self::Ppc64le) {
            return None;
        }
        let find =
            |table: &[(&str, u32)]| table.iter().find(|(known, _)| *known == name).map(|(_, sub)| *sub);
        find(SOCKETCALL).map(|sub| ("socketcall", sub)).or_else(|| find(IPC).map(|sub| ("ipc", sub)))
    }
}

fn id(number: Result<i32, ()>) -> Option<u32> {
    number.ok().and_then(|number| u32::try_from(number).ok())
}

/// The crate's tables of the newer architectures call number 79 `fstatat`; programs and profiles say `newfstatat`.
fn generic(name: &str) -> &str {
    match name {
        "newfstatat" => "fstatat",
        "fstatat" => "",
        _ => name,
    }
}

/// arch/arm/include/uapi/asm/unistd.h, `__ARM_NR_BASE`.
fn private_arm(name: &str) -> Option<u32> {
    const BASE: u32 = 0x0f_0000;
    Some(match name {
        "breakpoint" => BASE + 1,
        "cacheflush" => BASE + 2,
        "usr26" => BASE + 3,
        "usr32" => BASE + 4,
        "set_tls" => BASE + 5,
        "get_tls" => BASE + 6,
        _ => return None,
    })
}

/// x32 is the x86_64 table with bit 30 set, but for calls whose structures differ: those start at 512, and some
/// obsolete ones are missing (arch/x86/entry/syscalls/syscall_64.tbl, "64" and "x32").
fn x32(name: &str) -> Option<u32> {
    if let Some(at) = X32_OWN.iter().position(|own| *own == name) {
        return u32::try_from(at).ok().map(|at| X32_BIT | (512 + at));
    }
    if X32_MISSING.contains(&name) {
        return None;
    }
    id(syscalls::x86_64::Sysno::from_str(name).map(|nr| nr.id())).map(|number| X32_BIT | number)
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

/// linux/net.h SYS_*.
const SOCKETCALL: &[(&str, u32)] = &[
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// linux/ipc.h; the high half of the argument is a version.
const IPC: &[(&str, u32)] = &[
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];
