//! The one place where failures get their ttrpc code.

use slipway_runtime::error::Kind;
use std::fmt;
use std::io;
use ttrpc::Code;

/// Result of everything a request can ask for.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// A refused or failed request: a code and a sentence for people.
#[derive(Debug)]
pub(crate) struct Error {
    code: Code,
    text: String,
}

impl Error {
    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self { code: Code::NOT_FOUND, text: text.into() }
    }

    pub(crate) fn exists(text: impl Into<String>) -> Self {
        Self { code: Code::ALREADY_EXISTS, text: text.into() }
    }

    pub(crate) fn state(text: impl Into<String>) -> Self {
        Self { code: Code::FAILED_PRECONDITION, text: text.into() }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self { code: Code::INVALID_ARGUMENT, text: text.into() }
    }

    pub(crate) fn unimplemented(text: impl Into<String>) -> Self {
        Self { code: Code::UNIMPLEMENTED, text: text.into() }
    }

    pub(crate) fn unavailable(text: impl Into<String>) -> Self {
        Self { code: Code::UNAVAILABLE, text: text.into() }
    }

    /// The keeper leaves: nothing was done, the next one is to be asked.
    pub(crate) fn aborted(text: impl Into<String>) -> Self {
        Self { code: Code::ABORTED, text: text.into() }
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self { code: Code::INTERNAL, text: text.into() }
    }

    /// A failed call on our side: `<step> <object>: <reason>`.
    pub(crate) fn io(step: &str, object: impl fmt::Display, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
                Code::RESOURCE_EXHAUSTED
            }
            _ if matches!(error.raw_os_error(), Some(23 | 24)) => Code::RESOURCE_EXHAUSTED,
            _ => Code::INTERNAL,
        };
        Self { code, text: format!("{step} {object}: {error}") }
    }

    /// The same, with where it happened in front.
    pub(crate) fn within(self, place: &str) -> Self {
        Self { text: format!("{place}: {}", self.text), ..self }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == Code::NOT_FOUND
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn into_ttrpc(self) -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(self.code, self.text))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<slipway_runtime::Error> for Error {
    fn from(error: slipway_runtime::Error) -> Self {
        let code = match error.kind() {
            Kind::Invalid => Code::INVALID_ARGUMENT,
            Kind::NotFound => Code::NOT_FOUND,
            Kind::Exists => Code::ALREADY_EXISTS,
            Kind::State => Code::FAILED_PRECONDITION,
            Kind::Unsupported => Code::UNIMPLEMENTED,
            Kind::Exhausted => Code::RESOURCE_EXHAUSTED,
            Kind::Kernel => Code::INTERNAL,
        };
        Self { code, text: error.to_string() }
    }
}

/// A panic or cancellation of work on another thread.
impl From<tokio::task::JoinError> for Error {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal(format!("the work was cut short: {error}"))
    }
}
