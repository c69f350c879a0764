//! containerd-shim-slipway-v1.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), allow(dead_code))]
mod logs;
fn main() {}
