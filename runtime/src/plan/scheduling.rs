//! How the kernel is to run a process: scheduling policy, I/O priority, CPUs, memory nodes, execution domain.

use super::{invalid, unsupported};
use crate::Result;
use crate::sys::step::{MemoryPolicy, Schedule};
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, Scheduler,
};

/// All of it; what is absent stays as the parent has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scheduling {
    pub policy: Option<Schedule>,
    /// The word of ioprio_set(2): class and level.
    pub io_priority: Option<u32>,
    /// CPUs of a process that enters a container, as bit masks: before it joins the control group, and after.
    pub first_cpus: Option<Vec<u64>>,
    pub last_cpus: Option<Vec<u64>>,
    pub memory: Option<MemoryPolicy>,
    /// The word of personality(2).
    pub domain: Option<u32>,
}

impl Scheduling {
    /// For a whole container: what its first process and every later one share.
    pub(super) fn of_container(
        personality: Option<&LinuxPersonality>,
        memory: Option<&LinuxMemoryPolicy>,
    ) -> Result<Self> {
        let domain = personality.map(domain).transpose()?;
        Ok(Self { domain, memory: memory.map(memory_policy).transpose()?, ..Self::default() })
    }

    /// Completed by what is said of one process. Affinity is for those that enter, not for the first.
    pub(super) fn with_process(
        self,
        scheduler: Option<&Scheduler>,
        io: Option<&LinuxIOPriority>,
        affinity: Option<&ExecCPUAffinity>,
    ) -> Result<Self> {
        let cpus = |list: Option<&String>| {
            let list = list.filter(|list| !list.is_empty());
            list.map(|list| bits(list, "process.execCPUAffinity", MOST_CPUS)).transpose()
        };
        Ok(Self {
            policy: scheduler.map(schedule).transpose()?,
            io_priority: io.map(io_priority).transpose()?,
            first_cpus: cpus(affinity.and_then(|affinity| affinity.initial().as_ref()))?,
            last_cpus: cpus(affinity.and_then(|affinity| affinity.cpu_affinity_final().as_ref()))?,
            ..self
        })
    }
}

/// CONFIG_NR_CPUS is at most this.
const MOST_CPUS: usize = 8192;
/// MAX_NUMNODES is at most this.
const MOST_NODES: usize = 1024;

/// sched_setattr(2), struct sched_attr.
fn schedule(asked: &Scheduler) -> Result<Schedule> {
    const FIELD: &str = "process.scheduler";
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(unsupported(FIELD, "SCHED_ISO: no Linux kernel has it").hint("use SCHED_BATCH"));
        }
    };
    let (nice, priority) = (asked.nice().unwrap_or(0), asked.priority().unwrap_or(0));
    let real_time = matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR);
    let (runtime, deadline, period) =
        (asked.runtime().unwrap_or(0), asked.deadline().unwrap_or(0), asked.period().unwrap_or(0));
    let name = asked.policy();
    if !(-20..=19).contains(&nice) {
        return Err(invalid(FIELD, format!("nice {nice} is not within -20 and 19")));
    }
    if real_time && !(1..=99).contains(&priority) {
        return Err(invalid(FIELD, format!("{name} needs a priority from 1 to 99, not {priority}")));
    }
    if !real_time && priority != 0 {
        return Err(invalid(FIELD, format!("{name} has no priority; {priority} is given")));
    }
    if policy == libc::SCHED_DEADLINE {
        let period = if period == 0 { deadline } else { period };
        if runtime < 1024 || runtime > deadline || deadline > period {
            let hint = "in nanoseconds; runtime is at least 1024";
            return Err(invalid(FIELD, "SCHED_DEADLINE needs runtime <= deadline <= period").hint(hint));
        }
    } else if runtime != 0 || deadline != 0 || period != 0 {
        return Err(invalid(FIELD, format!("{name} has no runtime, deadline or period")));
    }
    let flags = asked.flags().iter().flatten().fold(0, |flags, flag| flags | schedule_flag(*flag));
    Ok(Schedule {
        policy: policy as u32,
        flags,
        nice,
        priority: priority.unsigned_abs(),
        runtime,
        deadline,
        period,
    })
}

/// linux/sched.h, SCHED_FLAG_*.
fn schedule_flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

/// ioprio_set(2): class above bit 13, level below.
fn io_priority(asked: &LinuxIOPriority) -> Result<u32> {
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(asked.priority()).ok().filter(|level| *level < 8).ok_or_else(|| {
        invalid("process.ioPriority", format!("priority {} is not within 0 and 7", asked.priority()))
    })?;
    Ok(class << 13 | level)
}

/// personality(2).
fn domain(asked: &LinuxPersonality) -> Result<u32> {
    if let Some(flag) = asked.flags().iter().flatten().next() {
        let hint = "OCI defines no flags; leave linux.personality.flags out";
        return Err(unsupported("linux.personality", &format!("flag {flag}")).hint(hint));
    }
    Ok(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0x0,
        LinuxPersonalityDomain::PerLinux32 => 0x8,
    })
}

/// set_mempolicy(2), linux/mempolicy.h.
fn memory_policy(asked: &LinuxMemoryPolicy) -> Result<MemoryPolicy> {
    const FIELD: &str = "linux.memoryPolicy";
    use MemoryPolicyModeType as M;
    let mode = match asked.mode() {
        M::MpolDefault => 0,
        M::MpolPreferred => 1,
        M::MpolBind => 2,
        M::MpolInterleave => 3,
        M::MpolLocal => 4,
        M::MpolPreferredMany => 5,
        M::MpolWeightedInterleave => 6,
    };
    let nodes = asked.nodes().as_ref().filter(|nodes| !nodes.is_empty());
    let nodes = nodes.map_or_else(|| Ok(Vec::new()), |nodes| bits(nodes, FIELD, MOST_NODES))?;
    let name = asked.mode();
    match asked.mode() {
        M::MpolDefault | M::MpolLocal if !nodes.is_empty() => {
            return Err(invalid(FIELD, format!("{name} takes no nodes")));
        }
        M::MpolBind | M::MpolInterleave | M::MpolPreferredMany | M::MpolWeightedInterleave
            if nodes.is_empty() =>
        {
            return Err(invalid(FIELD, format!("{name} needs nodes")));
        }
        _ => {}
    }
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
    };
    let flags = asked.flags().iter().flatten().map(flag).fold(0, |flags, flag| flags | flag);
    if flags & 3 << 14 == 3 << 14 {
        return Err(invalid(FIELD, "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other"));
    }
    Ok(MemoryPolicy { mode: mode | flags, nodes })
}

/// `0-3,7` as a bit mask, low word first.
fn bits(list: &str, field: &str, most: usize) -> Result<Vec<u64>> {
    let bad = |what: &str| invalid(field, format!("{list:?}: {what}"));
    let number = |text: &str| -> Result<usize> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        let number: usize = number.ok_or_else(|| bad("write a list such as 0-3,7"))?;
        if number < most { Ok(number) } else { Err(bad(&format!("{number} is above {}", most - 1))) }
    };
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first.trim())?, number(last.trim())?);
        if first > last {
            return Err(bad("a range must rise"));
        }
        mask.resize(mask.len().max(last / 64 + 1), 0);
        for bit in first..=last {
            mask[bit / 64] |= 1 << (bit % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lists_as_the_kernel_writes_them() {
        let bits = |list| bits(list, "field", 256).map_err(|e| e.to_string());
        assert_eq!(bits("0-3,7"), Ok(vec![0x8f]));
        assert_eq!(bits("64,1"), Ok(vec![2, 1]));
        assert_eq!(bits("0-127"), Ok(vec![u64::MAX, u64::MAX]));
        for wrong in ["", "a", "3-1", "1-", "-1", "1,,2", "256", "+1", "99999999999999999999"] {
            assert!(bits(wrong).unwrap_err().contains("field"), "{wrong}");
        }
    }

    #[test]
    fn a_policy_has_its_own_numbers_and_no_others() {
        let asked = |text: &str| schedule(&serde_json::from_str(text).unwrap()).map_err(|e| e.to_string());
        let fifo =
            asked(r#"{"policy": "SCHED_FIFO", "priority": 10, "flags": ["SCHED_RESET_ON_FORK"]}"#).unwrap();
        assert_eq!((fifo.policy, fifo.priority, fifo.flags), (1, 10, 1));
        let deadline =
            r#"{"policy": "SCHED_DEADLINE", "runtime": 5000000, "deadline": 8000000, "period": 9000000}"#;
        assert_eq!(asked(deadline).unwrap().period, 9_000_000);
        for (text, word) in [
            (r#"{"policy": "SCHED_FIFO"}"#, "1 to 99"),
            (r#"{"policy": "SCHED_OTHER", "priority": 1}"#, "no priority"),
            (r#"{"policy": "SCHED_OTHER", "nice": 20}"#, "nice 20"),
            (r#"{"policy": "SCHED_BATCH", "period": 5}"#, "no runtime"),
            (r#"{"policy": "SCHED_DEADLINE", "runtime": 9000, "deadline": 8000}"#, "runtime <= deadline"),
            (r#"{"policy": "SCHED_ISO"}"#, "no Linux kernel"),
        ] {
            assert!(asked(text).unwrap_err().contains(word), "{text}");
        }
    }
}
