//! What is wrong with a handler's settings, if anything.

use super::file::{File, Handler};
use anyhow::{Context as _, Result, bail, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The key to blame, and the sentence.
pub(super) fn check(file: &File, name: &str, handler: &Handler) -> (String, Result<()>) {
    let key = |of: &str| format!("handlers.{name}.{of}");
    let named = (key("runtime_path"), name_of(file, name, handler));
    if named.1.is_err() {
        return named;
    }
    if let Some(path) = handler.runtime_path.as_ref().filter(|path| !path.is_absolute()) {
        let error = anyhow::anyhow!("{}: {} must be an absolute path", key("runtime_path"), path.display());
        return (key("runtime_path"), Err(error));
    }
    let relative = handler.runtime_root.as_ref().filter(|root| !root.is_absolute());
    if let Some(root) = relative {
        let error = anyhow::anyhow!("{} = {}: must be an absolute path", key("runtime_root"), root.display());
        return (key("runtime_root"), Err(error));
    }
    (key("runtime_path"), Ok(()))
}

/// RuntimeClass has names of DNS labels; this one becomes a directory, too.
fn name_of(file: &File, name: &str, handler: &Handler) -> Result<()> {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let edges = name.starts_with('-') || name.ends_with('-');
    ensure!(
        plain && !edges && !name.is_empty() && name.len() <= 63,
        "[handlers.{name:?}]: a handler's name is of at most 63 lower-case letters, digits and - between them"
    );
    if handler.runtime_path.is_none() {
        return Ok(());
    }
    ensure!(name != "slipway", "handlers.slipway is Slipway itself: give the other runtime another name");
    ensure!(
        !file.runtime_handlers.iter().any(|own| own == name),
        "handlers.{name} has a runtime_path, and runtime_handlers says that {name:?} is Slipway itself: only one can be"
    );
    Ok(())
}

/// Why its program cannot run now: no reason for a node not to start, whose other pods do without it.
pub(super) fn fault(name: &str, handler: &Handler) -> (String, Result<()>) {
    let key = format!("handlers.{name}.runtime_path");
    let found = handler.runtime_path.as_deref().map_or(Ok(()), program);
    let found = found.with_context(|| key.clone());
    (key, found)
}

fn program(path: &Path) -> Result<()> {
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => bail!("{shown}: {error}; install it, or take the handler out"),
    };
    ensure!(meta.is_file(), "{shown} is no file");
    ensure!(meta.permissions().mode() & 0o111 != 0, "{shown} is not executable");
    Ok(())
}
