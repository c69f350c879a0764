//! Reading and writing control files, with errors that name controller file, value and what to do.

use crate::{Error, Result, error::Kind};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Writes one value by one write(2), as the kernel wants it.
pub(crate) fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    let written =
        fs::OpenOptions::new().write(true).open(&path).and_then(|mut f| f.write_all(value.as_bytes()));
    written.map_err(|source| explain(&path, value, source))
}

/// The same; false when the file does not exist (controller or kernel feature absent).
pub(crate) fn write_if_there(dir: &Path, file: &str, value: &str) -> Result<bool> {
    match write(dir, file, value) {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

/// The file's text without the final newline.
pub(crate) fn read(dir: &Path, file: &str) -> Result<String> {
    let path = dir.join(file);
    let text = fs::read_to_string(&path);
    text.map(|t| t.trim_end().to_owned())
        .map_err(|e| Error::sys("read control file", path.display().to_string(), e))
}

/// A number; None when the file is absent or says `max`.
pub(crate) fn number(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file).ok()?.parse().ok()
}

/// The value of `key` in a flat keyed file such as memory.stat.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn explain(path: &Path, value: &str, source: io::Error) -> Error {
    let errno = source.raw_os_error();
    let error = Error::sys(format!("write {value:?} to control file"), path.display().to_string(), source);
    match errno {
        Some(libc::EINVAL | libc::ERANGE | libc::EOVERFLOW) => error
            .with_kind(Kind::Invalid)
            .hint("the kernel refuses this value: check the limit that was asked for"),
        Some(libc::ENOENT) => error
            .with_kind(Kind::Unsupported)
            .hint("this kernel or hierarchy has no such file: is the controller enabled here?"),
        Some(libc::EBUSY) => error.hint("present use is above the limit, or processes are in the way"),
        Some(libc::EACCES | libc::EROFS) => {
            error.hint("the parent group does not allow it, or cgroups are read-only")
        }
        _ => error,
    }
}
