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

/// A message travels in a header of HTTP/2, where each byte may become three, and clients take 16 KiB of headers or even 8.
const LONGEST: usize = 2 << 10;

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code, bounded(error.message))
    }
}

/// `text` without its middle where it is too long: at its beginning it says what failed, at its end why. Errors quote what
/// images and requests say, and that may be anything.
fn bounded(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    let mark = |left_out: usize| format!(" [... {left_out} bytes left out ...] ");
    let kept = LONGEST - mark(text.len()).len();
    let head = text.floor_char_boundary(kept / 2);
    let tail = text.ceil_char_boundary(text.len() - kept / 2);
    format!("{}{}{}", &text[..head], mark(tail - head), &text[tail..])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_lose_their_middle() {
        let told = |message: &str| Status::from(Error::invalid(message)).message().to_owned();
        for short in ["", "user \"x\": no such user", &"x".repeat(LONGEST)] {
            assert_eq!(told(short), short);
        }
        for inner in ["x", "\u{e9}", "\u{20ac}", "\u{1f600}"] {
            // At every offset of a character.
            for pad in 0..4 {
                let text = format!("{}create: {} : no such user", "p".repeat(pad), inner.repeat(100_000));
                let said = told(&text);
                assert!(said.len() <= LONGEST && said.len() > LONGEST - 64, "{}", said.len());
                assert!(said.starts_with(&text[..pad + 8]) && said.ends_with(" : no such user"), "{said}");
                let (head, rest) = said.split_once(" [... ").expect("a mark");
                let (number, tail) = rest.split_once(" bytes left out ...] ").expect("a mark");
                assert_eq!(number.parse(), Ok(text.len() - head.len() - tail.len()));
            }
        }
    }
}
