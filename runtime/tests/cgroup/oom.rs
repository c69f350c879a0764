//! Out of memory: whose limit ran out, asked of the kernel by running out of it.

use super::*;
use oci_spec::runtime::LinuxMemoryBuilder;
use slipway_runtime::cgroup::{Oom, OomLevel};

fn memory(limit: i64) -> LinuxResources {
    let memory = LinuxMemoryBuilder::default().limit(limit).swap(limit).build().expect("memory");
    resources(|r| r.memory(memory))
}

/// Ends by the OOM killer, or with the machine.
const GROW: &str = "x=a; while :; do x=$x$x; done";

/// CRI-CSTAT-14: its own limit.
#[test]
fn the_own_limit_ran_out() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), Some(&memory(16 << 20))).expect("create");
    assert_eq!(group.oom().expect("oom"), None);
    let mut child = spawn_in(&group, GROW);
    child.wait().expect("wait");
    assert_eq!(group.oom().expect("oom"), Some(Oom { kills: 1, level: OomLevel::Own }));
    let stats = group.stats().expect("stats");
    // How often the limit was hit is not counted by every kernel.
    assert_eq!(stats.memory_events.oom_kill, 1, "{stats:?}");
    assert!(stats.memory_max_usage.is_none_or(|most| most > 8 << 20), "{stats:?}");
    group.remove(PATIENCE).expect("remove");
    scope.end();
}

/// A pod's limit below what its container may use.
#[test]
fn the_limit_above_ran_out() {
    let scope = Scope::new();
    let pod = Cgroup::create(&scope.path(), Some(&memory(24 << 20))).expect("create pod");
    let group = Cgroup::create(&format!("{}/c", scope.path()), Some(&memory(256 << 20))).expect("create");
    let mut child = spawn_in(&group, GROW);
    child.wait().expect("wait");
    let oom = group.oom().expect("oom").expect("killed");
    assert_eq!(oom, Oom { kills: 1, level: OomLevel::Above(scope.path()) });
    assert!(oom.level.to_string().contains(&scope.path()));
    group.remove(PATIENCE).expect("remove");
    pod.remove(PATIENCE).expect("remove pod");
    scope.end();
}

/// A limit that the container gave to a group of its own is the container's.
#[test]
fn a_limit_below_ran_out() {
    let scope = Scope::new();
    let group = Cgroup::create(&scope.path(), None).expect("create");
    let below = Cgroup::create(&format!("{}/own", scope.path()), Some(&memory(16 << 20))).expect("create");
    let mut child = spawn_in(&below, GROW);
    child.wait().expect("wait");
    assert_eq!(group.oom().expect("oom"), Some(Oom { kills: 1, level: OomLevel::Own }));
    group.remove(PATIENCE).expect("remove");
    scope.end();
}
