//! What goes wrong here: a plugin says no, two plugins contradict each other, a validator refuses.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A plugin answered with an error.
    Refused,
    /// Two plugins want the same thing to be different.
    Conflict,
    /// A validator, ours or a plugin, does not accept the outcome; or a required plugin is not there.
    Rejected,
    /// A directory or socket of ours.
    Io,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub kind: Kind,
    message: String,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn io(step: &str, path: &std::path::Path, error: impl fmt::Display) -> Self {
        Self::new(Kind::Io, format!("{step} {}: {error}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
