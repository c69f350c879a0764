//! What the kernel's security modules say, and labels of files. Labels of processes are steps of a program.

mod relabel;

pub use relabel::{relabel, set_file_label};

use crate::error::Kind;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::path::Path;

/// Where SELinux is on: whether it enforces. A kernel that has it but was given no policy (a distribution without one, booted
/// with it) takes no labels: there it is off, as go-selinux and libselinux have it.
pub fn selinux_enforces() -> Option<bool> {
    let enforces = fs::read("/sys/fs/selinux/enforce").ok()?.starts_with(b"1");
    let current = fs::read("/proc/thread-self/attr/current").ok()?;
    has_policy(&current).then_some(enforces)
}

/// Before a policy is loaded, every process has the one context `kernel`.
fn has_policy(context: &[u8]) -> bool {
    context.trim_ascii_end().strip_suffix(b"\0").unwrap_or(context.trim_ascii_end()) != b"kernel"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_policy_there_is_one_context() {
        for (context, policy) in [
            (&b"kernel"[..], false),
            (b"kernel\0", false),
            (b"kernel\n", false),
            (b"system_u:system_r:kernel_t:s0\0", true),
        ] {
            assert_eq!(has_policy(context), policy, "{context:?}");
        }
    }
}
