//! The one error type of this crate and how failures of the kernel become it.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// Class of a failure; the daemon maps it to a gRPC code in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    NotFound,
    Unauthorized,
    /// The registry could not be reached or answered 5xx: text starts with `RegistryUnavailable` (CRI-IMG-25).
    Unavailable,
    /// Content does not match what was promised (digest, size, diff id, manifest).
    Corrupt,
    /// The image policy does not let it be taken or run: text starts with `SignatureValidationFailed` (CRI-IMG-25).
    Untrusted,
    Exhausted,
    Cancelled,
    Io,
}

/// `pull 127.0.0.1:5000/app:1: layer sha256:…: digest mismatch …; hint`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{step}: {object}: {cause}")]
pub struct Error {
    pub kind: Kind,
    pub step: String,
    pub object: String,
    pub cause: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(
        kind: Kind,
        step: impl Into<String>,
        object: impl Display,
        cause: impl Display,
    ) -> Self {
        Self { kind, step: step.into(), object: object.to_string(), cause: cause.to_string() }
    }

    pub(crate) fn invalid(step: &str, object: impl Display, cause: impl Display) -> Self {
        Self::new(Kind::Invalid, step, object, cause)
    }

    pub(crate) fn corrupt(step: &str, object: impl Display, cause: impl Display) -> Self {
        Self::new(Kind::Corrupt, step, object, cause)
    }

    /// The registry's fault or the way to it: the text begins with the prefix kubelet looks for (CRI-IMG-25).
    pub(crate) fn unavailable(step: &str, object: impl Display, cause: impl Display) -> Self {
        Self::new(Kind::Unavailable, format!("RegistryUnavailable: {step}"), object, cause)
    }

    /// The policy's refusal: the text begins with the prefix that the kubelet looks for (CRI-IMG-25).
    pub(crate) fn untrusted(object: impl Display, cause: impl Display) -> Self {
        Self::new(Kind::Untrusted, "SignatureValidationFailed: check image policy", object, cause)
    }

    pub(crate) fn cancelled(step: &str, object: impl Display) -> Self {
        Self::new(Kind::Cancelled, step, object, "cancelled")
    }

    /// A failed system call on `path`; a full disk is `Exhausted` (IMG-BLOB-12).
    pub(crate) fn io(step: &str, path: &Path, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let (kind, hint) = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                (Kind::Exhausted, "; free space or inodes on the image file system")
            }
            _ => (Kind::Io, ""),
        };
        Self::new(kind, step, path.display(), format!("{error}{hint}"))
    }
}
