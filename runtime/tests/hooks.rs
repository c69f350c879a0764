//! Hooks of all six kinds: where and when they run, what they are told, and what their failure undoes.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Outcome, Rig, finish, piped, spec};
use serde_json::{Value, json};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Created, Parked, StartRequest, Stdio};
use slipway_runtime::error::Kind;
use slipway_runtime::hooks::Subject;
use slipway_runtime::{Error, Result};
use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

/// A rig whose bundle has the directory that `root.path` names, and a log that hooks of the host write.
fn rig() -> Rig {
    let rig = Rig::new();
    fs::create_dir(rig.path("rootfs")).unwrap();
    rig
}

fn log(rig: &Rig) -> String {
    fs::read_to_string(rig.path("log")).unwrap_or_default()
}

/// A hook that runs a script of the host's shell with LOG set.
fn hook(rig: &Rig, script: &str) -> Value {
    let log = format!("LOG={}", rig.path("log").display());
    json!({"path": "/bin/sh", "args": ["hook", "-c", script], "env": [log, "PATH=/usr/bin:/bin"]})
}

/// Create, start, wait, delete, as a door does it; what goes wrong ends it where OCI says.
fn live(rig: &Rig, spec: &Value) -> (Result<Outcome>, Vec<Error>) {
    let (mut read, stdio) = piped();
    let request = rig.request(spec, stdio, Vec::new());
    let (bundle, parsed) = (request.bundle.clone(), request.spec.clone());
    let subject = Subject { id: "test", bundle: &bundle, spec: &parsed };
    let created = match container::create(request) {
        Ok(created) => created,
        Err(error) => return (Err(error), Vec::new()),
    };
    let started = start(&created, subject);
    let mut out = String::new();
    read.read_to_string(&mut out).unwrap();
    let status = finish(created);
    (started.map(|()| Outcome { out, status }), container::after_delete(&subject))
}

fn start(created: &Created, subject: Subject<'_>) -> Result<()> {
    container::start(&StartRequest {
        subject,
        pid: created.pid,
        pidfd: &created.pidfd,
        cgroup: &created.cgroup,
        parked: Parked::Pipe(&created.start),
    })
    .map(drop)
}

#[test]
fn each_kind_runs_at_its_moment_in_its_namespaces() {
    let rig = rig();
    let ours = |kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    // Field by field: kind, status, pid, own pid's namespaces.
    let script = |kind: &str| {
        format!(
            r#"s=$(cat); f() {{ echo "$s" | sed -n "s/.*\"$1\":\"\{{0,1\}}\([^,\"}}]*\).*/\1/p"; }}
            echo {kind} $(f status) $(f id) pid=$(f pid) net=$(readlink /proc/self/ns/net) uts=$(uname -n) \
                root=$(ls -d /{}/rootfs/bin/busybox 2>/dev/null | wc -l) cwd=$(pwd) >> $LOG"#,
            rig.dir.path().display()
        )
    };
    let mut spec = spec(&["sh", "-c", "cat /from-hook; echo command; sleep 0.3"]);
    spec["annotations"] = json!({"a": "b"});
    spec["hooks"] = json!({});
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        spec["hooks"][kind] = json!([hook(&rig, &script(kind))]);
    }
    let inside = "cat > /state; echo started as $(id -u) in $(pwd), $WHO $0 > /from-hook";
    spec["hooks"]["startContainer"] = json!([{
        "path": "/bin/sh", "args": ["sh", "-c", inside, "arg0"], "env": ["WHO=hook", "PATH=/bin"]
    }]);
    let (outcome, warnings) = live(&rig, &spec);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(outcome.unwrap().out, "started as 0 in /, hook arg0\ncommand\n");
    let log = log(&rig);
    let lines: Vec<&str> = log.lines().collect();
    let kinds: Vec<&str> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(kinds, ["prestart", "createRuntime", "createContainer", "poststart", "poststop"], "{log}");
    for (line, status) in lines.iter().zip(["creating", "creating", "creating", "running", "stopped"]) {
        assert_eq!(line.split(' ').nth(1), Some(status), "{line}");
        let outside = !line.starts_with("createContainer");
        assert_eq!(line.contains(&ours("net")), outside, "{line}");
        assert_eq!(line.contains("uts=pod-0"), !outside, "{line}");
        // The root filesystem hangs at its place, for those who see the container's mounts.
        assert_eq!(line.contains("root=1"), !outside, "{line}");
    }
    assert!(lines[2].contains(" pid=1 "), "the container's own number: {log}");
    assert!(lines[2].ends_with("/rootfs"), "{log}");
    assert!(!lines[0].contains(" pid=1 "), "{log}");
    assert!(lines[4].contains(" pid= "), "nobody is there any more: {log}");
    let state: Value = serde_json::from_str(&fs::read_to_string(rig.path("upper/state")).unwrap()).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], 1);
    assert_eq!(state["bundle"], json!(rig.dir.path()));
    assert_eq!(state["annotations"], json!({"a": "b"}));
    assert_eq!(fs::read_dir(rig.path("rootfs")).unwrap().count(), 0, "nothing hangs on the host");
}

/// What createRuntime and createContainer hooks are for: changing what the container will find.
#[test]
fn hooks_can_change_the_container_before_it_is() {
    let rig = rig();
    let mut spec =
        spec(&["sh", "-c", "cat /etc/made /sys/class/net/hooked/ifindex; ls /mnt; cat /proc/timer_list"]);
    let net = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); nsenter -t $pid -n ip link add hooked type dummy ifindex 77";
    // The first line may fail where no such device is: then the loopback's number shows that.
    spec["hooks"] = json!({
        "createRuntime": [hook(&rig, &format!("{net} || nsenter -t $pid -n ip link set lo name hooked"))],
        "createContainer": [hook(&rig, "echo made > etc/made; mkdir -p mnt; mount -t tmpfs hook mnt; touch mnt/in")],
    });
    let (outcome, _) = live(&rig, &spec);
    let out = outcome.unwrap().out;
    let number = out.strip_prefix("made\n").and_then(|rest| rest.strip_suffix("\nin\n"));
    assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()), "{out}");
}

#[test]
fn startcontainer_hooks_are_as_bound_as_the_command() {
    let rig = rig();
    fs::create_dir_all(rig.path("extra/out")).unwrap();
    std::os::unix::fs::chown(rig.path("extra/out"), Some(33), None).unwrap();
    let mut spec = spec(&["true"]);
    spec["process"]["user"] = json!({"uid": 33, "gid": 33});
    let seen = "{ id -u; cat /proc/self/status /proc/self/cgroup; ls /proc/self/fd; } > /out/seen";
    spec["hooks"] =
        json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", seen], "env": ["PATH=/bin"]}]});
    let group = common::unique_group();
    spec["linux"]["cgroupsPath"] = json!(group);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []});
    assert_eq!(live(&rig, &spec).0.unwrap().status, 0);
    let seen = fs::read_to_string(rig.path("upper/out/seen")).unwrap();
    for expected in ["33\n", "CapEff:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1", &group] {
        assert!(seen.contains(expected), "{expected} is not in {seen}");
    }
    assert!(seen.ends_with("\n0\n1\n2\n3\n"), "streams and the directory it lists: {seen}");
}

#[test]
fn a_failing_hook_of_the_creation_undoes_everything() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let rig = rig();
        let mut spec = spec(&["true"]);
        let group = common::unique_group();
        spec["linux"]["cgroupsPath"] = json!(group);
        let failing = hook(&rig, "cat > /dev/null; echo $PPID >> $LOG; echo no luck >&2; exit 3");
        let never = hook(&rig, "echo never >> $LOG");
        spec["hooks"] = json!({"poststop": [hook(&rig, "echo poststop >> $LOG")]});
        spec["hooks"][kind] = json!([failing, never]);
        let (result, _) = live(&rig, &spec);
        let error = result.unwrap_err();
        for part in [kind, "/bin/sh", "exit code 3", "no luck"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(Cgroup::open(&group).is_err(), "the group is left");
        assert!(!log(&rig).contains("never"), "{}", log(&rig));
        assert!(log(&rig).ends_with("poststop\n"), "{}", log(&rig));
    }
}

#[test]
fn a_failing_hook_of_the_start_ends_the_container() {
    for (kind, ran) in [("startContainer", false), ("poststart", true)] {
        let rig = rig();
        let mut spec = spec(&["sh", "-c", "echo ran; sleep 100"]);
        let failing = json!({"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.2; exit 9"], "env": ["PATH=/bin:/usr/bin"]});
        spec["hooks"] = json!({"poststop": [hook(&rig, "echo poststop >> $LOG")]});
        spec["hooks"][kind] = json!([failing]);
        let (mut read, stdio) = piped();
        let request = rig.request(&spec, stdio, Vec::new());
        let (bundle, parsed) = (request.bundle.clone(), request.spec.clone());
        let subject = Subject { id: "test", bundle: &bundle, spec: &parsed };
        let created = container::create(request).unwrap();
        let error = start(&created, subject).unwrap_err();
        assert!(error.to_string().contains(kind) && error.to_string().contains("exit code 9"), "{error}");
        let mut out = String::new();
        read.read_to_string(&mut out).unwrap();
        assert_eq!(out == "ran\n", ran, "{out}");
        assert_eq!(finish(created), -libc::SIGKILL);
        assert!(container::after_delete(&subject).is_empty());
        assert_eq!(log(&rig), "poststop\n");
    }
}

#[test]
fn poststop_failures_are_warnings_and_the_rest_goes_on() {
    let rig = rig();
    let mut spec = spec(&["true"]);
    let missing = json!({"path": "/no/such/hook"});
    spec["hooks"] = json!({"poststop": [missing, hook(&rig, "exit 1"), hook(&rig, "echo last >> $LOG")]});
    let (outcome, warnings) = live(&rig, &spec);
    assert_eq!(outcome.unwrap().status, 0);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(warnings[0].kind(), Kind::NotFound, "{}", warnings[0]);
    assert!(warnings[0].to_string().contains("/no/such/hook"), "{}", warnings[0]);
    assert_eq!(log(&rig), "last\n");
}

#[test]
fn a_hook_has_its_time_and_no_more() {
    let rig = rig();
    let mut spec = spec(&["true"]);
    let mut slow = hook(&rig, "sleep 61.5 & echo $! > $LOG; echo waiting; wait");
    slow["timeout"] = json!(3);
    spec["hooks"] = json!({"createRuntime": [slow]});
    let begun = Instant::now();
    let error = live(&rig, &spec).0.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(error.to_string().contains("not finished after 3 s; it wrote: \"waiting\""), "{error}");
    let child = log(&rig).trim().parse::<i32>().unwrap();
    // Killed by a signal, which takes its time.
    let alive =
        || fs::read_to_string(format!("/proc/{child}/cmdline")).is_ok_and(|command| command.contains("61.5"));
    while alive() {
        assert!(begun.elapsed() < Duration::from_secs(50), "what the hook started is killed with it");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Output nobody reads to its end, a state nobody reads at all, a helper that stays.
#[test]
fn a_hook_cannot_hold_us_up() {
    let rig = rig();
    let mut spec = spec(&["true"]);
    let loud = hook(&rig, "head -c 1000000 /dev/zero; (sleep 20; exit) & exit 0");
    spec["hooks"] = json!({"createRuntime": [loud]});
    let begun = Instant::now();
    assert_eq!(live(&rig, &spec).0.unwrap().status, 0);
    assert!(begun.elapsed() < Duration::from_secs(20), "waited for what the hook left behind");
}

#[test]
fn hooks_get_nothing_of_ours() {
    let rig = rig();
    let _secret = fs::File::open("/").unwrap();
    let mut spec = spec(&["true"]);
    spec["hooks"] = json!({
        "createRuntime": [hook(&rig, "ls -l /proc/self/fd > $LOG; env >> $LOG")],
        "createContainer": [hook(&rig, "ls -l /proc/self/fd >> $LOG; grep Sig /proc/self/status >> $LOG")]
    });
    assert_eq!(live(&rig, &spec).0.unwrap().status, 0);
    let log = log(&rig);
    assert_eq!(log.matches(" -> ").count(), 2 * 4, "0, 1, 2 and the listing itself: {log}");
    assert!(!log.contains("CARGO"), "our environment: {log}");
    for expected in ["SigIgn:\t0000000000000000", "SigBlk:\t0000000000000000"] {
        assert!(log.contains(expected), "{log}");
    }
}

#[test]
fn bad_hooks_are_refused_before_anything_is_made() {
    for (hook, word) in [
        (json!({"path": "relative"}), "not absolute"),
        (json!({"path": "/x", "timeout": 0}), "timeout 0"),
        (json!({"path": "/x", "timeout": -1}), "timeout -1"),
        (json!({"path": "/x", "args": ["a\u{0}b"]}), "NUL"),
    ] {
        for kind in
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
        {
            let mut spec = spec(&["true"]);
            spec["hooks"] = json!({kind: [hook]});
            let error = rig().create(&spec, Stdio::default()).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("hooks.{kind}")) && text.contains(word), "{error}");
        }
    }
}

#[test]
fn without_a_place_for_the_root_hooks_are_refused_with_advice() {
    let rig = Rig::new();
    let mut spec = spec(&["true"]);
    spec["hooks"] = json!({"createRuntime": [hook(&rig, "true")]});
    let error = rig.create(&spec, Stdio::default()).unwrap_err();
    assert!(error.to_string().contains("hang the root filesystem at"), "{error}");
    assert!(error.to_string().contains("root.path"), "{error}");
}

/// A container that dies while its hooks run is an error, not a hang.
#[test]
fn a_child_killed_during_its_hooks_is_told() {
    let rig = rig();
    let mut spec = spec(&["true"]);
    let kill = "kill -9 $(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')";
    spec["hooks"] = json!({"createRuntime": [hook(&rig, kill)]});
    let error = live(&rig, &spec).0.unwrap_err();
    assert!(error.to_string().contains("signal 9"), "{error}");
}
