//! What this runtime can do, as the runtime specification's features.md has it: for `slipway-oci features`, and for
//! containerd, which offers to pods what is listed here.

use crate::namespace::NamespaceKind;
use crate::sys::mount;
use crate::{plan, seccomp};
use serde_json::{Value, json};

/// The document; `spec_version` is the newest version of the specification that is understood.
pub fn features(spec_version: &str) -> Value {
    let hooks = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec_version,
        "hooks": hooks,
        "mountOptions": plan::known_options(),
        "linux": linux(),
        "annotations": {"slipway.version": env!("CARGO_PKG_VERSION")},
    })
}

fn linux() -> Value {
    let namespaces: Vec<String> = NamespaceKind::ALL.iter().map(ToString::to_string).collect();
    json!({
        "namespaces": namespaces,
        "capabilities": capabilities(),
        "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
        "seccomp": seccomp(),
        "apparmor": {"enabled": true},
        "selinux": {"enabled": true},
        "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
        "mountExtensions": {"idmap": {"enabled": maps_mounts()}},
        "netDevices": {"enabled": true},
    })
}

/// A mount is mapped by a user namespace. Which file systems can be is told when they are mounted.
fn maps_mounts() -> bool {
    mount::has_attributes() && std::fs::exists("/proc/self/ns/user").unwrap_or(false)
}

/// Those that this kernel knows as well.
fn capabilities() -> Vec<String> {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    let known = last.trim().parse().map_or(usize::MAX, |last: usize| last + 1);
    plan::capability_names().into_iter().take(known).collect()
}

fn seccomp() -> Value {
    let flags = seccomp::kernel_flags();
    let known: Vec<&str> = flags.iter().map(|(name, _)| *name).collect();
    let supported: Vec<&str> = flags.iter().filter(|(_, known)| *known).map(|(name, _)| *name).collect();
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
        ],
        "archs": seccomp::known_architectures(),
        "knownFlags": known,
        "supportedFlags": supported,
    })
}
