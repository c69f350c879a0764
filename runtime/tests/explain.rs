//! Programs as golden text: what a Kubernetes-like container makes the kernel do, in which order. Pure: any user.
//!
//! After a wanted change: `SLIPWAY_GOLDEN=write cargo test -p slipway-runtime --test explain`, and read the difference.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use serde_json::{Value, json};
use slipway_runtime::host::{CgroupLayout, Hierarchy, Host};
use slipway_runtime::plan::{self, Facts, Plan};
use slipway_runtime::program::{Joined, Parking, Program};
use slipway_runtime::rootfs::{Overlay, Rootfs};
use slipway_runtime::sandbox::NamespaceKind;
use std::fs;
use std::path::{Path, PathBuf};

fn host(cgroups: CgroupLayout) -> Host {
    let hierarchy =
        |name: &str| Hierarchy { name: name.into(), path: Path::new("/sys/fs/cgroup").join(name) };
    let hierarchies = match cgroups {
        CgroupLayout::V1 => vec![hierarchy("memory"), hierarchy("cpu,cpuacct")],
        CgroupLayout::V2 => Vec::new(),
    };
    Host {
        cgroups,
        hierarchies,
        capabilities: (1 << 41) - 1,
        known_capabilities: (1 << 41) - 1,
        setgroups_denied: false,
        makes_groups: true,
        rights_gained: false,
        resctrl: None,
        apparmor: true,
        selinux: false,
    }
}

fn overlay() -> Rootfs {
    Rootfs::Overlay(Overlay {
        lower: vec![PathBuf::from("/layers/b"), PathBuf::from("/layers/a")],
        upper: Some(PathBuf::from("/upper")),
        work: Some(PathBuf::from("/work")),
        ..Overlay::default()
    })
}

fn kubernetes() -> Value {
    let mut spec = common::spec(&["nginx", "-g", "daemon off;"]);
    spec["process"]["user"] = json!({"uid": 101, "gid": 101, "additionalGids": [2000]});
    spec["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
    spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "80"});
    spec["linux"]["cgroupsPath"] = json!("/kubepods/pod1/web");
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    common::add_mount(&mut spec, "/etc/hosts", Path::new("/state/hosts"), &["rbind", "rprivate", "rw"]);
    common::add_mount(&mut spec, "/data", Path::new("/volumes/data"), &["rbind", "rslave", "rro"]);
    spec
}

fn explain(spec: &Value, host: &Host, given: &[NamespaceKind]) -> String {
    let spec = serde_json::from_value(spec.clone()).unwrap();
    let rootfs = overlay();
    let facts = Facts { host, bundle: Path::new("/bundle"), rootfs: &rootfs, given, home: Some("/var/www") };
    let plan = Plan::new("web", &spec, &facts).unwrap();
    Program::create(&plan, Parking::CommandOpen).unwrap().explain().join("\n") + "\n"
}

fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("SLIPWAY_GOLDEN").is_ok_and(|v| v == "write") {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    for (number, (expected, got)) in golden.lines().zip(text.lines()).enumerate() {
        assert_eq!(got, expected, "{name}:{}", number + 1);
    }
    assert_eq!(text.lines().count(), golden.lines().count(), "{name}");
}

#[test]
fn a_container_of_a_pod_on_version_1() {
    let given = [NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts];
    let mut spec = kubernetes();
    spec.as_object_mut().unwrap().remove("hostname");
    check("pod-container-v1.txt", &explain(&spec, &host(CgroupLayout::V1), &given));
}

#[test]
fn a_container_with_terminal_and_all_namespaces_on_version_2() {
    let mut spec = kubernetes();
    spec["process"]["terminal"] = json!(true);
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["root"]["readonly"] = json!(true);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    spec["linux"]["namespaces"][0]["path"] = json!("/proc/1234/ns/pid");
    check("terminal-v2.txt", &explain(&spec, &host(CgroupLayout::V2), &[]));
}

#[test]
fn an_exec_session() {
    let spec = serde_json::from_value(kubernetes()).unwrap();
    let mut process = kubernetes()["process"].clone();
    process["args"] = json!(["/bin/healthy"]);
    process["cwd"] = json!("/srv");
    let process = serde_json::from_value(process).unwrap();
    let plan = plan::exec(&process, &spec, &host(CgroupLayout::V1), None, None).unwrap();
    check("exec.txt", &(Program::exec(&plan, Joined::default()).unwrap().explain().join("\n") + "\n"));
}

/// Rules of order that no change may break, whatever the golden files say.
#[test]
fn order_is_safe() {
    for layout in [CgroupLayout::V1, CgroupLayout::V2] {
        let text = explain(&kubernetes(), &host(layout), &[]);
        let at = |start: &str| text.lines().position(|line| line.starts_with(start)).unwrap();
        assert!(at("write") < at("pivot"), "the host's procfs is written before the image's tree exists");
        assert!(at("make all inherited mounts private") < at("pivot"));
        assert!(at("close all descriptors") < at("change directory"), "CVE-2024-21626");
        assert!(at("mask") > at("place"), "masks cover what was mounted");
        assert!(at("enter the control group") < at("become uid"));
        assert!(at("become uid") < at("capabilities"));
        assert!(at("bound capabilities") < at("become uid"));
        assert!(at("load the seccomp filter") > at("find command"));
        assert!(at("wait for the start byte") < at("load the seccomp filter"));
    }
}
