//! Control files: one open, one read or write, and errors that say controller, file, value and what to do.
//!
//! Never creates a file and never follows a path it was not given.

use crate::error::Kind;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

/// What the files of this folder say about a limit that the kernel refused.
pub(super) struct Refused<'a> {
    pub(super) controller: &'a str,
    pub(super) path: &'a str,
    pub(super) value: &'a str,
}

impl Refused<'_> {
    /// The sentence for `source`; the kinds follow what the kernel means by each errno in kernfs control files.
    pub(super) fn because(&self, source: io::Error) -> Error {
        let errno = source.raw_os_error().unwrap_or(0);
        let sentence = super::explain::write(self.value, self.path);
        let error = Error::sys(sentence, format!("{} limit", self.controller), source);
        match errno {
            libc::ENOENT => error.with_kind(Kind::Unsupported).hint(format!(
                "this kernel or this group has no such file: enable the {} controller or drop the limit",
                self.controller
            )),
            libc::EINVAL | libc::ERANGE | libc::EOVERFLOW | libc::E2BIG => {
                error.with_kind(Kind::Invalid).hint("the kernel does not take this value; look at the parent group's limit too")
            }
            libc::ENODEV | libc::ENXIO => {
                error.with_kind(Kind::Invalid).hint("no such block device; see /proc/partitions for major:minor")
            }
            libc::EACCES => error
                .with_kind(Kind::Invalid)
                .hint("the parent group does not own these cpus or memory nodes; see its cpuset files"),
            libc::EBUSY => error
                .with_kind(Kind::State)
                .hint("more is in use than the new limit allows, or processes are in the way; free some and try again"),
            libc::EPERM => error.hint("not allowed in this group: the parent's rules forbid it, or this is not root"),
            libc::EROFS => error.hint("cgroups are mounted read-only here; remount them rw"),
            _ => error,
        }
    }
}

/// Writes one value with a single write(2), as control files require.
pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads a control file whole.
pub(super) fn read(path: &str) -> io::Result<String> {
    // Control files have no size, so nothing can be reserved; a page holds nearly all of them.
    let mut text = String::with_capacity(4096);
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// The same with our error, for files that must be there.
pub(super) fn must_read(path: &str) -> Result<String> {
    read(path).map_err(|e| Error::sys("read control file", path, e))
}

/// A file with one number; None if it is absent, and for `max`.
pub(super) fn number(path: &str) -> io::Result<Option<u64>> {
    match read(path) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The value of `key` in a flat keyed file (`key value` lines).
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The file is not there, or the group itself has gone (ENODEV: it was removed while its file was open).
pub(super) fn absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// An error of cgroups-rs as ours: with the errno, where there was one below it.
pub(super) fn from_crate(
    step: impl Into<String>,
    object: &str,
    error: &cgroups_rs::fs::error::Error,
) -> Error {
    let cause = std::error::Error::source(error).and_then(|s| s.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(errno) => Error::sys(step, object, io::Error::from_raw_os_error(errno)),
        None => Error::new(Kind::Kernel, step, object).hint(error.to_string()),
    }
}
