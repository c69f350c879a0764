//! Accounting, read on request (CRI-SS-04 to CRI-SS-10).

use super::Stats;
use super::files::{keyed, number, read};
use std::path::{Path, PathBuf};

/// Version 1 says "unlimited" by a number close to 2^63 (CRI-SS-09).
const UNLIMITED: u64 = 1 << 62;

/// `dir` answers with the group's directory in the hierarchy of a controller.
pub(crate) fn v1(dir: impl Fn(&str) -> Option<PathBuf>) -> Stats {
    let mut stats = Stats::default();
    if let Some(cpuacct) = dir("cpuacct") {
        stats.cpu_usage_ns = number(&cpuacct, "cpuacct.usage");
        stats.cpu_user_ns = number(&cpuacct, "cpuacct.usage_user");
        stats.cpu_system_ns = number(&cpuacct, "cpuacct.usage_sys");
    }
    if let Some(text) = dir("cpu").and_then(|cpu| read(&cpu, "cpu.stat").ok()) {
        stats.cpu_periods = keyed(&text, "nr_periods").unwrap_or(0);
        stats.cpu_throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
        stats.cpu_throttled_ns = keyed(&text, "throttled_time").unwrap_or(0);
    }
    if let Some(memory) = dir("memory") {
        v1_memory(&memory, &mut stats);
    }
    if let Some(pids) = dir("pids") {
        stats.pids_current = number(&pids, "pids.current");
        stats.pids_limit = number(&pids, "pids.max");
    }
    stats
}

fn v1_memory(memory: &Path, stats: &mut Stats) {
    let limited = |file: &str| number(memory, file).filter(|v| *v < UNLIMITED);
    stats.memory_usage = number(memory, "memory.usage_in_bytes");
    stats.memory_limit = limited("memory.limit_in_bytes");
    if let (Some(both), Some(usage)) = (number(memory, "memory.memsw.usage_in_bytes"), stats.memory_usage) {
        stats.swap_usage = Some(both.saturating_sub(usage));
    }
    if let (Some(both), Some(limit)) = (limited("memory.memsw.limit_in_bytes"), stats.memory_limit) {
        stats.swap_limit = Some(both.saturating_sub(limit));
    }
    let text = read(memory, "memory.stat").unwrap_or_default();
    stats.memory_rss = keyed(&text, "total_rss").unwrap_or(0);
    stats.memory_inactive_file = keyed(&text, "total_inactive_file").unwrap_or(0);
    stats.memory_cache = keyed(&text, "total_cache").unwrap_or(0);
    stats.page_faults = keyed(&text, "total_pgfault").unwrap_or(0);
    stats.major_page_faults = keyed(&text, "total_pgmajfault").unwrap_or(0);
    stats.oom_kills = oom_kills_v1(memory);
}

pub(crate) fn v2(dir: &Path) -> Stats {
    let mut stats = Stats::default();
    if let Ok(text) = read(dir, "cpu.stat") {
        let ns = |key: &str| keyed(&text, key).map(|us| us * 1000);
        stats.cpu_usage_ns = ns("usage_usec");
        stats.cpu_user_ns = ns("user_usec");
        stats.cpu_system_ns = ns("system_usec");
        stats.cpu_periods = keyed(&text, "nr_periods").unwrap_or(0);
        stats.cpu_throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
        stats.cpu_throttled_ns = ns("throttled_usec").unwrap_or(0);
    }
    stats.memory_usage = number(dir, "memory.current");
    stats.memory_limit = number(dir, "memory.max");
    stats.swap_usage = number(dir, "memory.swap.current");
    stats.swap_limit = number(dir, "memory.swap.max");
    if let Ok(text) = read(dir, "memory.stat") {
        stats.memory_rss = keyed(&text, "anon").unwrap_or(0);
        stats.memory_inactive_file = keyed(&text, "inactive_file").unwrap_or(0);
        stats.memory_cache = keyed(&text, "file").unwrap_or(0);
        stats.page_faults = keyed(&text, "pgfault").unwrap_or(0);
        stats.major_page_faults = keyed(&text, "pgmajfault").unwrap_or(0);
    }
    stats.pids_current = number(dir, "pids.current");
    stats.pids_limit = number(dir, "pids.max");
    stats.oom_kills = oom_kills_v2(dir);
    stats
}

pub(crate) fn oom_kills_v1(memory: &Path) -> u64 {
    read(memory, "memory.oom_control").ok().and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0)
}

pub(crate) fn oom_kills_v2(dir: &Path) -> u64 {
    read(dir, "memory.events").ok().and_then(|text| keyed(&text, "oom_kill")).unwrap_or(0)
}
