//! The life of groups: found again, entered, frozen, killed, removed.

use super::*;
use oci_spec::runtime::LinuxPidsBuilder;
use slipway_runtime::error::Kind;
use std::time::Instant;

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
    let mut main = spawn_in(&group, "exec sleep 1000");
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

/// Nothing runs while frozen, and everything goes on after.
#[test]
fn frozen_processes_stand_still() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let mut child = spawn_in(&group, "while :; do echo tick; sleep 0.01; done");
    let ticks = std::sync::Arc::new(AtomicU32::new(0));
    let (counter, output) = (ticks.clone(), child.stdout.take().expect("stdout"));
    let reader = std::thread::spawn(move || {
        BufReader::new(output).lines().for_each(|_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
    });
    let now = || ticks.load(Ordering::Relaxed);
    let grows = |from: u32| {
        let start = Instant::now();
        while now() <= from {
            assert!(start.elapsed() < PATIENCE, "no tick after {from}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    grows(3);
    group.freeze(true).expect("freeze");
    // What was in the pipe is read within this.
    std::thread::sleep(Duration::from_millis(100));
    let still = now();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(now(), still, "it ran while frozen");
    assert!(group.is_frozen());
    group.freeze(false).expect("thaw");
    assert!(!group.is_frozen());
    grows(still + 3);
    finish(group, &mut [child]);
    reader.join().expect("reader");
    scope.end();
}

/// A container may freeze groups of its own; its processes die all the same.
#[test]
fn kill_all_reaches_groups_that_are_frozen_below() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let below = Cgroup::create(&format!("{}/below", scope.path()), None).expect("create below");
    let mut child = spawn_in(&below, "exec sleep 1000");
    below.freeze(true).expect("freeze below");
    group.kill_all().expect("kill");
    child.wait().expect("it must end");
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// One path, one container; an empty group that was left over is taken.
#[test]
fn a_group_in_use_is_not_taken_twice() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let again = Cgroup::create(&scope.path(), None).expect("nobody is in it");
    assert_eq!(group, again);
    let child = spawn_in(&group, "exec sleep 1000");
    let error = Cgroup::create(&scope.path(), None).expect_err("in use");
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    assert_eq!(group.pids().expect("pids"), [i32::try_from(child.id()).expect("pid")], "and it lives");
    finish(group, &mut [child]);
    scope.end();
}

/// Exec groups on version 1 exist in one hierarchy and share the container's in the others: after a restart, too.
#[test]
fn an_exec_group_is_accounted_with_its_container() {
    let scope = Scope::new();
    let pids = LinuxPidsBuilder::default().limit(20).build().expect("pids");
    let group = Cgroup::create(&scope.path(), Some(&resources(|r| r.pids(pids)))).expect("create");
    let session = group.exec_group("x.1").expect("exec group");
    assert_eq!(group.exec_group("x.1").expect_err("twice").kind(), Kind::Exists);
    for bad in ["", "a/b", "a\nb"] {
        assert_eq!(group.exec_group(bad).expect_err("bad name").kind(), Kind::Invalid);
    }
    assert_eq!(Cgroup::open(&session.path()).expect("open"), session);
    assert_eq!(Cgroup::open(&group.path()).expect("open"), group);
    let session = Cgroup::open(&session.path()).expect("open");
    let child = spawn_in(&session, "exec sleep 1000");
    let pid = i32::try_from(child.id()).expect("pid");
    assert_eq!((session.pids().expect("pids"), group.pids().expect("pids")), (vec![pid], vec![pid]));
    assert!(group.stats().expect("stats").pids_current.is_some_and(|n| n >= 1));
    // The container ends, with all its sessions.
    finish(group, &mut [child]);
    session.remove(PATIENCE).expect("missing is success");
    scope.end();
}

/// Processes that stay are named; removal can be tried again.
#[test]
fn removal_waits_and_then_says_who_is_there() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let mut child = spawn_in(&group, "exec sleep 1000");
    Cgroup::remove_if_empty(&scope.path()).expect("left alone");
    assert_eq!(group.pids().expect("pids").len(), 1);
    let error = group.remove(Duration::from_millis(20)).expect_err("in use");
    assert_eq!(error.kind(), Kind::State);
    assert!(error.to_string().contains(&child.id().to_string()), "{error}");
    let group = Cgroup::open(&scope.path()).expect("still there");
    // It is killed and reaped while removal waits.
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        child.kill().and_then(|()| child.wait())
    });
    group.clone().remove(PATIENCE).expect("remove");
    killer.join().expect("killer").expect("killed");
    assert_eq!(group.stats().expect_err("gone").kind(), Kind::NotFound);
    assert_eq!(Cgroup::open(&scope.path()).expect_err("gone").kind(), Kind::NotFound);
    group.kill_all().expect("nobody to kill");
    scope.end();
}

/// A kubelet removes a pod's groups from the hierarchies that it knows; on a hybrid host version 2 is not one of them.
#[test]
fn what_somebody_else_left_of_a_group_is_removed() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let made = directories(&scope.path());
    drop(group);
    let unified = |dir: &&String| std::path::Path::new(dir.as_str()).join("cgroup.controllers").exists();
    for dir in made.iter().filter(|dir| v2() || !unified(dir)) {
        std::fs::remove_dir(dir).expect("remove by hand");
    }
    let left = directories(&scope.path());
    assert_eq!(left.is_empty(), v2() || !made.iter().any(|dir| unified(&dir)), "{left:?}");
    Cgroup::remove_at(&scope.path(), PATIENCE).expect("remove the rest");
    assert!(directories(&scope.path()).is_empty(), "{:?}", directories(&scope.path()));
    Cgroup::remove_at(&scope.path(), PATIENCE).expect("missing is success");
    scope.end();
}

/// On a hybrid host a container gets a place of its own in version 2 and goes back; what a dead caller left goes with the group.
#[test]
fn processes_are_set_apart_and_come_back() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let mut child = spawn_in(&group, "sleep 1000 & while :; do sleep 0.01; done");
    let start = Instant::now();
    while group.pids().expect("pids").len() < 2 {
        assert!(start.elapsed() < PATIENCE, "no second process");
        std::thread::sleep(Duration::from_millis(5));
    }
    let version_2 = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    };
    let home = version_2(child.id());
    let apart = group.set_apart().expect("set apart");
    // On version 2 it has a group of its own, and without a version 2 mount it needs none.
    assert_eq!(apart.is_some(), !v2() && home.is_some());
    let place = apart.as_ref().and_then(|_| version_2(child.id()));
    if let Some(place) = &place {
        assert!(place.contains("slipway-apart-") && directories(place).len() == 1, "{place}");
        drop(apart);
        assert_eq!(version_2(child.id()), home, "it goes back");
        assert!(directories(place).is_empty(), "{place}");
        for _ in 0..2 {
            std::mem::forget(group.set_apart().expect("also after a caller that died"));
            assert_eq!(version_2(child.id()).as_ref(), Some(place));
        }
    }
    group.kill_all().expect("kill");
    child.wait().expect("wait");
    group.remove(PATIENCE).expect("remove");
    assert!(place.is_none_or(|place| directories(&place).is_empty()), "the place goes with the group");
    scope.end();
}
