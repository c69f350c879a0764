//! containerd-shim-slipway-v1.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), allow(dead_code))]
mod guardian;
mod logs;
fn main() {}
