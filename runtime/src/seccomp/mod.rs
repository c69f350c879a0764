//! Seccomp: an OCI profile compiled to classic BPF, without a C library.

use crate::Result;
use oci_spec::runtime::{Capability, LinuxSeccomp};
use std::collections::HashSet;
use std::sync::Arc;

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

/// Compiles `profile`; the result is cached by the profile's content.
///
/// # Errors
/// `Invalid` names the rule, syscall or architecture that cannot be expressed.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let _ = profile;
    todo!()
}

/// The default profile of containerd and Docker (contrib/seccomp), for these final capabilities (CRI-SEC-05)
/// and this architecture.
pub fn default_profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let _ = capabilities;
    todo!()
}
