//! The keeper over its socket, as root, against the real kernel.
#![allow(clippy::unwrap_used, unreachable_pub, missing_debug_implementations, reason = "a test program")]

mod checkpoint;
mod crash;
mod input;
mod life;
mod options;
mod pods;
mod resources;
mod rig;
mod shim;
mod streams;
