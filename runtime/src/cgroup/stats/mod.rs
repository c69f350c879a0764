//! Accounting, read on request (CRI-SS-04, 07..11). Numbers are the kernel's; only units are changed.
//!
//! Ours and not those of cgroups-rs: `MemController::memory_stat` reads eleven files for the four that matter, takes a
//! failed read for 0 bytes in use, and panics on a line it does not know; `CpuAcctController::cpuacct` reads eight for
//! three; nothing there reads pressure, or the reserved huge pages. `PidController` is right, and used on version 1.

mod hugetlb;
mod io;
mod memory;
mod pressure;

pub use hugetlb::HugetlbStats;
pub use io::IoStats;
pub use memory::MemoryEvents;
pub(super) use memory::{kills_v1, kills_v2};
pub use pressure::{Pressure, Stalled};

use super::Cgroup;
use super::files::{self, absent, keyed};
use super::layout::{Hierarchy, Layout};
use crate::{Error, Result};
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::pid::PidController;
use std::path::PathBuf;

/// Accounting of one group at one moment. Absent where the controller is absent. Nanoseconds and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_usage_ns: Option<u64>,
    pub cpu_user_ns: Option<u64>,
    pub cpu_system_ns: Option<u64>,
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_ns: u64,
    /// Periods in which more than the quota was used (`cpu.burst`), and by how much in all.
    pub cpu_burst_periods: u64,
    pub cpu_burst_ns: u64,
    pub cpu_pressure: Option<Pressure>,
    pub memory_usage: Option<u64>,
    /// The most that was ever in use; version 2: since Linux 5.19.
    pub memory_max_usage: Option<u64>,
    /// None when unlimited.
    pub memory_limit: Option<u64>,
    pub memory_rss: u64,
    pub memory_inactive_file: u64,
    pub memory_active_file: u64,
    pub memory_inactive_anon: u64,
    pub memory_active_anon: u64,
    pub memory_unevictable: u64,
    pub memory_cache: u64,
    pub memory_mapped_file: u64,
    pub memory_dirty: u64,
    pub memory_writeback: u64,
    pub memory_shmem: u64,
    /// What the kernel itself holds for the group: stacks, page tables, slab.
    pub memory_kernel: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// How often the memory limit was hit: `failcnt`, or `max` of memory.events.
    pub memory_failures: u64,
    pub memory_events: MemoryEvents,
    pub memory_pressure: Option<Pressure>,
    pub swap_usage: Option<u64>,
    pub swap_limit: Option<u64>,
    pub pids_current: Option<u64>,
    pub pids_limit: Option<u64>,
    pub oom_kills: u64,
    /// By device, in the kernel's order.
    pub io: Vec<IoStats>,
    pub io_pressure: Option<Pressure>,
    /// By page size; empty where the group is in no hugetlb hierarchy.
    pub hugetlb: Vec<HugetlbStats>,
}

/// Reads `dir/file`; None if it is absent.
fn text(dir: &str, file: &str) -> Result<Option<String>> {
    let path = format!("{dir}/{file}");
    match files::read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if absent(&e) => Ok(None),
        // Pressure can be switched off on the kernel's command line (psi=0): its files are there and refuse.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(Error::sys("read accounting", path, e)),
    }
}

fn number(dir: &str, file: &str) -> Result<Option<u64>> {
    Ok(text(dir, file)?.and_then(|t| t.trim().parse().ok()))
}

/// All that is known of `group`.
///
/// # Errors
/// `NotFound` if it has gone.
pub(super) fn read(layout: &Layout, group: &Cgroup) -> Result<Stats> {
    match layout {
        Layout::V2(hierarchy) => {
            let dir = group.dir(layout, hierarchy);
            must_exist(group, &dir)?;
            v2(&dir)
        }
        Layout::V1 { unified, .. } => {
            let dir = |controller| layout.v1(controller).map(|h| group.dir(layout, h));
            let (memory, pids) = (dir("memory"), dir("pids"));
            if let Some(some) = memory.as_ref().or(pids.as_ref()) {
                must_exist(group, some)?;
            }
            let beside = unified.as_ref().filter(|_| group.unified).map(|h: &Hierarchy| group.dir(layout, h));
            let mut stats = Stats::default();
            cpu_v1(&mut stats, dir("cpu").as_deref(), dir("cpuacct").as_deref())?;
            if let Some(dir) = &memory {
                memory::v1(&mut stats, dir)?;
            }
            pids_v1(&mut stats, pids);
            if let Some(dir) = dir("blkio") {
                stats.io = io::v1(&dir)?;
            }
            // The kernel counts pressure in the unified hierarchy only, for those that are members of it.
            if let Some(beside) = &beside {
                pressures(&mut stats, beside)?;
            }
            stats.hugetlb = match (dir("hugetlb"), beside) {
                (Some(dir), _) => hugetlb::v1(&dir)?,
                (None, Some(beside)) => hugetlb::v2(&beside)?,
                (None, None) => Vec::new(),
            };
            Ok(stats)
        }
    }
}

fn cpu_v1(stats: &mut Stats, cpu: Option<&str>, cpuacct: Option<&str>) -> Result<()> {
    if let Some(dir) = cpuacct {
        stats.cpu_usage_ns = number(dir, "cpuacct.usage")?;
        stats.cpu_user_ns = number(dir, "cpuacct.usage_user")?;
        stats.cpu_system_ns = number(dir, "cpuacct.usage_sys")?;
    }
    if let Some(stat) = cpu.map(|dir| text(dir, "cpu.stat")).transpose()?.flatten() {
        let key = |key| keyed(&stat, key).unwrap_or(0);
        stats.cpu_periods = key("nr_periods");
        stats.cpu_throttled_periods = key("nr_throttled");
        stats.cpu_throttled_ns = key("throttled_time");
        stats.cpu_burst_periods = key("nr_bursts");
        stats.cpu_burst_ns = key("burst_time");
    }
    Ok(())
}

fn pids_v1(stats: &mut Stats, dir: Option<String>) {
    let Some(dir) = dir else { return };
    let pids = PidController::new(PathBuf::from(dir), PathBuf::new(), false);
    stats.pids_current = pids.get_pid_current().ok();
    stats.pids_limit = match pids.get_pid_max() {
        Ok(MaxValue::Value(limit)) => u64::try_from(limit).ok(),
        _ => None,
    };
}

fn v2(dir: &str) -> Result<Stats> {
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
    stats.cpu_burst_periods = keyed(&cpu, "nr_bursts").unwrap_or(0);
    stats.cpu_burst_ns = ns("burst_usec").unwrap_or(0);
    memory::v2(&mut stats, dir)?;
    pressures(&mut stats, dir)?;
    stats.pids_current = number(dir, "pids.current")?;
    stats.pids_limit = number(dir, "pids.max")?;
    stats.io = io::v2(dir)?;
    stats.hugetlb = hugetlb::v2(dir)?;
    Ok(stats)
}

fn pressures(stats: &mut Stats, dir: &str) -> Result<()> {
    stats.cpu_pressure = pressure::read(dir, "cpu.pressure")?;
    stats.memory_pressure = pressure::read(dir, "memory.pressure")?;
    stats.io_pressure = pressure::read(dir, "io.pressure")?;
    Ok(())
}

/// A group that has gone has no accounting: that must not look like zero.
pub(super) fn must_exist(group: &Cgroup, dir: &str) -> Result<()> {
    match std::fs::metadata(dir) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::sys("read accounting", group.path(), e).hint("the control group has been removed"))
        }
        Err(e) => Err(Error::sys("read accounting", dir, e)),
    }
}
