//! Memory: what is in use and of which kind, how often limits were hit, and whom the OOM killer took.

use super::{Stats, number, text};
use crate::cgroup::files::keyed;
use crate::cgroup::limits::UNLIMITED;
use crate::cgroup::tree;
use crate::{Error, Result};

/// memory.events of version 2, of the group and all below; version 1 counts `max` and `oom_kill` only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Memory below `memory.low` was taken all the same.
    pub low: u64,
    /// Processes were slowed at `memory.high`.
    pub high: u64,
    /// The limit was hit.
    pub max: u64,
    /// Even so no memory could be found, and the OOM killer was called.
    pub oom: u64,
    /// Processes that any OOM killer ended.
    pub oom_kill: u64,
    /// Times that a whole group was ended (memory.oom.group).
    pub oom_group_kill: u64,
}

pub(super) fn v1(stats: &mut Stats, dir: &str) -> Result<()> {
    let limited = |n: Option<u64>| n.filter(|n| *n < UNLIMITED);
    stats.memory_usage = number(dir, "memory.usage_in_bytes")?;
    stats.memory_max_usage = number(dir, "memory.max_usage_in_bytes")?;
    stats.memory_limit = limited(number(dir, "memory.limit_in_bytes")?);
    stats.memory_failures = number(dir, "memory.failcnt")?.unwrap_or(0);
    if let Some(memory) = text(dir, "memory.stat")? {
        // `total_` counts the groups below, too.
        let key = |key| keyed(&memory, key).unwrap_or(0);
        stats.memory_rss = key("total_rss");
        stats.memory_inactive_file = key("total_inactive_file");
        stats.memory_active_file = key("total_active_file");
        stats.memory_inactive_anon = key("total_inactive_anon");
        stats.memory_active_anon = key("total_active_anon");
        stats.memory_unevictable = key("total_unevictable");
        stats.memory_cache = key("total_cache");
        stats.memory_mapped_file = key("total_mapped_file");
        stats.memory_dirty = key("total_dirty");
        stats.memory_writeback = key("total_writeback");
        stats.memory_shmem = key("total_shmem");
        stats.page_faults = key("total_pgfault");
        stats.major_page_faults = key("total_pgmajfault");
    }
    stats.memory_kernel = number(dir, "memory.kmem.usage_in_bytes")?.unwrap_or(0);
    // CRI-SS-10: both of these count memory and swap together.
    if let (Some(both), Some(memory)) = (number(dir, "memory.memsw.usage_in_bytes")?, stats.memory_usage) {
        stats.swap_usage = Some(both.saturating_sub(memory));
        let both = limited(number(dir, "memory.memsw.limit_in_bytes")?);
        stats.swap_limit = both.zip(stats.memory_limit).map(|(both, memory)| both.saturating_sub(memory));
    }
    stats.oom_kills = kills_v1(dir)?;
    stats.memory_events =
        MemoryEvents { max: stats.memory_failures, oom_kill: stats.oom_kills, ..MemoryEvents::default() };
    Ok(())
}

pub(super) fn v2(stats: &mut Stats, dir: &str) -> Result<()> {
    stats.memory_usage = number(dir, "memory.current")?;
    if stats.memory_usage.is_none() {
        return Ok(());
    }
    stats.memory_max_usage = number(dir, "memory.peak")?;
    stats.memory_limit = number(dir, "memory.max")?;
    if let Some(memory) = text(dir, "memory.stat")? {
        let key = |key| keyed(&memory, key).unwrap_or(0);
        stats.memory_rss = key("anon");
        stats.memory_inactive_file = key("inactive_file");
        stats.memory_active_file = key("active_file");
        stats.memory_inactive_anon = key("inactive_anon");
        stats.memory_active_anon = key("active_anon");
        stats.memory_unevictable = key("unevictable");
        stats.memory_cache = key("file");
        stats.memory_mapped_file = key("file_mapped");
        stats.memory_dirty = key("file_dirty");
        stats.memory_writeback = key("file_writeback");
        stats.memory_shmem = key("shmem");
        // `kernel` came with Linux 5.18; before, its parts.
        let parts = ["kernel_stack", "pagetables", "percpu", "slab"];
        stats.memory_kernel = keyed(&memory, "kernel").unwrap_or_else(|| parts.into_iter().map(key).sum());
        stats.page_faults = key("pgfault");
        stats.major_page_faults = key("pgmajfault");
    }
    stats.swap_usage = number(dir, "memory.swap.current")?;
    stats.swap_limit = number(dir, "memory.swap.max")?;
    stats.memory_events = events(dir, "memory.events")?;
    stats.memory_failures = stats.memory_events.max;
    stats.oom_kills = stats.memory_events.oom_kill;
    Ok(())
}

/// `file` is memory.events, or memory.events.local for the group without those below.
fn events(dir: &str, file: &str) -> Result<MemoryEvents> {
    let Some(events) = text(dir, file)? else { return Ok(MemoryEvents::default()) };
    let key = |key| keyed(&events, key).unwrap_or(0);
    Ok(MemoryEvents {
        low: key("low"),
        high: key("high"),
        max: key("max"),
        oom: key("oom"),
        oom_kill: key("oom_kill"),
        oom_group_kill: key("oom_group_kill"),
    })
}

/// Version 1 counts where the victim was, so groups below are added.
pub(in crate::cgroup) fn kills_v1(dir: &str) -> Result<u64> {
    let groups = tree::subtree(dir).map_err(|e| Error::sys("list control groups", dir, e))?;
    let count = |group: String| {
        Ok(text(&group, "memory.oom_control")?.and_then(|t| keyed(&t, "oom_kill")).unwrap_or(0))
    };
    groups.into_iter().map(count).sum()
}

/// Version 2 counts in all groups above the victim as well.
pub(in crate::cgroup) fn kills_v2(dir: &str) -> Result<u64> {
    Ok(events(dir, "memory.events")?.oom_kill)
}
