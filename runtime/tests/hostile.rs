//! More replays of published escapes: of images and containers that race, and of what a runtime's own process has that a
//! container must not. `escapes.rs` has those of the program, its descriptors and the mounts.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, kill, piped, spec};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::Gid;
use serde_json::{Value, json};
use slipway_runtime::container::{self, Created, Stdio};
use slipway_runtime::rootfs::Rootfs;
use slipway_runtime::sys::{namespace, process};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell says that enters the container.
fn entered(created: &Created, spec: &Value, script: &str) -> String {
    let whole = serde_json::from_value(spec.clone()).unwrap();
    let mut process = spec["process"].clone();
    process["args"] = json!(["sh", "-c", script]);
    let process = serde_json::from_value(process).unwrap();
    let (mut read, stdio) = piped();
    let request = common::exec_in(created, &whole, &process, "visit", stdio);
    let exec = container::exec(request).unwrap();
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    process::reap(&exec.pidfd).unwrap();
    exec.cgroup.remove(std::time::Duration::from_secs(30)).unwrap();
    out
}

fn line<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim()
}

/// Runs `test` on a thread of its own, whose credentials it may change.
fn apart(test: impl FnOnce() + Send) {
    namespace::on_own_thread("hostile", test).unwrap();
}

/// CVE-2023-25173 and its kin: groups that the runtime's process happens to be in. Without the setgroups call of
/// `Step::Credentials` both lines would show 4242.
#[test]
fn groups_of_the_runtime_are_not_the_container_s() {
    apart(|| {
        rustix::thread::set_thread_groups(&[Gid::from_raw(4242)]).unwrap();
        let rig = Rig::new();
        let groups = |more: &[u32]| {
            let user = json!({"uid": 33, "gid": 33, "additionalGids": more});
            let out = rig.sh(|s| s["process"]["user"] = user, "cat /proc/self/status").out;
            line(&out, "Groups:").to_owned()
        };
        assert_eq!((groups(&[]).as_str(), groups(&[7, 9]).as_str()), ("", "7 9"));
        let spec = spec(&["sleep", "1000"]);
        let created = rig.create(&spec, Stdio::default()).unwrap();
        created.start.start().unwrap();
        let status = entered(&created, &spec, "cat /proc/self/status");
        kill(created);
        assert_eq!(line(&status, "Groups:"), "");
    });
}

/// CVE-2022-24769, CVE-2022-29162: capabilities that are inheritable without having been asked for.
#[test]
fn inheritable_capabilities_of_the_runtime_are_not_the_container_s() {
    use rustix::thread::{capabilities, set_capabilities};
    apart(|| {
        let mut mine = capabilities(None).unwrap();
        mine.inheritable = mine.permitted;
        set_capabilities(None, mine).unwrap();
        let own = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert_ne!(line(&own, "CapInh:"), "0000000000000000", "the attack itself does not work");
        let rig = Rig::new();
        let spec = spec(&["sh", "-c", "cat /proc/self/status; sleep 1000"]);
        let created = rig.create(&spec, Stdio::default()).unwrap();
        created.start.start().unwrap();
        let first = fs::read_to_string(format!("/proc/{}/status", created.pid)).unwrap();
        let second = entered(&created, &spec, "cat /proc/self/status");
        kill(created);
        for status in [first, second] {
            assert_eq!(line(&status, "CapInh:"), "0000000000000000", "{status}");
            assert_eq!(line(&status, "CapAmb:"), "0000000000000000", "{status}");
        }
    });
}

/// CVE-2016-9962, CVE-2024-21626: a descriptor of the host that was left open without close-on-exec.
#[test]
fn descriptors_of_the_runtime_reach_neither_a_container_nor_its_visitors() {
    let rig = Rig::new();
    let host = fs::File::open("/").unwrap();
    let leaked = rustix::io::dup(&host).unwrap();
    let spec = spec(&["sh", "-c", "ls -l /proc/self/fd; sleep 1000"]);
    let created = rig.create(&spec, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let visitor = entered(&created, &spec, "ls -l /proc/self/fd; ls -l /proc/1/fd");
    kill(created);
    drop(leaked);
    assert!(visitor.contains("pipe:"), "{visitor}");
    assert!(!visitor.lines().any(|line| line.ends_with("-> /")), "{visitor}");
}

/// CVE-2025-52565: an image whose /dev/console leads elsewhere must not move the terminal's mount there.
#[test]
fn the_console_is_not_led_astray() {
    for (name, target) in
        [("absolute", "/etc/passwd"), ("climbing", "../../../../etc/hostname"), ("proc", "/proc/self/mem")]
    {
        let rig = Rig::new();
        fs::create_dir_all(rig.path("extra/dev")).unwrap();
        symlink(target, rig.path("extra/dev/console")).unwrap();
        let mut spec = spec(&["sh", "-c", "cat /proc/self/mountinfo"]);
        spec["process"]["terminal"] = json!(true);
        let kept = |m: &&Value| m["destination"] != "/dev";
        spec["mounts"] = spec["mounts"].as_array().unwrap().iter().filter(kept).cloned().collect();
        let error = rig.create(&spec, Stdio::default()).expect_err(name);
        assert_eq!(error.errno(), Some(libc::ELOOP), "{name}: {error}");
        assert!(error.to_string().contains("console"), "{name}: {error}");
    }
}

/// CVE-2021-30465: a mount's target that is swapped for a symlink while the container is made. Whoever wins, nothing
/// is made or mounted in the directory of the host that the link names.
#[test]
fn a_race_on_a_mount_s_target_is_lost() {
    let rig = Rig::new();
    let (host, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(volume.path().join("volume"), "").unwrap();
    let root = rig.path("lower");
    fs::create_dir(root.join("race")).unwrap();
    symlink(host.path(), root.join("other")).unwrap();
    let over = AtomicBool::new(false);
    let (race, other) = (root.join("race"), root.join("other"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, &race, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                std::thread::yield_now();
            }
        });
        for round in 0..20 {
            let mut spec = spec(&["true"]);
            add_mount(&mut spec, &format!("/race/{round}"), volume.path(), &["rbind"]);
            let mut request = rig.request(&spec, Stdio::default(), Vec::new());
            request.rootfs = Rootfs::Directory(root.clone());
            // Refused or made: both are well.
            if let Ok(created) = container::create(request) {
                kill(created);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0, "something was made on the host");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(host.path().to_str().unwrap()), "{mounts}");
}

/// CVE-2025-52881 for visitors: a container that has put its own files over /proc gets nothing of what the runtime
/// writes for an exec. (It is written before the container's namespaces are entered.)
#[test]
fn a_swapped_proc_gets_no_writes_of_an_exec() {
    let rig = Rig::new();
    let mut spec = spec(&[
        "sh",
        "-c",
        "mount -t tmpfs none /proc; echo -n image > /proc/oom_score_adj; ln() { busybox ln \"$@\"; }; ln -s . /proc/self; \
         ln -s . /proc/thread-self; busybox mkdir -p /proc/attr/apparmor; echo -n image > /proc/attr/exec; touch /ready; \
         exec sleep 1000",
    ]);
    spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"]
    });
    spec["linux"].as_object_mut().unwrap().remove("seccomp");
    let created = rig.create(&spec, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !rig.path("upper/ready").exists() {
        assert!(std::time::Instant::now() < deadline, "the container did not get ready");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let out = entered(&created, &spec, "cat /proc/oom_score_adj /proc/attr/exec; echo; sleep 0");
    kill(created);
    assert_eq!(out.trim(), "imageimage");
}

/// CVE-2025-23266: what a container's specification says of its environment is not for hooks of the host, and an image cannot put its own program in the place of one.
#[test]
fn hooks_of_the_host_take_nothing_from_the_image() {
    let rig = Rig::new();
    fs::create_dir(rig.path("rootfs")).unwrap();
    let tool = rig.path("tool");
    fs::write(&tool, "#!/bin/sh\necho host; env; pwd\n").unwrap();
    fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let planted = rig.path("extra").join(tool.strip_prefix("/").unwrap());
    fs::create_dir_all(planted.parent().unwrap()).unwrap();
    fs::write(&planted, "#!/bin/sh\necho image\n").unwrap();
    let (log, script) = (rig.path("log"), format!("/bin/sh {} >> $LOG", tool.display()));
    let hook =
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": [format!("LOG={}", log.display())]});
    let mut spec = spec(&["true"]);
    spec["process"]["env"].as_array_mut().unwrap().push(json!("LD_PRELOAD=/evil.so"));
    spec["hooks"] = json!({"createRuntime": [hook], "createContainer": [hook]});
    assert_eq!(rig.run(&spec).unwrap().status, 0);
    let said = fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("host\n").count(), 2, "{said}");
    assert!(!said.contains("image") && !said.contains("evil") && !said.contains("KUBERNETES"), "{said}");
}

/// CVE-2019-16884 for control groups: an image whose /sys/fs/cgroup leads elsewhere is followed inside of it only.
#[test]
fn a_symlink_in_the_place_of_control_groups_stays_inside() {
    let rig = Rig::new();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(rig.path("extra/sys/fs")).unwrap();
    symlink(host.path(), rig.path("extra/sys/fs/cgroup")).unwrap();
    let mut spec = spec(&["sh", "-c", "cat /proc/self/mountinfo"]);
    let kept = |m: &&Value| m["destination"] != "/sys";
    spec["mounts"] = spec["mounts"].as_array().unwrap().iter().filter(kept).cloned().collect();
    if let Ok(outcome) = rig.run(&spec) {
        let inside = format!(" {} ", host.path().display());
        let inside = outcome.out.lines().any(|line| line.contains(inside.as_str()));
        assert!(inside || outcome.out.contains("/sys/fs/cgroup"), "{}", outcome.out);
    }
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0, "something was made on the host");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(host.path().to_str().unwrap()));
}
