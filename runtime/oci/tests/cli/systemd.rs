//! `--systemd-cgroup`: a container's group is a scope, where systemd is pid 1 on version 2 (hack/test-v2 boots such a
//! machine); elsewhere a refusal.

use crate::rig::{Rig, until};
use serde_json::json;
use slipway_runtime::cgroup::prefers_systemd;
use std::fs;
use std::process::Command;

/// What systemd says of a unit.
fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--property", property, "--value", unit]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Name of the container and its scope, of this process alone.
fn names(tag: &str) -> (String, String) {
    let id = format!("oci{}{tag}", std::process::id());
    let unit = format!("slipway-{id}.scope");
    (id, unit)
}

fn forgotten(unit: &str) {
    until("systemd has forgotten the scope", || show(unit, "LoadState") == "not-found");
    let directory = format!("/sys/fs/cgroup/system.slice/{unit}");
    assert!(!fs::exists(&directory).unwrap(), "left behind: {directory}");
}

#[test]
fn a_scope_lives_with_its_container() {
    if !prefers_systemd() {
        return;
    }
    let (id, unit) = names("life");
    let rig = Rig::new(&["sleep", "1000"]);
    rig.configure(|config| {
        config["linux"]["cgroupsPath"] = json!(format!("system.slice:slipway:{id}"));
        config["linux"]["resources"] =
            json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 512}});
    });
    let systemd = |words: &[&str]| rig.ok(&[&["--systemd-cgroup"], words].concat());
    systemd(&["create", &id]);
    let properties = ["ActiveState", "Slice", "Delegate", "MemoryMax", "TasksMax"].map(|p| show(&unit, p));
    assert_eq!(properties, ["active", "system.slice", "yes", "67108864", "50"]);
    systemd(&["start", &id]);
    let pid = rig.state(&id)["pid"].as_i64().unwrap();
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(group.trim(), format!("0::/system.slice/{unit}"));
    assert_eq!(systemd(&["exec", &id, "cat", "/proc/self/cgroup"]), "0::/\n", "its own view");

    systemd(&["update", "--memory", "128m", "--pids-limit", "70", &id]);
    assert_eq!(["MemoryMax", "TasksMax"].map(|p| show(&unit, p)), ["134217728", "70"]);
    let file = |name: &str| {
        let path = format!("/sys/fs/cgroup/system.slice/{unit}/{name}");
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!((file("memory.max"), file("pids.max")), ("134217728".into(), "70".into()));
    systemd(&["pause", &id]);
    assert_eq!(rig.status(&id), "paused");
    systemd(&["resume", &id]);
    assert!(systemd(&["ps", "--format", "json", &id]).contains(&pid.to_string()));
    let stats = systemd(&["events", "--stats", &id]);
    assert!(stats.contains("134217728"), "{stats}");
    // The flag is the maker's: what was made is found without it, too.
    rig.ok(&["kill", &id, "KILL"]);
    rig.await_status(&id, "stopped");
    rig.ok(&["delete", &id]);
    forgotten(&unit);
    rig.finish();
}

#[test]
fn the_usual_slice_and_deletion_by_force() {
    if !prefers_systemd() {
        return;
    }
    let (id, unit) = names("default");
    let rig = Rig::new(&["sleep", "1000"]);
    rig.configure(|config| {
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
    });
    let pid_file = rig.path("pid");
    rig.ok(&["--systemd-cgroup", "run", "--detach", "--pid-file", pid_file.to_str().unwrap(), &id]);
    assert_eq!(show(&unit, "ActiveState"), "active");
    let error = rig.fails(1, &["--systemd-cgroup", "create", &id]);
    assert!(error.contains("already exists"), "{error}");
    rig.ok(&["delete", "--force", &id]);
    forgotten(&unit);
    // A process that fails to start leaves no unit.
    rig.configure(|config| config["process"]["args"] = json!(["/no/such"]));
    rig.fails(1, &["--systemd-cgroup", "run", &id]);
    forgotten(&unit);
    rig.configure(|config| config["process"]["args"] = json!(["sh", "-c", "exit 5"]));
    assert_eq!(rig.run(&["--systemd-cgroup", "run", &id]).status.code(), Some(5));
    forgotten(&unit);
    rig.finish();
}

/// A path is not what the flag asks for; where systemd does not run, a scope is not what this host can do.
#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let rig = Rig::new(&["true"]);
    let error = rig.fails(1, &["--systemd-cgroup", "create", "c"]);
    assert!(error.contains("slice:prefix:name") && error.contains(rig.group()), "{error}");
    for bad in ["nodot:slipway:c", "system.slice:slipway:a/b:c", "a--b.slice::c"] {
        rig.configure(|config| config["linux"]["cgroupsPath"] = json!(bad));
        let error = rig.fails(1, &["--systemd-cgroup", "create", "c"]);
        assert!(error.contains("cgroupsPath"), "{bad}: {error}");
    }
    if !prefers_systemd() {
        rig.configure(|config| config["linux"]["cgroupsPath"] = json!("system.slice:slipway:c"));
        let error = rig.fails(1, &["--systemd-cgroup", "create", "c"]);
        assert!(error.contains("systemd is not the init of this host"), "{error}");
        assert!(error.contains("cgroupfs"), "what to do instead: {error}");
    }
    rig.finish();
}
