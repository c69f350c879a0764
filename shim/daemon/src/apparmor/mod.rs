//! The AppArmor profile of containers that ask for none of their own: whether the host can have it, and its loading.
//!
//! ```text
//!  text ──▶ apparmor_parser -K -r ──▶ kernel ──▶ securityfs apparmor/profiles
//! ```
//!
//! AppArmor's own parser compiles it, so a host without that program has no default profile (as with containerd and CRI-O).

mod text;

use crate::error::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Its name in the kernel and in `process.apparmorProfile` (AA-01).
pub(crate) const DEFAULT: &str = "slipway-default";

const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
const PARSER: [&str; 3] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser"];

/// What this host has of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    pub(crate) enabled: bool,
    /// Lines of "name (mode)"; none if the list cannot be read.
    pub(crate) profiles: Option<String>,
    pub(crate) parser: Option<PathBuf>,
}

impl Host {
    pub(crate) fn probe() -> Self {
        let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
        Self {
            enabled: enabled.is_ok_and(|value| value.starts_with(b"Y")),
            profiles: std::fs::read_to_string(PROFILES).ok(),
            parser: PARSER.iter().map(PathBuf::from).find(|path| path.exists()),
        }
    }

    /// AA-07. None: nobody knows.
    pub(crate) fn has(&self, name: &str) -> Option<bool> {
        let is =
            |line: &str| line == name || line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name);
        self.profiles.as_ref().map(|all| all.lines().any(is))
    }

    /// Whether containers can have the default profile, now or after [`load`].
    pub(crate) fn has_default(&self) -> bool {
        self.enabled && (self.parser.is_some() || self.has(DEFAULT) == Some(true))
    }
}

/// Loads the default profile if the kernel does not have it (AA-05). Blocks: the parser takes some hundredths of a second,
/// once. Does nothing where the host can have none.
///
/// # Errors
/// FailedPrecondition with what the parser said.
pub(crate) fn load() -> Result<()> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let host = Host::probe();
    let Some(parser) = host.parser.as_deref().filter(|_| host.enabled && host.has(DEFAULT) != Some(true))
    else {
        return Ok(());
    };
    compile(parser, &text::profile(&text::Facts::probe()))?;
    tracing::info!(profile = DEFAULT, "AppArmor profile loaded");
    Ok(())
}

/// `-K`: without a cache; `-r`: over one of that name.
fn compile(parser: &Path, text: &str) -> Result<()> {
    let failed =
        |what: String| Error::state(format!("load AppArmor profile {DEFAULT}: {}: {what}", parser.display()));
    let mut child = Command::new(parser)
        .args(["-K", "-r"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())));
    }
    written.map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AA-07.
    #[test]
    fn a_profile_is_known_by_its_whole_name() {
        let host = |profiles: &str| Host { profiles: Some(profiles.into()), ..Host::default() };
        let loaded = host("a (enforce)\nslipway-default (enforce)\nb c (complain)\nbare\n");
        assert_eq!(loaded.has(DEFAULT), Some(true));
        assert_eq!(loaded.has("b c"), Some(true));
        assert_eq!(loaded.has("bare"), Some(true));
        assert_eq!(loaded.has("b"), Some(false));
        assert_eq!(Host::default().has("b"), None);
    }

    #[test]
    fn a_parser_that_refuses_is_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let parser = dir.path().join("parser");
        let write = |text: &str| crate::testing::script(&parser, text);
        write("cat >/dev/null; echo 'line 3: syntax error' >&2; exit 1\n");
        let error = compile(&parser, "x").expect_err("refused").to_string();
        assert!(error.contains("line 3: syntax error") && error.contains(DEFAULT), "{error}");
        write("cat >$0.got\n");
        compile(&parser, "the text").expect("taken");
        assert_eq!(std::fs::read_to_string(dir.path().join("parser.got")).expect("what it got"), "the text");
    }
}
