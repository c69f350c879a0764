//! Resources: scalars with one owner each, hugepage limits and unified keys with one each by name.

use super::super::owners::Owners;
use crate::error::Result;
use cri_proto::nri::{Field, HugepageLimit, LinuxCPU, LinuxMemory, LinuxResources};

/// Copies the fields of `$asked` that are set into the same fields of all `$targets`, claiming each.
macro_rules! scalars {
    ($claim:expr, $asked:expr, $targets:expr, $($name:ident = $field:ident),+ $(,)?) => {
        $(if let Some(value) = $asked.$name.as_ref() {
            $claim(Field::$field, "")?;
            for target in $targets.iter_mut() {
                target.$name = Some(value.clone()).into();
            }
        })+
    };
}

/// Merges what one plugin asks for into each of `targets`.
///
/// # Errors
/// Conflict; then nothing of `targets` is to be used.
pub(super) fn merge(
    owners: &mut Owners,
    container: &str,
    plugin: &str,
    asked: &LinuxResources,
    targets: &mut [&mut LinuxResources],
) -> Result<()> {
    let mut claim = |field, key: &str| owners.claim(container, field, key, plugin);
    if let Some(memory) = asked.memory.as_ref() {
        let mut into: Vec<_> = targets.iter_mut().map(|t| t.memory.mut_or_insert_default()).collect();
        merge_memory(&mut claim, memory, &mut into)?;
    }
    if let Some(cpu) = asked.cpu.as_ref() {
        let mut into: Vec<_> = targets.iter_mut().map(|t| t.cpu.mut_or_insert_default()).collect();
        merge_cpu(&mut claim, cpu, &mut into)?;
    }
    scalars!(claim, asked, targets, blockio_class = BlockioClass, rdt_class = RdtClass, pids = PidsLimit);
    for limit in &asked.hugepage_limits {
        claim(Field::HugepageLimits, &limit.page_size)?;
        targets.iter_mut().for_each(|t| set_hugepages(&mut t.hugepage_limits, limit));
    }
    for (key, value) in &asked.unified {
        claim(Field::CgroupsUnified, key)?;
        targets.iter_mut().for_each(|t| {
            t.unified.insert(key.clone(), value.clone());
        });
    }
    // Rules add up; nobody owns them.
    targets.iter_mut().for_each(|t| t.devices.extend(asked.devices.iter().cloned()));
    Ok(())
}

fn merge_memory(
    claim: &mut impl FnMut(Field, &str) -> Result<()>,
    asked: &LinuxMemory,
    into: &mut [&mut LinuxMemory],
) -> Result<()> {
    scalars!(
        claim,
        asked,
        into,
        limit = MemLimit,
        reservation = MemReservation,
        swap = MemSwapLimit,
        kernel = MemKernelLimit,
        kernel_tcp = MemTCPLimit,
        swappiness = MemSwappiness,
        disable_oom_killer = MemDisableOomKiller,
        use_hierarchy = MemUseHierarchy,
    );
    Ok(())
}

fn merge_cpu(
    claim: &mut impl FnMut(Field, &str) -> Result<()>,
    asked: &LinuxCPU,
    into: &mut [&mut LinuxCPU],
) -> Result<()> {
    scalars!(
        claim,
        asked,
        into,
        shares = CPUShares,
        quota = CPUQuota,
        period = CPUPeriod,
        realtime_runtime = CPURealtimeRuntime,
        realtime_period = CPURealtimePeriod,
    );
    if !asked.cpus.is_empty() {
        claim(Field::CPUSetCPUs, "")?;
        into.iter_mut().for_each(|t| t.cpus.clone_from(&asked.cpus));
    }
    if !asked.mems.is_empty() {
        claim(Field::CPUSetMems, "")?;
        into.iter_mut().for_each(|t| t.mems.clone_from(&asked.mems));
    }
    Ok(())
}

fn set_hugepages(limits: &mut Vec<HugepageLimit>, limit: &HugepageLimit) {
    limits.retain(|old| old.page_size != limit.page_size);
    limits.push(limit.clone());
}
