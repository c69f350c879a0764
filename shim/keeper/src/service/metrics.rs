//! Statistics as containerd's types: version 1 or 2, after the host's layout (SHIM-TSK-28).

use crate::error::{Error, Result};
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use protobuf::well_known_types::any::Any;
use slipway_runtime::cgroup::Stats;
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
        let memory = metrics.memory.mut_or_insert_default();
        (memory.total_rss, memory.rss) = (stats.memory_rss, stats.memory_rss);
        (memory.total_cache, memory.cache) = (stats.memory_cache, stats.memory_cache);
        (memory.total_inactive_file, memory.inactive_file) =
            (stats.memory_inactive_file, stats.memory_inactive_file);
        (memory.total_pg_fault, memory.pg_fault) = (stats.page_faults, stats.page_faults);
        (memory.total_pg_maj_fault, memory.pg_maj_fault) = (stats.major_page_faults, stats.major_page_faults);
        let limit = stats.memory_limit.unwrap_or(UNLIMITED);
        memory.hierarchical_memory_limit = limit;
        let entry = memory.usage.mut_or_insert_default();
        (entry.usage, entry.limit) = (usage, limit);
        if let Some(swap) = stats.swap_usage {
            // Version 1 counts memory and swap together.
            let entry = memory.swap.mut_or_insert_default();
            entry.usage = usage.saturating_add(swap);
            entry.limit = stats.swap_limit.map_or(UNLIMITED, |swap| swap.saturating_add(limit));
        }
        metrics.memory_oom_control.mut_or_insert_default().oom_kill = stats.oom_kills;
    }
    if let Some(current) = stats.pids_current {
        let pids = metrics.pids.mut_or_insert_default();
        pids.current = current;
        pids.limit = stats.pids_limit.unwrap_or_default();
    }
    metrics
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
    }
    if let Some(usage) = stats.memory_usage {
        let memory = metrics.memory.mut_or_insert_default();
        memory.usage = usage;
        memory.usage_limit = stats.memory_limit.unwrap_or(u64::MAX);
        memory.anon = stats.memory_rss;
        memory.file = stats.memory_cache;
        memory.inactive_file = stats.memory_inactive_file;
        memory.pgfault = stats.page_faults;
        memory.pgmajfault = stats.major_page_faults;
        memory.swap_usage = stats.swap_usage.unwrap_or_default();
        memory.swap_limit = stats.swap_limit.unwrap_or(u64::MAX);
        metrics.memory_events.mut_or_insert_default().oom_kill = stats.oom_kills;
    }
    if let Some(current) = stats.pids_current {
        let pids = metrics.pids.mut_or_insert_default();
        pids.current = current;
        pids.limit = stats.pids_limit.unwrap_or_default();
    }
    metrics
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
            ..Stats::default()
        };
        assert_eq!(any(&version_1(&stats)).unwrap().type_url, "io.containerd.cgroups.v1.Metrics");
        let any = any(&version_2(&stats)).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let back = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((back.cpu.usage_usec, back.memory.usage, back.pids.current), (5, 7, 2));
        assert!(version_1(&Stats::default()).memory.is_none(), "a controller that is absent has no figures");
    }
}
