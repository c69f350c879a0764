//! What the kernel's security modules say, and labels of files. Labels of processes are steps of a program.

mod relabel;

pub use relabel::{relabel, set_file_label};

use crate::error::Kind;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::path::Path;

/// Where SELinux is on: whether it enforces.
pub fn selinux_enforces() -> Option<bool> {
    fs::read("/sys/fs/selinux/enforce").ok().map(|value| value.starts_with(b"1"))
}

/// Asks the loaded policy for a context (selinuxfs `context`, as security_check_context(3) does).
///
/// # Errors
/// `Invalid` for one that it does not know.
pub fn check_context(label: &str) -> Result<()> {
    let mut asked = label.as_bytes().to_vec();
    asked.push(0);
    // Opened without O_CREAT and O_TRUNC: it is the kernel's file.
    let file = fs::OpenOptions::new().write(true).open("/sys/fs/selinux/context");
    file.and_then(|mut file| io::Write::write_all(&mut file, &asked)).map_err(|e| {
        if e.raw_os_error() == Some(libc::EINVAL) {
            let what = format!("{label:?}: the loaded policy has no such user, role, type or level");
            return Error::new(Kind::Invalid, "check SELinux label", what);
        }
        Error::sys("check SELinux label", label.to_owned(), e)
    })
}

fn failed(path: &Path, label: &str, error: io::Error) -> Error {
    Error::sys("set SELinux label", format!("{label} on {}", path.display()), error)
}
