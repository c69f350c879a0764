//! checkpoint and restore: whole where this host's criu works, and where it does not, told and without a trace.
//!
//! SLIPWAY_TEST_CRIU names another criu than that of PATH: Debian 12's does not know the newest kernels.

use crate::rig::{Rig, background, until};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/n; sleep 0.02; done";

fn criu() -> String {
    std::env::var("SLIPWAY_TEST_CRIU").unwrap_or_else(|_| "criu".to_owned())
}

/// Whether this host's criu works on this kernel; none: it is not installed.
fn works() -> Option<bool> {
    let check = Command::new(criu()).arg("check").stdout(Stdio::null()).stderr(Stdio::null()).status();
    check.ok().map(|status| status.success())
}

fn counted(rig: &Rig) -> u64 {
    fs::read_to_string(rig.path("rootfs/tmp/n")).ok().and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

fn counting() -> Rig {
    let rig = Rig::new(&["sh", "-c", COUNT]);
    start(&rig);
    rig
}

/// With /dev/null for streams: files of the host cannot be checkpointed.
fn start(rig: &Rig) {
    assert!(background(&mut rig.command(&["run", "-d", "c"])).wait().unwrap().success());
    until("it counts", || counted(rig) > 2);
}

fn goes_on(rig: &Rig) {
    let before = counted(rig);
    until("it counts on", || counted(rig) > before + 2);
}

#[test]
fn without_criu_the_message_says_what_to_install() {
    let rig = counting();
    let said = rig.fails(1, &["--criu", "/no/criu", "checkpoint", "--image-path", "images", "c"]);
    assert!(said.contains("/no/criu is not installed") && said.contains("package criu"), "{said}");
    assert!(!rig.path("images").exists());
    let said = rig.fails(1, &["--criu", "/bin/false", "checkpoint", "--image-path", "images", "c"]);
    assert!(said.contains("criu ended without an answer"), "{said}");
    assert!(!rig.path("images").exists());
    goes_on(&rig);
    let said = rig.fails(1, &["--criu", "/no/criu", "restore", "-d", "--image-path", ".", "d"]);
    assert!(said.contains("in use"), "the group is c's: {said}");
    rig.ok(&["delete", "--force", "c"]);
    let said = rig.fails(1, &["--criu", "/no/criu", "restore", "-d", "--image-path", ".", "d"]);
    assert!(said.contains("is this a checkpoint's directory?"), "{said}");
    fs::write(rig.path("descriptors.json"), "[]").unwrap();
    let said = rig.fails(1, &["--criu", "/no/criu", "restore", "-d", "--image-path", ".", "d"]);
    assert!(said.contains("/no/criu is not installed"), "{said}");
    rig.finish();
}

#[test]
fn what_cannot_be_checkpointed_is_refused() {
    let rig = Rig::new(&["sleep", "1000"]);
    rig.ok(&["create", "c"]);
    assert!(rig.fails(1, &["checkpoint", "c"]).contains("cannot be checkpointed in created state"));
    assert!(rig.fails(1, &["checkpoint", "nobody"]).contains("container does not exist"));
    rig.ok(&["start", "c"]);
    let absolute = ["checkpoint", "--image-path", "images", "--parent-path", "/tmp", "c"];
    assert!(rig.fails(1, &absolute).contains("--parent-path must be relative"));
    let missing = ["checkpoint", "--image-path", "images", "--parent-path", "../before", "c"];
    assert!(rig.fails(1, &missing).contains("no directory"));
    assert!(rig.fails(1, &["checkpoint", "--status-fd", "99", "c"]).contains("--status-fd 99"));
    assert!(!rig.path("images").exists() && !rig.path("checkpoint").exists());
    rig.ok(&["delete", "--force", "c"]);
    rig.finish();
}

#[test]
fn a_container_goes_on_where_it_was_frozen() {
    let rig = counting();
    let criu = criu();
    let with = |words: &[&'static str]| [&["--criu", criu.as_str()], words].concat();
    if works() != Some(true) {
        // This kernel is too new for this criu, or there is none: the container must not notice.
        let said = rig.fails(1, &with(&["checkpoint", "--image-path", "images", "--work-path", "work", "c"]));
        assert!(works().is_none() || said.contains("work/dump.log says:"), "{said}");
        assert!(!rig.path("images").exists(), "nothing half-made stays");
        goes_on(&rig);
        rig.ok(&["delete", "--force", "c"]);
        return rig.finish();
    }
    let pre_dump = rig.run(&with(&["checkpoint", "--pre-dump", "--image-path", "before", "c"]));
    // Not every kernel tracks changes of memory.
    let parent: &[&str] = if pre_dump.status.success() { &["--parent-path", "../before"] } else { &[] };
    let said = String::from_utf8_lossy(&pre_dump.stderr).into_owned();
    assert!(!parent.is_empty() || said.contains("cannot track changes of memory"), "{said}");
    assert_eq!(rig.path("before").exists(), !parent.is_empty());
    goes_on(&rig);
    rig.ok(&with(&["checkpoint", "--leave-running", "--image-path", "twin", "--work-path", "work", "c"]));
    assert!(rig.path("work/dump.log").exists() && !rig.path("twin/dump.log").exists());
    goes_on(&rig);
    rig.ok(&[&with(&["checkpoint", "--image-path", "images"]), parent, &["c"]].concat());
    assert!(rig.fails(1, &["state", "c"]).contains("container does not exist"));
    let frozen = counted(&rig);
    rig.ok(&with(&["restore", "-d", "--image-path", "images", "--pid-file", "pid", "c"]));
    until("it counts on", || counted(&rig) > frozen + 2);
    let state = rig.state("c");
    assert_eq!(state["pid"].to_string(), fs::read_to_string(rig.path("pid")).unwrap());
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
    assert!(groups.contains(rig.group()), "{groups}");
    assert!(rig.ok(&["exec", "c", "cat", "/tmp/n"]).trim().parse::<u64>().unwrap() > frozen);
    rig.ok(&["pause", "c"]);
    rig.ok(&with(&["checkpoint", "--image-path", "paused", "c"]));
    rig.ok(&with(&["restore", "-d", "--image-path", "paused", "c"]));
    goes_on(&rig);
    rig.ok(&["delete", "--force", "c"]);
    rig.finish();
}

#[test]
fn a_restore_in_the_foreground_answers_with_the_exit_code() {
    if works() != Some(true) {
        return;
    }
    let script = "i=0; while [ ! -e /tmp/go ]; do i=$((i+1)); echo $i > /tmp/n; sleep 0.02; done; exit 5";
    let rig = Rig::new(&["sh", "-c", script]);
    start(&rig);
    let criu = criu();
    rig.ok(&["--criu", &criu, "checkpoint", "--image-path", "images", "c"]);
    let mut child =
        background(&mut rig.command(&["--criu", &criu, "restore", "--image-path", "images", "c"]));
    goes_on(&rig);
    fs::write(rig.path("rootfs/tmp/go"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    rig.finish();
}

#[test]
fn a_restore_killed_at_any_moment_is_cleaned_up_by_a_forced_deletion() {
    if works() != Some(true) {
        return;
    }
    let rig = counting();
    let criu = criu();
    rig.ok(&["--criu", &criu, "checkpoint", "--image-path", "images", "c"]);
    for moment in 0..12 {
        let mut child =
            background(&mut rig.command(&["--criu", &criu, "restore", "-d", "--image-path", "images", "c"]));
        std::thread::sleep(Duration::from_millis(moment * 25));
        child.kill().unwrap();
        child.wait().unwrap();
        rig.ok(&["delete", "--force", "c"]);
        assert!(rig.ok(&["list", "-q"]).is_empty(), "moment {moment}");
    }
    rig.finish();
}
