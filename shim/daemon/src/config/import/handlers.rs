//! Handlers of runtime classes: those that Slipway takes the place of, and those that go on with their own OCI runtime.
//!
//! The default handler is Slipway itself where its runtime is one that does what ours does. Another one that names a program
//! was made for its sake: it keeps it.

use super::Import;
use super::leaves::Leaf;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// OCI runtimes that do what ours does.
const LIKE_OURS: [&str; 3] = ["runc", "crun", "youki"];

/// What the other configuration says of one handler.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    /// Its kind is one of an OCI runtime.
    pub(super) is_oci: bool,
    /// Slipway's own.
    pub(super) is_ours: bool,
    pub(super) binary: Option<&'a Leaf>,
    pub(super) root: Option<&'a Leaf>,
}

/// Puts together what single keys could not say. `default`: the name of the handler that is used when none is asked for.
pub(super) fn settle(import: &mut Import, found: &BTreeMap<&str, Found<'_>>, default: &str) {
    for (name, handler) in found {
        let binary = handler.binary.filter(|leaf| !leaf.text().is_empty());
        let Some(binary) = binary.filter(|_| handler.is_oci) else { continue };
        let program = binary.text().rsplit('/').next().unwrap_or_default();
        let name = *name;
        if name == default && LIKE_OURS.contains(&program) {
            import.add("runtime_handlers", name);
            continue;
        }
        let Some(path) = find(binary.text()) else {
            import.leave(
                binary,
                "it is not in PATH here: give its full path as runtime_path of [handlers.NAME]",
            );
            continue;
        };
        import.take("runtime_handlers", name);
        import.set(&format!("handlers.{name}.runtime_path"), path.display().to_string().into());
        if let Some(root) = handler.root.filter(|leaf| !leaf.text().is_empty()) {
            import.set(&format!("handlers.{name}.runtime_root"), root.value.clone());
        }
        if name == default {
            import.leave(
                binary,
                "it is the handler's own now; pods that name no handler are run by Slipway itself",
            );
        }
        if program == "runsc" {
            import.set(&format!("handlers.{name}.sandbox_per_container"), true.into());
        }
    }
    // Settings of a handler that has no like here: its name must stay unknown.
    if let Some(toml::Value::Table(handlers)) = import.config.get_mut("handlers") {
        let has_like = |name: &str| found.get(name).is_some_and(|found| found.is_oci || found.is_ours);
        handlers.retain(|name, _| has_like(name));
        if handlers.is_empty() {
            import.config.remove("handlers");
        }
    }
}

/// One of a handler that has the same name here.
pub(super) fn setting(import: &mut Import, leaf: &Leaf, stars: &[&str]) -> Result<(), String> {
    let (name, key) = (stars.first().copied().unwrap_or_default(), leaf.path.last().cloned());
    import.set(&format!("handlers.{name}.{}", key.unwrap_or_default()), leaf.value.clone());
    Ok(())
}

/// A program's path; one that is named alone is looked for.
fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(Path::new(program).to_owned()).filter(|path| path.is_absolute());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}
