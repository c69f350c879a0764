//! One error of this room: which step, on what, why, and what to do about it.

use std::fmt::Display;

/// Whose turn it is: decides what a client is told besides the sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// The request cannot be meant.
    Invalid,
    /// Somebody else has what was asked for.
    Taken,
    /// All of it is in use.
    Exhausted,
    /// The network is not configured, or not yet.
    NotReady,
    /// A plugin, the kernel or the disk.
    #[default]
    Other,
}

/// `network setup of pod ns/name: bridge: ADD: …`.
///
/// `cause` ends with a hint (`…; hint: …`) wherever the operator can do something.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{step}: {object}: {cause}")]
pub struct Error {
    pub step: String,
    pub object: String,
    pub cause: String,
    pub kind: Kind,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(step: impl Into<String>, object: impl Into<String>, cause: impl Display) -> Self {
        Self { step: step.into(), object: object.into(), cause: cause.to_string(), kind: Kind::Other }
    }

    /// A failed call of the kernel's; what is full is told as such.
    pub(crate) fn io(step: impl Into<String>, object: impl Into<String>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let told = Self::new(step, object, error);
        match (error.kind(), error.raw_os_error().map(nix::errno::Errno::from_raw)) {
            (StorageFull | QuotaExceeded, _) => {
                told.kind(Kind::Exhausted).hint("free space under the state directory")
            }
            (_, Some(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE)) => told.kind(Kind::Exhausted),
            _ => told,
        }
    }

    #[must_use]
    pub(crate) fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Adds what the operator can do about it.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.cause = format!("{}; hint: {hint}", self.cause);
        self
    }

    /// Puts the larger operation in front: `step` of `object` failed because of this error.
    #[must_use]
    pub(crate) fn within(self, step: impl Into<String>, object: impl Into<String>) -> Self {
        Self { step: step.into(), object: object.into(), cause: self.to_string(), kind: self.kind }
    }

    /// Adds a second failure met while undoing the first.
    #[must_use]
    pub(crate) fn and_also(mut self, other: &Self) -> Self {
        self.cause = format!("{}; and undoing it failed too: {other}", self.cause);
        self
    }
}
