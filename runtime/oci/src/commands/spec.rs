use crate::bundle::SPEC_VERSION;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Write a config.json to start from
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Directory to write it to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For an ordinary user
    #[arg(long)]
    rootless: bool,
}

impl Spec {
    pub(super) fn run(self) -> Result<()> {
        let path = self.bundle.join("config.json");
        if path.exists() {
            bail!("file {} exists: remove it first", path.display());
        }
        let mut spec = example();
        if self.rootless {
            for_ordinary_user(&mut spec);
        }
        let text = serde_json::to_string_pretty(&spec)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// A shell in namespaces of its own, with the rights that containers usually have.
fn example() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "slipway",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn mounts() -> Value {
    let mount = |destination, kind, source, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ])
}

/// A user namespace in which the caller is root; what then cannot be had is left out: a network of its own would have no
/// way out, sysfs belongs to it, device groups and limits on control groups need the host's root.
fn for_ordinary_user(spec: &mut Value) {
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let linux = &mut spec["linux"];
    linux["uidMappings"] = map(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = map(rustix::process::getegid().as_raw());
    let kinds = ["pid", "ipc", "uts", "mount", "cgroup", "user"];
    linux["namespaces"] = kinds.iter().map(|kind| json!({"type": kind})).collect();
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    let Some(mounts) = spec["mounts"].as_array_mut() else { return };
    mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    for mount in mounts {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| !option.as_str().is_some_and(|word| word.starts_with("gid=")));
        }
        if mount["destination"] == "/sys" {
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut spec = example();
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(parsed.version(), SPEC_VERSION);
        for_ordinary_user(&mut spec);
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(spec).unwrap();
        let linux = parsed.linux().as_ref().unwrap();
        assert!(linux.resources().is_none() && linux.uid_mappings().is_some());
    }
}
