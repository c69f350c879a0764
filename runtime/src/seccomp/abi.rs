//! Architectures: their audit numbers, and who runs whose programs. Their tables of system calls: [`super::numbers`].

use oci_spec::runtime::Arch;

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
