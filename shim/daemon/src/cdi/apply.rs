//! Edits onto an OCI spec, as JSON (CDI-07 to CDI-11).

use super::file::{DeviceNode, Edits, Hook, IntelRdt, Mount};
use crate::error::{Error, Result};
use crate::spec::clean;
use nix::sys::stat::{SFlag, lstat, major, minor};
use serde_json::{Value, json};

/// Changes `spec` by all edits in order. Looks at the host's device nodes.
///
/// # Errors
/// InvalidArgument naming a device node that the host does not have as the file says.
pub(crate) fn apply(spec: &mut Value, all: &[Edits]) -> Result<()> {
    for edits in all {
        edits.env.iter().for_each(|variable| set_env(spec, variable));
        for node in &edits.device_nodes {
            add_device(spec, node)?;
        }
        edits.mounts.iter().for_each(|mount| add_mount(spec, mount));
        edits.hooks.iter().for_each(|hook| add_hook(spec, hook));
        for device in &edits.net_devices {
            spec["linux"]["netDevices"][&device.host_interface_name] = json!({"name": device.name});
        }
        if let Some(rdt) = &edits.intel_rdt {
            spec["linux"]["intelRdt"] = intel_rdt(rdt);
        }
        // 0 would be root's group by mistake.
        edits.additional_gids.iter().filter(|gid| **gid != 0).for_each(|gid| add_group(spec, *gid));
    }
    sort_mounts(spec);
    Ok(())
}

fn set_env(spec: &mut Value, variable: &str) {
    let key = variable.split('=').next().unwrap_or_default();
    let env = list(&mut spec["process"]["env"]);
    let is_same = |old: &Value| old.as_str().is_some_and(|old| old.split('=').next() == Some(key));
    env.retain(|old| !is_same(old));
    env.push(variable.into());
}

fn add_device(spec: &mut Value, node: &DeviceNode) -> Result<()> {
    let fail = |why: String| Error::invalid(format!("CDI device node {}: {why}", node.path));
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    // "u" is another word for "c".
    let asked = if node.r#type == "u" { "c" } else { node.r#type.as_str() };
    let mut device = json!({"path": node.path, "type": asked, "major": node.major, "minor": node.minor});
    let mut mode = node.file_mode;
    if asked.is_empty() || (node.major == 0 && asked != "p") {
        let stat = lstat(host.as_str()).map_err(|e| fail(format!("{host}: {e}")))?;
        let found = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFCHR => "c",
            SFlag::S_IFBLK => "b",
            SFlag::S_IFIFO => "p",
            _ => return Err(fail(format!("{host} is no device"))),
        };
        if !asked.is_empty() && asked != found {
            return Err(fail(format!("{host} is of type {found}, the file says {asked}")));
        }
        device["type"] = found.into();
        if node.major == 0 && found != "p" {
            (device["major"], device["minor"]) = (major(stat.st_rdev).into(), minor(stat.st_rdev).into());
        }
        mode = mode.or(Some(stat.st_mode & 0o7777));
    }
    if let Some(mode) = mode {
        device["fileMode"] = mode.into();
    }
    // A container that does not run as root could not open root's device (CDI-09).
    for (key, own) in [("uid", node.uid), ("gid", node.gid)] {
        let of_user = spec["process"]["user"][key].as_u64().filter(|id| *id != 0);
        if let Some(id) = own.map(u64::from).or(of_user) {
            device[key] = id.into();
        }
    }
    allow(spec, &device, &node.permissions);
    let devices = list(&mut spec["linux"]["devices"]);
    devices.retain(|old| old["path"] != device["path"]);
    devices.push(device);
    Ok(())
}

/// CDI-10.
fn allow(spec: &mut Value, device: &Value, permissions: &str) {
    if permissions == "none" || !matches!(device["type"].as_str(), Some("b" | "c")) {
        return;
    }
    let access = if permissions.is_empty() { "rwm" } else { permissions };
    let rule = json!({"allow": true, "type": device["type"], "major": device["major"], "minor": device["minor"], "access": access});
    list(&mut spec["linux"]["resources"]["devices"]).push(rule);
}

/// Bind mounts unless the file says otherwise.
fn add_mount(spec: &mut Value, mount: &Mount) {
    let mut options = mount.options.clone();
    let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
    if matches!(kind, "bind" | "none") && !options.iter().any(|o| o == "bind" || o == "rbind") {
        options.insert(0, "rbind".into());
    }
    let target = clean(&mount.container_path);
    let mounts = list(&mut spec["mounts"]);
    mounts.retain(|old| old["destination"].as_str().map(clean).as_ref() != Some(&target));
    mounts.push(json!({"destination": target, "type": kind, "source": mount.host_path, "options": options}));
}

/// Parents first; the order of equals stays (CDI-11).
fn sort_mounts(spec: &mut Value) {
    list(&mut spec["mounts"])
        .sort_by_key(|m| clean(m["destination"].as_str().unwrap_or_default()).components().count());
}

fn add_hook(spec: &mut Value, hook: &Hook) {
    let mut value = json!({"path": hook.path});
    if !hook.args.is_empty() {
        value["args"] = json!(hook.args);
    }
    if !hook.env.is_empty() {
        value["env"] = json!(hook.env);
    }
    if let Some(timeout) = hook.timeout {
        value["timeout"] = timeout.into();
    }
    list(&mut spec["hooks"][&hook.hook_name]).push(value);
}

fn intel_rdt(rdt: &IntelRdt) -> Value {
    let mut value = json!({});
    for (key, text) in [
        ("closID", &rdt.clos_id),
        ("l3CacheSchema", &rdt.l3_cache_schema),
        ("memBwSchema", &rdt.mem_bw_schema),
    ] {
        if !text.is_empty() {
            value[key] = text.as_str().into();
        }
    }
    if !rdt.schemata.is_empty() {
        value["schemata"] = json!(rdt.schemata);
    }
    for (key, on) in [
        ("enableCMT", rdt.enable_cmt),
        ("enableMBM", rdt.enable_mbm),
        ("enableMonitoring", rdt.enable_monitoring),
    ] {
        if on {
            value[key] = true.into();
        }
    }
    value
}

fn add_group(spec: &mut Value, gid: u32) {
    let groups = list(&mut spec["process"]["user"]["additionalGids"]);
    if !groups.contains(&gid.into()) {
        groups.push(gid.into());
    }
}

/// The list at a place of the spec, made where there is none.
fn list(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        // Just made one.
        _ => unreachable!("an array"),
    }
}
