//! One container's values: its control group, its processes, what was asked for it.

use super::disk;
use super::families as f;
use super::process::{Descriptors, open_files_limit};
use super::sheet::{Sheet, seconds};
use crate::containers::{ContainerRecord, Phase};
use crate::nri;
use crate::spec::resources;
use serde_json::Value;
use slipway_runtime::cgroup::{Cgroup, IoStats, Stats};

/// A container that ends meanwhile keeps what does not come from its control group.
pub(super) fn fill(sheet: &mut Sheet, container: &ContainerRecord) {
    sheet.put(&f::LAST_SEEN, sheet.at_seconds());
    sheet.put(&f::CREATION_TIME, seconds(container.created_at));
    let limits = in_force(container);
    asked(sheet, &limits);
    if let Phase::Running { started_at, pid } = container.phase {
        sheet.put(&f::START_TIME, seconds(started_at));
        if let Some(limit) = open_files_limit(pid) {
            sheet.put_with(&f::ULIMITS_SOFT, &["max_open_files"], limit);
        }
    }
    let Ok(group) = Cgroup::open(&container.cgroup) else { return };
    processes(sheet, &group);
    match group.stats() {
        Ok(stats) => {
            measured(sheet, &stats);
            throttling(sheet, &stats, &limits);
        }
        Err(error) => tracing::debug!(container = container.label(), "metrics: {error}"),
    }
}

fn processes(sheet: &mut Sheet, group: &Cgroup) {
    let Ok(pids) = group.pids() else { return };
    sheet.put(&f::PROCESSES, pids.len() as u64);
    let descriptors = Descriptors::of(&pids);
    sheet.put(&f::FILE_DESCRIPTORS, descriptors.all);
    sheet.put(&f::SOCKETS, descriptors.sockets);
}

/// What a control group has counted; a pod's, too.
pub(super) fn measured(sheet: &mut Sheet, stats: &Stats) {
    cpu(sheet, stats);
    memory(sheet, stats);
    pressure(sheet, stats);
    stats.io.iter().for_each(|io| traffic(sheet, io));
    for pages in &stats.hugetlb {
        sheet.put_with(&f::HUGETLB_USAGE, &[&pages.page_size], pages.usage);
        if let Some(most) = pages.max_usage {
            sheet.put_with(&f::HUGETLB_MAX_USAGE, &[&pages.page_size], most);
        }
    }
    // The kernel's pids controller counts threads, on both versions.
    if let Some(threads) = stats.pids_current {
        sheet.put(&f::THREADS, threads);
        // 0 is without limit, as in cAdvisor.
        sheet.put(&f::THREADS_MAX, stats.pids_limit.unwrap_or(0));
    }
}

fn cpu(sheet: &mut Sheet, stats: &Stats) {
    for (family, nanoseconds) in [(&f::CPU_USER, stats.cpu_user_ns), (&f::CPU_SYSTEM, stats.cpu_system_ns)] {
        if let Some(nanoseconds) = nanoseconds {
            sheet.put_seconds(family, &[], nanoseconds);
        }
    }
    // cAdvisor's users may ask for the sum by name; per CPU the kubelet has never told it.
    if let Some(nanoseconds) = stats.cpu_usage_ns {
        sheet.put_seconds(&f::CPU_USAGE, &["total"], nanoseconds);
    }
}

/// Only where there is a quota, as in cAdvisor.
fn throttling(sheet: &mut Sheet, stats: &Stats, limits: &Value) {
    if limits["cpu"]["quota"].as_i64().is_none_or(|quota| quota <= 0) {
        return;
    }
    sheet.put_seconds(&f::CPU_THROTTLED, &[], stats.cpu_throttled_ns);
    sheet.put_seconds(&f::CPU_BURST, &[], stats.cpu_burst_ns);
    sheet.put(&f::CPU_PERIODS, stats.cpu_periods);
    sheet.put(&f::CPU_THROTTLED_PERIODS, stats.cpu_throttled_periods);
    sheet.put(&f::CPU_BURST_PERIODS, stats.cpu_burst_periods);
}

fn memory(sheet: &mut Sheet, stats: &Stats) {
    // Without the controller nothing of it is known; of the rest some is newer than others.
    let Some(usage) = stats.memory_usage else { return };
    for (family, value) in
        [(&f::MEMORY_MAX_USAGE, stats.memory_max_usage), (&f::MEMORY_SWAP, stats.swap_usage)]
    {
        if let Some(value) = value {
            sheet.put(family, value);
        }
    }
    for (family, value) in [
        (&f::MEMORY_USAGE, usage),
        (&f::MEMORY_WORKING_SET, usage.saturating_sub(stats.memory_inactive_file)),
        (&f::MEMORY_RSS, stats.memory_rss),
        (&f::MEMORY_CACHE, stats.memory_cache),
        (&f::MEMORY_MAPPED, stats.memory_mapped_file),
        (&f::MEMORY_KERNEL, stats.memory_kernel),
        (&f::MEMORY_FAILCNT, stats.memory_failures),
        (&f::MEMORY_ACTIVE_FILE, stats.memory_active_file),
        (&f::MEMORY_INACTIVE_FILE, stats.memory_inactive_file),
        (&f::MEMORY_EVENTS_HIGH, stats.memory_events.high),
        (&f::MEMORY_EVENTS_MAX, stats.memory_events.max),
        (&f::MEMORY_DIRTY, stats.memory_dirty),
        (&f::MEMORY_WRITEBACK, stats.memory_writeback),
        (&f::OOM_EVENTS, stats.oom_kills),
    ] {
        sheet.put(family, value);
    }
    // The kernel counts a container's faults with those of the groups below: both of cAdvisor's scopes.
    for scope in ["container", "hierarchy"] {
        sheet.put_with(&f::MEMORY_FAILURES, &["pgfault", scope], stats.page_faults);
        sheet.put_with(&f::MEMORY_FAILURES, &["pgmajfault", scope], stats.major_page_faults);
    }
}

fn pressure(sheet: &mut Sheet, stats: &Stats) {
    for (pressure, waiting, stalled) in [
        (stats.cpu_pressure, &f::PRESSURE_CPU_WAITING, &f::PRESSURE_CPU_STALLED),
        (stats.memory_pressure, &f::PRESSURE_MEMORY_WAITING, &f::PRESSURE_MEMORY_STALLED),
        (stats.io_pressure, &f::PRESSURE_IO_WAITING, &f::PRESSURE_IO_STALLED),
    ] {
        if let Some(pressure) = pressure {
            sheet.put_seconds(waiting, &[], pressure.some.total_ns);
            sheet.put_seconds(stalled, &[], pressure.full.total_ns);
        }
    }
}

fn traffic(sheet: &mut Sheet, io: &IoStats) {
    let device = disk::name(io.major.into(), io.minor.into());
    for (family, value) in [
        (&f::FS_READS_BYTES, io.read_bytes),
        (&f::FS_READS, io.read_ops),
        (&f::FS_WRITES_BYTES, io.write_bytes),
        (&f::FS_WRITES, io.write_ops),
    ] {
        sheet.put_with(family, &[&device], value);
    }
    let (major, minor) = (io.major.to_string(), io.minor.to_string());
    for (operation, bytes) in [
        ("Read", io.read_bytes),
        ("Write", io.write_bytes),
        ("Discard", io.discard_bytes),
        ("Total", io.read_bytes + io.write_bytes + io.discard_bytes),
    ] {
        sheet.put_with(&f::BLKIO_USAGE, &[&device, &major, &minor, operation], bytes);
    }
}

/// The container's limits in the OCI form: what was asked for, and over it what NRI plugins have set.
fn in_force(container: &ContainerRecord) -> Value {
    let asked = container.config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
    // They were checked when they came: then there is nothing to refuse now.
    let mut limits = resources::build(&asked).unwrap_or_default();
    nri::put_over(&mut limits, &container.nri);
    limits
}

/// `container_spec_*`. Unlimited (-1) and absent are 0, as in cAdvisor, which leaves the quota out then.
fn asked(sheet: &mut Sheet, limits: &Value) {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (cpu, memory) = (&limits["cpu"], &limits["memory"]);
    // What the kernel has unless asked otherwise.
    sheet.put(&f::SPEC_CPU_PERIOD, cpu["period"].as_u64().unwrap_or(100_000));
    sheet.put(&f::SPEC_CPU_SHARES, cpu["shares"].as_u64().unwrap_or(1024));
    match number(&cpu["quota"]) {
        0 => {}
        quota => sheet.put(&f::SPEC_CPU_QUOTA, quota),
    }
    sheet.put(&f::SPEC_MEMORY_LIMIT, number(&memory["limit"]));
    sheet.put(&f::SPEC_MEMORY_SWAP_LIMIT, number(&memory["swap"]));
    let low = limits["unified"]["memory.low"].as_str().and_then(|n| n.parse().ok());
    sheet.put(&f::SPEC_MEMORY_RESERVATION, low.or(memory["reservation"].as_u64()).unwrap_or(0));
}
