//! Statistics as a shim tells them (Task.Stats), for containers that are in no control group of this host: in a virtual machine.

use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use slipway_runtime::cgroup::Stats;

/// "No limit" begins here (version 1 writes the largest number of pages, version 2 all ones).
const UNLIMITED: u64 = 1 << 62;

/// Of either version; none of a type that is not known, or damaged (SHIM-TSK-28).
pub(super) fn decode(any: &Any) -> Option<Stats> {
    match any.type_url.rsplit('/').next()? {
        "io.containerd.cgroups.v1.Metrics" => {
            v1::Metrics::parse_from_bytes(&any.value).ok().as_ref().map(of_version_1)
        }
        "io.containerd.cgroups.v2.Metrics" => {
            v2::Metrics::parse_from_bytes(&any.value).ok().as_ref().map(of_version_2)
        }
        _ => None,
    }
}

fn limit(value: u64) -> Option<u64> {
    (value != 0 && value < UNLIMITED).then_some(value)
}

fn of_version_1(metrics: &v1::Metrics) -> Stats {
    let mut stats = Stats::default();
    if let Some(usage) = metrics.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref()) {
        stats.cpu_usage_ns = Some(usage.total);
        (stats.cpu_user_ns, stats.cpu_system_ns) = (Some(usage.user), Some(usage.kernel));
    }
    if let Some(throttling) = metrics.cpu.as_ref().and_then(|cpu| cpu.throttling.as_ref()) {
        stats.cpu_periods = throttling.periods;
        stats.cpu_throttled_periods = throttling.throttled_periods;
        stats.cpu_throttled_ns = throttling.throttled_time;
    }
    if let Some(memory) = metrics.memory.as_ref() {
        stats.memory_usage = memory.usage.as_ref().map(|usage| usage.usage);
        stats.memory_limit = memory.usage.as_ref().and_then(|usage| limit(usage.limit));
        stats.memory_rss = memory.total_rss.max(memory.rss);
        stats.memory_cache = memory.total_cache.max(memory.cache);
        stats.memory_inactive_file = memory.total_inactive_file.max(memory.inactive_file);
        stats.memory_active_file = memory.total_active_file.max(memory.active_file);
        stats.page_faults = memory.total_pg_fault.max(memory.pg_fault);
        stats.major_page_faults = memory.total_pg_maj_fault.max(memory.pg_maj_fault);
    }
    stats.pids_current = metrics.pids.as_ref().map(|pids| pids.current);
    stats.pids_limit = metrics.pids.as_ref().and_then(|pids| limit(pids.limit));
    stats
}

fn of_version_2(metrics: &v2::Metrics) -> Stats {
    let mut stats = Stats::default();
    if let Some(cpu) = metrics.cpu.as_ref() {
        let nanos = |micros: u64| micros.saturating_mul(1000);
        stats.cpu_usage_ns = Some(nanos(cpu.usage_usec));
        (stats.cpu_user_ns, stats.cpu_system_ns) = (Some(nanos(cpu.user_usec)), Some(nanos(cpu.system_usec)));
        stats.cpu_periods = cpu.nr_periods;
        stats.cpu_throttled_periods = cpu.nr_throttled;
        stats.cpu_throttled_ns = nanos(cpu.throttled_usec);
    }
    if let Some(memory) = metrics.memory.as_ref() {
        stats.memory_usage = Some(memory.usage);
        stats.memory_limit = limit(memory.usage_limit);
        (stats.memory_rss, stats.memory_cache) = (memory.anon, memory.file);
        (stats.memory_inactive_file, stats.memory_active_file) = (memory.inactive_file, memory.active_file);
        (stats.page_faults, stats.major_page_faults) = (memory.pgfault, memory.pgmajfault);
        stats.swap_usage = Some(memory.swap_usage);
        stats.swap_limit = limit(memory.swap_limit);
    }
    stats.pids_current = metrics.pids.as_ref().map(|pids| pids.current);
    stats.pids_limit = metrics.pids.as_ref().and_then(|pids| limit(pids.limit));
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, message: &dyn protobuf::MessageDyn) -> Any {
        let value = message.write_to_bytes_dyn().expect("encoded");
        Any { type_url: type_url.into(), value, ..Any::default() }
    }

    // SHIM-TSK-28
    #[test]
    fn both_versions_are_understood() {
        let mut one = v1::Metrics::new();
        one.cpu.mut_or_insert_default().usage.mut_or_insert_default().total = 7000;
        let memory = one.memory.mut_or_insert_default();
        memory.total_rss = 5;
        let entry = memory.usage.mut_or_insert_default();
        (entry.usage, entry.limit) = (9, u64::MAX);
        let stats = decode(&any("io.containerd.cgroups.v1.Metrics", &one)).expect("known");
        assert_eq!((stats.cpu_usage_ns, stats.memory_usage), (Some(7000), Some(9)));
        assert_eq!((stats.memory_rss, stats.memory_limit), (5, None));

        let mut two = v2::Metrics::new();
        two.cpu.mut_or_insert_default().usage_usec = 7;
        let memory = two.memory.mut_or_insert_default();
        (memory.usage, memory.usage_limit, memory.anon) = (9, 100, 5);
        let stats = decode(&any("type.x/io.containerd.cgroups.v2.Metrics", &two)).expect("known");
        assert_eq!((stats.cpu_usage_ns, stats.memory_usage), (Some(7000), Some(9)));
        assert_eq!((stats.memory_rss, stats.memory_limit), (5, Some(100)));

        assert!(decode(&any("io.example.Stats", &two)).is_none());
        let damaged = Any { value: vec![0xff; 3], ..any("io.containerd.cgroups.v1.Metrics", &one) };
        assert!(decode(&damaged).is_none());
    }
}
