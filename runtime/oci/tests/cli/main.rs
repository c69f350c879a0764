//! The command line as engines use it: every command by its binary, as root, against this kernel.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod checkpoint;
mod consoles;
mod crashes;
mod life;
mod rig;
mod rootless;
mod sessions;
mod systemd;
mod words;
