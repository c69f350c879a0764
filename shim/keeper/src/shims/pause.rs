//! The sandbox container, by which a shim knows a pod: our reaper as its pause, in the pod's own namespaces.

use super::pod::Pause;
use crate::error::{Error, Result};
use crate::sandbox::name;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use slipway_runtime::sandbox::{NamespaceKind, REAPER};
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Its program, in its root file system.
const PROGRAM: &str = "pause";

/// Puts the program there.
pub(super) fn install(rootfs: &Path) -> Result<()> {
    let path = rootfs.join(PROGRAM);
    let fail = |e: io::Error| Error::io("write", path.display(), &e);
    fs::write(&path, REAPER).map_err(fail)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(fail)
}

/// As containerd's CRI writes it, but for the namespaces, which are there already.
pub(super) fn spec(id: &str, rootfs: &Path, cgroup: &str, pause: &Pause<'_>) -> Result<Spec> {
    let path = |fd: &rustix::fd::OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let mut namespaces = vec![json!({"type": "mount"})];
    for (kind, fd) in pause.namespaces {
        let word = match kind {
            NamespaceKind::Ipc | NamespaceKind::Uts | NamespaceKind::Pid => name(*kind),
            // The network's comes by its path; others are not shared.
            _ => continue,
        };
        namespaces.push(json!({"type": word, "path": path(fd)}));
    }
    if !pause.netns.is_empty() {
        namespaces.push(json!({"type": "network", "path": pause.netns}));
    }
    let has = |kind: NamespaceKind| pause.namespaces.iter().any(|(held, _)| *held == kind);
    if !has(NamespaceKind::Pid) {
        namespaces.push(json!({"type": "pid"}));
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": [format!("/{PROGRAM}")], "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "capabilities": {"bounding": [], "effective": [], "permitted": []},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": true},
        "mounts": mounts(pause.files),
        "annotations": pause.annotations,
        "linux": {
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if !cgroup.is_empty() {
        spec["linux"]["cgroupsPath"] = cgroup.into();
    }
    if has(NamespaceKind::Uts) && !pause.hostname.is_empty() {
        spec["hostname"] = pause.hostname.into();
    }
    serde_json::from_value(spec).map_err(|e| Error::internal(format!("spec of sandbox container {id}: {e}")))
}

/// `files`: the pod's own; a virtual machine finds its resolver by them.
fn mounts(files: &Path) -> Vec<Value> {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"]}),
    ];
    for (name, target, options) in [
        ("shm", "/dev/shm", &["rbind", "ro", "nosuid", "nodev", "noexec"][..]),
        ("resolv.conf", "/etc/resolv.conf", &["rbind", "ro", "nosuid", "nodev", "noexec"]),
    ] {
        // A client may have them elsewhere and links here; not every runtime follows those.
        if let Ok(source) = files.join(name).canonicalize() {
            mounts.push(json!({"destination": target, "type": "bind", "source": source, "options": options}));
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn it_is_in_the_pods_own_namespaces() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("resolv.conf"), "").unwrap();
        let uts = fs::File::open("/proc/self/ns/uts").unwrap();
        let number = uts.as_raw_fd();
        let annotations =
            BTreeMap::from([("io.kubernetes.cri.container-type".to_owned(), "sandbox".to_owned())]);
        let pause = Pause {
            hostname: "web",
            netns: "/run/netns/x",
            files: dir.path(),
            namespaces: &[(NamespaceKind::Uts, uts.into())],
            annotations: &annotations,
        };
        let spec = serde_json::to_value(spec("p", Path::new("/r"), "/g/p", &pause).unwrap()).unwrap();
        let kinds: Vec<_> =
            spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| &n["type"]).collect();
        assert_eq!(kinds, ["mount", "uts", "network", "pid"]);
        assert_eq!(
            spec["linux"]["namespaces"][1]["path"],
            format!("/proc/{}/fd/{number}", std::process::id())
        );
        assert_eq!((&spec["hostname"], &spec["linux"]["cgroupsPath"]), (&json!("web"), &json!("/g/p")));
        let targets: Vec<_> = spec["mounts"].as_array().unwrap().iter().map(|m| &m["destination"]).collect();
        assert_eq!(targets, ["/proc", "/dev", "/sys", "/etc/resolv.conf"]);
        assert_eq!(spec["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
    }
}
