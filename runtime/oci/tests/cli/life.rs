//! create, start, state, kill, delete, run, list, pause, resume, update, ps, events.

use crate::rig::{Rig, output, until};
use serde_json::{Value, json};
use std::fs;

#[test]
fn a_life_step_by_step() {
    let rig = Rig::new(&["sleep", "1000"]);
    // Options are accepted after the id too, as runc does.
    rig.ok(&["create", "c", "--pid-file", "pid", "--bundle", "."]);
    let state = rig.state("c");
    let pid: i64 = fs::read_to_string(rig.path("pid")).unwrap().parse().unwrap();
    assert_eq!(state["pid"], pid);
    assert_eq!((&state["status"], &state["id"]), (&json!("created"), &json!("c")));
    assert_eq!(state["bundle"], json!(rig.path("").canonicalize().unwrap()));
    assert_eq!(state["annotations"], json!({"org.example.one": "1"}));
    assert!(!fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("sleep"));
    rig.ok(&["start", "c"]);
    assert_eq!(rig.status("c"), "running");
    until("sleep runs", || fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().contains("sleep"));
    assert!(rig.fails(1, &["start", "c"]).contains("cannot start an already running container"));
    assert!(rig.fails(1, &["delete", "c"]).contains("that is not stopped: running"));
    rig.ok(&["kill", "c", "KILL"]);
    rig.await_status("c", "stopped");
    assert_eq!(rig.state("c")["pid"], 0);
    assert!(rig.fails(1, &["kill", "c", "TERM"]).contains("container not running"));
    assert!(rig.fails(1, &["start", "c"]).contains("has stopped"));
    rig.ok(&["kill", "--all", "c", "9"]);
    rig.ok(&["delete", "c"]);
    assert!(rig.fails(1, &["state", "c"]).contains("container does not exist"));
    assert!(rig.fails(1, &["delete", "c"]).contains("container does not exist"));
    rig.ok(&["delete", "--force", "c"]);
    rig.finish();
}

#[test]
fn a_created_container_can_be_deleted_without_force_as_with_runc() {
    let rig = Rig::new(&["sleep", "1000"]);
    rig.ok(&["create", "c"]);
    rig.ok(&["delete", "c"]);
    rig.finish();
}

#[test]
fn run_answers_with_the_exit_code_and_keeps_nothing() {
    let rig = Rig::new(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let output = rig.run(&["run", "c"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
    rig.configure(|config| config["process"]["args"] = json!(["sh", "-c", "kill -TERM $$; sleep 100"]));
    // The first process of a pid namespace gets no signal that it has not asked for, so it is told by another.
    rig.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", "trap 'exit 9' TERM; kill -TERM $$; sleep 1"])
    });
    assert_eq!(rig.run(&["run", "c"]).status.code(), Some(9));
    rig.ok(&["run", "--detach", "--keep", "--pid-file", "pid", "d"]);
    rig.await_status("d", "stopped");
    rig.ok(&["delete", "d"]);
    rig.configure(|config| config["process"]["args"] = json!(["true"]));
    rig.ok(&["run", "--keep", "k"]);
    assert_eq!(rig.status("k"), "stopped");
    rig.ok(&["delete", "k"]);
    rig.finish();
}

#[test]
fn run_passes_signals_on() {
    let rig =
        Rig::new(&["sh", "-c", "trap 'exit 33' USR1; echo ready > /tmp/ready; while :; do sleep 0.05; done"]);
    let mut child = crate::rig::background(&mut rig.command(&["run", "c"]));
    until("it is ready", || rig.path("rootfs/tmp/ready").exists());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(33));
    rig.finish();
}

#[test]
fn a_missing_command_is_told_at_creation_in_the_words_engines_look_for() {
    let rig = Rig::new(&["no-such-command"]);
    assert!(rig.fails(1, &["create", "c"]).contains("executable file not found in $PATH"));
    rig.configure(|config| config["process"]["args"] = json!(["/no/such"]));
    assert!(rig.fails(1, &["create", "c"]).contains("no such file or directory"));
    fs::write(rig.path("rootfs/bin/data"), "x").unwrap();
    rig.configure(|config| config["process"]["args"] = json!(["/bin/data"]));
    assert!(rig.fails(1, &["create", "c"]).contains("permission denied"));
    rig.finish();
}

#[test]
fn errors_go_to_the_log_as_json() {
    let rig = Rig::new(&["true"]);
    let said = rig.fails(1, &["--log", "log", "--log-format", "json", "state", "nobody"]);
    assert_eq!(said, "container does not exist\n");
    let line: Value = serde_json::from_str(fs::read_to_string(rig.path("log")).unwrap().trim()).unwrap();
    assert_eq!((&line["level"], &line["msg"]), (&json!("error"), &json!("container does not exist")));
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
    rig.finish();
}

#[test]
fn pause_and_resume() {
    let rig = Rig::new(&["sleep", "1000"]);
    rig.ok(&["run", "-d", "c"]);
    assert!(rig.fails(1, &["resume", "c"]).contains("container not paused"));
    rig.ok(&["pause", "c"]);
    assert_eq!(rig.status("c"), "paused");
    assert!(rig.fails(255, &["exec", "c", "true"]).contains("cannot exec in a paused container"));
    rig.ok(&["resume", "c"]);
    assert_eq!(rig.status("c"), "running");
    rig.ok(&["pause", "c"]);
    rig.ok(&["kill", "c", "KILL"]);
    rig.await_status("c", "stopped");
    rig.ok(&["delete", "c"]);
    rig.finish();
}

#[test]
fn list_ps_events_and_update() {
    let rig = Rig::new(&["sleep", "1000"]);
    assert_eq!(rig.ok(&["list", "--format", "json"]), "[]\n");
    rig.ok(&["run", "-d", "one"]);
    assert_eq!(rig.ok(&["list", "-q"]), "one\n");
    let table = rig.ok(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("ID ") && lines[0].ends_with("OWNER"), "{table}");
    assert!(lines[1].contains("running") && lines[1].ends_with("root"), "{table}");
    let listed: Value = serde_json::from_str(&rig.ok(&["list", "-f", "json"])).unwrap();
    assert_eq!(listed[0]["id"], "one");
    let pid = rig.state("one")["pid"].clone();
    assert_eq!(
        serde_json::from_str::<Value>(&rig.ok(&["ps", "--format", "json", "one"])).unwrap(),
        json!([pid])
    );
    let table = rig.ok(&["ps", "one"]);
    assert!(table.lines().count() == 2 && table.contains("sleep 1000"), "{table}");
    let event: Value = serde_json::from_str(&rig.ok(&["events", "--stats", "one"])).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("one")));
    assert_eq!(event["data"]["pids"]["current"], 1);
    rig.ok(&["update", "--pids-limit", "77", "--memory", "64m", "one"]);
    let event: Value = serde_json::from_str(&rig.ok(&["events", "--stats", "one"])).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 77);
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 64 << 20);
    fs::write(rig.path("limits"), r#"{"pids": {"limit": 88}}"#).unwrap();
    let limits = fs::File::open(rig.path("limits")).unwrap();
    assert!(output(rig.command(&["update", "-r", "-", "one"]).stdin(limits)).status.success());
    let event: Value = serde_json::from_str(&rig.ok(&["events", "--stats", "one"])).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 88);
    rig.ok(&["delete", "-f", "one"]);
    rig.finish();
}

#[test]
fn bad_bundles_are_refused_by_field_and_leave_nothing() {
    let rig = Rig::new(&["true"]);
    let cases: [(&str, Value, &str); 6] = [
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/process/args", json!([]), "process.args"),
        ("/process/user/uid", json!(-5), "process.user.uid"),
        ("/root/path", json!("nowhere"), "root.path"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
        ("/mounts/0/destination", json!("/"), "mounts.destination"),
    ];
    let good = fs::read_to_string(rig.path("config.json")).unwrap();
    for (pointer, value, field) in cases {
        let mut config: Value = serde_json::from_str(&good).unwrap();
        *config.pointer_mut(pointer).unwrap() = value;
        fs::write(rig.path("config.json"), config.to_string()).unwrap();
        let said = rig.fails(1, &["create", "c"]);
        assert!(said.contains(field), "{pointer}: {said}");
    }
    fs::write(rig.path("config.json"), "{").unwrap();
    assert!(rig.fails(1, &["create", "c"]).contains("config.json"));
    for id in ["", "a/b", "..", "a b"] {
        assert!(rig.fails(1, &["create", id]).contains("invalid container ID"));
    }
    rig.finish();
}
