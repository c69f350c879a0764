//! `linux.resources` from LinuxContainerResources (CRI-RES-*).

use crate::error::{Error, Result};
use cri_proto::v1;
use serde_json::{Map, Value, json};

/// Limits only: device rules are added by the spec's own part. Zero means "not asked for".
pub(crate) fn build(asked: &v1::LinuxContainerResources) -> Result<Value> {
    check(asked)?;
    let mut cpu = Map::new();
    let mut number = |key: &str, value: i64| {
        if value != 0 {
            cpu.insert(key.into(), value.into());
        }
    };
    number("shares", asked.cpu_shares);
    number("quota", asked.cpu_quota);
    number("period", asked.cpu_period);
    for (key, list) in [("cpus", &asked.cpuset_cpus), ("mems", &asked.cpuset_mems)] {
        if !list.is_empty() {
            cpu.insert(key.into(), list.as_str().into());
        }
    }
    let mut resources = json!({"cpu": cpu});
    if asked.memory_limit_in_bytes != 0 || asked.memory_swap_limit_in_bytes != 0 {
        resources["memory"] = memory(asked);
    }
    if !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.iter();
        let limits: Vec<_> = limits.map(|h| json!({"pageSize": h.page_size, "limit": h.limit})).collect();
        resources["hugepageLimits"] = limits.into();
    }
    if !asked.unified.is_empty() {
        resources["unified"] = json!(asked.unified);
    }
    Ok(resources)
}

/// Without a word on swap a limited container gets none: swap = memory (CRI-RES-08).
fn memory(asked: &v1::LinuxContainerResources) -> Value {
    let mut memory = Map::new();
    let limit = asked.memory_limit_in_bytes;
    if limit != 0 {
        memory.insert("limit".into(), limit.into());
    }
    let swap = if asked.memory_swap_limit_in_bytes == 0 { limit } else { asked.memory_swap_limit_in_bytes };
    if swap != 0 {
        memory.insert("swap".into(), swap.into());
    }
    memory.into()
}

fn check(asked: &v1::LinuxContainerResources) -> Result<()> {
    for (name, value, least) in [
        ("cpu_shares", asked.cpu_shares, 0),
        ("cpu_period", asked.cpu_period, 0),
        ("cpu_quota", asked.cpu_quota, -1),
        ("memory_limit_in_bytes", asked.memory_limit_in_bytes, -1),
        ("memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes, -1),
    ] {
        if value < least {
            return Err(Error::invalid(format!("resources.{name} = {value}: the least possible value is {least}")));
        }
    }
    let (limit, swap) = (asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    if swap > 0 && swap < limit {
        return Err(Error::invalid(format!(
            "resources.memory_swap_limit_in_bytes = {swap} is memory+swap and cannot be below the memory limit {limit}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-RES-01, CRI-RES-07, CRI-RES-08.
    #[test]
    fn zero_is_absent_and_swap_equals_memory() {
        assert_eq!(build(&Default::default()), Ok(json!({"cpu": {}})));
        let asked = v1::LinuxContainerResources { memory_limit_in_bytes: 5, cpu_quota: -1, ..Default::default() };
        assert_eq!(build(&asked), Ok(json!({"cpu": {"quota": -1}, "memory": {"limit": 5, "swap": 5}})));
        let bad = v1::LinuxContainerResources {
            memory_limit_in_bytes: 5,
            memory_swap_limit_in_bytes: 4,
            ..Default::default()
        };
        assert!(build(&bad).is_err_and(|e| e.to_string().contains("swap")));
        let bad = v1::LinuxContainerResources { cpu_shares: -3, ..Default::default() };
        assert!(build(&bad).is_err());
    }
}
