//! How long a container's life takes, in process: `cargo run --release -p slipway-runtime --example lifecycle [rounds]`.
//!
//! Prints medians and p10 in microseconds of create, start to exit, and teardown, for the same container as
//! ../shared/ANCHORS.md section 1 measures (six namespaces, default seccomp, memory, cpu and pids limits, /bin/true), and
//! of an exec session. As root.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made has nothing to say")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Rig, spec};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Stdio};
use slipway_runtime::sys::process;
use std::time::{Duration, Instant};

/// One name, one list of durations.
struct Series {
    name: &'static str,
    times: Vec<Duration>,
}

impl Series {
    fn print(mut self) {
        self.times.sort_unstable();
        let at = |part: usize| self.times[self.times.len() * part / 100].as_micros();
        println!("{:<28} p50 {:>7} us   p10 {:>7} us   p95 {:>7} us", self.name, at(50), at(10), at(95));
    }
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(100, |n| n.parse().unwrap());
    let rig = Rig::new();
    let before = cpu();
    lives(&rig, rounds);
    let after = cpu();
    println!(
        "{:<28} {:>11} us",
        "CPU of a life, with children",
        (after - before).as_micros() / rounds as u128
    );
    sessions(&rig, rounds);
    println!("{:<28} {:>11} us", "CPU of a session", (cpu() - after).as_micros() / rounds as u128);
}

/// Processor time of this process and of the children it has reaped.
fn cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let micros = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
        let usage = getrusage(who).unwrap();
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec()
    });
    Duration::from_micros(micros.iter().sum::<i64>().unsigned_abs())
}

fn subject(args: &[&str]) -> Value {
    let mut spec = spec(args);
    let capabilities = serde_json::from_value(json!(common::USUAL)).unwrap();
    let profile = slipway_runtime::seccomp::default_profile(&capabilities);
    spec["linux"]["seccomp"] = serde_json::to_value(profile).unwrap();
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 268_435_456}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000}, "pids": {"limit": 100}
    });
    spec
}

fn lives(rig: &Rig, rounds: usize) {
    let names = ["create", "start to execve", "exit and reap", "remove the group", "whole life"];
    let mut series = names.map(|name| Series { name, times: Vec::with_capacity(rounds) });
    for _ in 0..rounds {
        let request = rig.request(&subject(&["/bin/true"]), Stdio::default(), Vec::new());
        let mut marks = vec![Instant::now()];
        let created = container::create(request).unwrap();
        marks.push(Instant::now());
        created.start.start().unwrap();
        marks.push(Instant::now());
        assert_eq!(process::reap(&created.pidfd).unwrap(), 0);
        marks.push(Instant::now());
        created.cgroup.remove(Duration::from_secs(5)).unwrap();
        marks.push(Instant::now());
        for (series, pair) in series.iter_mut().zip(marks.windows(2)) {
            series.times.push(pair[1] - pair[0]);
        }
        series[4].times.push(marks[4] - marks[0]);
    }
    series.into_iter().for_each(Series::print);
}

fn sessions(rig: &Rig, rounds: usize) {
    let value = subject(&["sleep", "100000"]);
    let created = rig.create(&value, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let process =
        serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/bin/true"]}))
            .unwrap();
    let spec = serde_json::from_value(value).unwrap();
    let mut series = Series { name: "exec /bin/true, whole", times: Vec::with_capacity(rounds) };
    for round in 0..rounds {
        let exec_id = round.to_string();
        let request = common::exec_in(&created, &spec, &process, &exec_id, Stdio::default());
        let begun = Instant::now();
        let exec = container::exec(request).unwrap();
        assert_eq!(process::reap(&exec.pidfd).unwrap(), 0);
        exec.cgroup.remove(Duration::from_secs(5)).unwrap();
        series.times.push(begun.elapsed());
    }
    series.print();
    common::kill(created);
}
