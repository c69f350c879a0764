//! Generated wire types. No logic.
//!
//! Owns `proto/*.proto` and what is generated from them at build time. Never holds rules about their content.
//!
//! Features: `cri-types` (messages of CRI), `cri` (default: with its services, and `slipway.v1`), `keeper` and `nri`
//! (ttrpc).
// Not `forbid`: the generated files carry an `allow` of their own. None contains unsafe code.
#![deny(unsafe_code)]

#[cfg(feature = "cri-types")]
mod redact;

/// CRI, package `runtime.v1`: prost messages; with the feature `cri` also `runtime_service_server`,
/// `runtime_service_client`, `image_service_server` and `image_service_client`.
#[cfg(feature = "cri-types")]
#[allow(
    clippy::all,
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    unreachable_pub,
    missing_debug_implementations
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// Slipway's own service beside CRI, package `slipway.v1`: import and pull with progress.
#[cfg(feature = "cri")]
#[allow(
    clippy::all,
    clippy::needless_pass_by_value,
    clippy::unwrap_used,
    unreachable_pub,
    missing_debug_implementations
)]
pub mod slipway {
    include!(concat!(env!("OUT_DIR"), "/slipway.v1.rs"));
}

/// The keeper's extension, package `slipway.keeper.v1`: messages here, client and server in [`keeper::keeper_ttrpc`].
#[cfg(feature = "keeper")]
pub mod keeper {
    mod generated {
        #![allow(
            clippy::all,
            clippy::needless_pass_by_value,
            clippy::unwrap_used,
            unreachable_pub,
            missing_debug_implementations
        )]
        include!(concat!(env!("OUT_DIR"), "/keeper/modules.rs"));
    }
    pub use generated::keeper::*;
    pub use generated::keeper_ttrpc;
}

/// NRI, package `nri.pkg.api.v1alpha1`: messages here, clients and servers in [`nri::nri_ttrpc`].
#[cfg(feature = "nri")]
pub mod nri {
    mod generated {
        #![allow(
            clippy::all,
            clippy::needless_pass_by_value,
            clippy::unwrap_used,
            unreachable_pub,
            missing_debug_implementations
        )]
        include!(concat!(env!("OUT_DIR"), "/nri/modules.rs"));
    }
    pub use generated::nri::*;
    pub use generated::nri_ttrpc;
}

/// The compiled `cri.proto` as an encoded `google.protobuf.FileDescriptorSet` (without comments): for gRPC reflection
/// and for the test that compares it with k8s.io/cri-api.
#[cfg(feature = "cri-types")]
pub const CRI_FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cri.fds"));
