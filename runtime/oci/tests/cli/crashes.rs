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
fn a_damaged_record_is_told_and_a_forced_deletion_cleans_up() {
    let rig = Rig::new(&["sleep", "1000"]);
    for how in ["run", "create"] {
        rig.ok(if how == "run" { &["run", "-d", "c"] } else { &["create", "c"] });
        let record = rig.path("state").join("c/state.json");
        let text = std::fs::read(&record).unwrap();
        std::fs::write(&record, &text[..text.len() / 2]).unwrap();
        let told = rig.fails(1, &["delete", "c"]);
        assert!(told.contains("state.json is damaged; `delete --force`"), "{told}");
        rig.ok(&["delete", "--force", "c"]);
        assert!(rig.ok(&["list", "-q"]).is_empty(), "{how}");
        until("all its processes have gone", || rig.processes().is_empty());
    }
    rig.finish();
}

/// Numbers that differ from run to run; the seed is told when a test fails.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = now.as_nanos() as u64 | 1;
        println!("seed {seed}");
        Self(seed)
    }

    /// xorshift64; below `end`.
    fn roll(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Starts a command and kills it after a random part of one and a half times what it takes.
fn killed(rig: &Rig, dice: &mut Dice, words: &[&str], whole: Duration) {
    let moment = Duration::from_micros(dice.roll(whole.as_micros() as u64 * 3 / 2 + 1));
    println!("{words:?} killed after {moment:?}");
    let mut child = background(&mut rig.command(words));
    std::thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn any_command_killed_at_a_random_moment_leaves_what_can_be_deleted() {
    let rig = Rig::new(&["sleep", "1000"]);
    let mut dice = Dice::new();
    let whole = duration_of(&rig, &["run", "-d", "c"]);
    rig.ok(&["delete", "--force", "c"]);
    for _ in 0..20 {
        killed(&rig, &mut dice, &["run", "c"], whole);
        rig.ok(&["delete", "--force", "c"]);
    }
    let live: [&[&str]; 6] = [
        &["exec", "c", "sleep", "1000"],
        &["exec", "-d", "c", "sleep", "1000"],
        &["pause", "c"],
        &["update", "--pids-limit", "50", "c"],
        &["kill", "c", "KILL"],
        &["delete", "--force", "c"],
    ];
    for _ in 0..4 {
        for words in live {
            rig.ok(&["run", "-d", "c"]);
            killed(&rig, &mut dice, words, whole);
            rig.ok(&["delete", "--force", "c"]);
            assert!(rig.ok(&["list", "-q"]).is_empty(), "{words:?}");
        }
    }
    rig.finish();
}

#[test]
fn a_start_killed_at_a_random_moment_was_done_or_can_be_done_again() {
    let rig = Rig::new(&["sleep", "1000"]);
    let mut dice = Dice::new();
    rig.ok(&["create", "c"]);
    let whole = duration_of(&rig, &["start", "c"]);
    rig.ok(&["delete", "--force", "c"]);
    for _ in 0..20 {
        rig.ok(&["create", "c"]);
        killed(&rig, &mut dice, &["start", "c"], whole);
        // The byte may still be on its way to the container: then this start comes second, and is refused.
        let _ = rig.run(&["start", "c"]);
        rig.await_status("c", "running");
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
