//! Limits: what they do to real processes, what is refused, and that a refusal leaves nothing.

use super::*;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxPidsBuilder,
    LinuxThrottleDeviceBuilder,
};
use slipway_runtime::error::Kind;

fn memory(limit: i64) -> LinuxResources {
    resources(|r| r.memory(LinuxMemoryBuilder::default().limit(limit).build().expect("memory")))
}

fn cpu(set: impl FnOnce(LinuxCpuBuilder) -> LinuxCpuBuilder) -> LinuxResources {
    resources(|r| r.cpu(set(LinuxCpuBuilder::default()).build().expect("cpu")))
}

fn pids(limit: i64) -> LinuxResources {
    resources(|r| r.pids(LinuxPidsBuilder::default().limit(limit).build().expect("pids")))
}

/// CRI-RES-01, CRI-RES-04, CRI-RES-06, CRI-SS-04, CRI-SS-09.
#[test]
fn limits_are_written_and_statistics_read() {
    let scope = Scope::new();
    let limits = resources(|r| {
        let cpu = LinuxCpuBuilder::default().shares(512u64).quota(10_000i64).period(100_000u64).build();
        let memory = LinuxMemoryBuilder::default().limit(64 << 20).build();
        let pids = LinuxPidsBuilder::default().limit(50i64).build();
        r.cpu(cpu.expect("cpu")).memory(memory.expect("memory")).pids(pids.expect("pids"))
    });
    let group = Cgroup::create(&scope.path(), Some(&limits)).expect("create");
    let mut child =
        spawn_in(&group, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 1000");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("the loop ends");
    assert!(group.pids().expect("pids").contains(&i32::try_from(child.id()).expect("pid")));
    let stats = group.stats().expect("stats");
    assert!(stats.cpu_usage_ns.is_some_and(|ns| ns > 10_000_000), "{stats:?}");
    assert!(stats.cpu_throttled_periods > 0, "a tenth of a cpu must throttle a loop: {stats:?}");
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

/// A victim in a group that the container made itself is the container's: version 1 counts it only down there.
#[test]
fn the_oom_killer_is_seen_in_groups_below() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), Some(&memory(16 << 20))).expect("create");
    let below = Cgroup::create(&format!("{}/below", scope.path()), None).expect("create below");
    let mut child = spawn_in(&below, "x=a; while :; do x=$x$x; done");
    child.wait().expect("wait");
    assert!(group.oom_killed().expect("oom"));
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-RES-17.
#[test]
fn the_pids_limit_bites() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), Some(&pids(4))).expect("create");
    let script = "sleep 100 & sleep 100 & sleep 100 & echo three; sleep 100 & echo four";
    let mut child = spawn_in(&group, script);
    let first = first_line(&mut child);
    let status = child.wait().expect("wait");
    assert_eq!((first.as_str(), status.success()), ("three", false), "the fourth fork must fail");
    assert_eq!(group.stats().expect("stats").pids_limit, Some(4));
    group.update(&pids(-1)).expect("lift");
    assert_eq!(group.stats().expect("stats").pids_limit, None);
    finish(group, &mut []);
    scope.end();
}

/// CRI-RES-15. Parents that did not exist are made, and on version 1 given cpus.
#[test]
fn a_cpuset_binds() {
    let scope = Scope::new();
    let path = format!("{}/a/b", scope.path());
    let made = Cgroup::create(&path, Some(&cpu(|c| c.cpus("0").mems("0"))));
    if !has("cpuset") {
        let error = made.expect_err("no such controller");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("cpuset.cpus"), "{error}");
        return scope.end();
    }
    let group = made.expect("create");
    let mut child = spawn_in(&group, "grep -h Cpus_allowed_list /proc/self/status");
    assert_eq!(lines(&mut child), ["Cpus_allowed_list:\t0"]);
    group.remove(PATIENCE).expect("remove");
    for parent in ["/a", ""] {
        Cgroup::remove_if_empty(&format!("{}{parent}", scope.path())).expect("remove parent");
    }
    scope.end();
}

/// CRI-RES-13: a limit of none is a limit.
#[test]
fn huge_pages_are_limited_where_the_host_has_them() {
    let scope = Scope::new();
    let huge = |size: &str, limit: i64| {
        let limit = LinuxHugepageLimitBuilder::default().page_size(size).limit(limit).build().expect("limit");
        resources(|r| r.hugepage_limits(vec![limit]))
    };
    let error = Cgroup::create(&scope.path(), Some(&huge("3MB", 0))).expect_err("no such size");
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("3MB"), "{error}");
    if has("hugetlb") {
        let group = Cgroup::create(&scope.path(), Some(&huge("2MB", 0))).expect("create");
        let limit = control(&group, "hugetlb.2MB.max").or(control(&group, "hugetlb.2MB.limit_in_bytes"));
        assert_eq!(limit.as_deref(), Some("0"));
        // The process is where the limit is, whichever hierarchy that may be.
        let mut child = spawn_in(&group, "cat /proc/self/cgroup; sleep 1000");
        let dirs = directories(&group.path());
        let held = dirs.iter().filter(|d| Path::new(&format!("{d}/hugetlb.2MB.current")).exists() || v2());
        for dir in held {
            let procs = std::fs::read_to_string(format!("{dir}/cgroup.procs")).expect("procs");
            assert!(procs.lines().any(|p| p == child.id().to_string()), "{dir}: {procs:?}");
        }
        group.update(&huge("2MB", 4 << 20)).expect("raise");
        let limit = control(&group, "hugetlb.2MB.max").or(control(&group, "hugetlb.2MB.limit_in_bytes"));
        assert_eq!(limit.as_deref(), Some("4194304"));
        group.kill_all().expect("kill");
        child.wait().expect("wait");
        group.remove(PATIENCE).expect("remove");
    }
    scope.end();
}

/// CRI-UPD-03, CRI-RES-04: what is not named stays, and a quota can be raised, lowered and lifted on a live group.
#[test]
fn updates_change_what_they_name() {
    let scope = Scope::new();
    let group =
        Cgroup::create(&scope.path(), Some(&cpu(|c| c.shares(1024u64).quota(20_000i64)))).expect("create");
    let value = |v1: &str, v2_file: &str| control(&group, if v2() { v2_file } else { v1 }).expect("file");
    group.update(&cpu(|c| c.period(50_000u64))).expect("the period alone");
    group.update(&memory(64 << 20)).expect("something else");
    assert_eq!(value("cpu.cfs_quota_us", "cpu.max"), if v2() { "20000 50000" } else { "20000" });
    group.update(&cpu(|c| c.quota(3000i64).period(10_000u64).burst(2000u64))).expect("both, with burst");
    group.update(&cpu(|c| c.quota(1500i64).burst(1000u64))).expect("lower both");
    assert_eq!(value("cpu.cfs_burst_us", "cpu.max.burst"), "1000");
    group.update(&cpu(|c| c.burst(0u64).quota(-1i64))).expect("lift");
    assert_eq!(value("cpu.cfs_quota_us", "cpu.max"), if v2() { "max 10000" } else { "-1" });
    // CRI-RES-02
    assert_eq!(value("cpu.shares", "cpu.weight"), if v2() { "100" } else { "1024" });
    group.update(&cpu(|c| c.idle(1i64))).expect("idle");
    assert_eq!(value("cpu.idle", "cpu.idle"), "1");
    group.update(&cpu(|c| c.idle(0i64).shares(2048u64))).expect("idle no more");
    // No word on swap: a limit above the old sum is no obstacle, and as much swap as before is left.
    let start = LinuxMemoryBuilder::default().limit(64 << 20).swap(96 << 20).build().expect("memory");
    group.update(&resources(|r| r.memory(start))).expect("memory and swap");
    let swap = group.stats().expect("stats").swap_limit;
    for limit in [256 << 20, 32 << 20] {
        group.update(&memory(limit)).expect("memory alone");
        let stats = group.stats().expect("stats");
        assert_eq!(stats.memory_limit, Some(u64::try_from(limit).expect("size")));
        assert_eq!(stats.swap_limit, swap, "{stats:?}");
    }
    for limit in [256 << 20, 32 << 20] {
        let both = LinuxMemoryBuilder::default().limit(limit).swap(limit).build().expect("memory");
        group.update(&resources(|r| r.memory(both))).expect("memory and swap, up and down");
        assert_eq!(group.stats().expect("stats").memory_limit, Some(u64::try_from(limit).expect("size")));
    }
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

/// CRI-UPD-01: the kernel refuses the last of several values, and all of them are as before.
#[test]
fn values_that_were_written_already_are_put_back() {
    let scope = Scope::new();
    let start = resources(|r| {
        let memory = LinuxMemoryBuilder::default().limit(64 << 20).swap(64 << 20).build().expect("memory");
        let cpu = LinuxCpuBuilder::default().shares(512u64).quota(50_000i64).period(100_000u64).build();
        r.memory(memory).cpu(cpu.expect("cpu"))
    });
    let group = Cgroup::create(&scope.path(), Some(&start)).expect("create");
    let files: &[&str] = if v2() {
        &["cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "memory.low", "pids.max"]
    } else {
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "pids.max",
        ]
    };
    let state = || files.iter().map(|f| control(&group, f)).collect::<Vec<_>>();
    let before = state();
    for limit in [128 << 20, 32 << 20] {
        let absent =
            LinuxThrottleDeviceBuilder::default().major(4000).minor(1).rate(1u64).build().expect("device");
        let change = resources(|r| {
            let memory =
                LinuxMemoryBuilder::default().limit(limit).swap(limit).reservation(limit / 2).build();
            let cpu = LinuxCpuBuilder::default().shares(2000u64).quota(5000i64).period(10_000u64).build();
            let pids = LinuxPidsBuilder::default().limit(9).build();
            let io = LinuxBlockIoBuilder::default().throttle_read_bps_device(vec![absent]).build();
            r.memory(memory.expect("memory"))
                .cpu(cpu.expect("cpu"))
                .pids(pids.expect("pids"))
                .block_io(io.expect("io"))
        });
        let error = group.update(&change).expect_err("device 4000:1 does not exist");
        assert!(error.to_string().contains("4000:1"), "{error}");
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert_eq!(state(), before, "{files:?}");
    }
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// CRI-UPD-05.
#[test]
fn memory_in_use_is_not_taken_away_unasked() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), Some(&memory(256 << 20))).expect("create");
    let mut child =
        spawn_in(&group, "x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ready; sleep 1000; echo $x");
    assert_eq!(first_line(&mut child), "ready");
    let lower =
        LinuxMemoryBuilder::default().limit(8 << 20).check_before_update(true).build().expect("memory");
    let error = group.update(&resources(|r| r.memory(lower))).expect_err("in use");
    assert_eq!(error.kind(), Kind::State, "{error}");
    assert_eq!(group.stats().expect("stats").memory_limit, Some(256 << 20));
    assert!(child.try_wait().expect("try_wait").is_none(), "it lives");
    finish(group, &mut [child]);
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
    for path in ["", "/", "/a/../b", "system:cri:abc"] {
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

/// Each is refused before anything is made, with the field and the value in the sentence.
#[test]
fn limits_that_cannot_be_meant_are_invalid() {
    let scope = Scope::new();
    let swap = |limit: i64, swap: i64| {
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().expect("memory");
        resources(|r| r.memory(memory))
    };
    let unified = std::collections::HashMap::from([("../memory.high".to_owned(), "1".to_owned())]);
    let cases = [
        ("memory.limit = 4096", memory(4096)),
        ("memory.limit = -2", memory(-2)),
        ("memory.swap = 100", swap(1 << 20, 100)),
        ("memory.swap = 100", swap(0, 100)),
        ("pids.limit = -5", pids(-5)),
        ("cpu.quota = 10", cpu(|c| c.quota(10i64))),
        ("cpu.quota = -7", cpu(|c| c.quota(-7i64))),
        ("cpu.period = 5", cpu(|c| c.period(5u64))),
        ("cpu.burst = 9000", cpu(|c| c.quota(5000i64).burst(9000u64))),
        ("cpu.idle = 2", cpu(|c| c.idle(2i64))),
        ("cpuset.cpus = 0,x", cpu(|c| c.cpus("0,x"))),
        ("cpuset.mems = 77", cpu(|c| c.mems("77"))),
        ("memory.high", resources(|r| r.unified(unified))),
    ];
    for (words, resources) in cases {
        let error = Cgroup::create(&scope.path(), Some(&resources)).expect_err(words);
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert!(directories(&scope.0).is_empty(), "{words}");
    }
    scope.end();
}

/// A limit whose controller refuses only when it is written: the directories are gone again, parents included.
#[test]
fn a_refused_write_leaves_nothing() {
    let scope = Scope::new();
    let absent =
        LinuxThrottleDeviceBuilder::default().major(4000).minor(1).rate(1u64).build().expect("device");
    let io = LinuxBlockIoBuilder::default().throttle_write_bps_device(vec![absent]).build().expect("io");
    let error =
        Cgroup::create(&scope.path(), Some(&resources(|r| r.block_io(io)))).expect_err("no such device");
    assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
    assert!(directories(&scope.0).is_empty(), "{:?}", directories(&scope.0));
    scope.end();
}

/// CRI-RES-11, CRI-RES-12: verbatim on version 2, a plain error on version 1.
#[test]
fn unified_is_for_version_2() {
    let scope = Scope::new();
    let unified = [("memory.high", "33554432"), ("memory.oom.group", "1"), ("cgroup.max.depth", "3")];
    let unified = unified.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let made = Cgroup::create(
        &scope.path(),
        Some(&resources(|r| r.unified(std::collections::HashMap::from(unified)))),
    );
    if v2() {
        let group = made.expect("create");
        let values = ["memory.high", "memory.oom.group", "cgroup.max.depth"].map(|f| control(&group, f));
        assert_eq!(values, ["33554432", "1", "3"].map(|v| Some(v.to_owned())));
        group.remove(PATIENCE).expect("remove");
    } else {
        assert_eq!(made.expect_err("version 1").kind(), Kind::Invalid);
    }
    scope.end();
}

/// Version 2 hands no controllers down from a group with processes; that is said, and nothing is left.
#[test]
fn a_parent_with_processes_is_refused_on_version_2() {
    let scope = Scope::new();
    let parent = Cgroup::create(&scope.path(), None).expect("create");
    let child = spawn_in(&parent, "exec sleep 1000");
    let made = Cgroup::create(&format!("{}/below", scope.path()), Some(&memory(64 << 20)));
    if v2() {
        let error = made.expect_err("no internal processes");
        assert_eq!(error.kind(), Kind::State, "{error}");
        assert_eq!(
            control(&parent, "cgroup.subtree_control").as_deref(),
            Some(""),
            "the parent is as it was"
        );
        assert!(directories(&format!("{}/below", scope.path())).is_empty());
    } else {
        made.expect("version 1 allows it").remove(PATIENCE).expect("remove");
    }
    finish(parent, &mut [child]);
    scope.end();
}
