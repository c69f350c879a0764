//! From a client's bundle and mounts to what the runtime is asked for: the wire conventions of keeper.proto, applied.

use crate::error::{Error, Result};
use crate::keeper::Keeper;
use crate::options::Options;
use crate::sandbox::Sandbox;
use containerd_shim_protos::api::Mount;
use oci_spec::runtime::{
    LinuxNamespaceType, Mount as SpecMount, PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};
use rustix::fd::OwnedFd;
use slipway_runtime::cgroup::prefers_systemd;
use slipway_runtime::error::Kind;
use slipway_runtime::idmap::IdMappings;
use slipway_runtime::rootfs::{Overlay, Rootfs};
use slipway_runtime::sandbox::NamespaceKind;
use slipway_runtime::unit::ScopeName;
use std::path::Path;

/// The annotation that names a container's sandbox.
const SANDBOX_ANNOTATION: &str = "io.kubernetes.cri.sandbox-id";
/// Soft and hard RLIMIT_NOFILE as they were before the guardian raised its own.
pub(crate) const NOFILE_VARIABLE: &str = "SLIPWAY_KEEPER_NOFILE";

/// Reads `<bundle>/config.json`.
pub(crate) fn load_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!("bundle: {}: {error}", path.display())),
        _ => Error::io("read", path.display(), &error),
    })?;
    slipway_runtime::spec::parse(&path.display().to_string(), &text)
        .map_err(|error| Error::invalid(error.to_string()))
}

/// The spec of a bundle as the runtime gets it but for its control group: with its pod's files and namespaces.
pub(crate) fn spec(keeper: &Keeper, bundle: &Path) -> Result<(Spec, Namespaces)> {
    let mut spec = load_spec(bundle)?;
    let sandbox_id = sandbox_of(&spec);
    let sandbox = keeper.sandboxes.find(&sandbox_id);
    if keeper.events.is_wanted() && sandbox.is_some() {
        pod_files(&mut spec, &keeper.layout.sandbox_files(&sandbox_id));
    }
    let namespaces = namespaces(&mut spec, sandbox.as_deref())?;
    Ok((spec, namespaces))
}

/// Id of the sandbox a spec belongs to, or "".
pub(crate) fn sandbox_of(spec: &Spec) -> String {
    spec.annotations().as_ref().and_then(|all| all.get(SANDBOX_ANNOTATION)).cloned().unwrap_or_default()
}

/// One directory or overlay the runtime mounts, where only the container sees it; all else [`crate::mounts`] does.
pub(crate) fn needs_mounting(mounts: &[Mount]) -> bool {
    match mounts {
        [] => false,
        [mount] => !matches!(mount.type_.as_str(), "overlay" | "bind" | "rbind") || !mount.target.is_empty(),
        _ => true,
    }
}

/// The root file system from the mounts of a Create request (SHIM-TSK-01, SHIM-TSK-03; SHIM-MNT-01).
pub(crate) fn rootfs(mounts: &[Mount], bundle: &Path, spec: &Spec) -> Result<Rootfs> {
    match mounts {
        [first, ..] if !first.target.is_empty() => Err(Error::invalid(format!(
            "rootfs: the first mount is for {} in a root that is not there yet",
            first.target
        ))),
        mounts if needs_mounting(mounts) => Ok(Rootfs::Directory(bundle.join("rootfs"))),
        [] => {
            let root = spec.root().as_ref().map_or(Path::new("rootfs"), |root| root.path().as_path());
            Ok(Rootfs::Directory(bundle.join(root)))
        }
        [mount] if mount.type_ == "overlay" => overlay(&mount.options).map(Rootfs::Overlay),
        [mount, ..] => Ok(Rootfs::Directory(mount.source.clone().into())),
    }
}

/// A view of a snapshot must stay as it is, whatever the spec says.
pub(crate) fn protect_root(mounts: &[Mount], spec: &mut Spec) {
    let readonly = mounts.iter().any(|mount| mount.options.iter().any(|option| option == "ro"));
    if let Some(root) = spec.root_mut().as_mut().filter(|_| readonly) {
        root.set_readonly(Some(true));
    }
}

/// Adds the pod's own files in `dir`, if there are any, where the client has none in mind. containerd leaves them to
/// sandboxes of its sandboxer "shim", but gives each container a /dev/shm of its own.
fn pod_files(spec: &mut Spec, dir: &Path) {
    if !dir.exists() {
        return;
    }
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let shm = Path::new("/dev/shm");
    if dir.join("shm").exists() {
        mounts.retain(|mount| mount.destination() != shm || mount.typ().as_deref() != Some("tmpfs"));
    }
    let file: &[&str] = if readonly { &["rbind", "rprivate", "ro"] } else { &["rbind", "rprivate", "rw"] };
    for (name, target, options) in [
        ("hostname", Path::new("/etc/hostname"), file),
        ("hosts", Path::new("/etc/hosts"), file),
        ("resolv.conf", Path::new("/etc/resolv.conf"), file),
        ("shm", shm, &["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"]),
    ] {
        let source = dir.join(name);
        if !source.exists() || mounts.iter().any(|mount| mount.destination() == target) {
            continue;
        }
        let mut mount = SpecMount::default();
        mount.set_destination(target.into());
        mount.set_typ(Some("bind".into()));
        mount.set_source(Some(source));
        mount.set_options(Some(options.iter().map(|&option| option.into()).collect()));
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
}

pub(crate) fn overlay(options: &[String]) -> Result<Overlay> {
    let pair = |option: &String| match option.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (option.clone(), None),
    };
    let options: Vec<_> = options.iter().map(pair).collect();
    Overlay::from_options(&options).map_err(|error| match error.kind() {
        Kind::Unsupported => Error::unimplemented(format!("rootfs: {error}")),
        _ => Error::invalid(format!("rootfs: {error}")),
    })
}

/// What the spec's namespaces mean for the keeper.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) join: Vec<(NamespaceKind, OwnedFd)>,
    /// Processes of others are in the container's PID namespace.
    pub(crate) foreign_pids: bool,
}

/// Turns paths that mean the sandbox's own namespaces into descriptors; where the sandbox uses the host's, the entry
/// goes, which is OCI's way to say so.
fn namespaces(spec: &mut Spec, sandbox: Option<&Sandbox>) -> Result<Namespaces> {
    let mut result = Namespaces { join: Vec::new(), foreign_pids: true };
    let Some(entries) = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut()) else {
        return Ok(result);
    };
    let mut failed = None;
    entries.retain(|entry| {
        let Some(path) = entry.path() else {
            result.foreign_pids &= entry.typ() != LinuxNamespaceType::Pid;
            return true;
        };
        let Some(sandbox) = sandbox.filter(|sandbox| sandbox.owns(path)) else { return true };
        let Some(kind) = kind(entry.typ()) else { return true };
        match sandbox.namespace(kind) {
            Ok(Some(fd)) => {
                result.join.push((kind, fd));
                true
            }
            // Never the host's processes by accident: who wants them leaves the entry out, or says so of the whole pod.
            Ok(None) if kind == NamespaceKind::Pid && !sandbox.uses_host_pids() => {
                failed = Some(Error::state("the sandbox has no PID namespace of its own to join"));
                true
            }
            Ok(None) => false,
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(result),
    }
}

pub(crate) fn kind(kind: LinuxNamespaceType) -> Option<NamespaceKind> {
    Some(match kind {
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    })
}

/// The container's control group: the spec's, or one of its own; "" without a Linux section. containerd names a scope
/// (`parent.slice:prefix:id`) wherever the pod's parent ends in `.slice`, whatever the options say; where no systemd makes
/// scopes and none is asked for, that is a directory of this name, as it is to runc.
pub(crate) fn cgroup(spec: &Spec, namespace: &str, id: &str, options: &Options) -> String {
    let Some(linux) = spec.linux() else { return String::new() };
    let asked = linux.cgroups_path().as_ref().map(|path| path.to_string_lossy()).unwrap_or_default();
    let is_scope = !matches!(ScopeName::parse(&asked), Ok(None));
    if asked.is_empty() {
        format!("/slipway/{namespace}/{id}")
    } else if is_scope && !options.systemd_cgroup && !prefers_systemd() {
        format!("/{asked}")
    } else {
        asked.into_owned()
    }
}

/// Puts into the spec what [`cgroup`] decided.
pub(crate) fn set_cgroup(spec: &mut Spec, path: &str) {
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(path.into()));
    }
}

/// A process must not inherit what the keeper has for itself: the guardian's OOM score and number of descriptors.
pub(crate) fn process(process: &mut Process, oom_score: Option<i32>, nofile: Option<(u64, u64)>) {
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(Some(oom_score.unwrap_or(0)));
    }
    let mut limits = process.rlimits().clone().unwrap_or_default();
    let set = limits.iter().any(|limit| limit.typ() == PosixRlimitType::RlimitNofile);
    if let Some((soft, hard)) = nofile.filter(|_| !set)
        && let Ok(limit) =
            PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard).build()
    {
        limits.push(limit);
        process.set_rlimits(Some(limits));
    }
}

/// [`NOFILE_VARIABLE`] as written by the guardian.
pub(crate) fn nofile_from_env() -> Option<(u64, u64)> {
    let value = std::env::var(NOFILE_VARIABLE).ok()?;
    let (soft, hard) = value.split_once(':')?;
    Some((soft.parse().ok()?, hard.parse().ok()?))
}

/// Host ids of the process; our own where a user namespace's mapping does not tell them.
pub(crate) fn owner(spec: &Spec, process: Option<&Process>) -> (u32, u32) {
    let Some(process) = process else { return (0, 0) };
    let (uid, gid) = (process.user().uid(), process.user().gid());
    let mapped = spec
        .linux()
        .as_ref()
        .filter(|linux| linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User));
    let Some(linux) = mapped else { return (uid, gid) };
    let (uids, gids) = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
    match IdMappings::from_spec("linux", uids, gids) {
        Ok(user) => (user.host_uid(uid).unwrap_or(0), user.host_gid(gid).unwrap_or(0)),
        Err(_) => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        Mount {
            type_: kind.into(),
            source: "/src".into(),
            options: options.iter().map(|&option| option.into()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn root_file_systems() {
        let of = |mounts: &[Mount]| rootfs(mounts, Path::new("/b"), &Spec::default());
        assert_eq!(of(&[]).unwrap(), Rootfs::Directory("/b/rootfs".into()));
        assert_eq!(of(&[mount("bind", &["rbind", "rw"])]).unwrap(), Rootfs::Directory("/src".into()));
        let options =
            ["index=off", "workdir=/w", "upperdir=/u", r"lowerdir=/a:/b\:c", "lowerdir=/d", "volatile"];
        let expected = Overlay {
            lower: vec!["/a".into(), "/b:c".into(), "/d".into()],
            upper: Some("/u".into()),
            work: Some("/w".into()),
            volatile: true,
            idmap: None,
            label: None,
        };
        assert_eq!(of(&[mount("overlay", &options)]).unwrap(), Rootfs::Overlay(expected));
        let mapped = mount("overlay", &["lowerdir=/a", "uidmap=0:1000:9,9:5:1", "gidmap=0:2000:10"]);
        let Rootfs::Overlay(overlay) = of(&[mapped]).unwrap() else { panic!("an overlay") };
        assert_eq!(overlay.idmap.unwrap().to_string(), "0:1000:9,9:5:1/0:2000:10");
        for (mounts, code) in [
            (vec![mount("overlay", &["lowerdir=/a", "uidmap=0:1"])], ttrpc::Code::INVALID_ARGUMENT),
            (vec![mount("overlay", &["lowerdir=/a", "uidmap=0:1:5"])], ttrpc::Code::INVALID_ARGUMENT),
            (vec![mount("overlay", &["upperdir=/u"])], ttrpc::Code::INVALID_ARGUMENT),
            (vec![mount("overlay", &["lowerdir=/l", "upperdir=/u"])], ttrpc::Code::INVALID_ARGUMENT),
            (vec![mount("overlay", &["lowerdir=/l", "magic=1"])], ttrpc::Code::UNIMPLEMENTED),
        ] {
            assert_eq!(of(&mounts).unwrap_err().code(), code, "{mounts:?}");
        }
        for mounts in [vec![mount("ext4", &[])], vec![mount("bind", &[]), mount("overlay", &["lowerdir=/a"])]]
        {
            assert!(needs_mounting(&mounts));
            assert_eq!(of(&mounts).unwrap(), Rootfs::Directory("/b/rootfs".into()), "{mounts:?}");
        }
        let below = Mount { target: "/below".into(), ..mount("bind", &[]) };
        assert_eq!(of(&[below]).unwrap_err().code(), ttrpc::Code::INVALID_ARGUMENT);
    }

    #[test]
    fn a_view_stays_as_it_is() {
        let mut spec = Spec::default();
        protect_root(&[mount("bind", &["rbind", "rw"])], &mut spec);
        let readonly = |spec: &Spec| spec.root().as_ref().and_then(|root| root.readonly());
        let before = readonly(&spec);
        protect_root(&[], &mut spec);
        assert_eq!(readonly(&spec), before);
        protect_root(&[mount("bind", &["rbind", "ro"])], &mut spec);
        assert_eq!(readonly(&spec), Some(true));
    }

    #[test]
    fn the_pods_files_go_where_the_client_has_none() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["hostname", "hosts", "resolv.conf"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("shm")).unwrap();
        let mut spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
                {"destination": "/etc/hosts", "type": "bind", "source": "/kubelet/hosts"},
            ],
        }))
        .unwrap();
        pod_files(&mut spec, dir.path());
        let seen: Vec<_> = spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| (mount.destination().to_str().unwrap(), mount.typ().clone().unwrap()))
            .collect();
        let bind = |path| (path, "bind".to_owned());
        let expected =
            [bind("/etc/hosts"), bind("/etc/hostname"), bind("/etc/resolv.conf"), bind("/dev/shm")];
        assert_eq!(seen, expected);
        let before = spec.clone();
        pod_files(&mut spec, &dir.path().join("absent"));
        assert_eq!(spec, before);
    }

    #[test]
    fn limits_of_the_keeper_are_not_inherited() {
        let mut process_spec = Process::default();
        process_spec.set_rlimits(None);
        process(&mut process_spec, Some(500), Some((1024, 4096)));
        assert_eq!(process_spec.oom_score_adj(), Some(500));
        let limits = process_spec.rlimits().clone().unwrap();
        assert_eq!((limits[0].soft(), limits[0].hard()), (1024, 4096));
        process(&mut process_spec, Some(1), Some((1, 1)));
        assert_eq!(process_spec.rlimits().clone().unwrap(), limits);
    }
}
