//! Replays of known escapes of container runtimes, and what our own program leaves open.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod common;

use common::{Rig, add_mount, piped, spec};
use serde_json::json;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{StartPipe, Stdio};
use slipway_runtime::error::Kind;
use slipway_runtime::sys::{exe, process, signal};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio as Pipe};

/// Runs one of the roles below in a process of its own, from a copy of this program.
fn role(name: &str, program: &std::path::Path) -> Child {
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env("SLIPWAY_TEST_ROLE", name);
    command.stdin(Pipe::piped()).stdout(Pipe::piped()).spawn().unwrap()
}

fn playing(name: &str) -> bool {
    std::env::var("SLIPWAY_TEST_ROLE").is_ok_and(|role| role == name)
}

/// The first line that a role says with this mark.
fn said(child: &mut Child, mark: &str) -> String {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    lines.find_map(|line| line.split_once(mark).map(|(_, rest)| rest.to_owned())).unwrap()
}

#[test]
fn role_protected() {
    if playing("role_protected") {
        exe::run_read_only().unwrap();
        println!("SAYS ready");
        let _ = std::io::stdin().read(&mut [0]);
    }
}

#[test]
fn role_unprotected() {
    if playing("role_unprotected") {
        println!("SAYS ready");
        let _ = std::io::stdin().read(&mut [0]);
    }
}

/// CVE-2019-5736: keep a handle on the runtime's program, wait until nobody runs it, write to it.
#[test]
fn our_program_cannot_be_overwritten_through_proc() {
    let dir = tempfile::tempdir().unwrap();
    let attack = |name: &str| {
        let program = dir.path().join(name);
        common::copy_program(&std::env::current_exe().unwrap(), &program);
        let mut victim = role(name, &program);
        assert_eq!(said(&mut victim, "SAYS "), "ready");
        let handle = fs::File::open(format!("/proc/{}/exe", victim.id())).unwrap();
        drop(victim.stdin.take());
        victim.wait().unwrap();
        fs::File::options().write(true).open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
    };
    assert!(
        attack("role_unprotected").is_ok(),
        "the attack itself does not work, so this test shows nothing"
    );
    assert_eq!(attack("role_protected").unwrap_err().raw_os_error(), Some(libc::EROFS));
}

#[test]
fn our_program_is_no_command() {
    let error = Rig::new().run(&spec(&["/proc/self/exe"])).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (Kind::Invalid, Some(libc::EACCES)), "{error}");
    let rig = Rig::new();
    symlink("/proc/self/exe", rig.path("extra/tool")).unwrap();
    assert!(rig.run(&spec(&["/tool"])).is_err());
}

/// CVE-2024-21626: a descriptor of the host as working directory.
#[test]
fn no_descriptor_of_the_host_can_be_the_working_directory() {
    let _directory = fs::File::open("/").unwrap();
    for number in 3..40 {
        let mut spec = spec(&["cat", "/etc/passwd"]);
        spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let error = Rig::new().run(&spec).unwrap_err();
        assert!(error.to_string().contains("/proc/self/fd"), "{error}");
    }
    let rig = Rig::new();
    symlink("/proc/self/fd/7/../../..", rig.path("extra/way")).unwrap();
    let mut spec = spec(&["sh", "-c", "pwd"]);
    spec["process"]["cwd"] = json!("/way");
    assert!(rig.run(&spec).is_err());
}

/// CVE-2021-30465, CVE-2019-16884, CVE-2023-28642: the image decides where a path leads, but never out of itself, and
/// never over procfs.
#[test]
fn symlinks_of_the_image_do_not_lead_mounts_astray() {
    let volume = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    symlink("/proc", rig.path("extra/toproc")).unwrap();
    symlink("/proc/self/attr", rig.path("extra/toattr")).unwrap();
    symlink("../../../../../../tmp", rig.path("extra/up")).unwrap();
    for target in ["/toproc", "/toattr", "/toproc/sys"] {
        let mut spec = spec(&["true"]);
        add_mount(&mut spec, target, volume.path(), &["rbind"]);
        let error = rig.run(&spec).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (Kind::Invalid, Some(libc::EXDEV)), "{error}");
        assert!(error.to_string().contains("leads into /proc"), "{error}");
    }
    let mut inside = spec(&["sh", "-c", "touch /up/marker-of-this-test; ls /tmp"]);
    add_mount(&mut inside, "/up/new/place", volume.path(), &["rbind"]);
    let outcome = rig.run(&inside).unwrap();
    assert_eq!(outcome.out, "marker-of-this-test\nnew\n");
    assert!(!std::path::Path::new("/tmp/marker-of-this-test").exists());
    assert!(rig.path("upper/tmp/new/place").is_dir(), "made below the container's own /tmp");
}

#[test]
fn a_symlink_is_no_place_for_procfs() {
    let rig = Rig::new();
    fs::remove_dir(rig.path("lower/proc")).unwrap();
    symlink("/tmp", rig.path("lower/proc")).unwrap();
    let error = rig.run(&spec(&["true"])).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ELOOP), "{error}");
    assert!(error.to_string().contains("mount proc on /proc"), "{error}");
}

/// CVE-2025-31133: masks come from the host's null device, whatever the image calls /dev/null.
#[test]
fn masks_do_not_come_from_the_image() {
    let rig = Rig::new();
    symlink("/etc/passwd", rig.path("lower/dev/null")).unwrap();
    let mut spec = spec(&["sh", "-c", "cat /proc/timer_list; stat -c '%t:%T' /proc/timer_list"]);
    let no_dev = |mount: &serde_json::Value| !mount["destination"].as_str().unwrap().starts_with("/dev");
    let mounts: Vec<_> = spec["mounts"].as_array().unwrap().iter().filter(|m| no_dev(m)).cloned().collect();
    spec["mounts"] = json!(mounts);
    let outcome = rig.run(&spec).unwrap();
    assert_eq!(outcome.out, "1:3\n");
}

/// CVE-2025-52881 and its kin: what is written to procfs is written before the image's tree exists.
#[test]
fn a_fake_proc_of_the_image_gets_no_writes() {
    let rig = Rig::new();
    fs::create_dir_all(rig.path("extra/proc/self/attr")).unwrap();
    fs::create_dir_all(rig.path("extra/proc/sys/kernel")).unwrap();
    fs::write(rig.path("extra/proc/sys/kernel/shm_rmid_forced"), "image").unwrap();
    fs::write(rig.path("extra/proc/self/oom_score_adj"), "image").unwrap();
    let mut spec = spec(&["cat", "/proc/sys/kernel/shm_rmid_forced", "/proc/self/oom_score_adj"]);
    spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1"});
    assert_eq!(rig.run(&spec).unwrap().out, "1\n500\n");
    assert_eq!(fs::read_to_string(rig.path("extra/proc/self/oom_score_adj")).unwrap(), "image");
    assert!(!rig.path("upper/proc/self").exists());
}

#[test]
fn a_child_before_its_execve_cannot_be_inspected() {
    let rig = Rig::new();
    let created = rig.create(&spec(&["true"]), Stdio::default()).unwrap();
    let owner = fs::metadata(format!("/proc/{}/mem", created.pid)).unwrap().permissions().mode();
    assert_eq!(owner & 0o777, 0o600);
    let dumpable = fs::read_to_string(format!("/proc/{}/status", created.pid)).unwrap();
    assert!(dumpable.contains("NoNewPrivs:\t1"), "{dumpable}");
    let fds = fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap().count();
    assert_eq!(fds, 4, "three streams and the report socket");
    created.start.start().unwrap();
    common::finish(created);
}

#[test]
fn role_creator() {
    if !playing("role_creator") {
        return;
    }
    let rig = Rig::new();
    let (mut read, stdio) = piped();
    let created = rig.create(&spec(&["sh", "-c", "echo survived; exit 3"]), stdio).unwrap();
    let socket = created.start.socket.as_raw_fd();
    let (output, group) = (read.as_raw_fd(), created.cgroup.path());
    println!("SAYS {} {socket} {output} {group} {}", created.pid, rig.dir.path().display());
    std::io::stdout().flush().unwrap();
    let _ = read.read(&mut [0]);
}

/// The keeper may be killed; whoever holds the socket goes on (DESIGN 4).
#[test]
fn a_parked_child_survives_its_parent() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let mut parent = role("role_creator", &std::env::current_exe().unwrap());
    let said = said(&mut parent, "SAYS ");
    let words: Vec<&str> = said.split(' ').collect();
    let (pid, socket, output): (i32, i32, i32) =
        (words[0].parse().unwrap(), words[1].parse().unwrap(), words[2].parse().unwrap());
    let pidfd = process::open(parent.id() as i32).unwrap();
    let take = |number| {
        rustix::process::pidfd_getfd(&pidfd, number, rustix::process::PidfdGetfdFlags::empty()).unwrap()
    };
    let (socket, output) = (take(socket), take(output));
    let child = process::open(pid).unwrap();
    signal::send(pidfd.as_fd(), libc::SIGKILL).unwrap();
    parent.wait().unwrap();
    StartPipe { socket, steps: Vec::new() }.start().unwrap();
    let mut out = String::new();
    fs::File::from(output).read_to_string(&mut out).unwrap();
    assert_eq!(out, "survived\n");
    assert_eq!(process::reap(&child).unwrap(), 3);
    fs::remove_dir_all(words[4]).unwrap();
    Cgroup::open(words[3]).unwrap().remove(std::time::Duration::from_secs(5)).unwrap();
}

/// And when nobody holds it any more, it goes too.
#[test]
fn a_parked_child_nobody_can_start_leaves() {
    let rig = Rig::new();
    let created = rig.create(&spec(&["true"]), Stdio::default()).unwrap();
    let StartPipe { socket, .. } = created.start;
    drop(socket);
    assert_eq!(process::reap(&created.pidfd).unwrap(), 127);
    created.cgroup.remove(std::time::Duration::from_secs(5)).unwrap();
}
