//! Accounting, read on request (CRI-SS-04, 07..10). Numbers are the kernel's; only units are changed.
//!
//! Ours and not those of cgroups-rs: `MemController::memory_stat` reads eleven files for the four that matter, takes a
//! failed read for 0 bytes in use, and panics on a line it does not know; `CpuAcctController::cpuacct` reads eight for
//! three. `PidController` is right, and used on version 1.

use super::files::{self, absent, keyed};
use super::tree;
use super::{Cgroup, Stats};
use crate::{Error, Result};
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::pid::PidController;
use std::io;
use std::path::PathBuf;

/// Version 1 writes its largest page-aligned number for "unlimited" (CRI-SS-09).
const UNLIMITED: u64 = 1 << 62;

/// Where the version 1 files of one group are; absent where the host has no such hierarchy.
#[derive(Debug)]
pub(super) struct Dirs {
    pub(super) cpu: Option<String>,
    pub(super) cpuacct: Option<String>,
    pub(super) memory: Option<String>,
    pub(super) pids: Option<String>,
}

/// Reads `dir/file`; None if it is absent.
fn text(dir: &str, file: &str) -> Result<Option<String>> {
    let path = format!("{dir}/{file}");
    match files::read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if absent(&e) => Ok(None),
        Err(e) => Err(Error::sys("read accounting", path, e)),
    }
}

fn number(dir: &str, file: &str) -> Result<Option<u64>> {
    Ok(text(dir, file)?.and_then(|t| t.trim().parse().ok()))
}

pub(super) fn v1(dirs: &Dirs) -> Result<Stats> {
    let mut stats = Stats::default();
    if let Some(dir) = &dirs.cpuacct {
        stats.cpu_usage_ns = number(dir, "cpuacct.usage")?;
        stats.cpu_user_ns = number(dir, "cpuacct.usage_user")?;
        stats.cpu_system_ns = number(dir, "cpuacct.usage_sys")?;
    }
    if let Some(stat) = dirs.cpu.as_deref().map(|dir| text(dir, "cpu.stat")).transpose()?.flatten() {
        stats.cpu_periods = keyed(&stat, "nr_periods").unwrap_or(0);
        stats.cpu_throttled_periods = keyed(&stat, "nr_throttled").unwrap_or(0);
        stats.cpu_throttled_ns = keyed(&stat, "throttled_time").unwrap_or(0);
    }
    if let Some(dir) = &dirs.memory {
        memory_v1(&mut stats, dir)?;
    }
    if let Some(dir) = &dirs.pids {
        let pids = PidController::new(PathBuf::from(dir), PathBuf::new(), false);
        stats.pids_current = pids.get_pid_current().ok();
        stats.pids_limit = match pids.get_pid_max() {
            Ok(MaxValue::Value(limit)) => u64::try_from(limit).ok(),
            _ => None,
        };
    }
    Ok(stats)
}

fn memory_v1(stats: &mut Stats, dir: &str) -> Result<()> {
    let limited = |n: Option<u64>| n.filter(|n| *n < UNLIMITED);
    stats.memory_usage = number(dir, "memory.usage_in_bytes")?;
    stats.memory_limit = limited(number(dir, "memory.limit_in_bytes")?);
    if let Some(memory) = text(dir, "memory.stat")? {
        let key = |key| keyed(&memory, key).unwrap_or(0);
        stats.memory_rss = key("total_rss");
        stats.memory_inactive_file = key("total_inactive_file");
        stats.memory_cache = key("total_cache");
        stats.page_faults = key("total_pgfault");
        stats.major_page_faults = key("total_pgmajfault");
    }
    // CRI-SS-10: both of these count memory and swap together.
    if let (Some(both), Some(memory)) = (number(dir, "memory.memsw.usage_in_bytes")?, stats.memory_usage) {
        stats.swap_usage = Some(both.saturating_sub(memory));
        let both = limited(number(dir, "memory.memsw.limit_in_bytes")?);
        stats.swap_limit = both.zip(stats.memory_limit).map(|(both, memory)| both.saturating_sub(memory));
    }
    stats.oom_kills = oom_kills_v1(dir)?;
    Ok(())
}

pub(super) fn v2(dir: &str) -> Result<Stats> {
    let mut stats = Stats::default();
    // Always there, even without the cpu controller.
    let cpu = files::must_read(&format!("{dir}/cpu.stat"))?;
    let ns = |key| keyed(&cpu, key).map(|us| us * 1000);
    stats.cpu_usage_ns = ns("usage_usec");
    stats.cpu_user_ns = ns("user_usec");
    stats.cpu_system_ns = ns("system_usec");
    stats.cpu_periods = keyed(&cpu, "nr_periods").unwrap_or(0);
    stats.cpu_throttled_periods = keyed(&cpu, "nr_throttled").unwrap_or(0);
    stats.cpu_throttled_ns = ns("throttled_usec").unwrap_or(0);
    stats.memory_usage = number(dir, "memory.current")?;
    if stats.memory_usage.is_some() {
        stats.memory_limit = number(dir, "memory.max")?;
        if let Some(memory) = text(dir, "memory.stat")? {
            let key = |key| keyed(&memory, key).unwrap_or(0);
            stats.memory_rss = key("anon");
            stats.memory_inactive_file = key("inactive_file");
            stats.memory_cache = key("file");
            stats.page_faults = key("pgfault");
            stats.major_page_faults = key("pgmajfault");
        }
        stats.swap_usage = number(dir, "memory.swap.current")?;
        stats.swap_limit = number(dir, "memory.swap.max")?;
        stats.oom_kills = oom_kills_v2(dir)?;
    }
    stats.pids_current = number(dir, "pids.current")?;
    stats.pids_limit = number(dir, "pids.max")?;
    Ok(stats)
}

/// Version 1 counts where the victim was, so groups below are added.
pub(super) fn oom_kills_v1(dir: &str) -> Result<u64> {
    let groups = tree::subtree(dir).map_err(|e| Error::sys("list control groups", dir, e))?;
    let count = |group: String| {
        Ok(text(&group, "memory.oom_control")?.and_then(|t| keyed(&t, "oom_kill")).unwrap_or(0))
    };
    groups.into_iter().map(count).sum()
}

/// Version 2 counts in all groups above the victim as well.
pub(super) fn oom_kills_v2(dir: &str) -> Result<u64> {
    Ok(text(dir, "memory.events")?.and_then(|t| keyed(&t, "oom_kill")).unwrap_or(0))
}

/// A group that has gone has no accounting: that must not look like zero.
pub(super) fn must_exist(group: &Cgroup, dir: &str) -> Result<()> {
    match std::fs::metadata(dir) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(Error::sys("read accounting", group.path(), e).hint("the control group has been removed"))
        }
        Err(e) => Err(Error::sys("read accounting", dir, e)),
    }
}
