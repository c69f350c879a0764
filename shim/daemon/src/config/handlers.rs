//! What is wrong with a handler's settings, if anything.

use super::file::{File, Handler};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The key to blame, and the sentence.
pub(super) fn check(file: &File, name: &str, handler: &Handler) -> (String, Result<()>) {
    let key = |of: &str| format!("handlers.{name}.{of}");
    let program = if handler.shim.is_some() { "shim" } else { "runtime_path" };
    let named = (key(program), name_of(file, name, handler, program));
    if named.1.is_err() {
        return named;
    }
    if let Some((of, why)) = contradiction(handler) {
        return (key(of), Err(anyhow!("{}: {why}", key(of))));
    }
    for (of, path) in [("runtime_path", &handler.runtime_path), ("shim", &handler.shim)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            return (key(of), Err(anyhow!("{}: {} must be an absolute path", key(of), path.display())));
        }
    }
    for (of, path) in [("runtime_root", &handler.runtime_root), ("config_path", &handler.config_path)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            return (key(of), Err(anyhow!("{} = {}: must be an absolute path", key(of), path.display())));
        }
    }
    (key(program), Ok(()))
}

/// A key that has no meaning beside another one, or without it.
fn contradiction(handler: &Handler) -> Option<(&'static str, &'static str)> {
    let name = handler.shim.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let of_runtimes = [
        ("runtime_path", handler.runtime_path.is_some()),
        ("runtime_args", !handler.runtime_args.is_empty()),
        // Only runc's can be told.
        ("runtime_root", handler.runtime_root.is_some() && !name.starts_with("containerd-shim-runc-v")),
        ("sandbox_per_container", handler.sandbox_per_container),
    ];
    let of_shims = [
        ("config_path", handler.config_path.is_some()),
        ("config_type", handler.config_type.is_some()),
        ("pod_annotations", !handler.pod_annotations.is_empty()),
    ];
    let (keys, why) = if handler.shim.is_some() {
        (
            of_runtimes.to_vec(),
            "the handler has a shim, which calls its runtime itself: take out one of the two",
        )
    } else {
        (of_shims.to_vec(), "it is for a shim, and the handler has none")
    };
    keys.into_iter().find(|(_, set)| *set).map(|(key, _)| (key, why))
}

/// RuntimeClass has names of DNS labels; this one becomes a directory, too.
fn name_of(file: &File, name: &str, handler: &Handler, program: &str) -> Result<()> {
    let plain = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let edges = name.starts_with('-') || name.ends_with('-');
    ensure!(
        plain && !edges && !name.is_empty() && name.len() <= 63,
        "[handlers.{name:?}]: a handler's name is of at most 63 lower-case letters, digits and - between them"
    );
    if handler.program().is_none() {
        return Ok(());
    }
    ensure!(name != "slipway", "handlers.slipway is Slipway itself: give the other runtime another name");
    ensure!(
        !file.runtime_handlers.iter().any(|own| own == name),
        "handlers.{name} has a {program}, and runtime_handlers says that {name:?} is Slipway itself: only one can be"
    );
    Ok(())
}

/// Why its program cannot run now: no reason for a node not to start, whose other pods do without it.
pub(super) fn fault(name: &str, handler: &Handler) -> (String, Result<()>) {
    let key = |of: &str| format!("handlers.{name}.{of}");
    let program = key(if handler.shim.is_some() { "shim" } else { "runtime_path" });
    let found = handler.program().map_or(Ok(()), executable).with_context(|| program.clone());
    if found.is_err() {
        return (program, found);
    }
    let file = handler.config_path.as_deref().map_or(Ok(()), readable);
    match file {
        Ok(()) => (program, Ok(())),
        Err(error) => (key("config_path"), Err(error).with_context(|| key("config_path"))),
    }
}

fn executable(path: &Path) -> Result<()> {
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => bail!("{shown}: {error}; install it, or take the handler out"),
    };
    ensure!(meta.is_file(), "{shown} is no file");
    ensure!(meta.permissions().mode() & 0o111 != 0, "{shown} is not executable");
    Ok(())
}

fn readable(path: &Path) -> Result<()> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(meta) => ensure!(meta.is_file(), "{shown} is no file"),
        Err(error) => bail!("{shown}: {error}"),
    }
    Ok(())
}
