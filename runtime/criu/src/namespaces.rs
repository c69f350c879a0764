//! Namespaces that a container has from outside: criu leaves networks and pids to us by name, and joins the others.

use crate::rpc::{InheritedFd, JoinedNamespace, Options};
use anyhow::{Context, Result, bail};
use slipway_runtime::namespace::NamespaceKind;
use slipway_runtime::plan::{NamespaceSource, Plan};
use slipway_runtime::sys::namespace::{join, on_own_thread};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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

/// The names of the machine in a UTS namespace that was there before the container. Criu joins it and then gives it the
/// names that the frozen container saw: those of another pod.
#[derive(Debug)]
pub(crate) struct Names {
    namespace: OwnedFd,
    host: Vec<u8>,
    domain: Vec<u8>,
}

impl Names {
    /// None where the container brings its own.
    pub(crate) fn of(plan: &Plan) -> Result<Option<Self>> {
        let Some((_, path)) = by_path(plan).find(|(kind, _)| *kind == NamespaceKind::Uts) else {
            return Ok(None);
        };
        let namespace: OwnedFd =
            File::open(path).with_context(|| format!("the uts namespace {}", path.display()))?.into();
        let read = on_own_thread("names", || {
            join(namespace.as_fd(), libc::CLONE_NEWUTS as u32)?;
            let names = rustix::system::uname();
            std::io::Result::Ok((
                names.nodename().to_bytes().to_vec(),
                names.domainname().to_bytes().to_vec(),
            ))
        });
        let (host, domain) = read.and_then(|names| names).context("read the pod's host name")?;
        Ok(Some(Self { namespace, host, domain }))
    }

    /// Gives them back; twice does no harm.
    pub(crate) fn put_back(&self) -> Result<()> {
        let set = on_own_thread("names", || {
            join(self.namespace.as_fd(), libc::CLONE_NEWUTS as u32)?;
            rustix::system::sethostname(&self.host)?;
            std::io::Result::Ok(rustix::system::setdomainname(&self.domain)?)
        });
        set.and_then(|set| set).context("set the pod's host name")
    }
}
