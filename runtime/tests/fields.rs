//! Fields of the specification, asked from inside the container: what the kernel says, not what we wrote.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, kill, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Stdio};
use slipway_runtime::error::Kind;
use slipway_runtime::sys::process;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A rig with more of busybox.
fn rig() -> Rig {
    let rig = Rig::new();
    for name in ["grep", "uname", "sed", "chrt", "ionice", "readlink", "mkfifo", "wc", "nice", "domainname"] {
        symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    rig
}

/// What a script prints in a container with this change.
fn seen(change: impl FnOnce(&mut Value), script: &str) -> String {
    let outcome = rig().sh(change, script);
    assert_eq!(outcome.status, 0, "{}", outcome.out);
    outcome.out
}

/// A field of /proc/self/stat by its number in proc(5).
fn stat_field(number: usize) -> String {
    format!("sed 's/.*) //' /proc/self/stat | cut -d' ' -f{}", number - 2).replace("cut", "busybox cut")
}

#[test]
fn personality_is_what_uname_says() {
    let machine = |domain: &str| seen(|s| s["linux"]["personality"] = json!({"domain": domain}), "uname -m");
    assert_eq!(machine("LINUX"), format!("{}\n", std::env::consts::ARCH));
    if std::env::consts::ARCH == "x86_64" {
        assert_eq!(machine("LINUX32"), "i686\n");
    }
}

#[test]
fn scheduling_policies_are_in_force() {
    // proc(5): 18 priority, 19 nice, 40 rt_priority, 41 policy.
    let script = format!("{}; {}; {}", stat_field(41), stat_field(40), stat_field(19));
    let ask = |scheduler: Value| seen(|s| s["process"]["scheduler"] = scheduler, &script);
    assert_eq!(ask(json!({"policy": "SCHED_OTHER", "nice": 5})), "0\n0\n5\n");
    assert_eq!(ask(json!({"policy": "SCHED_BATCH", "nice": 7})), "3\n0\n7\n");
    assert_eq!(ask(json!({"policy": "SCHED_IDLE"})), "5\n0\n0\n");
    // Without a share of real time in the group, or of deadlines on the machine, the kernel refuses with a reason.
    for (scheduler, expected) in [
        (json!({"policy": "SCHED_FIFO", "priority": 3}), "1\n3\n0\n"),
        (json!({"policy": "SCHED_RR", "priority": 9}), "2\n9\n0\n"),
    ] {
        let mut spec = spec(&["sh", "-c", &script]);
        spec["process"]["scheduler"] = scheduler;
        match rig().run(&spec) {
            Ok(outcome) => assert_eq!(outcome.out, expected),
            Err(error) => assert!(error.to_string().contains("schedule by SCHED_"), "{error}"),
        }
    }
}

/// A shell of a deadline task may not fork, so it is asked from outside.
#[test]
fn a_deadline_is_in_force() {
    let mut spec = spec(&["sleep", "100"]);
    spec["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000, "period": 100_000_000});
    let rig = rig();
    let created = match rig.create(&spec, Stdio::default()) {
        Ok(created) => created,
        Err(error) => return assert!(error.to_string().contains("schedule by SCHED_DEADLINE"), "{error}"),
    };
    created.start.start().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", created.pid)).unwrap();
    let policy = stat.rsplit(") ").next().unwrap().split(' ').nth(41 - 3).unwrap().to_owned();
    kill(created);
    assert_eq!(policy, "6");
}

#[test]
fn io_priority_is_in_force() {
    let ask = |class: &str, priority: i64| {
        let io = json!({"class": class, "priority": priority});
        seen(|s| s["process"]["ioPriority"] = io, "ionice -p $$")
    };
    assert_eq!(ask("IOPRIO_CLASS_BE", 3), "best-effort: prio 3\n");
    assert_eq!(ask("IOPRIO_CLASS_RT", 1), "realtime: prio 1\n");
    assert!(ask("IOPRIO_CLASS_IDLE", 0).starts_with("idle"));
    let mut bad = spec(&["true"]);
    bad["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
    let error = rig().run(&bad).unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.to_string().contains("process.ioPriority"), "{error}");
}

#[test]
fn memory_policy_is_in_force() {
    let ask = |policy: Value| {
        seen(
            |s| s["linux"]["memoryPolicy"] = policy,
            "head -1 /proc/self/numa_maps".replace("head", "busybox head").as_str(),
        )
    };
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return;
    }
    assert!(ask(json!({"mode": "MPOL_BIND", "nodes": "0"})).contains(" bind:0"));
    assert!(
        ask(json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}))
            .contains("interleave=static:0")
    );
    assert!(ask(json!({"mode": "MPOL_LOCAL"})).contains(" local"));
    for (policy, word) in [
        (json!({"mode": "MPOL_BIND"}), "needs nodes"),
        (json!({"mode": "MPOL_DEFAULT", "nodes": "0"}), "takes no nodes"),
        (json!({"mode": "MPOL_BIND", "nodes": "0-"}), "0-3,7"),
        (
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
            "exclude",
        ),
    ] {
        let mut spec = spec(&["true"]);
        spec["linux"]["memoryPolicy"] = policy;
        let error = rig().run(&spec).unwrap_err().to_string();
        assert!(error.contains("linux.memoryPolicy") && error.contains(word), "{error}");
    }
    let mut absent = spec(&["true"]);
    absent["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "63"});
    let error = rig().run(&absent).unwrap_err().to_string();
    assert!(error.contains("memory policy") && error.contains("nodes"), "{error}");
}

#[test]
fn exec_affinity_and_what_exec_shares_with_the_container() {
    let rig = rig();
    let mut container_spec = spec(&["sleep", "100"]);
    container_spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    container_spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    let created = rig.create(&container_spec, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let container_spec = serde_json::from_value(container_spec).unwrap();
    let exec = |affinity: Value| {
        let (mut read, stdio) = piped();
        let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "execCPUAffinity": affinity, "env": ["PATH=/bin"],
            "args": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; uname -m"]});
        let process = serde_json::from_value(process).unwrap();
        let exec = container::exec(common::exec_in(&created, &container_spec, &process, "x", stdio))?;
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        process::reap(&exec.pidfd).unwrap();
        exec.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
        Ok::<_, slipway_runtime::Error>(out)
    };
    assert!(exec(json!({"initial": "0", "final": "1"})).unwrap().starts_with("Cpus_allowed_list:\t1\n"));
    let out = exec(json!({"final": "0"})).unwrap();
    assert!(out.starts_with("Cpus_allowed_list:\t0\n"), "{out}");
    assert!(out.ends_with("i686\n") || std::env::consts::ARCH != "x86_64", "{out}");
    let error = exec(json!({"initial": "4095"})).unwrap_err();
    assert!(error.to_string().contains("process.execCPUAffinity.initial"), "{error}");
    kill(created);
}

#[test]
fn execcpuaffinity_does_not_touch_the_first_process() {
    let all = seen(|_| (), "grep Cpus_allowed_list /proc/self/status");
    let set = |s: &mut Value| s["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    assert_eq!(seen(set, "grep Cpus_allowed_list /proc/self/status"), all);
}

#[test]
fn names_of_host_and_domain() {
    let set = |s: &mut Value| s["domainname"] = json!("example.org");
    assert_eq!(
        seen(set, "cat /proc/sys/kernel/domainname /proc/sys/kernel/hostname"),
        "example.org\npod-0\n"
    );
}

#[test]
fn devices_have_their_numbers_modes_and_owners() {
    let set = |s: &mut Value| {
        s["linux"]["devices"] = json!([
            {"path": "/dev/deep/er/chr", "type": "c", "major": 1, "minor": 3, "fileMode": 0o620, "uid": 7, "gid": 8},
            {"path": "/dev/fifo", "type": "p", "fileMode": 0o642},
            {"path": "/dev/blk", "type": "b", "major": 7, "minor": 99},
        ]);
    };
    let script = "stat -c '%n %F %a %u:%g %t:%T' /dev/deep/er/chr /dev/fifo /dev/blk /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; for l in fd stdin ptmx; do readlink /dev/$l; done";
    let out = seen(set, script);
    for line in [
        "/dev/deep/er/chr character special file 620 7:8 1:3",
        "/dev/fifo fifo 642 0:0 0:0",
        "/dev/blk block special file 666 0:0 7:63",
        "/dev/null character special file 666 0:0 1:3",
        "/dev/zero character special file 666 0:0 1:5",
        "/dev/full character special file 666 0:0 1:7",
        "/dev/random character special file 666 0:0 1:8",
        "/dev/urandom character special file 666 0:0 1:9",
        "/dev/tty character special file 666 0:0 5:0",
        "/proc/self/fd\n/proc/self/fd/0\npts/ptmx",
    ] {
        assert!(out.contains(line), "{line} is not in {out}");
    }
}

/// Flags of the mount on a path, from mountinfo, and its file system's.
fn flags(out: &str, path: &str) -> (String, String) {
    let line = out.lines().rfind(|line| line.split(' ').nth(4) == Some(path)).unwrap();
    let (left, right) = line.split_once(" - ").unwrap();
    (left.split(' ').nth(5).unwrap().to_owned(), right.split(' ').nth(2).unwrap().to_owned())
}

#[test]
fn mount_options_become_the_kernel_s_flags() {
    let cases: [(&[&str], &str); 12] = [
        (&["ro"], "ro,relatime"),
        (&["ro", "rw"], "rw,relatime"),
        (&["nosuid", "nodev", "noexec"], "rw,nosuid,nodev,noexec,relatime"),
        (&["nosuid", "suid", "nodev", "dev", "noexec", "exec"], "rw,relatime"),
        (&["noatime"], "rw,noatime"),
        (&["noatime", "relatime"], "rw,relatime"),
        (&["strictatime"], "rw"),
        (&["strictatime", "nostrictatime"], "rw,relatime"),
        (&["norelatime"], "rw"),
        (&["nodiratime"], "rw,nodiratime,relatime"),
        (&["nosymfollow"], "rw,relatime,nosymfollow"),
        (
            &[
                "defaults",
                "async",
                "loud",
                "silent",
                "iversion",
                "noiversion",
                "mand",
                "nomand",
                "x-any=thing",
            ],
            "rw,relatime",
        ),
    ];
    let set = |s: &mut Value| {
        for (number, (options, _)) in cases.iter().enumerate() {
            let tmpfs = json!({"destination": format!("/t{number}"), "type": "tmpfs", "source": "tmpfs", "options": options});
            s["mounts"].as_array_mut().unwrap().push(tmpfs);
            let mut bind = vec!["bind"];
            bind.extend(*options);
            add_mount(s, &format!("/b{number}"), std::path::Path::new("/dev/shm"), &bind);
        }
    };
    let out = seen(set, "cat /proc/self/mountinfo");
    let shm = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let host_has_flags = shm.lines().any(|l| l.contains(" /dev/shm ") && l.contains("nosuid"));
    for (number, (options, expected)) in cases.iter().enumerate() {
        assert_eq!(flags(&out, &format!("/t{number}")).0, *expected, "tmpfs {options:?}");
        if !host_has_flags {
            assert_eq!(flags(&out, &format!("/b{number}")).0, *expected, "bind {options:?}");
        }
    }
}

#[test]
fn every_recursive_option_reaches_what_lies_below() {
    let words = ["rro", "rnosuid", "rnodev", "rnoexec", "rnodiratime", "rnoatime", "rnosymfollow"];
    let back = ["rrw", "rsuid", "rdev", "rexec", "rdiratime", "rrelatime", "rsymfollow"];
    let set = |s: &mut Value| {
        let mut options = vec!["rbind"];
        options.extend(words);
        add_mount(s, "/all", std::path::Path::new("/dev"), &options);
        options.extend(back);
        add_mount(s, "/none", std::path::Path::new("/dev"), &options);
    };
    let out = seen(set, "cat /proc/self/mountinfo");
    let below = |top: &str| -> Vec<String> {
        let inside = |line: &&str| line.split(' ').nth(4).is_some_and(|path| path.starts_with(top));
        out.lines().filter(inside).map(|line| line.split(' ').nth(5).unwrap().to_owned()).collect()
    };
    assert!(below("/all").len() > 1, "/dev has mounts below it: {out}");
    for flags in below("/all") {
        assert_eq!(flags, "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow");
    }
    for flags in below("/none") {
        assert_eq!(flags, "rw,relatime");
    }
}

#[test]
fn a_tmpfs_is_as_large_and_owned_as_asked_and_like_what_it_covers() {
    let rig = rig();
    fs::create_dir(rig.path("extra/covered")).unwrap();
    fs::set_permissions(rig.path("extra/covered"), fs::Permissions::from_mode(0o1751)).unwrap();
    let outcome = rig.sh(
        |s| {
            let mounts = s["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/asked", "type": "tmpfs", "source": "t", "options": ["size=64k", "mode=0710", "uid=5", "gid=6"]}));
            mounts.push(json!({"destination": "/covered", "type": "tmpfs", "source": "t"}));
            mounts.push(json!({"destination": "/new", "type": "tmpfs", "source": "t"}));
        },
        "stat -c '%a %u:%g' /asked /covered /new; stat -f -c '%b %S' /asked",
    );
    let lines: Vec<&str> = outcome.out.lines().collect();
    assert_eq!(lines[..3], ["710 5:6", "1751 0:0", "1777 0:0"]);
    assert_eq!(lines[3], "16 4096");
}

#[test]
fn tmpcopyup_begins_with_what_the_image_has() {
    let rig = rig();
    fs::create_dir_all(rig.path("lower/data/sub")).unwrap();
    fs::write(rig.path("lower/data/sub/file"), "from the image").unwrap();
    fs::set_permissions(rig.path("lower/data"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("/etc/passwd", rig.path("lower/data/link")).unwrap();
    let tmpfs =
        |options: Value| json!({"destination": "/data", "type": "tmpfs", "source": "t", "options": options});
    let run = |options: Value, script: &str| {
        let mut spec = spec(&["sh", "-c", script]);
        spec["mounts"].as_array_mut().unwrap().push(tmpfs(options));
        rig.run(&spec)
    };
    let script =
        "cat /data/sub/file; stat -c '%a' /data; readlink /data/link; echo new > /data/new; ls /data";
    let out = run(json!(["tmpcopyup", "nosuid"]), script).unwrap().out;
    assert_eq!(out, "from the image751\n/etc/passwd\nlink\nnew\nsub\n");
    assert!(!rig.path("upper/data/new").exists(), "it went to the tmpfs");
    let out = run(json!(["tmpcopyup", "ro", "mode=700"]), "stat -c %a /data; touch /data/x 2>&1; true")
        .unwrap()
        .out;
    assert!(out.starts_with("700\n") && out.contains("Read-only"), "{out}");
    fs::write(rig.path("lower/data/big"), vec![1; 100_000]).unwrap();
    let error = run(json!(["tmpcopyup", "size=16k"]), "true").unwrap_err();
    assert!(error.to_string().contains("raise its size"), "{error}");
}

#[test]
fn remounts_relative_destinations_and_other_file_systems() {
    let rig = rig();
    for name in ["lo1", "lo2"] {
        fs::create_dir(rig.path(name)).unwrap();
        fs::write(rig.path(name).join(name), name).unwrap();
    }
    let layers = format!("lowerdir={}:{}", rig.path("lo1").display(), rig.path("lo2").display());
    let outcome = rig.sh(
        |s| {
            let mounts = s["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "relative/place", "type": "tmpfs", "source": "t"}));
            mounts.push(json!({"destination": "/relative/place", "options": ["remount", "ro", "nosuid"]}));
            mounts.push(json!({"destination": "/layers", "type": "overlay", "source": "overlay", "options": [layers, "ro"]}));
        },
        "cat /proc/self/mountinfo; ls /layers",
    );
    assert_eq!(flags(&outcome.out, "/relative/place").0, "ro,nosuid,relatime");
    assert!(outcome.out.ends_with("lo1\nlo2\n"), "{}", outcome.out);
    assert!(outcome.out.contains(" /layers ro,"), "{}", outcome.out);
}

#[test]
fn sources_are_relative_to_the_bundle_and_files_go_on_files() {
    let rig = rig();
    fs::write(rig.path("given"), "content").unwrap();
    let outcome = rig.sh(
        |s| add_mount(s, "/etc/deep/file", std::path::Path::new("given"), &["bind", "ro"]),
        "cat /etc/deep/file",
    );
    assert_eq!(outcome.out, "content");
    for (destination, source) in [("/etc/passwd", "lower"), ("/etc", "given")] {
        let mut spec = spec(&["true"]);
        add_mount(&mut spec, destination, std::path::Path::new(source), &["bind"]);
        let error = rig.run(&spec).unwrap_err().to_string();
        assert!(error.contains(destination), "{error}");
    }
    let mut missing = spec(&["true"]);
    add_mount(&mut missing, "/x", std::path::Path::new("absent"), &["bind"]);
    let error = rig.run(&missing).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("the source must exist"), "{error}");
}

/// CVE-2019-19921: only procfs goes on /proc.
#[test]
fn nothing_but_procfs_goes_on_proc() {
    for mount in [
        json!({"destination": "/proc", "type": "tmpfs", "source": "t"}),
        json!({"destination": "/proc", "type": "bind", "source": "/etc", "options": ["rbind"]}),
    ] {
        let mut spec = spec(&["true"]);
        spec["mounts"].as_array_mut().unwrap().push(mount);
        let error = rig().run(&spec).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains("procfs"), "{error}");
    }
}

#[test]
fn what_this_host_lacks_is_named_with_a_remedy() {
    let host = slipway_runtime::host::Host::current();
    type Change = fn(&mut Value);
    let cases: [(&str, bool, Change); 3] = [
        ("process.apparmorProfile", host.apparmor, |s| {
            s["process"]["apparmorProfile"] = json!("some-profile")
        }),
        ("process.selinuxLabel", host.selinux, |s| s["process"]["selinuxLabel"] = json!("a:b:c:s0")),
        ("linux.mountLabel", host.selinux, |s| s["linux"]["mountLabel"] = json!("a:b:c:s0")),
    ];
    for (field, present, change) in cases {
        if present {
            continue;
        }
        let mut spec = spec(&["true"]);
        change(&mut spec);
        let error = rig().run(&spec).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        assert!(error.to_string().contains(field), "{error}");
    }
}
