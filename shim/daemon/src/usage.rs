//! From a control group's figures to CRI's messages (CRI-SS-04 to CRI-SS-11), for containers and pods alike.

use cri_proto::v1;
use slipway_runtime::cgroup::Stats;

/// `rate`: nanocores since the sample before; absent, not 0, without one (CRI-SS-05).
pub(crate) fn cpu(at: i64, group: &Stats, rate: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(group.cpu_usage_ns.unwrap_or(0)),
        usage_nano_cores: rate.and_then(value),
        ..Default::default()
    }
}

pub(crate) fn memory(at: i64, group: &Stats) -> v1::MemoryUsage {
    let usage = group.memory_usage.unwrap_or(0);
    let working_set = usage.saturating_sub(group.memory_inactive_file);
    v1::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(working_set),
        available_bytes: group.memory_limit.and_then(|limit| value(limit.saturating_sub(working_set))),
        usage_bytes: value(usage),
        rss_bytes: value(group.memory_rss),
        page_faults: value(group.page_faults),
        major_page_faults: value(group.major_page_faults),
        ..Default::default()
    }
}

pub(crate) fn swap(at: i64, group: &Stats) -> v1::SwapUsage {
    let available = group.swap_limit.map(|limit| limit.saturating_sub(group.swap_usage.unwrap_or(0)));
    v1::SwapUsage {
        timestamp: at,
        swap_usage_bytes: group.swap_usage.and_then(value),
        swap_available_bytes: available.and_then(value),
    }
}

/// None until the kernel counts pressure for the group (version 2).
pub(crate) fn io(_at: i64, _group: &Stats) -> Option<v1::IoUsage> {
    None
}

// CRI wraps numbers so that absent and 0 differ.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-SS-07, CRI-SS-09.
    #[test]
    fn working_set_and_available() {
        let group = Stats {
            memory_usage: Some(100),
            memory_inactive_file: 120,
            memory_limit: Some(1000),
            ..Default::default()
        };
        let memory = memory(1, &group);
        assert_eq!(memory.working_set_bytes.map(|v| v.value), Some(0));
        assert_eq!(memory.available_bytes.map(|v| v.value), Some(1000));
    }
}
