//! From a control group's figures to CRI's messages (CRI-SS-04 to CRI-SS-11), for containers and pods alike.

use cri_proto::v1;
use slipway_runtime::cgroup::{Pressure, Stalled, Stats};

/// `rate`: nanocores since the sample before; absent, not 0, without one (CRI-SS-05).
pub(crate) fn cpu(at: i64, group: &Stats, rate: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(group.cpu_usage_ns.unwrap_or(0)),
        usage_nano_cores: rate.and_then(value),
        psi: group.cpu_pressure.map(pressure),
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
        psi: group.memory_pressure.map(pressure),
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

/// None where the kernel counts no pressure for the group (version 1, or built without).
pub(crate) fn io(at: i64, group: &Stats) -> Option<v1::IoUsage> {
    group.io_pressure.map(|stalled| v1::IoUsage { timestamp: at, psi: Some(pressure(stalled)) })
}

/// Totals in nanoseconds, shares in percent (CRI-SS-11).
fn pressure(group: Pressure) -> v1::PsiStats {
    // Hundredths of a percent, never above 10,000: exact.
    let percent = |hundredths: u64| hundredths as f64 / 100.0;
    let data = |stalled: Stalled| v1::PsiData {
        total: stalled.total_ns,
        avg10: percent(stalled.avg10),
        avg60: percent(stalled.avg60),
        avg300: percent(stalled.avg300),
    };
    v1::PsiStats { full: Some(data(group.full)), some: Some(data(group.some)) }
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

    /// CRI-SS-11.
    #[test]
    fn pressure_is_told_in_percent_and_nanoseconds() {
        let some = Stalled { avg10: 1234, avg60: 7, avg300: 0, total_ns: 5000 };
        let group =
            Stats { io_pressure: Some(Pressure { some, full: Stalled::default() }), ..Default::default() };
        assert_eq!(io(1, &Stats::default()), None, "absent, not 0");
        let told = io(1, &group).and_then(|io| io.psi).and_then(|psi| psi.some);
        assert_eq!(told, Some(v1::PsiData { total: 5000, avg10: 12.34, avg60: 0.07, avg300: 0.0 }));
    }
}
