//! Limits as version 1 control files (kernel Documentation/admin-guide/cgroup-v1). Pure.

use super::limits::{Limit, Limits, Now, no_unified, set, unsupported};
use crate::Result;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources};

/// The values to write, in order. `now` is given for a live group.
///
/// # Errors
/// `Invalid` for `unified` (CRI-RES-11), `Unsupported` for what version 1 has no file for.
pub(super) fn limits(r: &LinuxResources, now: Option<&Now>) -> Result<Vec<Limit>> {
    no_unified(r)?;
    let mut out = Limits::default();
    if let Some(cpu) = r.cpu() {
        cpu_limits(&mut out, cpu, now.is_some());
    }
    if let Some(memory) = r.memory() {
        memory_limits(&mut out, memory, now);
    }
    out.common(r);
    if let Some(io) = r.block_io() {
        block_io(&mut out, io)?;
    }
    if let Some(network) = r.network() {
        network_limits(&mut out, network);
    }
    Ok(out.0)
}

/// Huge page limits where a version 1 hierarchy has the controller.
pub(super) fn hugetlb(r: &LinuxResources) -> Vec<Limit> {
    let mut out = Limits::default();
    for limit in r.hugepage_limits().iter().flatten() {
        out.must("hugetlb", format!("hugetlb.{}.limit_in_bytes", limit.page_size()), limit.limit());
        out.may("hugetlb", format!("hugetlb.{}.rsvd.limit_in_bytes", limit.page_size()), limit.limit());
    }
    out.0
}

fn cpu_limits(out: &mut Limits, cpu: &LinuxCpu, live: bool) {
    // The kernel refuses shares on an idle group, so idle ends first, and begins instead of shares.
    if let Some(idle) = cpu.idle() {
        out.must("cpu", "cpu.idle", idle);
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0 && cpu.idle() != Some(1)) {
        out.must("cpu", "cpu.shares", shares);
    }
    let quota = set(cpu.quota().unwrap_or(0));
    let period = cpu.period().filter(|p| *p != 0);
    // burst <= quota, and quota/period within the parent's, hold after each write: so on a live group step aside first.
    if live && cpu.burst().is_some() {
        out.may("cpu", "cpu.cfs_burst_us", 0);
    }
    if live && quota.is_some() && period.is_some() {
        out.must("cpu", "cpu.cfs_quota_us", -1);
    }
    if let Some(period) = period {
        out.must("cpu", "cpu.cfs_period_us", period);
    }
    if let Some(quota) = quota {
        out.must("cpu", "cpu.cfs_quota_us", quota);
    }
    if let Some(burst) = cpu.burst().filter(|b| *b != 0 || live) {
        out.must("cpu", "cpu.cfs_burst_us", burst);
    }
    if let Some(period) = cpu.realtime_period().filter(|p| *p != 0) {
        out.must("cpu", "cpu.rt_period_us", period);
    }
    if let Some(runtime) = set(cpu.realtime_runtime().unwrap_or(0)) {
        out.must("cpu", "cpu.rt_runtime_us", runtime);
    }
}

fn memory_limits(out: &mut Limits, memory: &LinuxMemory, now: Option<&Now>) {
    let limit = set(memory.limit().unwrap_or(0));
    // CRI-RES-07: no limit on memory and no word on swap lifts both.
    let swap = set(memory.swap().unwrap_or(0)).or_else(|| limit.and_then(|limit| kept_swap(limit, now)));
    // memory.limit <= memsw.limit holds after each write: raise the outer one first, lower it last.
    let raised = match (swap, now.and_then(|n| n.memsw)) {
        (Some(-1), Some(_)) => true,
        (Some(swap), Some(memsw)) => swap.unsigned_abs() > memsw,
        _ => false,
    };
    if let (Some(swap), true) = (swap, raised) {
        out.may("memory", "memory.memsw.limit_in_bytes", swap);
    }
    if let Some(limit) = limit {
        out.must("memory", "memory.limit_in_bytes", limit);
    }
    if let (Some(swap), false) = (swap, raised) {
        out.may("memory", "memory.memsw.limit_in_bytes", swap);
    }
    if let Some(reservation) = set(memory.reservation().unwrap_or(0)) {
        out.must("memory", "memory.soft_limit_in_bytes", reservation);
    }
    if let Some(tcp) = set(memory.kernel_tcp().unwrap_or(0)) {
        out.must("memory", "memory.kmem.tcp.limit_in_bytes", tcp);
    }
    if let Some(swappiness) = memory.swappiness() {
        out.must("memory", "memory.swappiness", swappiness);
    }
    if let Some(disable) = memory.disable_oom_killer().filter(|d| *d || now.is_some()) {
        out.must("memory", "memory.oom_control", u8::from(disable));
    }
}

/// memory+swap for a new memory limit that comes with no word on swap: the group may swap as much as before, which is what
/// version 2 means by leaving memory.swap.max alone. Without it a limit above the old sum would be refused.
fn kept_swap(limit: i64, now: Option<&Now>) -> Option<i64> {
    if limit == -1 {
        return Some(-1);
    }
    let now = now?;
    let swap = now.memsw?.saturating_sub(now.memory?);
    limit.checked_add_unsigned(swap)
}

fn block_io(out: &mut Limits, io: &LinuxBlockIo) -> Result<()> {
    let leaf = |w: Option<u16>| w.is_some_and(|w| w != 0);
    if leaf(io.leaf_weight()) || io.weight_device().iter().flatten().any(|d| leaf(d.leaf_weight())) {
        return Err(unsupported(
            "blockIO.leafWeight",
            1,
            "the CFQ scheduler it belonged to left the kernel in 5.0",
        ));
    }
    // BFQ is the scheduler that still has weights; its files exist while its module is loaded.
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        out.must("blkio", "blkio.bfq.weight", weight);
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|w| *w != 0) {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            out.must("blkio", "blkio.bfq.weight_device", value);
        }
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            out.must("blkio", file, format!("{}:{} {}", device.major(), device.minor(), device.rate()));
        }
    }
    Ok(())
}

fn network_limits(out: &mut Limits, network: &LinuxNetwork) {
    if let Some(class) = network.class_id().filter(|c| *c != 0) {
        out.must("net_cls", "net_cls.classid", class);
    }
    for priority in network.priorities().iter().flatten() {
        out.must("net_prio", "net_prio.ifpriomap", format!("{} {}", priority.name(), priority.priority()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    fn written(r: &LinuxResources, now: Option<&Now>) -> Vec<String> {
        limits(r, now).unwrap().iter().map(|l| format!("{}={}", l.file, l.value)).collect()
    }

    fn memory(limit: i64, swap: i64) -> LinuxResources {
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
        LinuxResourcesBuilder::default().memory(memory).build().unwrap()
    }

    // CRI-UPD-01: the kernel refuses a memory limit above memory+swap, so raising and lowering differ in order.
    #[test]
    fn the_outer_memory_limit_is_raised_first_and_lowered_last() {
        let (limit, memsw) = ("memory.limit_in_bytes=200", "memory.memsw.limit_in_bytes=300");
        let now = |memory, memsw| Now { memory: Some(memory), memsw: Some(memsw), quota: None };
        assert_eq!(written(&memory(200, 300), None), [limit, memsw]);
        assert_eq!(written(&memory(200, 300), Some(&now(50, 100))), [memsw, limit]);
        assert_eq!(written(&memory(200, 300), Some(&now(50, 900))), [limit, memsw]);
        // CRI-RES-07: unlimited memory with no word on swap.
        let both = ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"];
        assert_eq!(written(&memory(-1, 0), Some(&now(50, 900))), both);
        // No word on swap: as much of it as before, whichever way the limit goes.
        assert_eq!(written(&memory(200, 0), Some(&now(50, 150))), [memsw, limit]);
        assert_eq!(written(&memory(200, 0), Some(&now(800, 900))), [limit, memsw]);
        assert_eq!(written(&memory(200, 0), Some(&Now::default())), [limit]);
    }

    #[test]
    fn quota_and_period_never_pass_through_a_refused_pair() {
        let cpu = LinuxCpuBuilder::default().quota(5000i64).period(10_000u64).shares(2u64).build().unwrap();
        let r = LinuxResourcesBuilder::default().cpu(cpu).build().unwrap();
        assert_eq!(written(&r, None), ["cpu.shares=2", "cpu.cfs_period_us=10000", "cpu.cfs_quota_us=5000"]);
        let live =
            ["cpu.shares=2", "cpu.cfs_quota_us=-1", "cpu.cfs_period_us=10000", "cpu.cfs_quota_us=5000"];
        assert_eq!(written(&r, Some(&Now::default())), live);
    }

    // CRI-RES-11
    #[test]
    fn unified_is_refused() {
        let unified = std::collections::HashMap::from([("memory.high".to_owned(), "1".to_owned())]);
        let r = LinuxResourcesBuilder::default().unified(unified).build().unwrap();
        assert_eq!(limits(&r, None).unwrap_err().kind(), crate::error::Kind::Invalid);
    }
}
