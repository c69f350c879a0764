//! Whose rights what happens around a container in a user namespace has: hooks, limits, priorities, the tmpfs of the parent.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, finish, in_user_namespace, piped, spec, zombies};
use serde_json::{Value, json};
use slipway_runtime::container::{self, Parked, StartRequest};
use slipway_runtime::hooks::Subject;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const ROOT: u32 = 300_000;

fn rig() -> Rig {
    let rig = Rig::mapped(ROOT);
    for name in ["sed", "nice", "ionice"] {
        symlink("busybox", rig.path("lower/bin").join(name)).unwrap();
    }
    rig
}

fn mapped(args: &[&str]) -> Value {
    let mut spec = spec(args);
    in_user_namespace(&mut spec, ROOT);
    spec
}

fn words(rig: &Rig, spec: &Value) -> Vec<String> {
    let outcome = rig.run(spec).unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.out);
    outcome.out.split_whitespace().map(str::to_owned).collect()
}

/// A directory of the host that everybody may write to, since a hook inside is nobody there.
fn open_directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn hook(log: &Path, script: &str) -> Value {
    let env = [format!("LOG={}", log.display()), "PATH=/usr/bin:/bin".to_owned()];
    json!([{"path": "/bin/sh", "args": ["hook", "-c", script], "env": env}])
}

/// The bundle is below a directory that only the host's root may search: the container's
/// root could not find its own root filesystem, and its hooks not their working directory.
#[test]
fn hooks_inside_have_the_container_s_rights_and_no_more() {
    let rig = rig();
    fs::set_permissions(rig.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(rig.path("rootfs")).unwrap();
    fs::write(rig.path("secret"), "the host's").unwrap();
    let out = open_directory();
    let log = out.path().join("log");
    let who = format!(
        "echo $(id -u) $(id -g) $(sed -n 's/ \\+/ /gp' /proc/self/uid_map) in $(basename $(pwd)) >> $LOG.$1; \
         cat {} >> $LOG.$1 2>/dev/null; echo made > etc/by-$1; chown 5:6 etc/by-$1; readlink /proc/self/ns/user >> $LOG.$1",
        rig.path("secret").display()
    );
    let mut spec = mapped(&["sh", "-c", "cat /etc/by-create; stat -c %u:%g /etc/by-create; cat /from-start"]);
    spec["hooks"] = json!({
        "createRuntime": hook(&log, "id -u > $LOG.runtime"),
        "createContainer": hook(&log, &format!("set -- create; {who}")),
        "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c",
            "{ id -u; readlink /proc/self/ns/user; } > /from-start"], "env": ["PATH=/bin"]}],
    });
    let (mut read, stdio) = piped();
    let request = rig.request(&spec, stdio, Vec::new());
    let (bundle, parsed) = (request.bundle.clone(), request.spec.clone());
    let created = container::create(request).unwrap();
    let user = fs::read_link(format!("/proc/{}/ns/user", created.pid)).unwrap().display().to_string();
    container::start(&StartRequest {
        subject: Subject { id: "test", bundle: &bundle, spec: &parsed },
        pid: created.pid,
        pidfd: &created.pidfd,
        cgroup: &created.cgroup,
        parked: Parked::Pipe(&created.start),
    })
    .unwrap();
    let mut seen = String::new();
    read.read_to_string(&mut seen).unwrap();
    assert_eq!(finish(created), 0, "{seen}");
    assert_eq!(seen, format!("made\n5:6\n0\n{user}\n"));
    assert_eq!(fs::read_to_string(out.path().join("log.runtime")).unwrap(), "0\n");
    let create = fs::read_to_string(out.path().join("log.create")).unwrap();
    assert_eq!(
        create,
        format!("0 0 0 {ROOT} 65536 in rootfs\n{user}\n"),
        "no secret, its own user namespace"
    );
    let made = fs::metadata(out.path().join("log.create")).unwrap();
    assert_eq!(made.uid(), ROOT, "for the host it is nobody special");
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn a_hook_inside_that_fails_ends_the_creation() {
    let rig = rig();
    fs::create_dir(rig.path("rootfs")).unwrap();
    let mut spec = mapped(&["true"]);
    spec["hooks"] = json!({"createContainer": hook(Path::new("/dev/null"), "id -u; exit 3")});
    let error = rig.run(&spec).unwrap_err().to_string();
    assert!(error.contains("createContainer") && error.contains("exit code 3"), "{error}");
    assert_eq!(zombies(), Vec::<String>::new());
}

/// A limit of few descriptors must not stop the tree from being made; a hard limit is raised with the host's rights.
#[test]
fn limits_hold_for_the_command_only() {
    let mut spec = mapped(&["sh", "-c", "ulimit -n; ulimit -Hn; ulimit -f; ulimit -Hl"]);
    spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 6, "hard": 7},
        {"type": "RLIMIT_FSIZE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 4096},
    ]);
    assert_eq!(words(&rig(), &spec), ["6", "7", "0", "4"]);
}

/// Priorities ask for the host's rights, and must be of the process that is left after the second clone.
#[test]
fn priorities_are_those_of_the_command() {
    // proc(5): 19 nice, 41 policy.
    let field =
        |number: usize| format!("sed 's/.*) //' /proc/self/stat | busybox cut -d' ' -f{}", number - 2);
    let script = format!("{}; {}; ionice -p $$", field(41), field(19));
    let mut asked = mapped(&["sh", "-c", &script]);
    asked["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": -3});
    asked["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 2});
    assert_eq!(words(&rig(), &asked), ["3", "-3", "realtime:", "prio", "2"]);
    // Both would have been lost, or have failed, by a clone after them.
    asked["process"]["scheduler"] =
        json!({"policy": "SCHED_BATCH", "nice": -3, "flags": ["SCHED_RESET_ON_FORK"]});
    assert_eq!(words(&rig(), &asked)[..2], ["3", "0"], "what the shell starts is reset");
    let mut deadline = mapped(&["true"]);
    deadline["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000, "period": 100_000_000});
    match rig().run(&deadline) {
        Ok(outcome) => assert_eq!(outcome.status, 0, "{}", outcome.out),
        Err(error) => assert!(error.to_string().contains("schedule by SCHED_DEADLINE"), "{error}"),
    }
    assert_eq!(zombies(), Vec::<String>::new());
}

#[test]
fn a_tmpfs_of_the_parent_belongs_to_the_container() {
    let rig = rig();
    fs::create_dir(rig.path("lower/data")).unwrap();
    fs::write(rig.path("lower/data/file"), "x").unwrap();
    std::os::unix::fs::chown(rig.path("lower/data"), Some(7), Some(8)).unwrap();
    let mut spec = mapped(&[
        "sh",
        "-c",
        "stat -c %u:%g /data /data/file /new/place /own; touch /new/place/x /data/y && echo ok",
    ]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for (destination, options) in [
        ("/data", json!(["tmpcopyup"])),
        ("/new/place", json!(["tmpcopyup", "mode=755"])),
        ("/own", json!(["tmpcopyup", "uid=3", "gid=4"])),
    ] {
        mounts.push(
            json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
    }
    assert_eq!(words(&rig, &spec), ["7:8", "0:0", "0:0", "3:4", "ok"]);
}
