//! Pods that another containerd shim runs, Debian's for runc: on the wire, and over deaths that only this client can bring about.
//! (What people see of them is in tests/e2e/tests/other_shims.rs.)

use crate::pods;
use crate::rig::{Bundle, Rig, address_of, code, kill_both, log_lines, soon};
use containerd_shim_protos::api::{ResizePtyRequest, StatsRequest};
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use cri_proto::keeper::SandboxOptions;
use cri_proto::v1::PodSandboxConfig;
use prost::Message as _;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use std::fs;
use std::path::Path;
use ttrpc::Code;

const SHIM: &str = "/usr/bin/containerd-shim-runc-v2";

/// A pod that is run by `path`.
fn create(rig: &Rig, id: &str, path: &str) -> ttrpc::Result<()> {
    let config = PodSandboxConfig { hostname: "the-pod".into(), ..Default::default() };
    let (root, group) = (rig.dir().join("runc"), &rig.group);
    let shim = format!(
        "Path = {path:?}\nRoot = {root:?}\nCgroup = \"/{group}/{id}\"\n[Annotations]\n\
         \"io.kubernetes.cri.container-type\" = \"sandbox\"\n\"io.kubernetes.cri.sandbox-id\" = {id:?}\n"
    );
    let options = SandboxOptions { config: config.encode_to_vec(), shim, ..Default::default() };
    let options = Any {
        type_url: "slipway.keeper.v1.SandboxOptions".into(),
        value: options.write_to_bytes().unwrap(),
        ..Any::default()
    };
    let request =
        CreateSandboxRequest { sandbox_id: id.into(), options: Some(options).into(), ..Default::default() };
    rig.run(rig.sandboxes().create_sandbox(soon(), &request)).map(drop)
}

/// A container of it, in its own PID namespace, with a log.
fn member(rig: &Rig, id: &str, pod: &str, pid: u32, script: &str) -> Bundle {
    pods::member(rig, id, pod, pid, &["ipc", "uts"], script)
}

#[test]
fn what_a_task_is_asked_its_shim_answers() {
    // SHIM-TSK-15, SHIM-TSK-24, SHIM-TSK-25, SHIM-TSK-28
    let rig = Rig::new();
    create(&rig, "pod", SHIM).unwrap();
    let pid = pods::start(&rig, "pod");
    let bundle = member(
        &rig,
        "c",
        "pod",
        pid,
        "hostname=$(cat /proc/sys/kernel/hostname); echo $hostname; sleep 1000",
    );
    rig.create(&bundle).unwrap();
    assert_eq!(code(rig.create(&bundle)), Code::ALREADY_EXISTS);
    assert_eq!(rig.state("c", "").unwrap(), "CREATED");
    rig.start("c", "").unwrap();
    assert_eq!(code(rig.start("c", "")), Code::FAILED_PRECONDITION);
    assert_eq!(code(rig.delete("c", "")), Code::FAILED_PRECONDITION);

    let request = StatsRequest { id: "c".into(), ..Default::default() };
    let stats = rig.run(rig.tasks().stats(soon(), &request)).unwrap().stats.unwrap();
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    } else {
        assert_eq!(stats.type_url, "io.containerd.cgroups.v1.Metrics");
        let stats = Metrics::parse_from_bytes(&stats.value).unwrap();
        // Ours never tell that.
        assert!(!stats.cpu.usage.per_cpu.is_empty(), "{stats:?}");
    }
    let resize = ResizePtyRequest { id: "c".into(), width: 80, height: 24, ..Default::default() };
    rig.run(rig.tasks().resize_pty(soon(), &resize)).unwrap();
    let pause = containerd_shim_protos::api::PauseRequest { id: "c".into(), ..Default::default() };
    rig.run(rig.tasks().pause(soon(), &pause)).unwrap();
    assert_eq!(rig.state("c", "").unwrap(), "PAUSED");
    assert_eq!(code(rig.exec("c", "e", &["true"], "")), Code::FAILED_PRECONDITION);
    let resume = containerd_shim_protos::api::ResumeRequest { id: "c".into(), ..Default::default() };
    rig.run(rig.tasks().resume(soon(), &resume)).unwrap();
    assert_eq!(rig.state("c", "").unwrap(), "RUNNING");
    assert_eq!(code(rig.kill("c", "", 99, false)), Code::INVALID_ARGUMENT);
    // A frozen one dies, too.
    rig.run(rig.tasks().pause(soon(), &pause)).unwrap();
    rig.kill("c", "", 9, true).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    assert_eq!(code(rig.kill("c", "", 15, false)), Code::NOT_FOUND);
    rig.delete("c", "").unwrap();
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["the-pod"]);

    // Never started; and one that is not to be.
    rig.create(&member(&rig, "d", "pod", pid, "true")).unwrap();
    rig.delete("d", "").unwrap();
    let mut bad = member(&rig, "e", "pod", pid, "true");
    bad.stdout = format!("file://{}", rig.dir().join("out").display());
    assert_eq!(code(rig.create(&bad)), Code::UNIMPLEMENTED);
    let mut bad = member(&rig, "e", "pod", pid, "true");
    bad.spec["process"]["args"] = serde_json::json!(["/no/such"]);
    let error = rig.create(&bad).unwrap_err().to_string();
    assert!(error.contains("/no/such") && error.contains(SHIM), "{error}");
    pods::shut_down(&rig, "pod");
    pods::shut_down(&rig, "pod");
    gone(&rig);
}

#[test]
fn sessions_of_a_shim_outlive_a_keeper() {
    let mut rig = Rig::new();
    create(&rig, "pod", SHIM).unwrap();
    let pid = pods::start(&rig, "pod");
    rig.create(&member(&rig, "c", "pod", pid, "sleep 1000")).unwrap();
    rig.start("c", "").unwrap();
    let out = rig.fifo("out");
    rig.exec(
        "c",
        "e",
        &["sh", "-c", "echo before; while [ ! -e /go ]; do sleep 0.05; done; echo after; exit 6"],
        &out,
    )
    .unwrap();
    let reader = std::thread::spawn(move || fs::read_to_string(out).unwrap());
    rig.start("c", "e").unwrap();
    rig.exec("c", "added", &["true"], "").unwrap();
    rig.kill_keeper();
    fs::write(rig.dir().join("bundles/c/rootfs/go"), "").unwrap();
    assert_eq!(rig.wait("c", "e").unwrap(), 6);
    rig.delete("c", "e").unwrap();
    assert_eq!(reader.join().unwrap(), "before\nafter\n");
    rig.start("c", "added").unwrap();
    assert_eq!(rig.wait("c", "added").unwrap(), 0);
    rig.kill("c", "", 9, true).unwrap();
    assert_eq!(rig.wait("c", "").unwrap(), 137);
    rig.delete("c", "").unwrap();
    pods::shut_down(&rig, "pod");
    gone(&rig);
}

#[test]
fn a_shim_goes_on_when_keeper_and_guardian_die() {
    // DESIGN 4: what is in the shim's hands is not lost with ours.
    let mut rig = Rig::new();
    create(&rig, "pod", SHIM).unwrap();
    let pid = pods::start(&rig, "pod");
    let script = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 8";
    rig.create(&member(&rig, "c", "pod", pid, script)).unwrap();
    rig.create(&member(&rig, "parked", "pod", pid, "echo late; exit 3")).unwrap();
    rig.start("c", "").unwrap();
    // Ends while nobody is there; only its output is nobody's then.
    rig.create(&member(&rig, "brief", "pod", pid, "while [ ! -e /go ]; do sleep 0.05; done; exit 9"))
        .unwrap();
    rig.start("brief", "").unwrap();
    kill_both(rig.guardian, rig.info().keeper_pid);
    fs::write(rig.dir().join("bundles/brief/rootfs/go"), "").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(address_of(&rig.shim("node", "start")), rig.address());
    rig.reconnect();
    rig.guardian = rig.info().guardian_pid;
    fs::write(rig.dir().join("bundles/c/rootfs/go"), "").unwrap();
    for (id, status) in [("c", 8), ("brief", 9)] {
        let info = rig.wait_task(id);
        assert_eq!((info.exit_status, info.status_known), (status, true), "{info:?}");
    }
    rig.start("parked", "").unwrap();
    assert_eq!(rig.wait("parked", "").unwrap(), 3);
    assert_eq!(log_lines(&rig.log_path("c"), "stdout"), ["one", "two"]);
    assert_eq!(log_lines(&rig.log_path("parked"), "stdout"), ["late"]);
    for id in ["c", "parked", "brief"] {
        rig.delete(id, "").unwrap();
    }
    pods::shut_down(&rig, "pod");
    gone(&rig);
}

/// Nothing of any shim is left in the keeper's directory or in runc's.
fn gone(rig: &Rig) {
    let below = |path: &Path| -> Vec<_> {
        fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let keepers = below(rig.dir()).into_iter().filter(|path| path.join("tasks").is_dir());
    let left: Vec<_> = keepers.flat_map(|keeper| below(&keeper.join("shims"))).collect();
    assert!(left.is_empty(), "{left:?}");
    let known: Vec<_> =
        below(&rig.dir().join("runc")).iter().flat_map(|namespace| below(namespace)).collect();
    assert!(known.is_empty(), "{known:?}");
}
