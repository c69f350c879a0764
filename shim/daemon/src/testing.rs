//! For unit tests only.

use std::path::Path;
use std::process::Command;

/// Writes an executable script. Another process does: one that a test beside forks at that moment would hold a file that we write
/// open, and execve(2) would fail with ETXTBSY.
pub(crate) fn script(path: &Path, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$0\" && chmod 755 \"$0\""]).arg(path).arg(text);
    assert!(writer.status().expect("sh").success(), "{}", path.display());
}
