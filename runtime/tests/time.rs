//! Time namespaces: clocks apart from the host's.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, in_user_namespace, kill, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Stdio};
use slipway_runtime::error::Kind;
use std::io::Read;

/// About eleven days: far from what a test takes.
const AHEAD: f64 = 1_000_000.0;

fn ahead(spec: &mut Value) {
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5, "nanosecs": 7}});
}

fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().unwrap().parse().unwrap()
}

fn ours() -> f64 {
    uptime(&std::fs::read_to_string("/proc/uptime").unwrap())
}

#[test]
fn clocks_are_ahead_as_asked() {
    for user in [None, Some(200_000)] {
        let rig = user.map_or_else(Rig::new, Rig::mapped);
        let change = |spec: &mut Value| {
            user.into_iter().for_each(|root| in_user_namespace(spec, root));
            ahead(spec);
        };
        let before = ours();
        let outcome = rig.sh(change, "cat /proc/uptime /proc/self/timens_offsets");
        let inside = uptime(&outcome.out);
        assert!(inside >= before + AHEAD && inside <= ours() + AHEAD, "{}", outcome.out);
        let offsets: Vec<_> = outcome.out.lines().skip(1).flat_map(str::split_whitespace).collect();
        assert_eq!(offsets, ["monotonic", "5", "7", "boottime", "1000000", "0"], "{user:?}");
    }
}

#[test]
fn exec_and_a_second_container_have_the_same_clocks() {
    let rig = Rig::new();
    let mut first = spec(&["sleep", "1000"]);
    ahead(&mut first);
    let created = rig.create(&first, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let of_spec = serde_json::from_value(first.clone()).unwrap();
    let mut process = first["process"].clone();
    process["args"] = json!(["cat", "/proc/uptime"]);
    let (mut read, stdio) = piped();
    let session = container::exec(common::exec_in(
        &created,
        &of_spec,
        &serde_json::from_value(process).unwrap(),
        "e",
        stdio,
    ))
    .unwrap();
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    slipway_runtime::sys::process::reap(&session.pidfd).unwrap();
    session.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
    assert!(uptime(&out) > AHEAD, "{out}");
    let mut second = spec(&["cat", "/proc/uptime"]);
    let path = format!("/proc/{}/ns/time", created.pid);
    second["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time", "path": path}));
    let outcome = Rig::new().run(&second).unwrap();
    assert!(uptime(&outcome.out) > AHEAD, "{}", outcome.out);
    kill(created);
}

#[test]
fn offsets_that_cannot_be_are_refused() {
    for (offsets, namespace, expected) in [
        (json!({"boottime": {"secs": 1}}), false, "only a new time namespace"),
        (json!({"realtime": {"secs": 1}}), true, "neither monotonic nor boottime"),
        (json!({"boottime": {"secs": 1, "nanosecs": 1_000_000_000}}), true, "a second or more"),
    ] {
        let mut spec = spec(&["true"]);
        if namespace {
            ahead(&mut spec);
        }
        spec["linux"]["timeOffsets"] = offsets;
        let error = Rig::new().run(&spec).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(
            error.to_string().contains("linux.timeOffsets") && error.to_string().contains(expected),
            "{error}"
        );
    }
    let mut spec = spec(&["true"]);
    ahead(&mut spec);
    spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": -1_000_000_000}});
    let error = Rig::new().run(&spec).unwrap_err();
    assert!(error.to_string().contains("the clock would be before 0"), "{error}");
}
