//! What a foreign runtime is handed: a directory with `config.json`, and the root file system mounted beside it.
//!
//! The mount is in our own mount namespace, by its name, as such runtimes want it: it goes with the container, and what a
//! keeper that was killed has left the next one takes away.

use super::New;
use crate::error::{Error, Result};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use serde::Serialize;
use slipway_runtime::host::Host;
use slipway_runtime::rootfs::{self, Rootfs};
use slipway_runtime::sandbox::NamespaceKind;
use slipway_runtime::unit::ScopeName;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// Makes `dir` and what is in it.
pub(super) fn make(dir: &Path, new: &New<'_>, standalone: bool) -> Result<()> {
    let fail = |e: io::Error| Error::io("make", dir.display(), &e);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    let root = root(dir, new)?;
    let spec = adapted(new, root, standalone);
    if uses(&spec, LinuxNamespaceType::User) {
        // Its root is nobody here, and must find its way to the root file system.
        open_the_way(dir).map_err(fail)?;
    }
    write_json(&dir.join("config.json"), &spec)
}

/// Mounts the root file system in `dir`, as [`make`] does, and answers what `config.json` is to be there; for a shim.
pub(crate) fn prepared(dir: &Path, new: &New<'_>) -> Result<Spec> {
    Ok(adapted(new, root(dir, new)?, false))
}

/// Takes away what [`make`] made, and what the runtime wrote. Missing is success.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let rootfs = dir.join("rootfs");
    while unmount(&rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    // Not what is mounted there, should that have failed.
    match fs::remove_dir(&rootfs) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let fail = |e: io::Error| Error::io("write", path.display(), &e);
    let text = serde_json::to_vec(value).map_err(|e| fail(e.into()))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| fail(e.into()))?;
    io::Write::write_all(&mut fs::File::from(file), &text).map_err(fail)
}

/// Its control group is named as a scope of systemd's.
pub(crate) fn is_scope(spec: &Spec) -> bool {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    path.is_some_and(|path| matches!(ScopeName::parse(&path.to_string_lossy()), Ok(Some(_))))
}

/// Where the root file system is; mounts it if need be.
fn root(dir: &Path, new: &New<'_>) -> Result<PathBuf> {
    let overlay = match new.rootfs {
        Rootfs::Directory(path) => return Ok(path.clone()),
        Rootfs::Overlay(overlay) => overlay,
    };
    let place = dir.join("rootfs");
    match fs::create_dir(&place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("make", place.display(), &error));
        }
        _ => {}
    }
    let mapped = overlay.idmap.is_some();
    let user = namespace(new, NamespaceKind::User).filter(|_| mapped);
    let mount = rootfs::mount_root(new.rootfs, user)?;
    rootfs::attach(&mount, &place)?;
    Ok(place)
}

fn namespace<'a>(new: &'a New<'_>, kind: NamespaceKind) -> Option<BorrowedFd<'a>> {
    new.namespaces.join.iter().find(|(held, _)| *held == kind).map(|(_, fd)| fd.as_fd())
}

/// The spec in the runtime's terms: nothing in it depends on where the client's bundle is, and the pod's namespaces, which
/// have no name but that of our descriptors, are named by these. They are open until the container is made.
fn adapted(new: &New<'_>, root: PathBuf, standalone: bool) -> Spec {
    let mut spec = new.spec.clone();
    spec.set_version(version(&spec).into());
    let mut place = spec.root().clone().unwrap_or_default();
    place.set_path(root);
    spec.set_root(Some(place));
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let is_bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        let is_bind = is_bind || mount.typ().as_deref() == Some("bind");
        if let Some(source) = mount.source().clone().filter(|source| is_bind && source.is_relative()) {
            mount.set_source(Some(new.bundle.join(source)));
        }
    }
    let entries = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for entry in entries.into_iter().flatten() {
        let held = crate::prepare::kind(entry.typ()).and_then(|kind| namespace(new, kind));
        if let Some(fd) = held {
            entry.set_path(Some(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()));
        }
    }
    if let Some(process) = spec.process_mut() {
        within_reach(process);
    }
    if standalone {
        let mut annotations = spec.annotations().clone().unwrap_or_default();
        annotations.insert(CONTAINER_TYPE.into(), "sandbox".into());
        spec.set_annotations(Some(annotations));
    }
    spec
}

/// Takes from a process what nobody here could give it: other runtimes refuse it then, where ours leaves it out.
pub(crate) fn within_reach(process: &mut Process) {
    if let Some(asked) = process.capabilities() {
        let clipped = slipway_runtime::plan::clipped(asked, Host::current().capabilities);
        process.set_capabilities(Some(clipped));
    }
}

/// The oldest version of the specification that has what is used: there are runtimes (crun before 1.9) that refuse any after
/// 1.0, and none that does more for a later one.
fn version(spec: &Spec) -> &'static str {
    let is_mapped = spec.mounts().iter().flatten().any(|mount| mount.uid_mappings().is_some());
    if is_mapped { "1.2.0" } else { "1.0.2" }
}

fn uses(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let linux = spec.linux().as_ref();
    linux.is_some_and(|linux| linux.namespaces().iter().flatten().any(|entry| entry.typ() == kind))
}

/// Lets everybody pass (not look) through `dir` and the three directories of ours above it: the keeper's.
fn open_the_way(dir: &Path) -> io::Result<()> {
    for dir in dir.ancestors().take(4) {
        let mode = fs::metadata(dir)?.permissions().mode();
        if mode & 0o011 != 0o011 {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o011))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prepare::Namespaces;
    use serde_json::json;
    use slipway_runtime::container::Stdio;

    #[test]
    fn the_spec_names_what_the_runtime_can_find() {
        let spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": true},
            "annotations": {CONTAINER_TYPE: "container", "a": "b"},
            "mounts": [
                {"destination": "/a", "type": "bind", "source": "data", "options": ["rbind"]},
                {"destination": "/b", "type": "bind", "source": "/abs"},
                {"destination": "/p", "type": "proc", "source": "proc"},
            ],
            "linux": {"namespaces": [
                {"type": "pid"}, {"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "network", "path": "/run/netns/x"},
            ], "cgroupsPath": "a.slice:b:c"},
        }))
        .unwrap();
        let ipc = fs::File::open("/proc/self/ns/ipc").unwrap();
        let number = ipc.as_raw_fd();
        let namespaces = Namespaces { join: vec![(NamespaceKind::Ipc, ipc.into())], foreign_pids: false };
        let rootfs = Rootfs::Directory("/b/rootfs".into());
        let new = New {
            spec,
            rootfs: &rootfs,
            bundle: Path::new("/b"),
            namespaces: &namespaces,
            cgroup: "",
            stdio: Stdio::default(),
            overheard: None,
        };
        assert!(is_scope(&new.spec));
        let spec = adapted(&new, "/b/rootfs".into(), true);
        let spec = serde_json::to_value(spec).unwrap();
        assert_eq!(spec["ociVersion"], "1.0.2");
        assert_eq!(spec["root"], json!({"path": "/b/rootfs", "readonly": true}));
        let sources: Vec<_> = spec["mounts"].as_array().unwrap().iter().map(|m| &m["source"]).collect();
        assert_eq!(sources, ["/b/data", "/abs", "proc"]);
        let paths: Vec<_> =
            spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| &n["path"]).collect();
        let held = format!("/proc/{}/fd/{number}", std::process::id());
        assert_eq!(paths, [&json!(null), &json!(held), &json!("/run/netns/x")]);
        assert_eq!(spec["annotations"], json!({CONTAINER_TYPE: "sandbox", "a": "b"}));
    }
}
