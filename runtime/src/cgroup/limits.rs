//! What an OCI `linux.resources` means as (controller, file, value) on each cgroup version. Pure.
//!
//! Conversions: OCI runtime-spec config-linux.md; weights by runc's newer formula (CRI-RES-02); swap by CRI-RES-06, 07.

use crate::{Error, Result, error::Kind};
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

/// One value for one control file, in the order it must be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: String,
    pub(crate) value: String,
    /// Absent files are no error (an optional part of a controller: swap accounting, say; CRI-RES-09).
    pub(crate) optional: bool,
}

/// Builds a list of settings.
#[derive(Debug, Default)]
struct Settings(Vec<Setting>);

impl Settings {
    fn must(&mut self, controller: &'static str, file: impl Into<String>, value: &(impl ToString + ?Sized)) {
        self.0.push(Setting { controller, file: file.into(), value: value.to_string(), optional: false });
    }

    fn may(&mut self, controller: &'static str, file: impl Into<String>, value: &(impl ToString + ?Sized)) {
        self.0.push(Setting { controller, file: file.into(), value: value.to_string(), optional: true });
    }
}

/// Values for version 1 control files.
pub(crate) fn v1(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut s = Settings::default();
    if resources.unified().as_ref().is_some_and(|u| !u.is_empty()) {
        return Err(invalid("unified", "is for cgroup version 2; this host runs version 1 (CRI-RES-11)"));
    }
    if let Some(cpu) = resources.cpu() {
        v1_cpu(&mut s, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        v1_memory(&mut s, memory)?;
    }
    if let Some(limit) = pids(resources) {
        s.must("pids", "pids.max", &limit);
    }
    if let Some(io) = resources.block_io() {
        if let Some(weight) = io.weight() {
            s.may("blkio", "blkio.weight", &weight);
        }
        for (file, devices) in [
            ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
            ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
            ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
            ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                s.must("blkio", file, &format!("{}:{} {}", device.major(), device.minor(), device.rate()));
            }
        }
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        s.must("hugetlb", format!("hugetlb.{}.limit_in_bytes", huge.page_size()), &huge.limit());
    }
    Ok(s.0)
}

fn v1_cpu(s: &mut Settings, cpu: &LinuxCpu) -> Result<()> {
    check_cpu(cpu)?;
    if let Some(shares) = cpu.shares().filter(|v| *v != 0) {
        s.must("cpu", "cpu.shares", &shares);
    }
    // The period first: a quota is checked against the period that is set.
    if let Some(period) = cpu.period().filter(|v| *v != 0) {
        s.must("cpu", "cpu.cfs_period_us", &period);
    }
    if let Some(quota) = cpu.quota().filter(|v| *v != 0) {
        s.must("cpu", "cpu.cfs_quota_us", &quota.max(-1));
    }
    if let Some(burst) = cpu.burst() {
        s.must("cpu", "cpu.cfs_burst_us", &burst);
    }
    if let Some(idle) = cpu.idle() {
        s.must("cpu", "cpu.idle", &idle);
    }
    cpusets(s, cpu);
    Ok(())
}

fn v1_memory(s: &mut Settings, memory: &LinuxMemory) -> Result<()> {
    check_memory(memory)?;
    if let Some(limit) = memory.limit().filter(|v| *v != 0) {
        s.must("memory", "memory.limit_in_bytes", &limit.max(-1));
    }
    // An unlimited memory with no word on swap unlimits both (CRI-RES-07).
    let swap = memory.swap().filter(|v| *v != 0).or(memory.limit().filter(|v| *v == -1));
    if let Some(swap) = swap {
        s.may("memory", "memory.memsw.limit_in_bytes", &swap.max(-1));
    }
    if let Some(reservation) = memory.reservation().filter(|v| *v != 0) {
        s.must("memory", "memory.soft_limit_in_bytes", &reservation.max(-1));
    }
    if let Some(swappiness) = memory.swappiness() {
        s.must("memory", "memory.swappiness", &swappiness);
    }
    if memory.disable_oom_killer() == Some(true) {
        s.must("memory", "memory.oom_control", &1);
    }
    Ok(())
}

/// Values for version 2 control files.
pub(crate) fn v2(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut s = Settings::default();
    if let Some(cpu) = resources.cpu() {
        v2_cpu(&mut s, cpu)?;
    }
    if let Some(memory) = resources.memory() {
        v2_memory(&mut s, memory)?;
    }
    if let Some(limit) = pids(resources) {
        s.must("pids", "pids.max", &limit);
    }
    if let Some(io) = resources.block_io() {
        if let Some(weight) = io.weight().filter(|w| *w != 0) {
            // CRI-RES-16.
            let weight = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
            s.may("io", "io.weight", &format!("default {weight}"));
        }
        for (key, devices) in [
            ("rbps", io.throttle_read_bps_device()),
            ("wbps", io.throttle_write_bps_device()),
            ("riops", io.throttle_read_iops_device()),
            ("wiops", io.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                s.must(
                    "io",
                    "io.max",
                    &format!("{}:{} {key}={}", device.major(), device.minor(), device.rate()),
                );
            }
        }
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        s.must("hugetlb", format!("hugetlb.{}.max", huge.page_size()), &huge.limit());
        s.may("hugetlb", format!("hugetlb.{}.rsvd.max", huge.page_size()), &huge.limit());
    }
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') || !file.contains('.') {
            return Err(invalid("unified", format!("{file:?} is not the name of a control file")));
        }
        s.must("unified", file, &value);
    }
    Ok(s.0)
}

fn v2_cpu(s: &mut Settings, cpu: &LinuxCpu) -> Result<()> {
    check_cpu(cpu)?;
    if let Some(idle) = cpu.idle() {
        s.must("cpu", "cpu.idle", &idle);
    }
    if let Some(shares) = cpu.shares().filter(|v| *v != 0) {
        s.must("cpu", "cpu.weight", &weight_of_shares(shares));
    }
    let (quota, period) = (cpu.quota().filter(|v| *v != 0), cpu.period().filter(|v| *v != 0));
    if quota.is_some() || period.is_some() {
        let quota = quota.filter(|q| *q > 0).map_or("max".to_owned(), |q| q.to_string());
        s.must("cpu", "cpu.max", &format!("{quota} {}", period.unwrap_or(100_000)));
    }
    if let Some(burst) = cpu.burst() {
        s.must("cpu", "cpu.max.burst", &burst);
    }
    cpusets(s, cpu);
    Ok(())
}

fn v2_memory(s: &mut Settings, memory: &LinuxMemory) -> Result<()> {
    check_memory(memory)?;
    let or_max = |v: i64| if v < 0 { "max".to_owned() } else { v.to_string() };
    if let Some(limit) = memory.limit().filter(|v| *v != 0) {
        s.must("memory", "memory.max", &or_max(limit));
    }
    match (memory.limit().filter(|v| *v != 0), memory.swap().filter(|v| *v != 0)) {
        (Some(-1), None) | (_, Some(-1)) => s.may("memory", "memory.swap.max", &"max"),
        (Some(limit), Some(swap)) => s.may("memory", "memory.swap.max", &(swap - limit)),
        _ => {}
    }
    if let Some(reservation) = memory.reservation().filter(|v| *v != 0) {
        s.must("memory", "memory.low", &or_max(reservation));
    }
    Ok(())
}

fn cpusets(s: &mut Settings, cpu: &LinuxCpu) {
    if let Some(cpus) = cpu.cpus().as_ref().filter(|v| !v.is_empty()) {
        s.must("cpuset", "cpuset.cpus", &cpus);
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|v| !v.is_empty()) {
        s.must("cpuset", "cpuset.mems", &mems);
    }
}

/// `max` for 0 and below: the spec's "unlimited"; a crate default of 0 must not mean "no process" (CRATES.md).
fn pids(resources: &LinuxResources) -> Option<String> {
    let limit = resources.pids().as_ref()?.limit();
    Some(if limit <= 0 { "max".to_owned() } else { limit.to_string() })
}

/// cpu.shares 2..262144 to cpu.weight 1..10000, 1024 to 100 (CRI-RES-02).
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn check_cpu(cpu: &LinuxCpu) -> Result<()> {
    for (name, list) in [("cpuset cpus", cpu.cpus()), ("cpuset mems", cpu.mems())] {
        let allowed = |c: char| c.is_ascii_digit() || matches!(c, '-' | ',' | ' ' | '\n');
        if let Some(list) = list.as_ref().filter(|l| !l.chars().all(allowed)) {
            return Err(invalid(name, format!("{list:?} is not a list such as 0-3,7")));
        }
    }
    Ok(())
}

fn check_memory(memory: &LinuxMemory) -> Result<()> {
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    if swap > 0 && limit <= 0 {
        return Err(invalid(
            "memory swap",
            format!("{swap} bytes of memory+swap need a memory limit (CRI-RES-07)"),
        ));
    }
    if swap > 0 && swap < limit {
        return Err(invalid(
            "memory swap",
            format!("the swap limit {swap} is memory+swap and cannot be below the memory limit {limit}"),
        ));
    }
    Ok(())
}

pub(crate) fn invalid(what: &str, why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, format!("resources: {what}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    /// CRI-RES-02.
    #[test]
    fn shares_become_weights() {
        let known = [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (1_000_000, 10_000)];
        assert!(known.iter().all(|(shares, weight)| weight_of_shares(*shares) == *weight));
    }

    /// CRI-RES-04, CRI-RES-06.
    #[test]
    fn version_2_values() {
        let cpu =
            LinuxCpuBuilder::default().quota(-1).period(50_000u64).shares(1024u64).build().expect("cpu");
        let memory = LinuxMemoryBuilder::default().limit(100).swap(150).build().expect("memory");
        let resources = LinuxResourcesBuilder::default().cpu(cpu).memory(memory).build().expect("resources");
        let all = v2(&resources).expect("valid");
        let value = |file: &str| all.iter().find(|s| s.file == file).map(|s| s.value.as_str());
        assert_eq!(value("cpu.max"), Some("max 50000"));
        assert_eq!(value("cpu.weight"), Some("100"));
        assert_eq!(value("memory.max"), Some("100"));
        assert_eq!(value("memory.swap.max"), Some("50"));
    }

    /// CRI-RES-07.
    #[test]
    fn swap_below_memory_is_refused_with_both_numbers() {
        let memory = LinuxMemoryBuilder::default().limit(100).swap(50).build().expect("memory");
        let resources = LinuxResourcesBuilder::default().memory(memory).build().expect("resources");
        for result in [v1(&resources), v2(&resources)] {
            let error = result.expect_err("must be refused");
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("50") && error.to_string().contains("100"), "{error}");
        }
    }

    /// CRI-RES-11.
    #[test]
    fn unified_is_refused_on_version_1() {
        let unified = std::collections::HashMap::from([("memory.high".to_owned(), "1".to_owned())]);
        let resources = LinuxResourcesBuilder::default().unified(unified).build().expect("resources");
        assert_eq!(v1(&resources).expect_err("refused").kind(), Kind::Invalid);
        assert!(v2(&resources).is_ok());
    }
}
