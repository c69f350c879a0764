//! Namespaces that a container has from outside: criu leaves networks and pids to us by name, and joins the others.

use crate::rpc::{InheritedFd, JoinedNamespace, Options};
use anyhow::{Context, Result, bail};
use slipway_runtime::namespace::NamespaceKind;
use slipway_runtime::plan::{NamespaceSource, Plan};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The name that runc and podman use, too: images go from one to the other.
fn key(kind: NamespaceKind) -> Option<(&'static str, &'static str)> {
    match kind {
        NamespaceKind::Network => Some(("net", "extRootNetNS")),
        NamespaceKind::Pid => Some(("pid", "extRootPidNS")),
        _ => None,
    }
}

fn by_path(plan: &Plan) -> impl Iterator<Item = (NamespaceKind, &Path)> {
    plan.namespaces.iter().filter_map(|namespace| match &namespace.source {
        NamespaceSource::Path(path) => Some((namespace.kind, path.as_path())),
        _ => None,
    })
}

/// Names networks and pid namespaces that were there before the container.
pub(crate) fn at_dump(plan: &Plan, options: &mut Options) -> Result<()> {
    for (kind, path) in by_path(plan) {
        if let Some((word, name)) = key(kind) {
            let meta = std::fs::metadata(path)
                .with_context(|| format!("the {kind} namespace {}", path.display()))?;
            options.external.push(format!("{word}[{}]:{name}", meta.ino()));
        }
    }
    Ok(())
}

/// Opens them again, or for the others says where they are. The descriptors are for criu.
pub(crate) fn at_restore(plan: &Plan, options: &mut Options) -> Result<Vec<OwnedFd>> {
    let mut opened = Vec::new();
    for (kind, path) in by_path(plan) {
        match (key(kind), kind) {
            (Some((_, name)), _) => {
                let file =
                    File::open(path).with_context(|| format!("the {kind} namespace {}", path.display()))?;
                options.inherit_fd.push(InheritedFd { key: name.to_owned(), fd: file.as_raw_fd() });
                opened.push(file.into());
            }
            (None, NamespaceKind::Cgroup | NamespaceKind::Time) => {
                bail!("linux.namespaces: criu cannot restore into an existing {kind} namespace")
            }
            (None, _) => {
                let (ns, ns_file) = (kind.to_string(), path.to_string_lossy().into_owned());
                options.join_ns.push(JoinedNamespace { ns, ns_file });
            }
        }
    }
    Ok(opened)
}
