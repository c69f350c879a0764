//! Refuses limits that cannot be meant, before any group is made (CRI-RES-*, OCI runtime-spec config-linux.md).
//!
//! After [`check`] the planners of both versions may take the numbers as they are: 0 is "not set", -1 "no limit".

use super::files;
use crate::error::Kind;
use crate::{Error, Result};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};
use std::fmt::Display;
use std::sync::OnceLock;

/// Below this nothing can be executed at all: the kernel would answer with the OOM killer, in our own code. Bytes.
const MEMORY_MIN: i64 = 16 * 1024;
/// Bounds of CFS bandwidth (kernel/sched/core.c): at least 1 ms, at most 1 s. Microseconds.
const CFS_MIN_US: u64 = 1_000;
const CFS_MAX_US: u64 = 1_000_000;

/// # Errors
/// `Invalid`, naming the field, its value and the permitted range.
pub(super) fn check(r: &LinuxResources) -> Result<()> {
    r.cpu().as_ref().map_or(Ok(()), cpu)?;
    r.memory().as_ref().map_or(Ok(()), memory)?;
    r.block_io().as_ref().map_or(Ok(()), block_io)?;
    r.hugepage_limits().as_ref().map_or(Ok(()), |list| hugepages(list))?;
    if let Some(pids) = r.pids() {
        at_least("pids.limit", pids.limit(), -1, "-1 for no limit, 0 for unset, or a number of tasks")?;
    }
    for file in r.unified().iter().flat_map(|u| u.keys()) {
        unified_key(file)?;
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu) -> Result<()> {
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    at_least("cpu.quota", quota, -1, "-1 for no limit, or microseconds per period")?;
    if quota > 0 && (quota as u64) < CFS_MIN_US {
        return Err(invalid("cpu.quota", quota, "the kernel's minimum is 1000 µs"));
    }
    if period != 0 && !(CFS_MIN_US..=CFS_MAX_US).contains(&period) {
        return Err(invalid("cpu.period", period, "the kernel takes 1000 to 1000000 µs"));
    }
    let burst = cpu.burst().unwrap_or(0);
    if quota > 0 && burst > quota as u64 {
        return Err(invalid("cpu.burst", burst, format!("must not exceed the quota of {quota} µs")));
    }
    if let Some(idle) = cpu.idle().filter(|idle| !(0..=1).contains(idle)) {
        return Err(invalid("cpu.idle", idle, "0 or 1"));
    }
    for (field, list, online) in [
        ("cpuset.cpus", cpu.cpus(), "/sys/devices/system/cpu/online"),
        ("cpuset.mems", cpu.mems(), "/sys/devices/system/node/online"),
    ] {
        if let Some(list) = list.as_deref().filter(|l| !l.trim().is_empty()) {
            subset(field, list, online)?;
        }
    }
    Ok(())
}

/// The kernel of version 2 accepts absent cpus without a word, so ours is the only check.
fn subset(field: &str, list: &str, online: &str) -> Result<()> {
    // A kernel without NUMA has no node directory, and one node: 0.
    let have = files::read(online).unwrap_or_else(|_| "0".to_owned());
    let asked = ranges(list).ok_or_else(|| invalid(field, list, "must be a list such as 0-3,7"))?;
    let owned = ranges(&have).unwrap_or_default();
    let absent = |(low, high): &(u32, u32)| !owned.iter().any(|(l, h)| l <= low && high <= h);
    match asked.iter().find(|range| absent(range)) {
        Some(_) => Err(invalid(field, list, format!("this host has {}", have.trim()))),
        None => Ok(()),
    }
}

/// `0-3,7` as ranges; None if it is no such list.
fn ranges(list: &str) -> Option<Vec<(u32, u32)>> {
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        (low <= high).then_some((low, high))
    };
    list.trim().split(',').map(range).collect()
}

fn memory(memory: &LinuxMemory) -> Result<()> {
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    for (field, value) in [
        ("memory.limit", limit),
        ("memory.swap", swap),
        ("memory.reservation", memory.reservation().unwrap_or(0)),
        ("memory.kernelTCP", memory.kernel_tcp().unwrap_or(0)),
    ] {
        at_least(field, value, -1, "-1 for no limit, 0 for unset, or bytes")?;
    }
    if limit > 0 && limit < MEMORY_MIN {
        return Err(invalid(
            "memory.limit",
            limit,
            format!("less than {MEMORY_MIN} bytes cannot run a process"),
        ));
    }
    // CRI-RES-07.
    if swap > 0 && limit == 0 {
        return Err(invalid("memory.swap", swap, "memory+swap needs a memory limit beside it"));
    }
    if swap > 0 && (limit == -1 || swap < limit) {
        return Err(invalid(
            "memory.swap",
            swap,
            format!("it is memory+swap and must not be below memory.limit {limit}"),
        ));
    }
    if let Some(swappiness) = memory.swappiness().filter(|s| *s > 100) {
        return Err(invalid("memory.swappiness", swappiness, "0 to 100"));
    }
    Ok(())
}

fn block_io(io: &LinuxBlockIo) -> Result<()> {
    let devices = io.weight_device().iter().flatten().filter_map(|d| d.weight());
    match io.weight().into_iter().chain(devices).find(|w| *w != 0 && !(10..=1000).contains(w)) {
        Some(weight) => Err(invalid("blockIO.weight", weight, "10 to 1000, or 0 for unset")),
        None => Ok(()),
    }
}

fn hugepages(limits: &[LinuxHugepageLimit]) -> Result<()> {
    for limit in limits {
        let size = limit.page_size();
        let known = page_sizes();
        if !known.contains(size) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(invalid("hugepageLimits.pageSize", size, format!("this host has {known}")));
        }
        at_least("hugepageLimits.limit", limit.limit(), -1, "-1 for no limit, or bytes")?;
    }
    Ok(())
}

/// Page sizes of this host as the spec and the control files write them: `2MB`, `1GB` (base 1024). A kernel's sizes are
/// fixed at boot.
pub(super) fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let size = |name: String| {
            Some(page_size(name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?))
        };
        let mut sizes: Vec<String> =
            entries.filter_map(|e| size(e.file_name().into_string().ok()?)).collect();
        sizes.sort();
        sizes
    })
}

fn page_size(kib: u64) -> String {
    match kib {
        k if k >= 1 << 20 => format!("{}GB", k >> 20),
        k if k >= 1 << 10 => format!("{}MB", k >> 10),
        k => format!("{k}KB"),
    }
}

/// Names of `unified` are control files of this group, and not those that move or end processes.
fn unified_key(file: &str) -> Result<()> {
    let shaped =
        file.split_once('.').is_some_and(|(controller, name)| !controller.is_empty() && !name.is_empty())
            && file.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !shaped {
        return Err(invalid("unified", file, "must be the name of a control file such as memory.high"));
    }
    if file.starts_with("cgroup.") && !file.starts_with("cgroup.max.") {
        return Err(invalid(
            "unified",
            file,
            "is no limit; of cgroup.* only cgroup.max.depth and .descendants are",
        ));
    }
    Ok(())
}

fn at_least(field: &str, value: i64, least: i64, range: &str) -> Result<()> {
    if value < least { Err(invalid(field, value, range)) } else { Ok(()) }
}

/// The refusal of one field.
pub(super) fn invalid(field: &str, value: impl Display, why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, "check resource limits", format!("{field} = {value}")).hint(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(ranges("0-3,7"), Some(vec![(0, 3), (7, 7)]));
        for bad in ["", "a", "3-1", "1,,2", "-1", "1-2-3"] {
            assert_eq!(ranges(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn page_sizes_are_written_as_in_the_control_files() {
        assert_eq!([64, 2048, 1 << 20].map(page_size), ["64KB", "2MB", "1GB"]);
    }

    #[test]
    fn unified_names_are_control_files_of_the_group_itself() {
        for good in ["memory.high", "cpu.weight.nice", "hugetlb.2MB.max", "cgroup.max.depth"] {
            assert!(unified_key(good).is_ok(), "{good}");
        }
        for bad in [
            "../memory.max",
            "x/memory.max",
            "memory",
            ".max",
            "cgroup.procs",
            "cgroup.kill",
            "memory.ma x",
            "",
        ] {
            assert!(unified_key(bad).is_err(), "{bad}");
        }
    }
}
