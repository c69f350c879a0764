//! Pod networks: CNI as the reference library does it; the built-in bridge where no CNI configuration exists.

#![forbid(unsafe_code)]

mod builtin;
mod cni;
mod error;
mod locks;
mod network;
mod record;
mod types;

pub use error::{Error, Result};
pub use network::Network;
pub use types::{Attachment, Builtin, Options, PodNetwork, PortMapping, Protocol, Readiness};
