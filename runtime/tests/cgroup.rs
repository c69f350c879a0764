//! Control groups against the kernel, as root; the same tests run on version 1 (hybrid) and version 2.

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder,
};
use slipway_runtime::cgroup::{Cgroup, Join};
use slipway_runtime::error::Kind;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// A group of its own for one test; the end checks that nothing of it is left in any hierarchy.
struct Scope(String);

impl Scope {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self(format!("/slipway-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    fn path(&self) -> String {
        format!("{}/leaf", self.0)
    }

    fn end(self) {
        Cgroup::remove_if_empty(&self.0).expect("remove the parent");
        let left = directories(&self.0);
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn directories(path: &str) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let cgroups =
        mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).filter(|f| f[2].starts_with("cgroup"));
    cgroups.map(|f| format!("{}{path}", f[1])).filter(|d| Path::new(d).is_dir()).collect()
}

fn v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A shell that waits for a line before it runs `script`; it is in the group before that. Joining from outside by
/// cgroup.procs is the slow way, and good enough here; the launcher's own way is tested with the launcher.
fn spawn_in(group: &Cgroup, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", &format!("read go; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    match group.join().expect("join") {
        Join::CloneInto(dir) => {
            let procs = format!("/proc/self/fd/{}/cgroup.procs", dir.as_raw_fd());
            std::fs::write(procs, child.id().to_string()).expect("join version 2");
        }
        Join::WriteTasks(files) => {
            for file in files {
                let mut file = std::fs::File::from(file);
                file.write_all(child.id().to_string().as_bytes()).expect("join version 1");
            }
        }
    }
    child.stdin.take().expect("stdin").write_all(b"go\n").expect("go");
    child
}

fn resources(set: impl FnOnce(LinuxResourcesBuilder) -> LinuxResourcesBuilder) -> LinuxResources {
    set(LinuxResourcesBuilder::default()).build().expect("resources")
}

/// CRI-RES-01, CRI-RES-04, CRI-RES-06, CRI-SS-04, CRI-SS-09.
#[test]
fn limits_are_written_and_statistics_read() {
    let scope = Scope::new();
    let limits = resources(|r| {
        let cpu =
            LinuxCpuBuilder::default().shares(512u64).quota(20_000i64).period(100_000u64).cpus("0").build();
        let memory = LinuxMemoryBuilder::default().limit(64 << 20).build();
        let pids = LinuxPidsBuilder::default().limit(50i64).build();
        r.cpu(cpu.expect("cpu")).memory(memory.expect("memory")).pids(pids.expect("pids"))
    });
    let group = Cgroup::create(&scope.path(), Some(&limits)).expect("create");
    let mut child =
        spawn_in(&group, "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; echo done; sleep 1000");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("the loop ends");
    assert!(group.pids().expect("pids").contains(&i32::try_from(child.id()).expect("pid")));
    let stats = group.stats().expect("stats");
    assert!(stats.cpu_usage_ns.is_some_and(|ns| ns > 10_000_000), "{stats:?}");
    assert!(stats.cpu_throttled_periods > 0, "a fifth of a cpu must throttle a loop: {stats:?}");
    assert_eq!(stats.memory_limit, Some(64 << 20));
    assert!(stats.memory_usage.is_some_and(|b| b > 0));
    assert_eq!(stats.pids_limit, Some(50));
    assert!(!group.oom_killed().expect("oom"));
    group.kill_all().expect("kill");
    child.wait().expect("wait");
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-CSTAT-14.
#[test]
fn the_oom_killer_is_seen() {
    let scope = Scope::new();
    let memory = LinuxMemoryBuilder::default().limit(16 << 20).swap(16 << 20).build().expect("memory");
    let group = Cgroup::create(&scope.path(), Some(&resources(|r| r.memory(memory)))).expect("create");
    let mut child = spawn_in(&group, "x=a; while :; do x=$x$x; done");
    let status = child.wait().expect("wait");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status:?}");
    assert!(group.oom_killed().expect("oom"));
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-STOP-11: a frozen group with a fork loop dies all the same.
#[test]
fn kill_all_ends_a_frozen_fork_loop() {
    let scope = Scope::new();
    let pids = LinuxPidsBuilder::default().limit(64i64).build().expect("pids");
    let group = Cgroup::create(&scope.path(), Some(&resources(|r| r.pids(pids)))).expect("create");
    let mut child = spawn_in(&group, "while :; do (sleep 1000 &) ; done");
    std::thread::sleep(Duration::from_millis(100));
    group.freeze(true).expect("freeze");
    assert!(group.is_frozen());
    group.kill_all().expect("kill");
    child.wait().expect("wait");
    let start = Instant::now();
    while !group.pids().expect("pids").is_empty() {
        assert!(start.elapsed() < PATIENCE, "still there: {:?}", group.pids());
        std::thread::sleep(Duration::from_millis(5));
    }
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// An exec session dies alone; the container's other processes live.
#[test]
fn an_exec_group_is_killed_alone() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let mut main = spawn_in(&group, "sleep 1000");
    let session = group.exec_group("probe").expect("exec group");
    let mut exec = spawn_in(&session, "sleep 1001 & sleep 1002");
    assert_eq!(Cgroup::open(&session.path()).expect("open").path(), session.path());
    session.kill_all().expect("kill");
    exec.wait().expect("wait");
    assert!(main.try_wait().expect("try_wait").is_none(), "the container's own process lives");
    session.remove(PATIENCE).expect("remove the session");
    group.kill_all().expect("kill");
    main.wait().expect("wait");
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-DEV-02.
#[test]
fn devices_are_denied_and_allowed() {
    let scope = Scope::new();
    let deny = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build().expect("rule");
    let null = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::C)
        .major(1)
        .minor(3)
        .access("rwm");
    let rules = vec![deny, null.build().expect("rule")];
    let group = Cgroup::create(&scope.path(), Some(&resources(|r| r.devices(rules)))).expect("create");
    let script = "head -c1 /dev/null && echo null-ok; head -c1 /dev/zero >/dev/null 2>&1 || echo zero-denied";
    let mut child = spawn_in(&group, script);
    let lines: Vec<_> =
        BufReader::new(child.stdout.take().expect("stdout")).lines().map_while(Result::ok).collect();
    child.wait().expect("wait");
    assert_eq!(lines, ["null-ok", "zero-denied"]);
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-UPD-01.
#[test]
fn a_failed_update_changes_nothing() {
    let scope = Scope::new();
    let memory = |limit: i64| LinuxMemoryBuilder::default().limit(limit).build().expect("memory");
    let group =
        Cgroup::create(&scope.path(), Some(&resources(|r| r.memory(memory(64 << 20))))).expect("create");
    group.update(&resources(|r| r.memory(memory(128 << 20)))).expect("raise");
    assert_eq!(group.stats().expect("stats").memory_limit, Some(128 << 20));
    let bad = resources(|r| {
        let pids = LinuxPidsBuilder::default().limit(10i64).build().expect("pids");
        let cpu = LinuxCpuBuilder::default().shares(700u64).cpus("4000").build().expect("cpu");
        r.memory(memory(32 << 20)).pids(pids).cpu(cpu)
    });
    let error = group.update(&bad).expect_err("cpu 4000 does not exist");
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("4000") && error.to_string().contains("cpuset.cpus"), "{error}");
    let stats = group.stats().expect("stats");
    assert_eq!((stats.memory_limit, stats.pids_limit), (Some(128 << 20), None));
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-CC-03: what cannot be made leaves nothing.
#[test]
fn refused_limits_leave_nothing() {
    let scope = Scope::new();
    let cpu = LinuxCpuBuilder::default().cpus("4000").build().expect("cpu");
    let error = Cgroup::create(&scope.path(), Some(&resources(|r| r.cpu(cpu)))).expect_err("refused");
    assert!(error.to_string().contains("4000"), "{error}");
    assert!(directories(&scope.0).is_empty(), "{:?}", directories(&scope.0));
    for path in ["", "/", "/a/../b", "system.slice:cri:abc"] {
        assert!(Cgroup::create(path, None).is_err(), "{path:?}");
    }
    if !v2() {
        let unified = std::collections::HashMap::from([("memory.high".to_owned(), "1".to_owned())]);
        let error =
            Cgroup::create(&scope.path(), Some(&resources(|r| r.unified(unified)))).expect_err("refused");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    scope.end();
}

/// Groups that the container made below its own go with it.
#[test]
fn groups_below_are_removed_too() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    for dir in directories(&scope.path()) {
        std::fs::create_dir_all(format!("{dir}/a/b")).expect("mkdir");
    }
    group.clone().remove(PATIENCE).expect("remove");
    group.remove(PATIENCE).expect("missing is success");
    scope.end();
}
