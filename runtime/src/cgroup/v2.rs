//! Limits as version 2 control files (kernel Documentation/admin-guide/cgroup-v2.rst). Pure.

use super::limits::{Limit, Limits, Now, hugetlb_v2, or_max, set, unsupported};
use crate::Result;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

/// The values to write, in order. `now` is given for a live group.
///
/// # Errors
/// `Unsupported` for what version 2 has no file for.
pub(super) fn limits(r: &LinuxResources, now: Option<&Now>) -> Result<Vec<Limit>> {
    let mut out = Limits::default();
    if let Some(cpu) = r.cpu() {
        cpu_limits(&mut out, cpu, now)?;
    }
    if let Some(memory) = r.memory() {
        memory_limits(&mut out, memory)?;
    }
    out.common(r);
    if let Some(io) = r.block_io() {
        block_io(&mut out, io)?;
    }
    hugetlb_v2(&mut out, r);
    if let Some(network) = r.network() {
        let asked =
            network.class_id().is_some_and(|c| c != 0) || network.priorities().iter().flatten().count() > 0;
        if asked {
            return Err(unsupported(
                "network.classID / priorities",
                2,
                "net_cls and net_prio exist on version 1 only",
            ));
        }
    }
    // CRI-RES-11: verbatim, and last, so that they have the final word.
    let mut unified: Vec<_> = r.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        let controller = file.split('.').next().unwrap_or(file).to_owned();
        let limit = Limit {
            controller: controller.into(),
            file: file.clone().into(),
            value: value.clone(),
            optional: false,
        };
        out.0.push(limit);
    }
    Ok(out.0)
}

fn cpu_limits(out: &mut Limits, cpu: &LinuxCpu, now: Option<&Now>) -> Result<()> {
    if cpu.realtime_period().is_some_and(|p| p != 0) || cpu.realtime_runtime().is_some_and(|r| r != 0) {
        return Err(unsupported(
            "cpu.realtimeRuntime / realtimePeriod",
            2,
            "version 2 has no realtime bandwidth",
        ));
    }
    // The kernel refuses a weight on an idle group, so idle ends first, and begins instead of a weight.
    if let Some(idle) = cpu.idle() {
        out.must("cpu", "cpu.idle", idle);
    }
    if let Some(shares) = cpu.shares().filter(|s| *s != 0 && cpu.idle() != Some(1)) {
        out.must("cpu", "cpu.weight", weight_of_shares(shares));
    }
    // burst <= quota holds after each write: on a live group step aside first.
    if now.is_some() && cpu.burst().is_some() {
        out.may("cpu", "cpu.max.burst", 0);
    }
    // CRI-RES-04, CRI-RES-05.
    match (set(cpu.quota().unwrap_or(0)), cpu.period().filter(|p| *p != 0)) {
        (None, None) => {}
        (Some(quota), Some(period)) => out.must("cpu", "cpu.max", format!("{} {period}", or_max(quota))),
        (Some(quota), None) => out.must("cpu", "cpu.max", or_max(quota)),
        (None, Some(period)) => {
            let quota = now.and_then(|n| n.quota.as_deref()).unwrap_or("max");
            out.must("cpu", "cpu.max", format!("{quota} {period}"));
        }
    }
    if let Some(burst) = cpu.burst().filter(|b| *b != 0 || now.is_some()) {
        out.must("cpu", "cpu.max.burst", burst);
    }
    Ok(())
}

fn memory_limits(out: &mut Limits, memory: &LinuxMemory) -> Result<()> {
    for (asked, field, hint) in [
        (
            memory.swappiness().is_some(),
            "memory.swappiness",
            "swappiness is not per group here; limit swap instead",
        ),
        (
            memory.disable_oom_killer() == Some(true),
            "memory.disableOOMKiller",
            "use unified memory.high to be throttled",
        ),
        (
            memory.kernel_tcp().is_some_and(|k| k != 0),
            "memory.kernelTCP",
            "buffers of sockets count as memory here",
        ),
    ] {
        if asked {
            return Err(unsupported(field, 2, hint));
        }
    }
    let limit = set(memory.limit().unwrap_or(0));
    if let Some(limit) = limit {
        out.must("memory", "memory.max", or_max(limit));
    }
    // CRI-RES-06, CRI-RES-07.
    match (limit, set(memory.swap().unwrap_or(0))) {
        (_, Some(-1)) | (Some(-1), None) => out.may("memory", "memory.swap.max", "max"),
        (Some(limit), Some(swap)) => out.may("memory", "memory.swap.max", swap - limit),
        _ => {}
    }
    if let Some(reservation) = set(memory.reservation().unwrap_or(0)) {
        out.must("memory", "memory.low", or_max(reservation));
    }
    Ok(())
}

fn block_io(out: &mut Limits, io: &LinuxBlockIo) -> Result<()> {
    let leaf = |w: Option<u16>| w.is_some_and(|w| w != 0);
    if leaf(io.leaf_weight()) || io.weight_device().iter().flatten().any(|d| leaf(d.leaf_weight())) {
        return Err(unsupported("blockIO.leafWeight", 2, "version 2 has no leaf weights"));
    }
    if let Some(weight) = io.weight().filter(|w| *w != 0) {
        out.must("io", "io.weight", format!("default {}", io_weight(weight)));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|w| *w != 0) {
            out.must(
                "io",
                "io.weight",
                format!("{}:{} {}", device.major(), device.minor(), io_weight(weight)),
            );
        }
    }
    for (key, devices) in [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            // Version 1 writes 0 for "no limit"; here 0 is refused.
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            out.must("io", "io.max", format!("{}:{} {key}={rate}", device.major(), device.minor()));
        }
    }
    Ok(())
}

/// cpu.shares (2 to 262144) as cpu.weight (1 to 10000), 1024 as 100: the newer formula (CRI-RES-02).
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

/// blkio weight (10 to 1000) as io.weight (1 to 10000): CRI-RES-16.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    fn written(r: &LinuxResources, now: Option<&Now>) -> Vec<String> {
        limits(r, now).unwrap().iter().map(|l| format!("{}={}", l.file, l.value)).collect()
    }

    // CRI-RES-02, CRI-RES-16
    #[test]
    fn weights() {
        let known = [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)];
        assert_eq!(known.map(|(shares, _)| weight_of_shares(shares)), known.map(|(_, weight)| weight));
        assert!(
            (2..2000).all(|s| weight_of_shares(s) <= weight_of_shares(s + 1)),
            "the order of shares is kept"
        );
        assert_eq!([10, 505, 1000].map(io_weight), [1, 5000, 10_000]);
    }

    // CRI-RES-04, CRI-RES-05
    #[test]
    fn quota_and_period() {
        let cpu = |quota: i64, period: u64| {
            let cpu = LinuxCpuBuilder::default().quota(quota).period(period).build().unwrap();
            LinuxResourcesBuilder::default().cpu(cpu).build().unwrap()
        };
        assert_eq!(written(&cpu(5000, 10_000), None), ["cpu.max=5000 10000"]);
        assert_eq!(written(&cpu(-1, 100_000), None), ["cpu.max=max 100000"]);
        assert_eq!(written(&cpu(0, 20_000), None), ["cpu.max=max 20000"]);
        let now = Now { quota: Some("7000".into()), ..Now::default() };
        assert_eq!(written(&cpu(0, 20_000), Some(&now)), ["cpu.max=7000 20000"]);
        assert!(written(&cpu(0, 0), None).is_empty());
    }

    // CRI-RES-06, CRI-RES-07
    #[test]
    fn swap_is_what_memory_and_swap_leaves() {
        let memory = |limit: i64, swap: i64| {
            let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
            LinuxResourcesBuilder::default().memory(memory).build().unwrap()
        };
        assert_eq!(written(&memory(100, 150), None), ["memory.max=100", "memory.swap.max=50"]);
        assert_eq!(written(&memory(100, 100), None), ["memory.max=100", "memory.swap.max=0"]);
        assert_eq!(written(&memory(-1, 0), None), ["memory.max=max", "memory.swap.max=max"]);
        assert_eq!(written(&memory(100, 0), None), ["memory.max=100"]);
    }
}
