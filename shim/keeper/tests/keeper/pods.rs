//! Sandboxes: namespaces without a pause process.

use crate::rig::{Bundle, Rig, code, log_lines, soon};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, SandboxMetricsRequest, SandboxStatusRequest, ShutdownSandboxRequest,
    StartSandboxRequest, StopSandboxRequest, WaitSandboxRequest,
};
use cri_proto::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxConfig};
use prost::Message as _;
use protobuf::well_known_types::any::Any;
use serde_json::json;
use std::fs;
use ttrpc::Code;

/// CRI's NamespaceMode.
pub const POD: i32 = 0;
pub const CONTAINER: i32 = 1;
const NODE: i32 = 2;

pub fn create(rig: &Rig, id: &str, pid_mode: i32, sysctls: &[(&str, &str)]) -> ttrpc::Result<()> {
    let options = NamespaceOption { pid: pid_mode, ..Default::default() };
    let context = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = LinuxPodSandboxConfig {
        security_context: Some(context),
        sysctls: sysctls.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        ..Default::default()
    };
    let config = PodSandboxConfig { hostname: "the-pod".into(), linux: Some(linux), ..Default::default() };
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: config.encode_to_vec(),
        ..Any::default()
    };
    let request =
        CreateSandboxRequest { sandbox_id: id.into(), options: Some(options).into(), ..Default::default() };
    rig.run(rig.sandboxes().create_sandbox(soon(), &request)).map(drop)
}

pub fn start(rig: &Rig, id: &str) -> u32 {
    let request = StartSandboxRequest { sandbox_id: id.into(), ..Default::default() };
    rig.run(rig.sandboxes().start_sandbox(soon(), &request)).unwrap().pid
}

pub fn state(rig: &Rig, id: &str) -> ttrpc::Result<String> {
    let request = SandboxStatusRequest { sandbox_id: id.into(), ..Default::default() };
    rig.run(rig.sandboxes().sandbox_status(soon(), &request)).map(|answer| answer.state)
}

fn stop(rig: &Rig, id: &str) {
    let request = StopSandboxRequest { sandbox_id: id.into(), ..Default::default() };
    rig.run(rig.sandboxes().stop_sandbox(soon(), &request)).unwrap();
}

pub fn shut_down(rig: &Rig, id: &str) {
    let request = ShutdownSandboxRequest { sandbox_id: id.into(), ..Default::default() };
    rig.run(rig.sandboxes().shutdown_sandbox(soon(), &request)).unwrap();
}

/// A container of the pod whose namespaces of these kinds are the pod's.
pub fn member(rig: &Rig, id: &str, pod: &str, pid: u32, kinds: &[&str], script: &str) -> Bundle {
    let mut bundle = rig.bundle(id, &["sh", "-c", script]);
    bundle.stdout = format!("cri-log://{}", rig.log_path(id).display());
    bundle.spec["annotations"] = json!({"io.kubernetes.cri.sandbox-id": pod});
    let mut namespaces = vec![json!({"type": "mount"})];
    for kind in ["ipc", "uts", "pid"] {
        namespaces.push(if kinds.contains(&kind) {
            json!({"type": kind, "path": format!("/proc/{pid}/ns/{kind}")})
        } else {
            json!({"type": kind})
        });
    }
    bundle.spec["linux"]["namespaces"] = namespaces.into();
    bundle
}

#[test]
fn containers_share_the_pods_namespaces_over_a_keepers_death() {
    let mut rig = Rig::new();
    create(&rig, "pod", CONTAINER, &[("kernel.msgmax", "12345")]).unwrap();
    assert_eq!(code(create(&rig, "pod", CONTAINER, &[])), Code::ALREADY_EXISTS);
    assert_eq!(state(&rig, "pod").unwrap(), "SANDBOX_NOTREADY");
    let pid = start(&rig, "pod");
    assert_eq!(pid, rig.info().keeper_pid.cast_unsigned(), "no reaper, no process");
    assert_eq!(state(&rig, "pod").unwrap(), "SANDBOX_READY");
    for id in ["one", "two"] {
        if id == "two" {
            // The pid names the pod although the keeper that had it is gone.
            rig.kill_keeper();
            assert_eq!(start(&rig, "pod"), pid);
        }
        let script = "cat /proc/sys/kernel/hostname /proc/sys/kernel/msgmax";
        rig.create(&member(&rig, id, "pod", pid, &["ipc", "uts"], script)).unwrap();
        rig.start(id, "").unwrap();
        assert_eq!(rig.wait(id, "").unwrap(), 0);
        assert_eq!(log_lines(&rig.log_path(id), "stdout"), ["the-pod", "12345"], "{id}");
        rig.delete(id, "").unwrap();
    }
    // A PID namespace the pod does not have is never the host's instead.
    assert_eq!(
        code(rig.create(&member(&rig, "three", "pod", pid, &["pid"], "true"))),
        Code::FAILED_PRECONDITION
    );
    // Stopping ends what still runs in it.
    rig.create(&member(&rig, "four", "pod", pid, &["ipc"], "sleep 1000")).unwrap();
    rig.start("four", "").unwrap();
    stop(&rig, "pod");
    stop(&rig, "pod");
    assert_eq!(rig.wait("four", "").unwrap(), 137);
    rig.delete("four", "").unwrap();
    assert_eq!(state(&rig, "pod").unwrap(), "SANDBOX_NOTREADY");
    let wait = WaitSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    assert!(rig.run(rig.sandboxes().wait_sandbox(soon(), &wait)).unwrap().exited_at.is_some());
    assert_eq!(
        code(rig.create(&member(&rig, "five", "pod", pid, &["ipc"], "true"))),
        Code::FAILED_PRECONDITION
    );
    shut_down(&rig, "pod");
    shut_down(&rig, "pod");
    assert_eq!(code(state(&rig, "pod")), Code::NOT_FOUND);
}

#[test]
fn a_shared_pid_namespace_has_a_reaper_and_dies_with_it() {
    // SHIM-EXIT-03, SHIM-SBX-09
    let mut rig = Rig::new();
    create(&rig, "pod", POD, &[]).unwrap();
    let reaper = start(&rig, "pod");
    assert_ne!(reaper, rig.info().keeper_pid.cast_unsigned());
    rig.create(&member(&rig, "a", "pod", reaper, &["pid"], "sleep 1000 & echo $$; exit 3")).unwrap();
    rig.create(&member(&rig, "b", "pod", reaper, &["pid"], "sleep 1000")).unwrap();
    rig.start("b", "").unwrap();
    rig.start("a", "").unwrap();
    // What a's init left behind is killed although its namespace lives on.
    assert_eq!(rig.wait("a", "").unwrap(), 3);
    assert_ne!(log_lines(&rig.log_path("a"), "stdout"), ["1"]);
    rig.delete("a", "").unwrap();
    rig.kill_keeper();
    assert_eq!(state(&rig, "pod").unwrap(), "SANDBOX_READY");
    crate::rig::kill(reaper.cast_signed(), 9);
    let wait = WaitSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    assert_eq!(rig.run(rig.sandboxes().wait_sandbox(soon(), &wait)).unwrap().exit_status, 137);
    assert_eq!(state(&rig, "pod").unwrap(), "SANDBOX_NOTREADY");
    assert_eq!(rig.wait("b", "").unwrap(), 137);
    rig.delete("b", "").unwrap();
    shut_down(&rig, "pod");
    assert!(!fs::exists(format!("/proc/{reaper}")).unwrap());
}

#[test]
fn a_pod_may_be_among_the_hosts_processes() {
    let mut rig = Rig::new();
    create(&rig, "pod", NODE, &[]).unwrap();
    let pid = start(&rig, "pod");
    // On record, too.
    rig.kill_keeper();
    rig.create(&member(&rig, "a", "pod", pid, &["pid"], "echo $$; sleep 1000 & exit 3")).unwrap();
    rig.start("a", "").unwrap();
    assert_eq!(rig.wait("a", "").unwrap(), 3, "and what it left is gone with it");
    assert_ne!(log_lines(&rig.log_path("a"), "stdout"), ["1"]);
    rig.delete("a", "").unwrap();
    shut_down(&rig, "pod");
}

#[test]
fn bad_sandboxes_are_refused_and_leave_nothing() {
    let rig = Rig::new();
    assert_eq!(code(create(&rig, "a/b", CONTAINER, &[])), Code::INVALID_ARGUMENT);
    assert_eq!(code(create(&rig, "p", CONTAINER, &[("kernel.pid_max", "5")])), Code::INVALID_ARGUMENT);
    let ping = PingRequest { sandbox_id: "p".into(), ..Default::default() };
    assert_eq!(code(rig.run(rig.sandboxes().ping_sandbox(soon(), &ping))), Code::NOT_FOUND);
    let options =
        Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: vec![0xff; 9], ..Any::default() };
    let request =
        CreateSandboxRequest { sandbox_id: "p".into(), options: Some(options).into(), ..Default::default() };
    assert_eq!(code(rig.run(rig.sandboxes().create_sandbox(soon(), &request))), Code::INVALID_ARGUMENT);
    create(&rig, "p", CONTAINER, &[]).unwrap();
    shut_down(&rig, "p");
}

#[test]
fn a_pod_has_metrics_of_its_control_group() {
    // SHIM-SBX-12, SHIM-SBX-05, SHIM-SBX-10
    let rig = Rig::new();
    let parent = format!("/{}/pod", rig.group);
    let linux = LinuxPodSandboxConfig { cgroup_parent: parent.clone(), ..Default::default() };
    let config = PodSandboxConfig { linux: Some(linux), ..Default::default() };
    let options = Any {
        type_url: "runtime.v1.PodSandboxConfig".into(),
        value: config.encode_to_vec(),
        ..Any::default()
    };
    let request =
        CreateSandboxRequest { sandbox_id: "p".into(), options: Some(options).into(), ..Default::default() };
    rig.run(rig.sandboxes().create_sandbox(soon(), &request)).unwrap();
    start(&rig, "p");
    assert_eq!(state(&rig, "p").unwrap(), "SANDBOX_READY");
    let group = slipway_runtime::cgroup::Cgroup::create(&parent, None).unwrap();
    let request = SandboxMetricsRequest { sandbox_id: "p".into(), ..Default::default() };
    let metrics = rig.run(rig.sandboxes().sandbox_metrics(soon(), &request)).unwrap().metrics;
    assert_eq!(metrics.id, "p");
    assert!(metrics.data.type_url.starts_with("io.containerd.cgroups.v"), "{}", metrics.data.type_url);
    group.remove(std::time::Duration::from_secs(2)).unwrap();
    shut_down(&rig, "p");
    // Twice, and of what never was: success (SHIM-SBX-05).
    shut_down(&rig, "p");
    shut_down(&rig, "never");
}
