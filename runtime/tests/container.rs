//! A container of an ordinary Kubernetes spec, asked from inside what it sees.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, finish, kill, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::container::{self, ExecRequest, Stdio};
use slipway_runtime::error::Kind;
use slipway_runtime::sys::process;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn runs_a_command_and_tells_its_exit_code() {
    let outcome = Rig::new().sh(|_| (), "echo hello; exit 7");
    assert_eq!((outcome.out.as_str(), outcome.status), ("hello\n", 7));
}

#[test]
fn has_namespaces_of_its_own() {
    let outcome = Rig::new()
        .sh(|_| (), "for n in pid ipc uts mnt net user; do readlink /proc/self/ns/$n; done; echo $$");
    let seen = lines(&outcome.out);
    for (name, link) in ["pid", "ipc", "uts", "mnt", "net"].iter().zip(&seen) {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(ours.to_string_lossy(), **link);
    }
    assert_eq!(fs::read_link("/proc/self/ns/user").unwrap().to_string_lossy(), seen[5]);
    assert_eq!(seen[6], "1");
}

#[test]
fn sees_the_usual_tree_and_nothing_of_the_host() {
    let outcome = Rig::new().sh(|_| (), "cat /proc/self/mountinfo");
    let mounted: Vec<(&str, &str)> = outcome
        .out
        .lines()
        .map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            (left.split(' ').nth(4).unwrap(), right.split(' ').next().unwrap())
        })
        .collect();
    assert_eq!(mounted[0], ("/", "overlay"));
    for expected in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/mqueue", "mqueue"),
        ("/dev/shm", "tmpfs"),
        ("/sys", "sysfs"),
        ("/proc/timer_list", "devtmpfs"),
        ("/proc/sys", "proc"),
    ] {
        assert!(mounted.contains(&expected), "{expected:?} is not among {mounted:?}");
    }
    assert!(!outcome.out.contains("ext4"), "the host's disk shows: {}", outcome.out);
    assert!(!outcome.out.contains("shared:"), "a peer of the host: {}", outcome.out);
}

#[test]
fn writes_go_to_the_upper_layer() {
    let rig = Rig::new();
    rig.sh(|_| (), "echo new > /etc/motd; rm /etc/passwd");
    assert_eq!(fs::read_to_string(rig.path("upper/etc/motd")).unwrap(), "new\n");
    assert!(rig.path("lower/etc/passwd").exists());
}

#[test]
fn credentials_limits_and_flags_are_as_asked() {
    let change = |spec: &mut Value| {
        spec["process"]["user"] = json!({"uid": 33, "gid": 34, "additionalGids": [35, 36], "umask": 0o027});
        spec["process"]["capabilities"]["ambient"] = json!(["CAP_NET_RAW"]);
        spec["process"]["capabilities"]["inheritable"] = json!(["CAP_NET_RAW"]);
    };
    let script = "id -u; id -g; id -G; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; echo $HOME; grep -E '^(Cap|NoNew)' /proc/self/status";
    let rig = Rig::new();
    symlink("busybox", rig.path("lower/bin/grep")).unwrap();
    let outcome = rig.sh(change, script);
    let seen = lines(&outcome.out);
    assert_eq!(seen[..8], ["33", "34", "34 35 36", "0027", "512", "1024", "500", "/srv/www"]);
    let status = seen[8..].join("\n");
    let raw = "0000000000002000";
    for expected in [
        format!("CapInh:\t{raw}"),
        format!("CapPrm:\t{raw}"),
        format!("CapEff:\t{raw}"),
        format!("CapAmb:\t{raw}"),
        "CapBnd:\t00000000a80425fb".into(),
        "NoNewPrivs:\t1".into(),
    ] {
        assert!(status.contains(&expected), "{expected} is not in {status}");
    }
}

#[test]
fn signals_are_as_a_new_process_expects() {
    // This process ignores SIGPIPE, as every Rust program does.
    let outcome = Rig::new().run(&spec(&["cat", "/proc/self/status"])).unwrap();
    for expected in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "SigCgt:\t0000000000000000"] {
        assert!(outcome.out.contains(expected), "{}", outcome.out);
    }
}

#[test]
fn capabilities_are_clipped_to_what_this_process_has() {
    let rig = Rig::new();
    symlink("busybox", rig.path("lower/bin/grep")).unwrap();
    let all = |spec: &mut Value| {
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] =
                json!(["CAP_SYS_RESOURCE", "CAP_NET_ADMIN", "CAP_CHECKPOINT_RESTORE"]);
        }
    };
    let outcome = rig.sh(all, "grep CapEff /proc/self/status");
    let own = slipway_runtime::host::Host::current().capabilities;
    let expected = (1 << 24 | 1 << 12 | 1 << 40) & own;
    assert_eq!(outcome.out.trim(), format!("CapEff:\t{expected:016x}"));
}

#[test]
fn only_the_three_streams_are_open() {
    let outcome = Rig::new().sh(|_| (), "ls -l /proc/self/fd");
    let open: Vec<_> = outcome.out.lines().filter(|line| line.contains("->")).collect();
    assert_eq!(open.len(), 3, "{}", outcome.out);
    assert!(open[0].ends_with("/dev/null"), "{}", outcome.out);
    assert!(
        !outcome.out.lines().any(|line| line.trim_end().ends_with(" 4")),
        "more than ls's own of the directory: {}",
        outcome.out
    );
}

#[test]
fn standard_streams_can_be_opened_by_the_user() {
    let user = |spec: &mut Value| spec["process"]["user"] = json!({"uid": 33, "gid": 33});
    let outcome = Rig::new().sh(user, "echo out > /dev/stdout; echo err > /dev/stderr; ls /dev/fd | head -1; ls -l /dev/ptmx /dev/core 2>&1 | tail -1");
    assert!(outcome.out.starts_with("out\nerr\n"), "{}", outcome.out);
}

#[test]
fn devices_are_there_and_work() {
    let more = |spec: &mut Value| {
        spec["linux"]["devices"] = json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6}]);
    };
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/sub/fuse; head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo ok";
    let rig = Rig::new();
    for name in ["head", "wc"] {
        symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    let outcome = rig.sh(more, script);
    let seen = lines(&outcome.out);
    assert_eq!(seen[0], "/dev/null character special file 1:3 666 0:0");
    assert_eq!(seen[6], "/dev/sub/fuse character special file a:e5 640 5:6");
    assert_eq!(seen[7..], ["4", "ok"]);
}

#[test]
fn masked_and_readonly_paths_hold() {
    let script = "cat /proc/timer_list | wc -c; cat /proc/keys | wc -c; ls /sys/firmware | wc -l; (echo 1 > /proc/sys/kernel/hostname) 2>&1; (touch /sys/x) 2>&1";
    let rig = Rig::new();
    symlink("busybox", rig.path("lower/bin/wc")).unwrap();
    let outcome = rig.sh(|_| (), script);
    let seen = lines(&outcome.out);
    assert_eq!(seen[..3], ["0", "0", "0"]);
    assert!(seen[3].contains("Read-only file system"), "{}", outcome.out);
    assert!(seen[4].contains("Read-only file system"), "{}", outcome.out);
}

#[test]
fn host_name_sysctls_and_working_directory() {
    let change = |spec: &mut Value| {
        spec["domainname"] = json!("example.org");
        spec["process"]["cwd"] = json!("/made/for/me");
        spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80", "net/ipv4/conf/lo/forwarding": "1", "fs.mqueue.msg_max": "99"});
    };
    let script = "cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/conf/lo/forwarding /proc/sys/fs/mqueue/msg_max; pwd";
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let outcome = Rig::new().sh(change, script);
    assert_eq!(lines(&outcome.out), ["pod-0", "example.org", "1", "80", "1", "99", "/made/for/me"]);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), host);
}

#[test]
fn cgroup_tree_shows_the_own_group_read_only() {
    let rig = Rig::new();
    let mut spec = spec(&[
        "sh",
        "-c",
        "cat /proc/self/cgroup; cat /sys/fs/cgroup/memory/tasks /sys/fs/cgroup/cgroup.procs 2>/dev/null; touch /sys/fs/cgroup/x /sys/fs/cgroup/memory/x",
    ]);
    let group = common::unique_group();
    spec["linux"]["cgroupsPath"] = json!(group);
    spec["linux"]["resources"] = json!({"memory": {"limit": 33_554_432}, "pids": {"limit": 20}});
    let outcome = rig.run(&spec).unwrap();
    assert!(
        outcome.out.contains(&format!("memory:{group}")) || outcome.out.contains(&format!("0::{group}")),
        "{}",
        outcome.out
    );
    assert_eq!(
        outcome.out.matches("Read-only file system").count() + outcome.out.matches("No such file").count(),
        2,
        "{}",
        outcome.out
    );
    assert!(outcome.out.lines().any(|line| line == "1"), "pid 1 is not among its group's: {}", outcome.out);
}

#[test]
fn a_cgroup_namespace_hides_the_path() {
    let namespace = |spec: &mut Value| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}))
    };
    let outcome = Rig::new().sh(namespace, "cat /proc/self/cgroup");
    for line in outcome.out.lines().filter(|line| !line.starts_with("0::")) {
        assert!(line.ends_with(":/"), "{}", outcome.out);
    }
}

#[test]
fn binds_files_and_directories_with_their_attributes() {
    let rig = Rig::new();
    let source = rig.path("volume");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::write(rig.path("hosts"), "127.0.0.1 localhost\n").unwrap();
    let mut spec = spec(&[
        "sh",
        "-c",
        "cat /etc/hosts /data/file; echo; touch /data/w && echo written; (touch /ro/w) 2>&1; (echo x >> /etc/hosts) 2>&1; stat -c %F /new/dir /new/file",
    ]);
    add_mount(&mut spec, "/data", &source, &["rbind", "rw"]);
    add_mount(&mut spec, "/ro", &source, &["rbind", "ro"]);
    add_mount(&mut spec, "/etc/hosts", &rig.path("hosts"), &["bind", "ro"]);
    add_mount(&mut spec, "/new/dir", &source, &["bind"]);
    add_mount(&mut spec, "/new/file", &rig.path("hosts"), &["bind"]);
    let outcome = rig.run(&spec).unwrap();
    let seen = lines(&outcome.out);
    assert_eq!(seen[..3], ["127.0.0.1 localhost", "content", "written"]);
    assert!(seen[3].contains("Read-only") && seen[4].contains("Read-only"), "{}", outcome.out);
    assert_eq!(seen[5..], ["directory", "regular file"]);
    assert!(source.join("w").exists());
}

#[test]
fn a_read_only_root_still_gets_its_mount_points() {
    let rig = Rig::new();
    let mut spec = spec(&["sh", "-c", "(touch /x) 2>&1; touch /data/x && echo written"]);
    spec["root"]["readonly"] = json!(true);
    fs::create_dir(rig.path("volume")).unwrap();
    add_mount(&mut spec, "/data", &rig.path("volume"), &["rbind"]);
    let outcome = rig.run(&spec).unwrap();
    assert!(
        outcome.out.contains("Read-only file system") && outcome.out.ends_with("written\n"),
        "{}",
        outcome.out
    );
}

#[test]
fn a_terminal_has_its_size_and_controls_the_session() {
    let rig = Rig::new();
    let mut spec = spec(&[
        "sh",
        "-c",
        "tty; stty size; ls -l /proc/self/fd/0 | cut -d'>' -f2; stat -c %F /dev/console; echo hi > /dev/console; echo x > /dev/tty",
    ]);
    symlink("busybox", rig.path("lower/bin/cut")).unwrap();
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 40, "width": 132});
    let created = rig.create(&spec, Stdio::default()).unwrap();
    let mut master = fs::File::from(created.pty.as_ref().unwrap().try_clone().unwrap());
    created.start.start().unwrap();
    let mut out = Vec::new();
    // A terminal whose last user is gone answers EIO.
    let _ = master.read_to_end(&mut out);
    assert_eq!(finish(created), 0);
    let out = String::from_utf8_lossy(&out).replace("\r\n", "\n");
    assert_eq!(lines(&out), ["/dev/pts/0", "40 132", " /dev/pts/0", "character special file", "hi", "x"]);
}

#[test]
fn exec_runs_inside_and_reads_its_input() {
    let rig = Rig::new();
    for name in ["sort", "wc", "readlink", "cut"] {
        symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    let mut spec_value = spec(&["sleep", "1000"]);
    // With one of its own, as on version 2 hosts, where nobody goes into a group from inside such a namespace.
    spec_value["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let created = rig.create(&spec_value, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_value(spec_value.clone()).unwrap();
    let mut process = spec_value["process"].clone();
    process["args"] = json!([
        "sh",
        "-c",
        "cat; cut -d: -f3 /proc/self/cgroup | sort -u; (readlink /proc/1/ns/mnt; readlink /proc/self/ns/mnt) | sort -u | wc -l; cat /proc/sys/kernel/hostname; id -u; exit 9"
    ]);
    process["user"] = json!({"uid": 33, "gid": 33});
    let process = serde_json::from_value(process).unwrap();
    let (mut read, mut stdio) = piped();
    let (input, mut feed) = std::io::pipe().unwrap();
    stdio.stdin = Some(input.into());
    let request = common::exec_in(&created, &spec, &process, "one", stdio);
    let exec = container::exec(request).unwrap();
    feed.write_all(b"fed\n").unwrap();
    drop(feed);
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    assert_eq!(process::reap(&exec.pidfd).unwrap(), 9);
    exec.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
    kill(created);
    let seen = lines(&out);
    assert_eq!(seen[0], "fed");
    // Version 2 has a group of its own for it.
    assert!(seen.contains(&"/") || seen.contains(&"/exec-one"), "in the container's cgroup namespace: {out}");
    // Another user than pid 1's cannot read that one's namespace.
    assert_eq!(seen.last(), Some(&"33"), "{out}");
    assert!(seen.contains(&"pod-0"), "{out}");
}

#[test]
fn missing_and_unusable_commands_are_told_at_start() {
    let rig = Rig::new();
    fs::write(rig.path("lower/etc/notes"), "text").unwrap();
    let cases = [
        (
            vec!["nothere"],
            Kind::NotFound,
            "find command /usr/local/bin/nothere or /usr/bin/nothere or /bin/nothere",
        ),
        (vec!["/etc/notes"], Kind::Invalid, "find command /etc/notes"),
        (vec!["/etc"], Kind::Invalid, "find command /etc"),
    ];
    for (args, kind, sentence) in cases {
        let error = rig.run(&spec(&args)).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(sentence), "{error}");
    }
    fs::write(rig.path("extra/notes"), "text").unwrap();
    fs::set_permissions(rig.path("extra/notes"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let error = rig.run(&spec(&["/notes"])).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (Kind::Invalid, Some(libc::ENOEXEC)), "{error}");
}

fn with_default_seccomp(spec: &mut Value) {
    let capabilities = serde_json::from_value(json!(common::USUAL)).unwrap();
    let profile = slipway_runtime::seccomp::default_profile(&capabilities);
    spec["linux"]["seccomp"] = serde_json::to_value(profile).unwrap();
}

/// CRI-SEC-05: the default profile holds with and without no_new_privs, for root and for others.
#[test]
fn the_default_seccomp_profile_holds_for_every_user() {
    let rig = Rig::new();
    for name in ["grep", "unshare"] {
        symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    for (uid, no_new_privileges) in [(0, true), (0, false), (33, true), (33, false)] {
        let change = |spec: &mut Value| {
            spec["process"]["user"] = json!({"uid": uid, "gid": uid});
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            with_default_seccomp(spec);
        };
        let outcome =
            rig.sh(change, "grep -E '^(Seccomp|NoNewPrivs|CapEff)' /proc/self/status; unshare -n true 2>&1");
        let effective = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
        let expected = format!(
            "CapEff:\t{effective}\nNoNewPrivs:\t{}\nSeccomp:\t2\nSeccomp_filters:\t1\n",
            i32::from(no_new_privileges)
        );
        assert!(outcome.out.starts_with(&expected), "{uid} {no_new_privileges}: {}", outcome.out);
        assert!(outcome.out.contains("Operation not permitted"), "{}", outcome.out);
    }
}

#[test]
fn a_filter_that_allows_execve_only_is_enough_to_start() {
    let rig = Rig::new();
    for no_new_privileges in [true, false] {
        let mut spec = spec(&["true"]);
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}]
        });
        // execve succeeds, and the first call of the program itself ends it.
        assert_eq!(rig.run(&spec).unwrap().status, -libc::SIGSYS);
    }
}

#[test]
fn exec_takes_filter_and_rights_from_the_container() {
    let rig = Rig::new();
    symlink("busybox", rig.path("lower/bin/grep")).unwrap();
    let mut value = spec(&["sleep", "1000"]);
    with_default_seccomp(&mut value);
    let created = rig.create(&value, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let spec: oci_spec::runtime::Spec = serde_json::from_value(value).unwrap();
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "terminal": true,
        "args": ["sh", "-c", "tty; grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status"]});
    let process = serde_json::from_value(process).unwrap();
    let request = common::exec_in(&created, &spec, &process, "t", Stdio::default());
    let exec = container::exec(request).unwrap();
    let mut out = Vec::new();
    let _ = fs::File::from(exec.pty.unwrap()).read_to_end(&mut out);
    assert_eq!(process::reap(&exec.pidfd).unwrap(), 0);
    exec.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
    let missing =
        serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["/nothere"]}))
            .unwrap();
    let request = common::exec_in(&created, &spec, &missing, "m", Stdio::default());
    let error = container::exec(request).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    let (pid, pidfd) = (created.pid, created.pidfd.try_clone().unwrap());
    let group = slipway_runtime::cgroup::Cgroup::create(&common::unique_group(), None).unwrap();
    kill(created);
    let process =
        serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["true"]})).unwrap();
    let request = ExecRequest {
        exec_id: Some("late"),
        pid,
        pidfd: &pidfd,
        subject: common::subject(&spec),
        process: &process,
        cgroup: &group,
        stdio: Stdio::default(),
        preserved: Vec::new(),
        no_new_keyring: false,
    };
    let error = container::exec(request).unwrap_err();
    assert_eq!(error.kind(), Kind::State, "{error}");
    group.remove(std::time::Duration::from_secs(5)).unwrap();
    let out = String::from_utf8_lossy(&out).replace("\r\n", "\n");
    assert_eq!(out, "/dev/pts/0\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n");
}

#[test]
fn a_second_start_is_refused() {
    let rig = Rig::new();
    let created = rig.create(&spec(&["true"]), Stdio::default()).unwrap();
    created.start.start().unwrap();
    assert_eq!(created.start.start().unwrap_err().kind(), Kind::State);
    finish(created);
}
