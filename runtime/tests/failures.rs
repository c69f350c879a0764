//! Each refusal names the step, the object and what to do, and leaves nothing: no process, mount, group, descriptor.
//!
//! One test in a process of its own, so that everything this process has can be counted.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, spec, unique_group};
use serde_json::{Value, json};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::Stdio;
use slipway_runtime::error::Kind;
use std::fs;
use std::path::Path;

type Change = fn(&mut Value);

/// What is wrong, the class, and words that must be in the sentence.
const CASES: &[(&str, Change, Kind, &[&str])] = &[
    ("no command", |s| s["process"]["args"] = json!([]), Kind::Invalid, &["process.args", "no command"]),
    ("relative cwd", |s| s["process"]["cwd"] = json!("here"), Kind::Invalid, &["process.cwd", "here"]),
    (
        "absent bind source",
        |s| add_mount(s, "/x", Path::new("/absent/dir"), &["rbind"]),
        Kind::NotFound,
        &["bind", "/absent/dir", "must exist"],
    ),
    (
        "file on a directory",
        |s| add_mount(s, "/etc", Path::new("/proc/version"), &["bind"]),
        Kind::Invalid,
        &["on /etc", "step"],
    ),
    (
        "mount inside /proc",
        |s| add_mount(s, "/proc/sys/x", Path::new("/tmp"), &["rbind"]),
        Kind::Invalid,
        &["/proc/sys/x"],
    ),
    (
        "unknown file system",
        |s| {
            s["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({"destination": "/n", "type": "nosuchfs", "source": "a:/b"}))
        },
        Kind::Unsupported,
        &["nosuchfs", "/proc/filesystems"],
    ),
    (
        "bad tmpfs option",
        |s| {
            s["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({"destination": "/t", "type": "tmpfs", "options": ["size=lots"]}))
        },
        Kind::Invalid,
        &["mount tmpfs on /t", "size=lots"],
    ),
    (
        "unknown namespace path",
        |s| s["linux"]["namespaces"][4]["path"] = json!("/absent/netns"),
        Kind::NotFound,
        &["network namespace", "/absent/netns"],
    ),
    (
        "no namespace file",
        |s| s["linux"]["namespaces"][4]["path"] = json!("/etc/hostname"),
        Kind::Invalid,
        &["join network namespace /etc/hostname"],
    ),
    (
        "namespace of another kind",
        |s| s["linux"]["namespaces"][4]["path"] = json!("/proc/self/ns/ipc"),
        Kind::Invalid,
        &["join network namespace"],
    ),
    (
        "pid namespace that is none",
        |s| s["linux"]["namespaces"][0]["path"] = json!("/proc/self/ns/ipc"),
        Kind::Invalid,
        &["join the pid namespace", "not a pid namespace"],
    ),
    (
        "namespace twice",
        |s| s["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "pid"})),
        Kind::Invalid,
        &["pid", "twice"],
    ),
    (
        "absent mount namespace",
        |s| s["linux"]["namespaces"][3]["path"] = json!("/absent/mnt"),
        Kind::NotFound,
        &["mount namespace /absent/mnt", "/proc/<pid>/ns"],
    ),
    (
        "mount namespace of another kind",
        |s| s["linux"]["namespaces"][3]["path"] = json!("/proc/self/ns/ipc"),
        Kind::Invalid,
        &["join mount namespace /proc/self/ns/ipc"],
    ),
    (
        "unbindable in another's mount namespace",
        |s| {
            s["linux"]["namespaces"].as_array_mut().unwrap().remove(3);
            add_mount(s, "/x", Path::new("/tmp"), &["rbind", "runbindable"]);
        },
        Kind::Unsupported,
        &["mounts.options", "unbindable", "type\": \"mount"],
    ),
    (
        "user namespace in the host's mount namespace",
        |s| {
            s["linux"]["namespaces"].as_array_mut().unwrap().remove(3);
            common::in_user_namespace(s, 300_000);
        },
        Kind::Invalid,
        &["linux.namespaces", "mount namespace of its own"],
    ),
    (
        "user namespace without maps",
        |s| s["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"})),
        Kind::Invalid,
        &["linux.uidMappings", "missing for the new user namespace"],
    ),
    (
        "host sysctl",
        |s| s["linux"]["sysctl"] = json!({"vm.swappiness": "1"}),
        Kind::Invalid,
        &["vm.swappiness", "host"],
    ),
    (
        "unknown sysctl",
        |s| s["linux"]["sysctl"] = json!({"net.absent": "1"}),
        Kind::NotFound,
        &["/proc/sys/net/absent", "kernel does not have"],
    ),
    (
        "bad sysctl value",
        |s| s["linux"]["sysctl"] = json!({"kernel.shmmax": "many"}),
        Kind::Invalid,
        &["write many to /proc/sys/kernel/shmmax"],
    ),
    (
        "host name without namespace",
        |s| {
            s["linux"]["namespaces"].as_array_mut().unwrap().remove(2);
        },
        Kind::Invalid,
        &["hostname", "UTS"],
    ),
    (
        "rlimit above hard",
        |s| s["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 8}]),
        Kind::Invalid,
        &["RLIMIT_NOFILE", "soft is above hard"],
    ),
    (
        "rlimit beyond our rights",
        |s| s["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2_000_000_000u64}]),
        Kind::Kernel,
        &["limit RLIMIT_NOFILE to 1:2000000000"],
    ),
    (
        "cache classes",
        |s| s["linux"]["intelRdt"] = json!({"closID": "one"}),
        Kind::Unsupported,
        &["linux.intelRdt", "leave"],
    ),
    ("oom score", |s| s["process"]["oomScoreAdj"] = json!(5000), Kind::Invalid, &["5000", "-1000 and 1000"]),
    (
        "AppArmor",
        |s| s["process"]["apparmorProfile"] = json!("mine"),
        Kind::Unsupported,
        &["mine", "no AppArmor"],
    ),
    (
        "bad device",
        |s| s["linux"]["devices"] = json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 0}]),
        Kind::Invalid,
        &["-1"],
    ),
    ("propagation", |s| s["linux"]["rootfsPropagation"] = json!("sideways"), Kind::Invalid, &["sideways"]),
    (
        "cgroup path that climbs",
        |s| s["linux"]["cgroupsPath"] = json!("/a/../../b"),
        Kind::Invalid,
        &["climbs out"],
    ),
    ("cwd that is a file", |s| s["process"]["cwd"] = json!("/etc/passwd"), Kind::Invalid, &["/etc/passwd"]),
    (
        "missing command",
        |s| s["process"]["args"] = json!(["nothere"]),
        Kind::NotFound,
        &["find command", "nothere", "check the image"],
    ),
    (
        "unreadable for the user",
        |s| {
            s["process"]["user"] = json!({"uid": 33, "gid": 33});
            s["process"]["args"] = json!(["/secret/tool"]);
            s["process"]["capabilities"] = json!({});
        },
        Kind::Invalid,
        &["find command /secret/tool", "not executable by this user"],
    ),
];

#[derive(PartialEq, Eq, Debug)]
struct Traces {
    descriptors: usize,
    children: String,
    mounts: String,
}

fn traces() -> Traces {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children =
        tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok()).collect();
    Traces {
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        children,
        mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
    }
}

#[test]
fn every_refusal_is_clear_and_leaves_nothing() {
    let rig = Rig::new();
    fs::create_dir(rig.path("lower/secret")).unwrap();
    fs::copy(rig.path("lower/bin/busybox"), rig.path("lower/secret/tool")).unwrap();
    fs::set_permissions(rig.path("lower/secret"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .unwrap();
    rig.run(&spec(&["true"])).unwrap();
    for (name, change, kind, words) in CASES {
        if *name == "AppArmor" && slipway_runtime::host::Host::current().apparmor {
            continue;
        }
        let before = traces();
        let mut spec = spec(&["true"]);
        let group = unique_group();
        spec["linux"]["cgroupsPath"] = json!(group);
        change(&mut spec);
        let error = rig.run(&spec).expect_err(name);
        let sentence = error.to_string();
        assert_eq!(error.kind(), *kind, "{name}: {sentence}");
        for word in *words {
            assert!(sentence.contains(word), "{name}: {word:?} is not in {sentence:?}");
        }
        assert!(Cgroup::open(&group).is_err(), "{name} left {group}");
        assert_eq!(traces(), before, "{name}");
    }
    for rootfs in [rig.path("absent"), rig.path("lower/etc/passwd")] {
        let mut request = rig.request(&spec(&["true"]), Stdio::default(), Vec::new());
        request.rootfs = slipway_runtime::rootfs::Rootfs::Directory(rootfs);
        let before = traces();
        let error = slipway_runtime::container::create(request).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        assert_eq!(traces(), before);
    }
}
