//! Failures as engines expect them: sentences that they search for, and exit codes.
//!
//! Phrases that others match: "container does not exist" and "container not running" (containerd), "executable file not
//! found in $PATH", "no such file or directory", "permission denied" (podman, docker: exit codes 127 and 126), "container
//! with given ID already exists".

use crate::log::Log;
use slipway_runtime::error::Kind;
use slipway_runtime::program::{EXECUTE, FIND_COMMAND};
use std::fmt;
use std::process::ExitCode;

/// What the command asked for cannot be, with the words that engines look for.
#[derive(Debug)]
pub(crate) enum Fault {
    /// No container of that id.
    Missing,
    /// The id is taken.
    Exists,
    /// The container's process has ended.
    NotRunning,
    /// Anything else that the container's state forbids.
    State(String),
    /// The request contradicts itself.
    Usage(String),
    /// A failure with an exit code of its own.
    Code(u8, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("container does not exist"),
            Self::Exists => f.write_str("container with given ID already exists"),
            Self::NotRunning => f.write_str("container not running"),
            Self::State(text) | Self::Usage(text) | Self::Code(_, text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Fault {}

/// Writes the error to the log and answers the exit code: 1, or the fault's own.
pub(crate) fn report(log: &Log, error: &anyhow::Error) -> ExitCode {
    log.error(&sentence(error));
    match error.downcast_ref::<Fault>() {
        Some(Fault::Code(code, _)) => ExitCode::from(*code),
        _ => ExitCode::from(1),
    }
}

/// The whole chain; an error of the runtime tells its cause itself.
pub(crate) fn sentence(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        parts.push(cause.to_string());
        if cause.is::<slipway_runtime::Error>() {
            break;
        }
    }
    parts.join(": ")
}

/// Help and version are no failures; a command line that cannot be read is 1, as with runc.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

/// A failed launch or start in the words engines derive exit codes from; `command` is the process's first argument.
pub(crate) fn launch(error: slipway_runtime::Error, command: &str) -> anyhow::Error {
    let text = error.to_string();
    let about_command = text.contains(FIND_COMMAND) || text.contains(EXECUTE);
    let words = match error.kind() {
        _ if !about_command => None,
        Kind::NotFound if command.contains('/') => Some(format!("stat {command}: no such file or directory")),
        Kind::NotFound => Some("executable file not found in $PATH".to_owned()),
        _ if error.errno() == Some(libc::EACCES) => Some("permission denied".to_owned()),
        _ => None,
    };
    match words {
        Some(words) => anyhow::Error::new(error).context(format!("exec: {command:?}: {words}")),
        None => error.into(),
    }
}
