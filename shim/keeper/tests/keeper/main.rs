//! The keeper over its socket, as root, against the real kernel.
#![allow(clippy::unwrap_used, unreachable_pub, missing_debug_implementations, reason = "a test program")]

mod birth;
mod checkpoint;
mod crash;
mod events;
mod input;
mod life;
mod neighbours;
mod options;
mod pods;
mod resources;
mod rig;
mod roots;
mod shim;
mod shims;
mod streams;
mod upgrade;
mod wire;
