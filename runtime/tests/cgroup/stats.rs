//! Figures of a group that works: what the kernel counted, in the units we promise.

use super::*;
use oci_spec::runtime::{LinuxHugepageLimitBuilder, LinuxMemoryBuilder};

/// CRI-SS-07, CRI-SS-08, CRI-SS-11: memory by kind, block traffic, pressure where the kernel has it.
#[test]
fn figures_of_a_busy_group() {
    let scope = Scope::new();
    let limit = LinuxMemoryBuilder::default().limit(256 << 20).build().expect("memory");
    let group = Cgroup::create(&scope.path(), Some(&resources(|r| r.memory(limit)))).expect("create");
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("file").display().to_string();
    let script = format!(
        "dd if=/dev/zero of={file} bs=1M count=8 conv=fsync 2>/dev/null; \
         x=$(head -c 8000000 /dev/zero | tr '\\0' x); echo ready; sleep 1000; echo $x"
    );
    let mut child = spawn_in(&group, &script);
    assert_eq!(first_line(&mut child), "ready");
    let stats = group.stats().expect("stats");
    assert!(
        stats.memory_rss > 4 << 20 && stats.memory_active_anon + stats.memory_inactive_anon > 4 << 20,
        "{stats:?}"
    );
    assert!(stats.page_faults > 1000 && stats.memory_events.oom_kill == 0, "{stats:?}");
    assert!(stats.memory_max_usage.is_none_or(|most| most >= 8 << 20), "{stats:?}");
    assert!(stats.cpu_user_ns.is_some() && stats.pids_current.is_some_and(|n| n >= 1), "{stats:?}");
    let pressure = Path::new("/proc/pressure").exists() && v2();
    assert_eq!(stats.cpu_pressure.is_some(), pressure);
    assert_eq!((stats.memory_pressure.is_some(), stats.io_pressure.is_some()), (pressure, pressure));
    // A directory in memory has no device to be written to.
    for io in &stats.io {
        assert!(io.major > 0 && (io.read_ops > 0 || io.write_ops > 0 || io.discard_ops > 0), "{io:?}");
    }
    finish(group, &mut [child]);
    scope.end();
}

/// CRI-RES-13: pages in use and reserved, with their limits, wherever the controller is.
#[test]
fn huge_pages_are_counted() {
    let scope = Scope::new();
    if !has("hugetlb") || !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
        let group = Cgroup::create(&scope.path(), None).expect("create");
        assert!(group.stats().expect("stats").hugetlb.is_empty());
        group.remove(PATIENCE).expect("remove");
        return scope.end();
    }
    let limit =
        LinuxHugepageLimitBuilder::default().page_size("2MB").limit(4i64 << 20).build().expect("limit");
    let group =
        Cgroup::create(&scope.path(), Some(&resources(|r| r.hugepage_limits(vec![limit])))).expect("create");
    let stats = group.stats().expect("stats");
    let pages = stats.hugetlb.iter().find(|pages| pages.page_size == "2MB").expect("2MB");
    assert_eq!((pages.usage, pages.limit, pages.failures), (0, Some(4 << 20), 0), "{pages:?}");
    assert_eq!((pages.reserved_usage, pages.reserved_limit), (Some(0), Some(4 << 20)), "{pages:?}");
    group.remove(PATIENCE).expect("remove");
    scope.end();
}
