//! The room for system calls: the only place in this crate with `unsafe`.
//!
//! | file | owns |
//! |---|---|
//! | `bpf` | bpf(2) for device rules of version 2 groups |
//! | `raw` | the system call instruction, no libc, no errno, usable after clone3 |
//! | `step` | the vocabulary of the child: pure data, no calls |
//! | `child`, `child_mount`, `child_process` | the interpreter that runs in the child between clone3 and execve |
//! | `child_listener`, `listener` | handing a seccomp listener over, the child's and the parent's side |
//! | `clone` | clone3 itself: signals, stack, pidfd |
//! | `exe` | our own program, out of reach for containers |
//! | `mount` | detached mounts made by the parent |
//! | `namespace` | joining and making namespaces on throw-away threads |
//! | `network` | loopback of a new network namespace |
//! | `shared_page` | a page of memory that outlives its writer |
//! | `signal` | any signal to a process held by descriptor |
//! | `socket` | the one socket between launcher and child |
//! | `seccomp` | a filter on the calling thread |
//! | `process` | pidfds, terminals, own attributes |

pub(crate) mod bpf;
pub mod child;
mod child_listener;
mod child_mount;
mod child_process;
pub mod clone;
pub mod exe;
pub mod listener;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod process;
pub mod raw;
pub mod seccomp;
pub mod shared_page;
pub mod signal;
pub mod socket;
pub mod step;
