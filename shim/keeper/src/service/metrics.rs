//! Statistics as containerd's types: version 1 or 2, after the host's layout (SHIM-TSK-28).

use crate::error::{Error, Result};
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use protobuf::well_known_types::any::Any;
use slipway_runtime::cgroup::{IoStats, Pressure, Stalled, Stats};
use std::path::Path;

/// The statistics as an Any of `io.containerd.cgroups.v1.Metrics` or `io.containerd.cgroups.v2.Metrics`.
pub(super) fn encode(stats: &Stats) -> Result<Any> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        any(&version_2(stats))
    } else {
        any(&version_1(stats))
    }
}

fn any<M: protobuf::MessageFull>(message: &M) -> Result<Any> {
    let value =
        message.write_to_bytes().map_err(|error| Error::internal(format!("encode statistics: {error}")))?;
    // containerd's type URLs have no host in front.
    Ok(Any { type_url: M::descriptor().full_name().into(), value, ..Any::default() })
}

/// "No limit" as the kernel of version 1 writes it.
const UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

fn version_1(stats: &Stats) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    if let Some(total) = stats.cpu_usage_ns {
        let cpu = metrics.cpu.mut_or_insert_default();
        let usage = cpu.usage.mut_or_insert_default();
        usage.total = total;
        usage.user = stats.cpu_user_ns.unwrap_or_default();
        usage.kernel = stats.cpu_system_ns.unwrap_or_default();
        let throttling = cpu.throttling.mut_or_insert_default();
        throttling.periods = stats.cpu_periods;
        throttling.throttled_periods = stats.cpu_throttled_periods;
        throttling.throttled_time = stats.cpu_throttled_ns;
    }
    if let Some(usage) = stats.memory_usage {
        metrics.memory = Some(memory_1(stats, usage)).into();
        metrics.memory_oom_control.mut_or_insert_default().oom_kill = stats.oom_kills;
    }
    if let Some(current) = stats.pids_current {
        let pids = metrics.pids.mut_or_insert_default();
        pids.current = current;
        pids.limit = stats.pids_limit.unwrap_or_default();
    }
    if !stats.io.is_empty() {
        let blkio = metrics.blkio.mut_or_insert_default();
        for io in &stats.io {
            blkio
                .io_service_bytes_recursive
                .extend(blkio_entries(io, [io.read_bytes, io.write_bytes, io.discard_bytes]));
            blkio
                .io_serviced_recursive
                .extend(blkio_entries(io, [io.read_ops, io.write_ops, io.discard_ops]));
        }
    }
    metrics.hugetlb = stats
        .hugetlb
        .iter()
        .map(|pages| v1::HugetlbStat {
            usage: pages.usage,
            max: pages.max_usage.unwrap_or_default(),
            failcnt: pages.failures,
            pagesize: pages.page_size.clone(),
            ..v1::HugetlbStat::default()
        })
        .collect();
    metrics
}

fn memory_1(stats: &Stats, usage: u64) -> v1::MemoryStat {
    let mut memory = v1::MemoryStat::new();
    (memory.total_rss, memory.rss) = (stats.memory_rss, stats.memory_rss);
    (memory.total_cache, memory.cache) = (stats.memory_cache, stats.memory_cache);
    (memory.total_mapped_file, memory.mapped_file) = (stats.memory_mapped_file, stats.memory_mapped_file);
    (memory.total_dirty, memory.dirty) = (stats.memory_dirty, stats.memory_dirty);
    (memory.total_writeback, memory.writeback) = (stats.memory_writeback, stats.memory_writeback);
    (memory.total_inactive_file, memory.inactive_file) =
        (stats.memory_inactive_file, stats.memory_inactive_file);
    (memory.total_active_file, memory.active_file) = (stats.memory_active_file, stats.memory_active_file);
    (memory.total_inactive_anon, memory.inactive_anon) =
        (stats.memory_inactive_anon, stats.memory_inactive_anon);
    (memory.total_active_anon, memory.active_anon) = (stats.memory_active_anon, stats.memory_active_anon);
    (memory.total_unevictable, memory.unevictable) = (stats.memory_unevictable, stats.memory_unevictable);
    (memory.total_pg_fault, memory.pg_fault) = (stats.page_faults, stats.page_faults);
    (memory.total_pg_maj_fault, memory.pg_maj_fault) = (stats.major_page_faults, stats.major_page_faults);
    let limit = stats.memory_limit.unwrap_or(UNLIMITED);
    memory.hierarchical_memory_limit = limit;
    let entry = memory.usage.mut_or_insert_default();
    (entry.usage, entry.limit) = (usage, limit);
    (entry.max, entry.failcnt) = (stats.memory_max_usage.unwrap_or_default(), stats.memory_failures);
    memory.kernel.mut_or_insert_default().usage = stats.memory_kernel;
    if let Some(swap) = stats.swap_usage {
        // Version 1 counts memory and swap together.
        let entry = memory.swap.mut_or_insert_default();
        entry.usage = usage.saturating_add(swap);
        entry.limit = stats.swap_limit.map_or(UNLIMITED, |swap| swap.saturating_add(limit));
    }
    memory
}

/// In the words of the control file.
fn blkio_entries(io: &IoStats, [read, write, discard]: [u64; 3]) -> impl Iterator<Item = v1::BlkIOEntry> {
    let (major, minor) = (io.major.into(), io.minor.into());
    [("Read", read), ("Write", write), ("Discard", discard)].into_iter().map(move |(op, value)| {
        v1::BlkIOEntry { op: op.into(), major, minor, value, ..v1::BlkIOEntry::default() }
    })
}

fn version_2(stats: &Stats) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    if let Some(total) = stats.cpu_usage_ns {
        let cpu = metrics.cpu.mut_or_insert_default();
        cpu.usage_usec = total / 1000;
        cpu.user_usec = stats.cpu_user_ns.unwrap_or_default() / 1000;
        cpu.system_usec = stats.cpu_system_ns.unwrap_or_default() / 1000;
        cpu.nr_periods = stats.cpu_periods;
        cpu.nr_throttled = stats.cpu_throttled_periods;
        cpu.throttled_usec = stats.cpu_throttled_ns / 1000;
        cpu.nr_bursts = stats.cpu_burst_periods;
        cpu.burst_usec = stats.cpu_burst_ns / 1000;
        cpu.psi = stats.cpu_pressure.map(psi).into();
    }
    if let Some(usage) = stats.memory_usage {
        metrics.memory = Some(memory_2(stats, usage)).into();
        let events = metrics.memory_events.mut_or_insert_default();
        let counted = stats.memory_events;
        (events.low, events.high, events.max) = (counted.low, counted.high, counted.max);
        (events.oom, events.oom_kill) = (counted.oom, counted.oom_kill);
        events.oom_group_kill = counted.oom_group_kill;
    }
    if let Some(current) = stats.pids_current {
        let pids = metrics.pids.mut_or_insert_default();
        pids.current = current;
        pids.limit = stats.pids_limit.unwrap_or_default();
    }
    if !stats.io.is_empty() || stats.io_pressure.is_some() {
        let io = metrics.io.mut_or_insert_default();
        io.psi = stats.io_pressure.map(psi).into();
        io.usage = stats.io.iter().map(io_entry).collect();
    }
    metrics.hugetlb = stats
        .hugetlb
        .iter()
        .map(|pages| v2::HugeTlbStat {
            current: pages.usage,
            max: pages.limit.unwrap_or(u64::MAX),
            pagesize: pages.page_size.clone(),
            failcnt: pages.failures,
            ..v2::HugeTlbStat::default()
        })
        .collect();
    metrics
}

fn memory_2(stats: &Stats, usage: u64) -> v2::MemoryStat {
    v2::MemoryStat {
        usage,
        usage_limit: stats.memory_limit.unwrap_or(u64::MAX),
        max_usage: stats.memory_max_usage.unwrap_or_default(),
        anon: stats.memory_rss,
        file: stats.memory_cache,
        shmem: stats.memory_shmem,
        file_mapped: stats.memory_mapped_file,
        file_dirty: stats.memory_dirty,
        file_writeback: stats.memory_writeback,
        inactive_anon: stats.memory_inactive_anon,
        active_anon: stats.memory_active_anon,
        inactive_file: stats.memory_inactive_file,
        active_file: stats.memory_active_file,
        unevictable: stats.memory_unevictable,
        pgfault: stats.page_faults,
        pgmajfault: stats.major_page_faults,
        swap_usage: stats.swap_usage.unwrap_or_default(),
        swap_limit: stats.swap_limit.unwrap_or(u64::MAX),
        psi: stats.memory_pressure.map(psi).into(),
        ..v2::MemoryStat::default()
    }
}

fn io_entry(io: &IoStats) -> v2::IOEntry {
    v2::IOEntry {
        major: io.major.into(),
        minor: io.minor.into(),
        rbytes: io.read_bytes,
        wbytes: io.write_bytes,
        rios: io.read_ops,
        wios: io.write_ops,
        ..v2::IOEntry::default()
    }
}

/// containerd's totals are the kernel's own microseconds, its shares percent.
fn psi(pressure: Pressure) -> v2::PSIStats {
    let data = |stalled: Stalled| v2::PSIData {
        avg10: percent(stalled.avg10),
        avg60: percent(stalled.avg60),
        avg300: percent(stalled.avg300),
        total: stalled.total_ns / 1000,
        ..v2::PSIData::default()
    };
    let (some, full) = (Some(data(pressure.some)).into(), Some(data(pressure.full)).into());
    v2::PSIStats { some, full, ..v2::PSIStats::default() }
}

fn percent(hundredths: u64) -> f64 {
    hundredths as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    #[test]
    fn type_names_are_containerds() {
        // SHIM-TSK-28
        let stats = Stats {
            cpu_usage_ns: Some(5000),
            memory_usage: Some(7),
            pids_current: Some(2),
            cpu_pressure: Some(Pressure {
                some: Stalled { avg10: 150, total_ns: 9000, ..Stalled::default() },
                ..Pressure::default()
            }),
            io: vec![IoStats { major: 8, read_bytes: 11, ..IoStats::default() }],
            ..Stats::default()
        };
        let blkio = version_1(&stats).blkio;
        assert_eq!(
            (blkio.io_service_bytes_recursive[0].value, &*blkio.io_service_bytes_recursive[0].op),
            (11, "Read")
        );
        assert_eq!(any(&version_1(&stats)).unwrap().type_url, "io.containerd.cgroups.v1.Metrics");
        let any = any(&version_2(&stats)).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let back = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((back.cpu.usage_usec, back.memory.usage, back.pids.current), (5, 7, 2));
        assert_eq!((back.cpu.psi.some.avg10, back.cpu.psi.some.total, back.io.usage[0].rbytes), (1.5, 9, 11));
        assert!(version_1(&Stats::default()).memory.is_none(), "a controller that is absent has no figures");
    }
}
