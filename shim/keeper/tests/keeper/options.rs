//! runc's options, honoured or said to have no effect (SHIM-OPT-01, SHIM-OPT-02).

use crate::rig::{Bundle, Rig, code, log_lines, soon, wait_until};
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::shim::oci::Options;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use ttrpc::Code;

fn create_with(rig: &Rig, bundle: &Bundle, change: impl FnOnce(&mut Options)) -> ttrpc::Result<()> {
    let mut options = Options::default();
    change(&mut options);
    let value = options.write_to_bytes().unwrap();
    let options = Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() };
    fs::write(bundle.path.join("config.json"), bundle.spec.to_string()).unwrap();
    let request = CreateTaskRequest {
        id: bundle.id.clone(),
        bundle: bundle.path.to_str().unwrap().into(),
        stdout: bundle.stdout.clone(),
        options: Some(options).into(),
        ..Default::default()
    };
    rig.run(rig.tasks().create(soon(), &request)).map(drop)
}

#[test]
fn a_container_whose_root_is_entered_without_pivot_root_sees_that_root_only() {
    let rig = Rig::new();
    let mut seen = Vec::new();
    for (id, no_pivot) in [("pivoted", false), ("moved", true)] {
        let script =
            "cd /; echo *; while read -r _ _ _ _ point _; do echo $point; done < /proc/self/mountinfo";
        let mut bundle = rig.bundle(id, &["sh", "-c", script]);
        bundle.stdout = format!("cri-log://{}", rig.log_path(id).display());
        create_with(&rig, &bundle, |options| options.no_pivot_root = no_pivot).unwrap();
        rig.start(id, "").unwrap();
        assert_eq!(rig.wait(id, "").unwrap(), 0, "{id}");
        seen.push(log_lines(&rig.log_path(id), "stdout"));
        rig.delete(id, "").unwrap();
    }
    assert!(seen[0][0].contains("bin") && seen[0].contains(&"/".to_owned()), "{seen:?}");
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn streams_belong_to_whom_the_options_name() {
    // SHIM-IO-10
    let rig = Rig::new();
    let fifo = rig.fifo("out");
    // The user is the container's own either way, as a process must be able to open its streams again.
    for (id, gid, owner) in [("named", 2345, (77, 2345)), ("own", 0, (77, 88))] {
        let mut bundle = rig.bundle(id, &["sleep", "1000"]);
        bundle.stdout = fifo.clone();
        bundle.spec["process"]["user"] = serde_json::json!({"uid": 77, "gid": 88});
        create_with(&rig, &bundle, |options| {
            (options.io_uid, options.io_gid) = if gid == 0 { (0, 0) } else { (77, gid) };
        })
        .unwrap();
        let meta = fs::metadata(&fifo).unwrap();
        assert_eq!((meta.uid(), meta.gid()), owner, "{id}");
        rig.delete(id, "").unwrap();
    }
}

/// containerd names a scope for each pod whose parent ends in `.slice`; with SystemdCgroup it is meant.
#[test]
fn a_scope_where_no_systemd_makes_one_is_a_directory() {
    if slipway_runtime::cgroup::prefers_systemd() {
        return;
    }
    let rig = Rig::new();
    let mut bundle = rig.bundle("c", &["sleep", "1000"]);
    let scope = format!("keeper.slice:{}:c", rig.dir().file_name().unwrap().to_str().unwrap());
    bundle.spec["linux"]["cgroupsPath"] = scope.clone().into();
    let asked = create_with(&rig, &bundle, |options| options.systemd_cgroup = true);
    assert_eq!(code(asked), Code::UNIMPLEMENTED);
    create_with(&rig, &bundle, |_| ()).unwrap();
    let there = || {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let mut roots = hierarchies.chain(["/sys/fs/cgroup".into()]);
        roots.any(|root| root.join(&scope).exists())
    };
    assert!(there(), "{scope}");
    rig.delete("c", "").unwrap();
    assert!(!there(), "{scope}");
}

#[test]
fn what_has_no_effect_is_said_and_what_is_not_known_is_refused() {
    // SHIM-BIN-07
    let rig = Rig::new();
    let bundle = rig.bundle("c", &["true"]);
    create_with(&rig, &bundle, |options| {
        (options.binary_name, options.root, options.systemd_cgroup) = ("crun".into(), "/r".into(), true);
    })
    .unwrap();
    let log = || {
        let dirs = fs::read_dir(rig.dir()).unwrap().flatten();
        dirs.filter_map(|dir| fs::read_to_string(dir.path().join("log")).ok()).collect::<String>()
    };
    wait_until("a note on BinaryName", || log().contains("BinaryName = \"crun\" has no effect"));
    assert!(log().contains("Root = \"/r\" has no effect"), "{}", log());
    rig.delete("c", "").unwrap();
    let other = Any { type_url: "example.com/My.Options".into(), ..Any::default() };
    let request = CreateTaskRequest {
        id: "c".into(),
        bundle: bundle.path.to_str().unwrap().into(),
        options: Some(other).into(),
        ..Default::default()
    };
    assert_eq!(code(rig.run(rig.tasks().create(soon(), &request))), Code::INVALID_ARGUMENT);
    assert!(rig.list().is_empty());
}
