//! One error for the daemon, and the one place where errors of all rooms become gRPC codes.

use slipway_runtime::error::Kind as RuntimeKind;
use std::fmt;
use tonic::{Code, Status};

/// A failed request: its gRPC code and the sentence the client reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    code: Code,
    message: String,
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// A failed file operation of our own.
    pub(crate) fn io(step: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let code = match error.raw_os_error() {
            Some(nix::libc::ENOSPC | nix::libc::EDQUOT | nix::libc::EMFILE) => Code::ResourceExhausted,
            // No path at all: it holds a NUL, or is longer than the kernel takes.
            Some(nix::libc::ENAMETOOLONG) => Code::InvalidArgument,
            None if error.kind() == std::io::ErrorKind::InvalidInput => Code::InvalidArgument,
            _ => Code::Internal,
        };
        Self::new(code, format!("{step}: {}: {error}", path.display()))
    }

    /// Puts what this level knows in front: which pod, which container.
    #[must_use]
    pub(crate) fn of(mut self, what: impl fmt::Display) -> Self {
        // Prefixes that the kubelet matches must stay in front (CRI-IMG-25, CRI-IMG-26).
        let kept =
            ["RegistryUnavailable", "SignatureValidationFailed", "RROUnsupported", "ImageVolumeMountFailed"];
        if !kept.iter().any(|prefix| self.message.starts_with(prefix)) {
            self.message = format!("{what}: {}", self.message);
        }
        self
    }

    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code, error.message)
    }
}

impl From<slipway_runtime::Error> for Error {
    fn from(error: slipway_runtime::Error) -> Self {
        let code = match error.kind() {
            RuntimeKind::Invalid => Code::InvalidArgument,
            RuntimeKind::NotFound => Code::NotFound,
            RuntimeKind::Exists => Code::AlreadyExists,
            RuntimeKind::State | RuntimeKind::Unsupported => Code::FailedPrecondition,
            RuntimeKind::Exhausted => Code::ResourceExhausted,
            RuntimeKind::Kernel => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<slipway_images::Error> for Error {
    fn from(error: slipway_images::Error) -> Self {
        use slipway_images::Kind;
        let code = match error.kind {
            Kind::Invalid => Code::InvalidArgument,
            Kind::NotFound => Code::NotFound,
            Kind::Unauthorized => Code::Unauthenticated,
            // The kubelet strips this code, and no other: only then its words are at the beginning (CRI-IMG-25).
            Kind::Unavailable | Kind::Untrusted => Code::Unknown,
            Kind::Corrupt => Code::DataLoss,
            Kind::Exhausted => Code::ResourceExhausted,
            Kind::Cancelled => Code::Cancelled,
            Kind::Io => Code::Internal,
        };
        let text = error.to_string();
        // Not every step that fails so says the word itself.
        if matches!(error.kind, Kind::Unavailable) && !text.starts_with("RegistryUnavailable") {
            return Self::new(code, format!("RegistryUnavailable: {text}"));
        }
        Self::new(code, text)
    }
}

impl From<slipway_network::Error> for Error {
    fn from(error: slipway_network::Error) -> Self {
        use slipway_network::Kind;
        let code = match error.kind {
            Kind::Invalid => Code::InvalidArgument,
            // The kubelet takes AlreadyExists for a pod of the same name (CRI-RUN-07); this is another pod's port.
            Kind::Taken | Kind::NotReady => Code::FailedPrecondition,
            Kind::Exhausted => Code::ResourceExhausted,
            Kind::Other => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ttrpc::Error> for Error {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                // ttrpc's codes are gRPC's, by number.
                let code = Code::from_i32(protobuf::Enum::value(&status.code()));
                Self::new(code, status.message().to_owned())
            }
            other => Self::new(Code::Unavailable, format!("keeper: {other}")),
        }
    }
}
