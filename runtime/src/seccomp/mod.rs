//! Seccomp: an OCI profile compiled to classic BPF, without a C library.
//!
//! ```text
//!  LinuxSeccomp ──rules──▶ per architecture: ranges of call numbers with one answer each ──bpf──▶ sock_filter words
//! ```
//!
//! Owns the meaning of a profile, the compiler and the default profile. Never installs anything: that is
//! `sys::seccomp`, or the child's own step.
//!
//! Where OCI is silent, a profile means here what it means with runc and libseccomp, because that is what its author
//! has tried it with:
//! - Names no table knows, or this architecture lacks, are skipped (SEC-11).
//! - A rule whose action is the default action is skipped.
//! - A rule without arguments beats every rule with arguments for that call; of equals, the first wins.
//! - Two conditions on one argument index make every condition of that rule a rule of its own ("or", SEC-09).
//! - Calls above the highest number the profile names give ENOSYS, unless the default action lets calls through
//!   (SEC-11): the C library then falls back to an older call. Multiplexed calls of s390x: number 0 likewise.
//! - An architecture that is not listed kills the thread; the native one is always listed. x32 is an architecture of
//!   its own: its numbers kill the thread unless it is listed. Architectures this machine cannot run cost nothing.
//! - On 32-bit architectures and x32 only the low half of an argument is looked at.
//! - 32-bit x86, s390x and ppc64le: a rule for `socket` or `semop` also rules `socketcall` and `ipc`, as far as the kernel can
//!   see there, which is the name but not the arguments.
//! - Docker's own additions to profile files (archMap, includes, excludes, minKernel) are ignored, as containerd does
//!   (SEC-14): a rule that Docker would leave out for lack of a capability is in force here.
//! - TSYNC is ignored: the filter is installed by a single thread just before execve.
//!
//! Stricter than runc, as OCI demands: an errno beside an action that has none is refused.

mod abi;
mod bpf;
mod cache;
mod default;
mod numbers;
mod rules;

use crate::error::Kind;
use crate::{Error, Result};
use oci_spec::runtime::{Capability, LinuxSeccomp, LinuxSeccompFilterFlag};
use std::collections::HashSet;
use std::sync::Arc;

/// SECCOMP_FILTER_FLAG_*, linux/seccomp.h.
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// A compiled filter, ready for seccomp(2) SECCOMP_SET_MODE_FILTER.
#[derive(Debug, Clone)]
pub struct Filter {
    /// `struct sock_filter` words: (code, jt, jf, k).
    pub instructions: Arc<[(u16, u8, u8, u32)]>,
    /// SECCOMP_FILTER_FLAG_* bits.
    pub flags: u32,
    /// True if a rule uses SCMP_ACT_NOTIFY: the launcher must hand over the listener.
    pub notify: bool,
}

impl Filter {
    /// The program in the kernel's own layout, whose address and length are all that `struct sock_fprog` holds: made
    /// before the clone, so that the child needs no memory.
    pub fn program(&self) -> Vec<libc::sock_filter> {
        let word = |&(code, jt, jf, k): &(u16, u8, u8, u32)| libc::sock_filter { code, jt, jf, k };
        self.instructions.iter().map(word).collect()
    }
}

/// Compiles `profile`; the last few results are kept, found again by the profile's content.
///
/// # Errors
/// `Invalid` names the rule, call or architecture that cannot be expressed; `Unsupported` if this machine's own
/// architecture has no table.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    cache::get_or(profile, || compile_for(native()?, profile))
}

/// The default profile of containerd and Docker (contrib/seccomp), for these final capabilities (CRI-SEC-05)
/// and this architecture.
pub fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    default::profile(abi::Abi::native(), capabilities)
}

/// Filter flags of OCI that this kernel knows, each with whether it does (linux/seccomp.h). TSYNC means nothing to a
/// process of one thread and is known everywhere.
pub fn kernel_flags() -> [(&'static str, bool); 4] {
    let known = |flag| crate::sys::seccomp::knows_flag(flag);
    [
        ("SECCOMP_FILTER_FLAG_TSYNC", true),
        ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", known(FLAG_SPEC_ALLOW)),
        ("SECCOMP_FILTER_FLAG_LOG", known(FLAG_LOG)),
        ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", known(FLAG_WAIT_KILLABLE_RECV | FLAG_NEW_LISTENER)),
    ]
}

/// Architectures that a profile may name, in OCI's words.
pub fn known_architectures() -> Vec<&'static str> {
    abi::OCI_NAMES.into()
}

fn native() -> Result<abi::Abi> {
    abi::Abi::native().ok_or_else(|| {
        Error::new(Kind::Unsupported, "compile seccomp profile", std::env::consts::ARCH)
            .hint("no table of system calls for this architecture; run without a seccomp profile")
    })
}

/// Compiles for a machine whose own architecture is `native`.
fn compile_for(native: abi::Abi, profile: &LinuxSeccomp) -> Result<Filter> {
    let rules = rules::Rules::new(native, profile)?;
    let instructions = bpf::assemble(&rules)?;
    Ok(Filter { instructions, flags: flags(profile, rules.notify), notify: rules.notify })
}

/// The kernel takes WAIT_KILLABLE_RECV only together with a listener, without which it means nothing.
fn flags(profile: &LinuxSeccomp, notify: bool) -> u32 {
    let listener = if notify { FLAG_NEW_LISTENER } else { 0 };
    let asked = profile.flags().iter().flatten().map(|flag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notify => FLAG_WAIT_KILLABLE_RECV,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv
        | LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
    });
    asked.fold(listener, |all, flag| all | flag)
}

#[cfg(test)]
mod tests;
