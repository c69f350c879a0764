//! The child of a clone in a threaded process: whatever locks the other threads hold, it gets through.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, piped, spec};
use slipway_runtime::container::{self, Stdio};
use slipway_runtime::sys::process;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ROUNDS: usize = 300;

#[test]
fn three_hundred_containers_and_sessions_beside_busy_allocators() {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let blocks: Vec<Vec<u8>> = (1..64).map(|n| vec![1; n * 97]).collect();
                    std::hint::black_box(blocks);
                }
            });
        }
        scope.spawn(|| {
            // The rounds take some seconds; a child that hangs would hold them up for ever.
            let deadline = std::time::Instant::now() + Duration::from_secs(240);
            while !done.load(Ordering::Relaxed) {
                assert!(std::time::Instant::now() < deadline, "a child hangs");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        rounds();
        done.store(true, Ordering::Relaxed);
    });
}

fn rounds() {
    let rig = Rig::new();
    let holder = spec(&["sleep", "10000"]);
    let created = rig.create(&holder, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let spec_of = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
    let container: oci_spec::runtime::Spec = spec_of(&holder);
    let mut process_value = holder["process"].clone();
    process_value["args"] = serde_json::json!(["echo", "inside"]);
    let inside = serde_json::from_value(process_value).unwrap();
    let second = Rig::new();
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            assert_eq!(second.run(&spec(&["echo", "born"])).unwrap().out, "born\n");
            continue;
        }
        let (mut read, stdio) = piped();
        let exec_id = round.to_string();
        let request = common::exec_in(&created, &container, &inside, &exec_id, stdio);
        let exec = container::exec(request).unwrap();
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        assert_eq!((out.as_str(), process::reap(&exec.pidfd).unwrap()), ("inside\n", 0));
        exec.cgroup.remove(Duration::from_secs(5)).unwrap();
    }
    common::kill(created);
}
