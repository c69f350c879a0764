//! The native runtime: what an OCI spec asks for becomes a running process, and nothing else happens.
//!
//! ```text
//!  oci_spec::Spec ──plan──▶ Plan ──program──▶ Program ──launch──▶ a parked child ──start byte──▶ execve
//!                  (host facts)      (flat list of steps)   (one clone3)
//! ```
//!
//! This crate is synchronous and knows no wire types. `sys` is the only module with `unsafe`.
//! Arrows: `sys <- {cgroup, rootfs} <- launch <- {sandbox, hooks <- container}` (a sandbox launches its reaper like any process);
//! `plan -> program` touch `host` and the vocabulary of steps in `sys`; `lsm` touches nobody.

pub mod cgroup;
pub mod container;
pub mod error;
pub mod features;
pub mod hooks;
pub mod host;
pub mod idmap;
pub mod launch;
pub mod lsm;
pub mod namespace;
pub mod plan;
pub mod program;
pub mod rootfs;
pub mod rootless;
pub mod sandbox;
pub mod seccomp;
pub mod spec;
pub mod sys;
pub mod unit;

pub use error::{Error, Result};
