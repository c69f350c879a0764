//! Containers in a user namespace: who they are inside, who they are for the host, and what they cannot do.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, finish, in_user_namespace, kill, mappings, piped, spec, zombies};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Stdio};
use slipway_runtime::error::Kind;
use slipway_runtime::idmap::{self, Setgroups};
use slipway_runtime::sandbox::NamespaceKind;
use slipway_runtime::sys::namespace;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

const ROOT: u32 = 200_000;

type Change = Box<dyn FnOnce(&mut Value)>;

fn with_user(more: impl FnOnce(&mut Value)) -> impl FnOnce(&mut Value) {
    move |spec| {
        in_user_namespace(spec, ROOT);
        more(spec);
    }
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn root_inside_is_nobody_of_the_host_s() {
    let rig = Rig::mapped(ROOT);
    let script = "id -u; id -G; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; \
        stat -c %u:%g / /bin/busybox /etc/passwd; echo x > /new; stat -c %u:%g /new; chown 33:33 /new; stat -c %u:%g /new";
    let outcome = rig.sh(with_user(|_| ()), script);
    let seen = lines(&outcome.out);
    assert_eq!(seen[..2], ["0", "0"], "{}", outcome.out);
    let map = ["0", "200000", "65536"];
    assert_eq!(seen[2].split_whitespace().collect::<Vec<_>>(), map);
    assert_eq!(seen[3].split_whitespace().collect::<Vec<_>>(), map);
    assert_eq!(seen[4..], ["allow", "0:0", "0:0", "0:0", "0:0", "33:33"]);
    let new = fs::metadata(rig.path("upper/new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (ROOT + 33, ROOT + 33), "on disk it is the host's id");
    assert_eq!(fs::metadata(rig.path("lower/bin/busybox")).unwrap().uid(), 0, "the layer is untouched");
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn every_namespace_belongs_to_the_user_namespace() {
    let rig = Rig::mapped(ROOT);
    let mut spec = spec(&["sleep", "1000"]);
    in_user_namespace(&mut spec, ROOT);
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let created = rig.create(&spec, Stdio::default()).unwrap();
    let of = |name: &str| File::open(format!("/proc/{}/ns/{name}", created.pid)).unwrap();
    let user = of("user").metadata().unwrap().ino();
    for name in ["mnt", "ipc", "uts", "net", "pid", "cgroup"] {
        let owner = File::from(namespace::owner(of(name).as_fd()).unwrap());
        assert_eq!(owner.metadata().unwrap().ino(), user, "{name}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", created.pid)).unwrap();
    assert!(status.contains("Uid:\t200000\t200000\t200000\t200000"), "{status}");
    assert!(status.contains("Groups:\t \n"), "no group of ours is left: {status}");
    created.start.start().unwrap();
    kill(created);
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn the_usual_tree_and_devices_are_there() {
    let rig = Rig::mapped(ROOT);
    let script = "cat /proc/self/mountinfo; stat -c 'dev %n %F %t:%T %a %u:%g' /dev/null /dev/tty /dev/sub/fuse; \
        head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo written; ls -d /sys/fs/cgroup/memory /sys/class/net/lo; \
        mknod /dev/mine c 1 3 2>&1";
    let change = with_user(|spec| {
        spec["linux"]["devices"] = json!([{"path": "/dev/sub/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6}]);
    });
    let outcome = rig.sh(change, script);
    for (point, kind) in [
        ("/", "overlay"),
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
        ("/dev/null", "tmpfs"),
        ("/proc/sys", "proc"),
    ] {
        let there = |line: &str| {
            line.split_once(" - ")
                .is_some_and(|(left, right)| left.split(' ').nth(4) == Some(point) && right.starts_with(kind))
        };
        assert!(outcome.out.lines().any(there), "{kind} on {point}: {}", outcome.out);
    }
    for expected in [
        "dev /dev/null character special file 1:3 666 0:0",
        "dev /dev/tty character special file 5:0 666 0:0",
        "dev /dev/sub/fuse character special file a:e5 640 5:6",
        "4\nwritten",
        "/sys/class/net/lo",
        "mknod: /dev/mine: Operation not permitted",
    ] {
        assert!(outcome.out.contains(expected), "{expected}: {}", outcome.out);
    }
    assert!(!outcome.out.contains("shared:") && !outcome.out.contains("master:"), "{}", outcome.out);
}

#[test]
fn names_sysctls_limits_and_capabilities_are_as_asked() {
    let rig = Rig::mapped(ROOT);
    let change = with_user(|spec| {
        spec["process"]["user"] = json!({"uid": 33, "gid": 34, "additionalGids": [35]});
        spec["process"]["capabilities"]["ambient"] = json!(["CAP_NET_RAW"]);
        spec["process"]["capabilities"]["inheritable"] = json!(["CAP_NET_RAW"]);
        spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80", "fs.mqueue.msg_max": "99"});
    });
    let script = "id -u; id -G; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj /proc/sys/kernel/hostname \
        /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/fs/mqueue/msg_max; \
        grep -E '^(Cap|NoNew)' /proc/self/status; echo out > /dev/stdout";
    let outcome = rig.sh(change, script);
    let seen = lines(&outcome.out);
    assert_eq!(seen[..9], ["33", "34 35", "512", "1024", "500", "pod-0", "1", "80", "99"], "{}", outcome.out);
    let raw = "0000000000002000";
    for (name, value) in [("Inh", raw), ("Prm", raw), ("Eff", raw), ("Bnd", "00000000a80425fb"), ("Amb", raw)]
    {
        assert!(outcome.out.contains(&format!("Cap{name}:\t{value}")), "{}", outcome.out);
    }
    assert!(outcome.out.ends_with("NoNewPrivs:\t1\nout\n"), "{}", outcome.out);
}

#[test]
fn a_capability_counts_inside_only() {
    let rig = Rig::mapped(ROOT);
    let more = with_user(|spec| {
        for set in ["bounding", "effective", "permitted"] {
            // One that this machine's root may lack itself, and the mightiest.
            spec["process"]["capabilities"][set] =
                json!(["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_DAC_OVERRIDE", "CAP_SYS_TIME"]);
        }
    });
    let script = "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted; hostname inside && hostname; \
        hostname > /dev/null; echo 1 > /proc/sysrq-trigger; echo 12 > /proc/sys/vm/swappiness; \
        echo -999 > /proc/self/oom_score_adj";
    let outcome = rig.sh(more, script);
    assert!(outcome.out.contains("CapEff:\t0000000003200002\nmounted\ninside\n"), "{}", outcome.out);
    assert_eq!(
        outcome.out.matches("can't create").count() + outcome.out.matches("write error").count(),
        3,
        "{}",
        outcome.out
    );
    let plain = Rig::mapped(ROOT)
        .sh(with_user(|_| ()), "mount -t tmpfs none /tmp 2>&1; grep CapInh /proc/self/status");
    assert!(
        plain.out.contains("permission denied") || plain.out.contains("Operation not permitted"),
        "{}",
        plain.out
    );
    assert!(plain.out.ends_with("CapInh:\t0000000000000000\n"), "{}", plain.out);
}

#[test]
fn files_of_others_are_nobody_s_and_closed() {
    let rig = Rig::mapped(ROOT);
    let host = rig.path("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("secret"), "of the host").unwrap();
    fs::set_permissions(host.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let change = with_user(|spec| add_mount(spec, "/host", &host, &["rbind"]));
    let script =
        "stat -c %u:%g /host/secret; cat /host/secret 2>&1; echo x > /host/new; chown 0 /host/secret 2>&1";
    let outcome = rig.sh(change, script);
    assert!(
        outcome.out.starts_with("65534:65534\ncat: can't open '/host/secret': Permission denied\n"),
        "{}",
        outcome.out
    );
    assert!(outcome.out.contains("Permission denied\n") && outcome.out.contains("Operation not permitted"));
    assert!(!host.join("new").exists());
}

#[test]
fn a_terminal_works() {
    let rig = Rig::mapped(ROOT);
    let mut spec = spec(&["sh", "-c", "tty; stat -c %u $(tty) /dev/console; echo x > /dev/console"]);
    in_user_namespace(&mut spec, ROOT);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["user"] = json!({"uid": 33, "gid": 33});
    let created = rig.create(&spec, Stdio::default()).unwrap();
    let mut master = File::from(created.pty.as_ref().unwrap().try_clone().unwrap());
    created.start.start().unwrap();
    let (mut text, mut buffer) = (Vec::new(), [0; 256]);
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n33\r\n33\r\nx\r\n");
    assert_eq!(finish(created), 0);
}

#[test]
fn exec_is_inside_too() {
    let rig = Rig::mapped(ROOT);
    let mut spec = spec(&["sleep", "1000"]);
    in_user_namespace(&mut spec, ROOT);
    spec["process"]["noNewPrivileges"] = json!(false);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO"}]});
    let created = rig.create(&spec, Stdio::default()).unwrap();
    created.start.start().unwrap();
    let of_spec = serde_json::from_value(spec.clone()).unwrap();
    let run = |change: &dyn Fn(&mut Value)| {
        let mut process = spec["process"].clone();
        let script = "id -u; cat /proc/self/uid_map; grep -E '^(CapEff|CapInh|Groups)' /proc/self/status; readlink /proc/self/ns/user; echo out > /dev/stdout; mkdir /tmp/x 2>&1";
        process["args"] = json!(["sh", "-c", script]);
        change(&mut process);
        let process = serde_json::from_value(process).unwrap();
        let (mut read, stdio) = piped();
        let session = container::exec(common::exec_in(&created, &of_spec, &process, "e", stdio))?;
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        slipway_runtime::sys::process::reap(&session.pidfd).unwrap();
        session.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
        Ok::<_, slipway_runtime::Error>(out)
    };
    let user = fs::read_link(format!("/proc/{}/ns/user", created.pid)).unwrap();
    let root = run(&|_| ()).unwrap();
    let seen = lines(&root);
    assert_eq!(seen[0], "0", "{root}");
    assert!(seen[1].contains("200000"), "{root}");
    assert!(
        root.contains("CapEff:\t00000000a80425fb") && root.contains("CapInh:\t0000000000000000"),
        "{root}"
    );
    assert!(root.contains(&user.display().to_string()) && root.contains("\nout\n"), "{root}");
    assert!(root.contains("Operation not permitted"), "the filter holds: {root}");
    let web =
        run(&|process| process["user"] = json!({"uid": 33, "gid": 33, "additionalGids": [44]})).unwrap();
    assert!(web.starts_with("33\n") && web.contains("Groups:\t44") && web.contains("\nout\n"), "{web}");
    let outside = run(&|process| process["user"] = json!({"uid": 70_000, "gid": 0})).unwrap_err();
    assert!(outside.to_string().contains("process.user.uid"), "{outside}");
    assert_eq!(outside.kind(), Kind::Invalid);
    kill(created);
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn an_existing_user_namespace_is_joined_by_path_or_descriptor() {
    let holder = idmap::mapped_holder(&mappings(ROOT), Setgroups::Allow, 0).unwrap();
    let inode = holder.namespace("user").unwrap();
    let inode = File::from(inode).metadata().unwrap().ino().to_string();
    let mut by_path =
        spec(&["sh", "-c", "stat -L -c %i /proc/self/ns/user; id -u; stat -c %u /dev/null; echo $$"]);
    in_user_namespace(&mut by_path, ROOT);
    let mut given = by_path.clone();
    by_path["linux"]["namespaces"][5]["path"] = json!(holder.path("user"));
    let rig = Rig::mapped(ROOT);
    let outcome = rig.run(&by_path).unwrap();
    assert_eq!(lines(&outcome.out), [inode.as_str(), "0", "0", "1"]);
    let fd = holder.namespace("user").unwrap();
    let outcome = rig.run_in(&given, vec![(NamespaceKind::User, fd)]).unwrap();
    assert_eq!(lines(&outcome.out), [inode.as_str(), "0", "0", "1"]);
    // Without a word on its maps the devices' owner is nobody; all else works.
    given["linux"].as_object_mut().unwrap().remove("uidMappings");
    given["linux"].as_object_mut().unwrap().remove("gidMappings");
    let fd = holder.namespace("user").unwrap();
    let outcome = rig.run_in(&given, vec![(NamespaceKind::User, fd)]).unwrap();
    assert_eq!(lines(&outcome.out), [inode.as_str(), "0", "65534", "1"]);
    drop(holder);
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn what_the_host_keeps_is_bound_where_it_cannot_be_mounted() {
    let rig = Rig::mapped(ROOT);
    let change = with_user(|spec| {
        let shared = ["pid", "network", "ipc"];
        let all = spec["linux"]["namespaces"].as_array_mut().unwrap();
        all.retain(|n| !shared.contains(&n["type"].as_str().unwrap()));
        spec["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev/mqueue");
    });
    let script = "readlink /proc/self/ns/pid; ls -d /sys/class/net; touch /sys/x 2>&1; echo $$";
    let outcome = rig.sh(change, script);
    let pid = fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    assert!(outcome.out.starts_with(&format!("{pid}\n/sys/class/net\n")), "{}", outcome.out);
    assert!(outcome.out.contains("Read-only file system"), "{}", outcome.out);
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let rig = Rig::mapped(ROOT);
    let map = |list: Value| move |spec: &mut Value| spec["linux"]["uidMappings"] = list;
    let cases: Vec<(&str, Change)> = vec![
        (
            "linux.uidMappings: 0:1:5 and 3:9:1 overlap",
            Box::new(map(
                json!([{"containerID": 0, "hostID": 1, "size": 5}, {"containerID": 3, "hostID": 9, "size": 1}]),
            )),
        ),
        (
            "linux.uidMappings: container id 0 is not mapped",
            Box::new(map(json!([{"containerID": 1, "hostID": 1, "size": 5}]))),
        ),
        (
            "linux.uidMappings: 0:7:0 has size 0",
            Box::new(map(json!([{"containerID": 0, "hostID": 7, "size": 0}]))),
        ),
        (
            "linux.gidMappings: missing",
            Box::new(|spec| drop(spec["linux"].as_object_mut().unwrap().remove("gidMappings"))),
        ),
        (
            "there is no user namespace",
            Box::new(|spec| drop(spec["linux"]["namespaces"].as_array_mut().unwrap().pop())),
        ),
        (
            "process.user.uid: 65536 is outside the mapping 0:200000:65536",
            Box::new(|spec| spec["process"]["user"]["uid"] = json!(65536)),
        ),
        (
            "process.user.additionalGids: 99999",
            Box::new(|spec| spec["process"]["user"]["additionalGids"] = json!([99999])),
        ),
        (
            "mounts.options: gid=70000 on /dev/pts",
            Box::new(|spec| spec["mounts"][2]["options"] = json!(["newinstance", "gid=70000"])),
        ),
    ];
    for (expected, change) in cases {
        let mut spec = spec(&["true"]);
        in_user_namespace(&mut spec, ROOT);
        change(&mut spec);
        let error = rig.run(&spec).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    // A root filesystem that belongs to others: told, with what to do.
    let foreign = Rig::new();
    let mut spec = spec(&["true"]);
    in_user_namespace(&mut spec, ROOT);
    add_mount(&mut spec, "/not/there", std::path::Path::new("/etc"), &["bind"]);
    let error = foreign.run(&spec).unwrap_err();
    assert!(error.to_string().contains("outside the mapping"), "{error}");
    assert_eq!(zombies(), Vec::<String>::new());
}
