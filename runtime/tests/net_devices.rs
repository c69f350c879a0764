//! `linux.netDevices`: devices of the host inside a container, as the kernel shows them, and home again after a failure.
//! The host is a network namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, spec};
use serde_json::{Value, json};
use slipway_runtime::error::Kind;
use slipway_runtime::sys::namespace;
use std::os::unix::fs::symlink;
use std::process::Command;

/// ip(8) in the network namespace of this thread.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a test in a network namespace of its own with two pairs of devices in it, as a host has them.
fn on_a_host(test: impl FnOnce(&Rig) + Send) {
    namespace::on_own_thread("host", || {
        namespace::unshare(libc::CLONE_NEWNET as u32).unwrap();
        ip("link add nic0 address 02:00:00:00:00:07 mtu 1400 type veth peer name peer0");
        ip("link add nic1 type veth peer name peer1");
        ip("address add 192.0.2.7/24 dev nic0");
        ip("address add 2001:db8::7/64 dev nic0 nodad");
        let rig = Rig::new();
        symlink("busybox", rig.path("lower/bin/ip")).unwrap();
        test(&rig);
    })
    .unwrap();
}

fn with(devices: &Value, script: &str) -> Value {
    let mut spec = spec(&["sh", "-c", script]);
    spec["linux"]["netDevices"] = devices.clone();
    spec
}

#[test]
fn devices_are_moved_with_what_they_are_configured_with() {
    on_a_host(|rig| {
        let devices = json!({"nic0": {"name": "data0"}, "nic1": {"name": "data%d"}});
        let out = rig.run(&with(&devices, "ip address; ip link show data1")).unwrap().out;
        for part in ["data0", "mtu 1400", "02:00:00:00:00:07", "192.0.2.7/24", "2001:db8::7/64", "data1"] {
            assert!(out.contains(part), "{part}: {out}");
        }
        assert_eq!(out.matches(",UP").count() + out.matches("<UP").count(), 3, "both, and one again: {out}");
        assert!(!out.contains("nic0") && !out.contains("nic1"), "{out}");
        // The namespace went with the container, and the kernel has taken virtual devices away or is about to.
        let left = ip("-o link");
        assert!(!left.contains("nic0"), "{left}");
    });
}

#[test]
fn hooks_of_the_creation_see_them() {
    on_a_host(|rig| {
        std::fs::create_dir(rig.path("rootfs")).unwrap();
        let log = rig.path("log");
        let mut spec = with(&json!({"nic0": {}}), "true");
        spec["hooks"] = json!({"createContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", format!("cat /proc/self/net/dev > {}", log.display())]
        }]});
        assert_eq!(rig.run(&spec).unwrap().status, 0);
        let seen = std::fs::read_to_string(log).unwrap();
        assert!(seen.contains("nic0"), "{seen}");
    });
}

#[test]
fn a_creation_that_fails_gives_all_of_them_back() {
    on_a_host(|rig| {
        std::fs::create_dir(rig.path("rootfs")).unwrap();
        let hook = json!({"createRuntime": [{"path": "/bin/false"}]});
        type Case<'a> = (&'a str, Value, Option<Value>, Kind, &'a [&'a str]);
        let cases: [Case<'_>; 3] = [
            (
                "missing",
                json!({"nic0": {}, "none": {}}),
                None,
                Kind::Kernel,
                &["linux.netDevices: none", "no such device"],
            ),
            (
                "taken",
                json!({"nic0": {}, "nic1": {"name": "lo"}}),
                None,
                Kind::Exists,
                &["nic1 as lo", "of that name"],
            ),
            ("a hook", json!({"nic0": {"name": "x"}}), Some(hook), Kind::Kernel, &["createRuntime"]),
        ];
        for (name, devices, hooks, kind, words) in cases {
            let before = ip("-o link");
            let mut spec = with(&devices, "true");
            if let Some(hooks) = hooks {
                spec["hooks"] = hooks;
            }
            let error = rig.run(&spec).unwrap_err();
            let sentence = error.to_string();
            assert!(words.iter().all(|word| sentence.contains(word)), "{name}: {sentence}");
            if name != "a hook" {
                assert_eq!(error.kind(), kind, "{name}: {sentence}");
            }
            let after = ip("-o address");
            for part in ["nic0", "192.0.2.7/24", "2001:db8::7/64"] {
                assert!(after.contains(part), "{name}: {part} is not home: {after}");
            }
            assert_eq!(ip("-o link").lines().count(), before.lines().count(), "{name}");
        }
    });
}

#[test]
fn without_a_namespace_for_them_they_are_refused() {
    let mut spec = with(&json!({"nic0": {}}), "true");
    let other = |n: &&Value| n["type"] != "network";
    spec["linux"]["namespaces"] =
        spec["linux"]["namespaces"].as_array().unwrap().iter().filter(other).cloned().collect();
    let error = Rig::new().run(&spec).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("linux.netDevices"), "{error}");
}
