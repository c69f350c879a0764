//! Pods: namespaces as descriptors, pinned network namespaces, the reaper.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container::Stdio;
use slipway_runtime::error::Kind;
use slipway_runtime::sandbox::files::{PodFiles, TEXTS};
use slipway_runtime::sandbox::{
    NamespaceKind, Sandbox, SandboxRequest, pin_netns, release_netns_dir, unpin_netns,
};
use slipway_runtime::sys::{namespace, process, signal};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

fn sysctls(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn copies(sandbox: &Sandbox) -> Vec<(NamespaceKind, OwnedFd)> {
    sandbox.namespaces.iter().map(|(kind, fd)| (*kind, fd.try_clone().unwrap())).collect()
}

/// Runs a test in a mount namespace of its own, so that its mounts are not the machine's.
fn apart(test: impl FnOnce() + Send) {
    let ran = namespace::on_own_thread("test", || {
        namespace::unshare((libc::CLONE_NEWNS | libc::CLONE_FS) as u32).unwrap();
        slipway_runtime::sys::mount::make_tree_private().unwrap();
        test();
    });
    ran.unwrap();
}

fn mounted_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(directory)).collect()
}

fn unchanged(before: &str, after: &str) {
    assert_eq!(before, after, "the host changed");
}

#[test]
fn pinned_namespaces_come_and_go() {
    apart(|| {
        let dir = tempfile::tempdir().unwrap();
        let pins = dir.path().join("netns");
        let path = pins.join("one");
        pin_netns(&path, None).unwrap();
        assert_eq!(pin_netns(&path, None).unwrap_err().kind(), Kind::Exists);
        pin_netns(&pins.join("two"), None).unwrap();
        assert_eq!(
            mounted_below(&pins),
            [pins.clone(), path.clone(), pins.join("two")],
            "one bind of the directory only"
        );
        assert_eq!(release_netns_dir(&pins).unwrap_err().kind(), Kind::State);
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        // CNI-RT-15
        assert!(
            mounts.lines().any(|l| l.contains(pins.to_str().unwrap()) && l.contains("shared:")),
            "{mounts}"
        );
        let up = namespace::on_own_thread("look", || {
            let netns = fs::File::open(&path).unwrap();
            namespace::join(netns.as_fd(), libc::CLONE_NEWNET as u32).unwrap();
            fs::read_to_string("/proc/thread-self/net/fib_trie").unwrap_or_default()
        });
        assert!(up.unwrap().contains("127.0.0.1"), "loopback has an address only when it is up");
        unpin_netns(&path).unwrap();
        unpin_netns(&path).unwrap(); // CNI-RT-16
        unpin_netns(&pins.join("two")).unwrap();
        release_netns_dir(&pins).unwrap();
        release_netns_dir(&pins).unwrap();
        assert_eq!(mounted_below(&pins), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(&pins).unwrap().count(), 0);
    });
}

#[test]
fn a_pin_that_fails_leaves_nothing() {
    apart(|| {
        let dir = tempfile::tempdir().unwrap();
        let error = pin_netns(&dir.path().join("file/x"), None).map(|()| "pinned");
        assert!(error.is_ok());
        unpin_netns(&dir.path().join("file/x")).unwrap();
        release_netns_dir(&dir.path().join("file")).unwrap();
        fs::write(dir.path().join("plain"), "").unwrap();
        assert!(pin_netns(&dir.path().join("plain/x"), None).is_err());
        assert_eq!(mounted_below(dir.path()), Vec::<PathBuf>::new());
    });
}

#[test]
fn containers_of_a_pod_share_its_namespaces() {
    apart(|| {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("netns/pod");
        pin_netns(&pin, None).unwrap();
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let request = SandboxRequest {
            ipc: true,
            hostname: Some("web-0".into()),
            sysctls: sysctls(&[
                ("kernel.shm_rmid_forced", "1"),
                ("net.ipv4.ip_unprivileged_port_start", "81"),
                ("fs.mqueue.msg_max", "77"),
            ]),
            netns: Some(pin.clone()),
            shared_pid: false,
            user: None,
            new_network: false,
        };
        let sandbox = Sandbox::create(&request).unwrap();
        assert!(sandbox.reaper.is_none());
        unchanged(&host, &fs::read_to_string("/proc/sys/kernel/hostname").unwrap());
        let rig = Rig::new();
        let look = "cat /proc/sys/kernel/hostname /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/fs/mqueue/msg_max; for n in net ipc uts; do stat -L -c %i /proc/self/ns/$n; done";
        let mut spec = spec(&["sh", "-c", look]);
        spec.as_object_mut().unwrap().remove("hostname");
        let first = rig.run_in(&spec, copies(&sandbox)).unwrap();
        let second = rig.run_in(&spec, copies(&sandbox)).unwrap();
        assert_eq!(first, second);
        assert!(first.out.starts_with("web-0\n1\n81\n77\n"), "{}", first.out);
        // By path, as an OCI bundle of another engine has it.
        let mut by_path = spec.clone();
        by_path["linux"]["namespaces"] = json!([
            {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
            {"type": "network", "path": pin},
        ]);
        let third = rig.run(&by_path).unwrap();
        assert_eq!(third.out.lines().nth(4), first.out.lines().nth(4), "the network namespace by path");
        drop(sandbox);
        unpin_netns(&pin).unwrap();
        release_netns_dir(&dir.path().join("netns")).unwrap();
    });
}

#[test]
fn a_shared_pid_namespace_has_our_reaper_as_pid_1() {
    let request = SandboxRequest {
        ipc: true,
        hostname: Some("p".into()),
        shared_pid: true,
        ..SandboxRequest::default()
    };
    let sandbox = Sandbox::create(&request).unwrap();
    let (pid, pidfd) = sandbox.reaper.as_ref().map(|(pid, fd)| (*pid, fd.try_clone().unwrap())).unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim_end(), "memfd:slipway-r");
    let rig = Rig::new();
    for name in ["ps", "wc"] {
        std::os::unix::fs::symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    let without_name = |args: &[&str]| -> Value {
        let mut spec = spec(args);
        spec.as_object_mut().unwrap().remove("hostname");
        spec
    };
    let sleeper =
        rig.create_in(&without_name(&["sleep", "1000"]), Stdio::default(), copies(&sandbox)).unwrap();
    sleeper.start.start().unwrap();
    // An orphan of the pod goes to the reaper; what is left of it is nothing.
    let script = "(sleep 0.01 & ) ; sleep 0.2; ps -o pid,comm; ls /proc/1/root 2>&1";
    let rig2 = Rig::new();
    for name in ["ps", "wc"] {
        std::os::unix::fs::symlink("busybox", rig2.path("lower/bin").join(name)).unwrap();
    }
    let seen = rig2.run_in(&without_name(&["sh", "-c", script]), copies(&sandbox)).unwrap();
    assert!(seen.out.contains("1 memfd:slipway-r") || seen.out.contains("1 slipway"), "{}", seen.out);
    assert_eq!(seen.out.matches("sleep").count(), 1, "the other container's, and no zombie: {}", seen.out);
    assert!(!seen.out.contains("bin") && !seen.out.contains("etc"), "the reaper's root shows: {}", seen.out);
    signal::send(pidfd.as_fd(), libc::SIGTERM).unwrap();
    // The kernel ends a pid namespace with its first process, and that one is not gone before the others are reaped.
    assert_eq!(process::reap(&sleeper.pidfd).unwrap(), -libc::SIGKILL);
    assert_eq!(process::reap(&pidfd).unwrap(), 0, "the reaper leaves on SIGTERM");
    sleeper.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
}

#[test]
fn a_sysctl_outside_the_pod_is_refused() {
    let cases = [
        ("vm.swappiness", "1", "whole host"),
        ("kernel.shmmax", "1", "host's ipc"),
        ("net.ipv4.ip_forward", "1", "host's network"),
        ("kernel.hostname", "x", "host's uts"),
        ("net.ipv4/../../kernel/sysrq", "1", ""),
    ];
    for (key, value, why) in cases {
        let request = SandboxRequest { sysctls: sysctls(&[(key, value)]), ..SandboxRequest::default() };
        let error = Sandbox::create(&request).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains(why) && error.to_string().contains(key), "{error}");
    }
    let request = SandboxRequest {
        ipc: true,
        sysctls: sysctls(&[("kernel.shmmax", "many")]),
        ..SandboxRequest::default()
    };
    let error = Sandbox::create(&request).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
}

#[test]
fn a_terminal_works_in_a_shared_pid_namespace_too() {
    let sandbox = Sandbox::create(&SandboxRequest { shared_pid: true, ..SandboxRequest::default() }).unwrap();
    let rig = Rig::new();
    let (mut read, stdio) = piped();
    let created = rig.create_in(&spec(&["sh", "-c", "echo $$"]), stdio, copies(&sandbox)).unwrap();
    created.start.start().unwrap();
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    assert_ne!(out.trim(), "1");
    common::finish(created);
    let (_, pidfd) = sandbox.reaper.unwrap();
    signal::send(pidfd.as_fd(), libc::SIGKILL).unwrap();
    process::reap(&pidfd).unwrap();
}

/// hostname, hosts and resolv.conf of who has no disk for them: they cannot grow over what their file system holds.
#[test]
fn files_apart_have_an_end_and_leave_nothing() {
    apart(|| {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("pod");
        let hosts = "127.0.0.1 localhost\n".repeat(100_000);
        let files =
            PodFiles { hostname: "web".into(), hosts: hosts.clone(), shm: true, ..Default::default() };
        files.make_apart(&dir).unwrap();
        assert_eq!(mounted_below(top.path()), [dir.clone(), dir.join("shm")]);
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(
            (text("hostname"), text("hosts"), text("resolv.conf")),
            ("web\n".into(), hosts, "".into())
        );
        for name in TEXTS {
            let mut file = fs::File::options().append(true).open(dir.join(name)).unwrap();
            let mut written = 0;
            let full = loop {
                match file.write(&[0; 64 << 10]) {
                    Ok(bytes) => written += bytes,
                    Err(error) => break error,
                }
                assert!(written < 8 << 20, "{name} has no end");
            };
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{name}");
            assert!(written <= 1 << 20, "{name}: {written}");
        }
        // Full or not, open or not.
        let _open = fs::File::open(dir.join("hosts")).unwrap();
        PodFiles::release(&dir).unwrap();
        assert!(mounted_below(top.path()).is_empty() && fs::read_dir(&dir).unwrap().next().is_none());
        PodFiles::release(&dir).unwrap();
        PodFiles::remove(&dir).unwrap();
        assert!(!dir.exists());
        PodFiles::remove(&dir).unwrap();
        // As a former version made them: one directory, and only shm is a mount.
        files.write(&dir).unwrap();
        files.mount_shm(&dir).unwrap();
        assert_eq!(mounted_below(top.path()), [dir.join("shm")]);
        PodFiles::remove(&dir).unwrap();
        assert!(!dir.exists() && mounted_below(top.path()).is_empty());
    });
}
