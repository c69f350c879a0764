//! One error type for the whole runtime: which step failed, on what, why, and what to do about it.

use std::fmt;
use std::io;

/// Result of every runtime call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of failure this is; the doors turn it into gRPC, ttrpc or exit codes in one place each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong (bad spec, bad limit, missing command).
    Invalid,
    /// Something named by the request does not exist.
    NotFound,
    /// The object exists already.
    Exists,
    /// The object is in the wrong state for this call.
    State,
    /// This kernel or host cannot do what was asked.
    Unsupported,
    /// A resource ran out (disk, pids, memory, descriptors).
    Exhausted,
    /// Anything else the kernel refused.
    Kernel,
}

/// A failed step: `place /dev (step 6 of 23): move_mount: EPERM (Operation not permitted); hint`.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    step: String,
    object: String,
    source: Option<io::Error>,
    hint: Option<String>,
}

impl Error {
    /// A failure without an errno: the request was refused before the kernel was asked.
    pub fn new(kind: Kind, step: impl Into<String>, object: impl Into<String>) -> Self {
        Self { kind, step: step.into(), object: object.into(), source: None, hint: None }
    }

    /// A failed system call, with the errno it answered; the kind is derived from the errno.
    pub fn sys(step: impl Into<String>, object: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let kind = match source.raw_os_error() {
            Some(libc::ENOENT) => Kind::NotFound,
            Some(libc::EEXIST) => Kind::Exists,
            Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => {
                Kind::Exhausted
            }
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => Kind::Unsupported,
            _ => Kind::Kernel,
        };
        Self { kind, step: step.into(), object: object.into(), source: Some(source), hint: None }
    }

    /// Adds what the operator can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Overrides the class derived from the errno.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Puts the sentence of the step that failed before what is known of it.
    #[must_use]
    pub fn quoting(mut self, sentence: &str) -> Self {
        self.step = format!("{sentence}: {}", self.step);
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The errno of the failed call, if a call failed.
    pub fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.object)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        match self.hint.as_deref().or_else(|| self.errno().and_then(usual_hint)) {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// What an errno mostly means, where nothing better is known.
fn usual_hint(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::ENOMEM => "memory is short: the kernel's own, or below the control group's limit",
        libc::ENOSPC | libc::EDQUOT => {
            "no space is left, or a limit is reached: see df, /proc/sys/user and /proc/sys/fs/mount-max"
        }
        libc::EAGAIN => {
            "a limit on processes or threads is reached: see RLIMIT_NPROC, the pids control group, kernel.pid_max"
        }
        libc::EMFILE | libc::ENFILE => "too many open files: see RLIMIT_NOFILE and fs.file-max",
        libc::ENOSYS => "this kernel lacks the call, or a sandbox around us forbids it",
        libc::EPERM => "this process lacks the right, or a sandbox around it forbids the call",
        _ => return None,
    })
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
