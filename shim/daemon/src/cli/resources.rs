//! Requests and limits of a container to CRI, by the kubelet's rules. Pure, part of `translate`.

use anyhow::{Result, ensure};
use cri_proto::v1 as cri;

use super::manifest::Container;
use super::translate::Facts;
use crate::quantity::Quantity;

/// Microseconds; the kubelet's default.
const CPU_PERIOD: i64 = 100_000;

/// What a kubelet sends: shares from the request (or the limit), quota and memory from the limit, no swap.
pub(crate) fn resources(container: &Container, facts: &Facts) -> Result<cri::LinuxContainerResources> {
    let (requests, limits) = (&container.resources.requests, &container.resources.limits);
    let cpu_request = requests.cpu.or(limits.cpu).unwrap_or_default();
    let memory_request = requests.memory.or(limits.memory).unwrap_or_default();
    if let Some(limit) = limits.cpu {
        ensure!(cpu_request <= limit, "resources: the cpu request is above the limit");
    }
    if let Some(limit) = limits.memory {
        ensure!(memory_request <= limit, "resources: the memory request is above the limit");
    }
    let memory_limit = limits.memory.map_or(0, Quantity::units);
    let huge = [("2MB", limits.hugepages_2mi), ("1GB", limits.hugepages_1gi)];
    let hugepage = |(size, limit): (&str, Option<Quantity>)| {
        let limit = u64::try_from(limit?.units()).ok()?;
        Some(cri::HugepageLimit { page_size: size.to_owned(), limit })
    };
    Ok(cri::LinuxContainerResources {
        // CRI-RES-01: never below 2.
        cpu_shares: (cpu_request.milli().saturating_mul(1024) / 1000).clamp(2, 262_144),
        cpu_period: CPU_PERIOD,
        cpu_quota: limits.cpu.map_or(0, |cpu| match cpu.milli() {
            0 => 0,
            // The kernel refuses less than a millisecond.
            milli => (milli.saturating_mul(CPU_PERIOD) / 1000).max(1000),
        }),
        memory_limit_in_bytes: memory_limit,
        memory_swap_limit_in_bytes: memory_limit,
        hugepage_limits: huge.into_iter().filter_map(hugepage).collect(),
        oom_score_adj: oom_score_adj(container, memory_request.units(), facts.memory_capacity),
        ..Default::default()
    })
}

/// The kubelet's rule: the surer a container's memory, the later the kernel kills it.
fn oom_score_adj(container: &Container, memory_request: i64, capacity: i64) -> i64 {
    let (requests, limits) = (&container.resources.requests, &container.resources.limits);
    let guaranteed = limits.cpu.is_some()
        && limits.memory.is_some()
        && requests.cpu.is_none_or(|cpu| Some(cpu) == limits.cpu)
        && requests.memory.is_none_or(|memory| Some(memory) == limits.memory);
    let anything = [requests.cpu, requests.memory, limits.cpu, limits.memory].iter().any(Option::is_some);
    match (guaranteed, anything) {
        (true, _) => -997,
        (false, false) => 1000,
        (false, true) => {
            let share = i128::from(memory_request) * 1000 / i128::from(capacity.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}
