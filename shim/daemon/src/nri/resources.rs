//! Resources between three languages: CRI's (zero is "not set"), OCI's JSON, and NRI's (absent is "not set").
//!
//! What plugins set of a container is kept as an overlay, OCI's JSON with those keys only, which goes over what CRI asked
//! for, whenever limits are written. A later CRI update of the same key takes it out of the overlay.

use super::container::each;
use crate::error::{Error, Result};
use cri_proto::{nri, v1};
use protobuf::MessageField;
use serde_json::{Map, Value, json};

fn int64(value: i64) -> nri::OptionalInt64 {
    nri::OptionalInt64 { value, ..Default::default() }
}

fn uint64(value: u64) -> nri::OptionalUInt64 {
    nri::OptionalUInt64 { value, ..Default::default() }
}

pub(crate) fn from_cri(asked: &v1::LinuxContainerResources) -> nri::LinuxResources {
    let signed = |value: i64| MessageField::from((value != 0).then(|| int64(value)));
    let unsigned =
        |value: i64| MessageField::from(u64::try_from(value).ok().filter(|value| *value != 0).map(uint64));
    let pages = |limit: &v1::HugepageLimit| nri::HugepageLimit {
        page_size: limit.page_size.clone(),
        limit: limit.limit,
        ..Default::default()
    };
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: signed(asked.memory_limit_in_bytes),
            swap: signed(asked.memory_swap_limit_in_bytes),
            ..Default::default()
        })
        .into(),
        cpu: Some(nri::LinuxCPU {
            shares: unsigned(asked.cpu_shares),
            quota: signed(asked.cpu_quota),
            period: unsigned(asked.cpu_period),
            cpus: asked.cpuset_cpus.clone(),
            mems: asked.cpuset_mems.clone(),
            ..Default::default()
        })
        .into(),
        hugepage_limits: asked.hugepage_limits.iter().map(pages).collect(),
        unified: asked.unified.clone(),
        ..Default::default()
    }
}

/// `linux.resources` of an OCI spec.
pub(super) fn from_spec(spec: &Value) -> nri::LinuxResources {
    let signed = |value: &Value| MessageField::from(value.as_i64().map(int64));
    let unsigned = |value: &Value| MessageField::from(value.as_u64().map(uint64));
    let truth = |value: &Value| {
        MessageField::from(value.as_bool().map(|value| nri::OptionalBool { value, ..Default::default() }))
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (memory, cpu) = (&spec["memory"], &spec["cpu"]);
    let pages = |value: &Value| nri::HugepageLimit {
        page_size: text(&value["pageSize"]),
        limit: value["limit"].as_u64().unwrap_or_default(),
        ..Default::default()
    };
    let rule = |value: &Value| nri::LinuxDeviceCgroup {
        allow: value["allow"].as_bool().unwrap_or_default(),
        type_: text(&value["type"]),
        major: signed(&value["major"]),
        minor: signed(&value["minor"]),
        access: text(&value["access"]),
        ..Default::default()
    };
    let unified = spec["unified"].as_object().into_iter().flatten();
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: signed(&memory["limit"]),
            reservation: signed(&memory["reservation"]),
            swap: signed(&memory["swap"]),
            kernel: signed(&memory["kernel"]),
            kernel_tcp: signed(&memory["kernelTCP"]),
            swappiness: unsigned(&memory["swappiness"]),
            disable_oom_killer: truth(&memory["disableOOMKiller"]),
            use_hierarchy: truth(&memory["useHierarchy"]),
            ..Default::default()
        })
        .into(),
        cpu: Some(nri::LinuxCPU {
            shares: unsigned(&cpu["shares"]),
            quota: signed(&cpu["quota"]),
            period: unsigned(&cpu["period"]),
            realtime_runtime: signed(&cpu["realtimeRuntime"]),
            realtime_period: unsigned(&cpu["realtimePeriod"]),
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
            ..Default::default()
        })
        .into(),
        hugepage_limits: each(&spec["hugepageLimits"], pages),
        unified: unified.map(|(k, v)| (k.clone(), text(v))).collect(),
        devices: each(&spec["devices"], rule),
        pids: spec["pids"]["limit"]
            .as_i64()
            .map(|limit| nri::LinuxPids { limit, ..Default::default() })
            .into(),
        ..Default::default()
    }
}

/// What a plugin sets, as OCI's JSON; device rules and classes are not part of it.
///
/// # Errors
/// InvalidArgument for a class of block devices: this runtime has no table of those.
pub(crate) fn overlay(asked: &nri::LinuxResources) -> Result<Value> {
    if let Some(class) = asked.blockio_class.as_ref().filter(|class| !class.value.is_empty()) {
        return Err(Error::invalid(format!(
            "an NRI plugin asks for block I/O class {:?}; this node has no classes: set cgroup v2 keys (io.max, io.weight) in `unified`",
            class.value
        )));
    }
    let mut all = Map::new();
    for (key, part) in [("memory", memory(&asked.memory)), ("cpu", cpu(&asked.cpu))] {
        if !part.is_empty() {
            all.insert(key.into(), part.into());
        }
    }
    if !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.iter().map(|l| json!({"pageSize": l.page_size, "limit": l.limit}));
        all.insert("hugepageLimits".into(), limits.collect());
    }
    if !asked.unified.is_empty() {
        all.insert("unified".into(), json!(asked.unified));
    }
    if let Some(pids) = asked.pids.as_ref() {
        all.insert("pids".into(), json!({"limit": pids.limit}));
    }
    Ok(all.into())
}

/// A limit without a word on swap means no swap, as it does in a request (CRI-RES-08).
fn memory(asked: &nri::LinuxMemory) -> Map<String, Value> {
    let mut memory = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            memory.insert(key.into(), value);
        }
    };
    let signed = |value: &MessageField<nri::OptionalInt64>| value.as_ref().map(|v| v.value.into());
    let truth = |value: &MessageField<nri::OptionalBool>| value.as_ref().map(|v| v.value.into());
    set("limit", signed(&asked.limit));
    set("swap", signed(&asked.swap).or_else(|| signed(&asked.limit)));
    set("reservation", signed(&asked.reservation));
    set("kernel", signed(&asked.kernel));
    set("kernelTCP", signed(&asked.kernel_tcp));
    set("swappiness", asked.swappiness.as_ref().map(|v| v.value.into()));
    set("disableOOMKiller", truth(&asked.disable_oom_killer));
    set("useHierarchy", truth(&asked.use_hierarchy));
    memory
}

fn cpu(asked: &nri::LinuxCPU) -> Map<String, Value> {
    let mut cpu = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            cpu.insert(key.into(), value);
        }
    };
    set("shares", asked.shares.as_ref().map(|v| v.value.into()));
    set("quota", asked.quota.as_ref().map(|v| v.value.into()));
    set("period", asked.period.as_ref().map(|v| v.value.into()));
    set("realtimeRuntime", asked.realtime_runtime.as_ref().map(|v| v.value.into()));
    set("realtimePeriod", asked.realtime_period.as_ref().map(|v| v.value.into()));
    for (key, list) in [("cpus", &asked.cpus), ("mems", &asked.mems)] {
        set(key, (!list.is_empty()).then(|| list.as_str().into()));
    }
    cpu
}

/// Puts `over` over `base`: objects key by key, hugepage limits by page size, the rest as a whole.
pub(crate) fn put_over(base: &mut Value, over: &Value) {
    let Some(over) = over.as_object() else { return };
    if !base.is_object() {
        *base = json!({});
    }
    for (key, value) in over {
        match (key.as_str(), value) {
            ("hugepageLimits", Value::Array(limits)) => {
                let all = crate::cdi::list(&mut base[key]);
                for limit in limits {
                    all.retain(|old| old["pageSize"] != limit["pageSize"]);
                    all.push(limit.clone());
                }
            }
            (_, Value::Object(_)) => put_over(&mut base[key], value),
            _ => base[key] = value.clone(),
        }
    }
}

/// Takes the keys that `newer` sets out of an overlay: who comes last counts.
pub(crate) fn take_out(overlay: &mut Value, newer: &Value) {
    let (Some(own), Some(newer)) = (overlay.as_object_mut(), newer.as_object()) else { return };
    for (key, value) in newer {
        match (own.get_mut(key), value) {
            (Some(Value::Array(limits)), Value::Array(newer)) => {
                limits.retain(|old| !newer.iter().any(|new| new["pageSize"] == old["pageSize"]));
            }
            (Some(own @ Value::Object(_)), Value::Object(_)) => take_out(own, value),
            (Some(_), _) => {
                own.remove(key);
            }
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> nri::LinuxResources {
        let mut asked = from_cri(&v1::LinuxContainerResources {
            cpuset_cpus: "0".into(),
            memory_limit_in_bytes: 64,
            ..Default::default()
        });
        asked.pids = Some(nri::LinuxPids { limit: 9, ..Default::default() }).into();
        asked
    }

    /// NRI-36.
    #[test]
    fn zero_is_absent() {
        let message = from_cri(&v1::LinuxContainerResources { cpu_quota: -1, ..Default::default() });
        assert!(message.cpu.shares.is_none() && message.memory.limit.is_none());
        assert_eq!(message.cpu.quota.value, -1);
        assert_eq!(overlay(&nri::LinuxResources::new()).expect("nothing"), json!({}));
    }

    #[test]
    fn an_overlay_goes_over_and_is_taken_out_again() {
        let mut over = overlay(&asked()).expect("overlay");
        assert_eq!(
            over,
            json!({"cpu": {"cpus": "0"}, "memory": {"limit": 64, "swap": 64}, "pids": {"limit": 9}})
        );
        let mut base =
            json!({"cpu": {"shares": 2, "cpus": "0-1"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}]});
        put_over(&mut base, &over);
        put_over(
            &mut base,
            &json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 2}, {"pageSize": "1GB", "limit": 3}]}),
        );
        assert_eq!(
            base,
            json!({
                "cpu": {"shares": 2, "cpus": "0"}, "memory": {"limit": 64, "swap": 64}, "pids": {"limit": 9},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 2}, {"pageSize": "1GB", "limit": 3}]
            })
        );
        take_out(&mut over, &json!({"memory": {"limit": 128, "swap": 128}, "cpu": {}}));
        assert_eq!(over, json!({"cpu": {"cpus": "0"}, "memory": {}, "pids": {"limit": 9}}));
    }

    #[test]
    fn a_spec_and_back() {
        let spec = json!({"memory": {"limit": 64, "swap": 64, "swappiness": 3}, "cpu": {"quota": -1, "cpus": "1"},
            "unified": {"io.weight": "5"}, "pids": {"limit": 7}});
        assert_eq!(overlay(&from_spec(&spec)).expect("overlay"), spec);
    }

    #[test]
    fn classes_are_refused_with_what_to_do() {
        let class = nri::OptionalString { value: "slow".into(), ..Default::default() };
        let asked = nri::LinuxResources { blockio_class: Some(class).into(), ..Default::default() };
        assert!(overlay(&asked).is_err_and(|e| e.to_string().contains("unified")));
    }
}
