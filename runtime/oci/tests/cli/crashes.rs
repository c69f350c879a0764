//! kill -9 at any moment, and two at once: what is left is always removed by `delete --force`.

use crate::rig::{Rig, background, until};
use std::time::{Duration, Instant};

/// How long a `create` takes here, to spread the kills over.
fn duration_of(rig: &Rig, words: &[&str]) -> Duration {
    let begun = Instant::now();
    rig.ok(words);
    begun.elapsed()
}

#[test]
fn a_create_killed_at_any_moment_is_cleaned_up_by_a_forced_deletion() {
    let rig = Rig::new(&["sleep", "1000"]);
    let whole = duration_of(&rig, &["create", "c"]);
    rig.ok(&["delete", "--force", "c"]);
    const MOMENTS: u32 = 60;
    for moment in 0..MOMENTS {
        let mut child = background(&mut rig.command(&["create", "c"]));
        std::thread::sleep(whole * moment * 3 / 2 / MOMENTS);
        child.kill().unwrap();
        child.wait().unwrap();
        rig.ok(&["delete", "--force", "c"]);
        assert!(rig.ok(&["list", "-q"]).is_empty(), "moment {moment}");
        until("the child has gone", || rig.processes().is_empty());
    }
    rig.finish();
}

#[test]
fn a_run_a_start_and_a_delete_killed_at_any_moment_leave_what_can_be_deleted() {
    let rig = Rig::new(&["sleep", "1000"]);
    for moment in 0..20 {
        let mut child = background(&mut rig.command(&["run", "c"]));
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        rig.ok(&["delete", "--force", "c"]);
    }
    for moment in 0..20 {
        rig.ok(&["create", "c"]);
        let mut child = background(&mut rig.command(&["start", "c"]));
        std::thread::sleep(Duration::from_micros(moment * 300));
        child.kill().unwrap();
        child.wait().unwrap();
        let status = rig.status("c");
        assert!(status == "created" || status == "running", "{status}");
        if status == "created" {
            rig.ok(&["start", "c"]);
        }
        let mut child = background(&mut rig.command(&["delete", "--force", "c"]));
        std::thread::sleep(Duration::from_micros(moment * 300));
        child.kill().unwrap();
        child.wait().unwrap();
        rig.ok(&["delete", "--force", "c"]);
    }
    rig.finish();
}

#[test]
fn of_two_creators_of_one_name_one_wins() {
    let rig = Rig::new(&["sleep", "1000"]);
    for _ in 0..10 {
        let children: Vec<_> = (0..4).map(|_| background(&mut rig.command(&["create", "c"]))).collect();
        let won = children
            .into_iter()
            .filter_map(|mut child| child.wait().unwrap().success().then_some(()))
            .count();
        assert_eq!(won, 1);
        assert_eq!(rig.status("c"), "created");
        rig.ok(&["start", "c"]);
        rig.ok(&["delete", "--force", "c"]);
    }
    rig.finish();
}

#[test]
fn another_process_of_the_recorded_pid_is_never_touched() {
    let rig = Rig::new(&["sleep", "1000"]);
    rig.ok(&["create", "c"]);
    let path = rig.path("state/c/state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let real = record["pid"].as_i64().unwrap();
    // As if the container had ended and its number were ours now.
    record["pid"] = std::process::id().into();
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(rig.status("c"), "stopped");
    assert!(rig.fails(1, &["kill", "c", "KILL"]).contains("container not running"));
    rig.ok(&["delete", "--force", "c"]);
    until("the real one has been killed with its group", || {
        !std::path::Path::new(&format!("/proc/{real}/cwd")).exists()
    });
    rig.finish();
}
