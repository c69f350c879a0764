//! The room for system calls: the only place in this crate with `unsafe`.

pub(crate) mod bpf;
pub mod seccomp;
