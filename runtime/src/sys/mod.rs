//! The room for system calls: the only place in this crate with `unsafe`.
//!
//! | file | owns |
//! |---|---|
//! | `bpf` | bpf(2) for device rules of version 2 groups |
//! | `raw` | the system call instruction, no libc, no errno, usable after clone3 |
//! | `step` | the vocabulary of the child: pure data, no calls |
//! | `step_clock` | when the child came to the end of each step |
//! | `child`, `child_mount`, `child_process` | the interpreter that runs in the child between clone3 and execve |
//! | `child_listener`, `listener` | handing a seccomp listener over, the child's and the parent's side |
//! | `clone` | clone3 itself: signals, stack, pidfd |
//! | `exe` | our own program, out of reach for containers |
//! | `holder` | a child that holds new namespaces until they are mapped and opened |
//! | `link`, `netlink` | a network device from one namespace to another; a netlink conversation |
//! | `mount` | detached mounts made by the parent |
//! | `namespace` | joining and making namespaces on throw-away threads |
//! | `network` | loopback of a new network namespace |
//! | `quota` | project quotas: what a tree holds, and may hold |
//! | `rebirth` | the extra clone of a user namespace's containers |
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
pub mod holder;
pub mod link;
pub mod listener;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod process;
pub mod quota;
pub mod raw;
mod rebirth;
pub mod seccomp;
pub mod shared_page;
pub mod signal;
pub mod socket;
pub mod step;
pub mod step_clock;
