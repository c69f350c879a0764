//! Images: from a reference to layers in overlay form. Knows registries and files, not pods.
//!
//! ```text
//!  reference ─ hosts.toml ─ registry: manifest, config          archive or OCI layout
//!                              │                                       │
//!                       policy: signatures                           │
//!                              └──────────► plan: layers ◄─────────────┘
//!                                             │  each, at the same time, in one pass:
//!     bytes ─► sha256 ─► gunzip/unzstd ─► sha256 (diff id) ─► untar into tmp/
//!                                             │  settled over the layers below, renamed
//!                                           store: images, layers, writable layers of containers
//! ```
//!
//! No compressed copy is kept, so an interrupted download resumes within a pull, not across daemons. A layer is stored
//! once by its diff id; one that depends on what lies below it (see [`unpack`]) by its chain id. It becomes visible by
//! rename and counts after a power cut only if it had reached the disk (see `store::janitor`). Names first, content
//! later when removing.
#![forbid(unsafe_code)]

mod artifact;
mod credentials;
mod digest;
mod error;
mod export;
mod flight;
mod hosts;
mod import;
mod manifest;
mod pack;
mod pipeline;
mod plan;
mod platform;
mod policy;
mod pull;
mod reference;
mod registry;
mod store;
mod types;
mod unpack;

pub use error::{Error, Kind, Result};
pub use pack::{Packer, unpack_archive};
pub use policy::{Demand, Identity, Policy, PolicyRule, PolicyTold, Prefix, SignedBy, Verification};
pub use registry::{EndpointAsked, Explanation, FileLooked, explain};
pub use store::{Store, Verdict, Verified};
pub use types::{Auth, FsInfo, Image, ImageConfig, Imported, Options, Progress, ProgressFn, Registries};
