//! Handlers of runtime classes: those that Slipway takes the place of, and those that go on with their own OCI runtime or shim.
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
    /// It names a shim of another kind, by its type (`io.containerd.kata.v2`) or program.
    pub(super) shim: Option<&'a Leaf>,
    /// That shim's program, where it is said beside the type.
    pub(super) shim_path: Option<&'a Leaf>,
    /// What of it goes to the shim: our key, and the value.
    pub(super) for_shim: Vec<(&'static str, &'a Leaf)>,
}

/// The program of a shim by its type, as containerd looks for it.
fn shim_program(kind: &str) -> Option<String> {
    if kind.starts_with('/') {
        return Some(kind.to_owned());
    }
    let mut parts = kind.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    let plain = |part: &str| !part.is_empty() && !part.contains(['/', ' ']);
    (plain(version) && plain(name)).then(|| format!("containerd-shim-{name}-{version}"))
}

/// A handler with a shim of its own. The error says why it cannot be one here.
fn settle_shim(import: &mut Import, name: &str, handler: &Found<'_>, is_default: bool) -> bool {
    let Some(kind) = handler.shim else { return false };
    let said = handler.shim_path.map(Leaf::text).filter(|path| !path.is_empty());
    let program = said.map(str::to_owned).or_else(|| shim_program(kind.text()));
    let Some(program) = program else {
        import.leave(kind, format!("{} is no kind of shim that is known", kind.text()));
        return false;
    };
    let Some(path) = find(&program) else {
        let why = format!("{program} is not in PATH here: give its full path as shim of [handlers.{name}]");
        import.leave(kind, why);
        return false;
    };
    import.take("runtime_handlers", name);
    import.set(&format!("handlers.{name}.shim"), path.display().to_string().into());
    for (key, leaf) in handler.for_shim.iter().filter(|(_, leaf)| !leaf.is_nothing()) {
        import.set(&format!("handlers.{name}.{key}"), leaf.value.clone());
    }
    if is_default {
        import
            .leave(kind, "it is the handler's own now; pods that name no handler are run by Slipway itself");
    }
    true
}

/// Puts together what single keys could not say. `default`: the name of the handler that is used when none is asked for.
pub(super) fn settle(import: &mut Import, found: &BTreeMap<&str, Found<'_>>, default: &str) {
    let mut shims = Vec::new();
    for (name, handler) in found {
        if settle_shim(import, name, handler, *name == default) {
            shims.push(*name);
        }
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
        let own = |name: &str| found.get(name).is_some_and(|found| found.is_oci || found.is_ours);
        let has_like = |name: &str| own(name) || shims.contains(&name);
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
