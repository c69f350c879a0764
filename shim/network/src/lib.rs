//! Pod networks: CNI as the reference library does it; the built-in bridge where no CNI configuration exists.
//!
//! ```text
//!  readiness ─┐                       ┌─ cni/      plugins: ADD, DEL, CHECK, GC, STATUS
//!  setup ─────┤  network/ ─ record ───┤
//!  teardown ──┤  (who, in what order) └─ builtin/  bridge, veth, leases, nftables
//!  collect ───┘
//! ```
//!
//! **Which path.** The first valid file of `conf_dir` in byte order is in force. As long as there is any configuration
//! file, valid or not, the built-in network stays away: a broken file is an error to be shown, not a reason to put
//! pods on another network. Each pod is taken back by the path that made it, with the configuration it was made with.
//!
//! **What is on disk** (under `state_dir`): `pods/<id>.json`, written before the first act and removed after the last
//! undo; `builtin/<bridge>/leases/<address>`, made with O_EXCL; `builtin/<bridge>/bridge.json`; `damaged/`, records
//! that could not be read. Nothing else is needed after a crash: [`Network::collect`] compares this with the pods that
//! are alive, and the kernel's links with the leases, and repeats what failed before.
//!
//! **Who waits for whom.** One pod: one operation at a time. Different pods: side by side. GC and the removal of the
//! bridge: alone. A caller that goes away does not stop an operation; an abandoned set-up is taken back.
//!
//! **What it asks of the caller.** A tokio runtime with time and I/O enabled (plugins are awaited); the threads of the
//! runtime in the host's network namespace (plugins and netlink sockets inherit it); `lo` of the pod's namespace is
//! up already.
//!
//! **Limits of the built-in network.** IPv4 only. Bandwidth annotations are refused. A foreign chain hooked at forward
//! with policy drop stays in force and is named by [`Network::readiness`]. It needs the program `nft`.
//!
//! **Deviations from the reference library**, both on purpose: a pod without a record gets no DEL, because the record
//! is written before the first ADD and synced to disk before its answer, so none means never begun (hence `state_dir`
//! should survive a reboot); GC names not only our pods but also the attachments that other
//! runtimes recorded in the reference library's cache, so that running beside one does not cost it its addresses.

#![forbid(unsafe_code)]

mod builtin;
mod cni;
mod error;
mod locks;
mod network;
mod record;
mod statistics;
mod types;

pub use error::{Error, Kind, Result};
pub use network::Network;
pub use statistics::{Interface, PodStatistics, statistics};
pub use types::{Attachment, Builtin, Options, PodNetwork, PortMapping, Protocol, Readiness};
