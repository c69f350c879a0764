//! An adjustment onto an OCI spec, as JSON, after everything else of ours (NRI-21, NRI-22, NRI-25).

use super::{overlay, put_over};
use crate::cdi::{self, Edits, list, sort_mounts};
use crate::error::Result;
use crate::spec::clean;
use cri_proto::nri;
use protobuf::{Enum, EnumOrUnknown};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Changes `spec`; `cdi` are the edits of the CDI devices that the adjustment names. Answers the overlay of its resources.
///
/// # Errors
/// InvalidArgument that names what cannot be.
pub(crate) fn apply(spec: &mut Value, adjust: &nri::ContainerAdjustment, edits: &[Edits]) -> Result<Value> {
    pairs(spec, "annotations", &adjust.annotations, |v| v.as_str().into());
    env(list(&mut spec["process"]["env"]), &adjust.env);
    if !adjust.args.is_empty() {
        spec["process"]["args"] = json!(adjust.args);
    }
    hooks(spec, &adjust.hooks);
    if !edits.is_empty() {
        cdi::apply(spec, edits)?;
    }
    for limit in &adjust.rlimits {
        let limits = list(&mut spec["process"]["rlimits"]);
        limits.retain(|old| old["type"] != limit.type_.as_str());
        limits.push(json!({"type": limit.type_, "hard": limit.hard, "soft": limit.soft}));
    }
    let over = linux(spec, &adjust.linux)?;
    mounts(spec, &adjust.mounts);
    Ok(over)
}

/// The key of an item that is to go.
fn removal(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// Changes the pairs below `parent[name]`; that is not made where nothing is asked.
fn pairs<V>(parent: &mut Value, name: &str, asked: &HashMap<String, V>, value: impl Fn(&V) -> Value) {
    if asked.is_empty() {
        return;
    }
    let object = &mut parent[name];
    if !object.is_object() {
        *object = json!({});
    }
    let Some(object) = object.as_object_mut() else { return };
    for gone in asked.keys().filter_map(|k| removal(k)) {
        object.remove(gone);
    }
    for (key, v) in asked.iter().filter(|(k, _)| removal(k).is_none()) {
        object.insert(key.clone(), value(v));
    }
}

/// A changed variable keeps its place.
fn env(env: &mut Vec<Value>, asked: &[nri::KeyValue]) {
    let is = |old: &Value, key: &str| old.as_str().is_some_and(|old| old.split('=').next() == Some(key));
    for gone in asked.iter().filter_map(|v| removal(&v.key)) {
        if !asked.iter().any(|v| v.key == gone) {
            env.retain(|old| !is(old, gone));
        }
    }
    for variable in asked.iter().filter(|v| removal(&v.key).is_none()) {
        let text: Value = format!("{}={}", variable.key, variable.value).into();
        match env.iter_mut().find(|old| is(old, &variable.key)) {
            Some(old) => *old = text,
            None => env.push(text),
        }
    }
}

fn hooks(spec: &mut Value, asked: &nri::Hooks) {
    for (kind, hooks) in [
        ("prestart", &asked.prestart),
        ("createRuntime", &asked.create_runtime),
        ("createContainer", &asked.create_container),
        ("startContainer", &asked.start_container),
        ("poststart", &asked.poststart),
        ("poststop", &asked.poststop),
    ] {
        for hook in hooks {
            let mut value = json!({"path": hook.path});
            if !hook.args.is_empty() {
                value["args"] = json!(hook.args);
            }
            if !hook.env.is_empty() {
                value["env"] = json!(hook.env);
            }
            if let Some(timeout) = hook.timeout.as_ref() {
                value["timeout"] = timeout.value.into();
            }
            list(&mut spec["hooks"][kind]).push(value);
        }
    }
}

fn linux(spec: &mut Value, asked: &nri::LinuxContainerAdjustment) -> Result<Value> {
    for device in &asked.devices {
        set_device(&mut spec["linux"], device);
    }
    for namespace in &asked.namespaces {
        let kind = removal(&namespace.type_).unwrap_or(&namespace.type_);
        let namespaces = list(&mut spec["linux"]["namespaces"]);
        namespaces.retain(|old| old["type"] != kind);
        if removal(&namespace.type_).is_none() {
            let mut value = json!({"type": namespace.type_});
            if !namespace.path.is_empty() {
                value["path"] = namespace.path.as_str().into();
            }
            namespaces.push(value);
        }
    }
    pairs(&mut spec["linux"], "sysctl", &asked.sysctl, |v| v.as_str().into());
    pairs(&mut spec["linux"], "netDevices", &asked.net_devices, |d| {
        if d.name.is_empty() { json!({}) } else { json!({"name": d.name}) }
    });
    if !asked.cgroups_path.is_empty() {
        spec["linux"]["cgroupsPath"] = asked.cgroups_path.as_str().into();
    }
    if let Some(score) = asked.oom_score_adj.as_ref() {
        spec["process"]["oomScoreAdj"] = score.value.into();
    }
    if let Some(policy) = asked.seccomp_policy.as_ref() {
        spec["linux"]["seccomp"] = seccomp(policy);
    }
    scheduling(&mut spec["process"], asked);
    if let Some(policy) = asked.memory_policy.as_ref() {
        let flags: Vec<_> = policy.flags.iter().map(word).collect();
        spec["linux"]["memoryPolicy"] =
            json!({"mode": word(&policy.mode), "nodes": policy.nodes, "flags": flags});
    }
    rdt(&mut spec["linux"], asked);
    let over = overlay(&asked.resources)?;
    put_over(&mut spec["linux"]["resources"], &over);
    let rules = asked.resources.devices.iter().map(rule);
    list(&mut spec["linux"]["resources"]["devices"]).extend(rules);
    Ok(over)
}

/// The protocol's names are the kernel's. An unknown number is the first name, which says nothing.
fn word<E: Enum + std::fmt::Debug>(value: &EnumOrUnknown<E>) -> String {
    format!("{:?}", value.enum_value_or_default())
}

fn set_device(linux: &mut Value, device: &nri::LinuxDevice) {
    let path = removal(&device.path).unwrap_or(&device.path);
    let devices = list(&mut linux["devices"]);
    devices.retain(|old| old["path"] != path);
    if removal(&device.path).is_some() {
        return;
    }
    let mut value =
        json!({"path": device.path, "type": device.type_, "major": device.major, "minor": device.minor});
    if let Some(mode) = device.file_mode.as_ref() {
        value["fileMode"] = mode.value.into();
    }
    for (key, id) in [("uid", &device.uid), ("gid", &device.gid)] {
        if let Some(id) = id.as_ref() {
            value[key] = id.value.into();
        }
    }
    devices.push(value);
    let access = if device.type_ == "b" { "rwm" } else { "rw" };
    let allow = json!({"allow": true, "type": device.type_, "major": device.major, "minor": device.minor, "access": access});
    list(&mut linux["resources"]["devices"]).push(allow);
}

fn rule(rule: &nri::LinuxDeviceCgroup) -> Value {
    let mut value = json!({"allow": rule.allow, "access": rule.access});
    if !rule.type_.is_empty() {
        value["type"] = rule.type_.as_str().into();
    }
    for (key, number) in [("major", &rule.major), ("minor", &rule.minor)] {
        if let Some(number) = number.as_ref() {
            value[key] = number.value.into();
        }
    }
    value
}

fn seccomp(policy: &nri::LinuxSeccomp) -> Value {
    let arg = |a: &nri::LinuxSeccompArg| json!({"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op});
    let rules = policy.syscalls.iter().map(|rule| {
        let mut value = json!({"names": rule.names, "action": rule.action});
        if let Some(errno) = rule.errno_ret.as_ref() {
            value["errnoRet"] = errno.value.into();
        }
        if !rule.args.is_empty() {
            value["args"] = rule.args.iter().map(arg).collect();
        }
        value
    });
    let mut value = json!({"defaultAction": policy.default_action, "syscalls": rules.collect::<Vec<_>>()});
    if let Some(errno) = policy.default_errno.as_ref() {
        value["defaultErrnoRet"] = errno.value.into();
    }
    for (key, names) in [("architectures", &policy.architectures), ("flags", &policy.flags)] {
        if !names.is_empty() {
            value[key] = json!(names);
        }
    }
    for (key, text) in
        [("listenerPath", &policy.listener_path), ("listenerMetadata", &policy.listener_metadata)]
    {
        if !text.is_empty() {
            value[key] = text.as_str().into();
        }
    }
    value
}

/// NONE takes the field away.
fn scheduling(process: &mut Value, asked: &nri::LinuxContainerAdjustment) {
    let mut set = |key: &str, value: Option<Value>| match (value, process.as_object_mut()) {
        (Some(value), Some(process)) => {
            process.insert(key.into(), value);
        }
        (None, Some(process)) => {
            process.remove(key);
        }
        (_, None) => {}
    };
    if let Some(priority) = asked.io_priority.as_ref() {
        let class = priority.class.enum_value_or_default();
        let value = json!({"class": word(&priority.class), "priority": priority.priority});
        set("ioPriority", (class != nri::IOPrioClass::IOPRIO_CLASS_NONE).then_some(value));
    }
    if let Some(scheduler) = asked.scheduler.as_ref() {
        let policy = scheduler.policy.enum_value_or_default();
        let flags: Vec<_> = scheduler.flags.iter().map(word).collect();
        let value = json!({
            "policy": word(&scheduler.policy), "nice": scheduler.nice, "priority": scheduler.priority, "flags": flags,
            "runtime": scheduler.runtime, "deadline": scheduler.deadline, "period": scheduler.period,
        });
        set("scheduler", (policy != nri::LinuxSchedulerPolicy::SCHED_NONE).then_some(value));
    }
}

/// The class of the resources, then single fields over it.
fn rdt(linux: &mut Value, asked: &nri::LinuxContainerAdjustment) {
    let class = asked.resources.rdt_class.as_ref();
    let Some(linux) = linux.as_object_mut() else { return };
    match class.map(|class| class.value.as_str()) {
        Some("") => drop(linux.remove("intelRdt")),
        Some(class) => drop(linux.insert("intelRdt".into(), json!({"closID": class}))),
        None => {}
    }
    let Some(rdt) = asked.rdt.as_ref() else { return };
    if rdt.remove {
        linux.remove("intelRdt");
    }
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            linux.entry("intelRdt").or_insert_with(|| json!({}))[key] = value;
        }
    };
    set("closID", rdt.clos_id.as_ref().map(|v| v.value.as_str().into()));
    set("schemata", rdt.schemata.as_ref().map(|v| json!(v.value)));
    set("enableMonitoring", rdt.enable_monitoring.as_ref().map(|v| v.value.into()));
}

/// A mount takes the place of one at the same destination. One that propagates needs a root that lets it.
fn mounts(spec: &mut Value, asked: &[nri::Mount]) {
    if asked.is_empty() {
        return;
    }
    for mount in asked {
        let target = clean(removal(&mount.destination).unwrap_or(&mount.destination));
        let mounts = list(&mut spec["mounts"]);
        mounts.retain(|old| old["destination"].as_str().map(clean).as_ref() != Some(&target));
        if removal(&mount.destination).is_some() {
            continue;
        }
        mounts.push(
            json!({"destination": target, "type": mount.type_, "source": mount.source, "options": mount.options}),
        );
        let has = |names: [&str; 2]| mount.options.iter().any(|o| names.contains(&o.as_str()));
        let own = spec["linux"]["rootfsPropagation"].as_str().unwrap_or_default();
        if has(["rshared", "shared"]) {
            spec["linux"]["rootfsPropagation"] = "rshared".into();
        } else if has(["rslave", "slave"]) && !matches!(own, "rshared" | "rslave") {
            spec["linux"]["rootfsPropagation"] = "rslave".into();
        }
    }
    sort_mounts(spec);
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
