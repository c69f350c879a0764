//! Device nodes and their control group rules (CRI-DEV-*, CRI-CAP-08).

use super::Inputs;
use crate::error::{Error, Result};
use cri_proto::v1;
use nix::sys::stat::{SFlag, major, minor, stat};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub(super) fn apply(linux: &mut Value, inputs: &Inputs<'_>) -> Result<()> {
    let mut nodes = Vec::new();
    let mut rules = Vec::new();
    let privileged = inputs.security().privileged;
    // The words are containerd's (CRI-CAP-09).
    if privileged && !inputs.handler.privileged_without_host_devices {
        rules.push(json!({"allow": true, "access": "rwm"}));
        for path in below(Path::new("/dev")) {
            if let Some(node) = node(&path, &path.display().to_string())? {
                nodes.push(node);
            }
        }
    } else if privileged && inputs.handler.privileged_without_host_devices_all_devices_allowed {
        rules.push(json!({"allow": true, "access": "rwm"}));
    } else {
        rules = default_rules();
    }
    let first = nodes.len();
    for device in &inputs.container.config.devices {
        requested(device, &mut nodes, &mut rules)?;
    }
    if inputs.defaults.device_ownership_from_security_context {
        own(&mut nodes[first..], &inputs.security());
    }
    linux["devices"] = nodes.into();
    linux["resources"]["devices"] = rules.into();
    Ok(())
}

/// Nodes for the user that the request names, and the group (CRI-DEV-03); an image's user changes nothing.
fn own(nodes: &mut [Value], security: &v1::LinuxContainerSecurityContext) {
    for node in nodes {
        for (key, id) in [("uid", &security.run_as_user), ("gid", &security.run_as_group)] {
            if let Some(id) = id {
                node[key] = id.value.into();
            }
        }
    }
}

/// Deny all. The runtime allows the standard nodes and mknod of any after whatever rules there are (CRI-DEV-02;
/// slipway_runtime::container::resources).
fn default_rules() -> Vec<Value> {
    vec![json!({"allow": false, "access": "rwm"})]
}

/// A node, or all nodes below a directory (CRI-DEV-01).
fn requested(device: &v1::Device, nodes: &mut Vec<Value>, rules: &mut Vec<Value>) -> Result<()> {
    let access = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
    if !access.chars().all(|c| "rwm".contains(c)) {
        return Err(Error::invalid(format!(
            "device {}: permissions {access:?} are not of r, w, m",
            device.host_path
        )));
    }
    let host = std::fs::canonicalize(&device.host_path)
        .map_err(|e| Error::invalid(format!("device {}: {e}", device.host_path)))?;
    let paths = if host.is_dir() { below(&host) } else { vec![host.clone()] };
    let mut found = false;
    for path in paths {
        let inside = path.strip_prefix(&host).unwrap_or(Path::new(""));
        let target = Path::new(&device.container_path).join(inside);
        let target = target.to_string_lossy();
        if let Some(node) = node(&path, target.trim_end_matches('/'))? {
            let rule = json!({"allow": true, "type": node["type"], "major": node["major"], "minor": node["minor"], "access": access});
            rules.push(rule);
            nodes.push(node);
            found = true;
        }
    }
    if found {
        Ok(())
    } else {
        Err(Error::invalid(format!("device {} is not a device node", device.host_path)))
    }
}

/// None: the path is no device.
fn node(path: &Path, target: &str) -> Result<Option<Value>> {
    // Nodes that every container has anyway.
    const OWN: [&str; 3] = ["/dev/console", "/dev/ptmx", "/dev/tty"];
    let Ok(status) = stat(path) else { return Ok(None) };
    let kind = match SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFCHR => "c",
        SFlag::S_IFBLK => "b",
        _ => return Ok(None),
    };
    if OWN.contains(&target) {
        return Ok(None);
    }
    Ok(Some(json!({
        "path": target, "type": kind, "major": major(status.st_rdev), "minor": minor(status.st_rdev),
        "fileMode": status.st_mode & 0o7777, "uid": status.st_uid, "gid": status.st_gid,
    })))
}

/// All entries below a directory, without what belongs to other file systems' own logic.
fn below(dir: &Path) -> Vec<PathBuf> {
    const SKIP: [&str; 5] = ["pts", "shm", "fd", "mqueue", ".udev"];
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries.filter(|e| !SKIP.contains(&&*e.file_name().to_string_lossy())) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(below(&entry.path())),
            Ok(kind) if !kind.is_symlink() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use crate::spec::tests::spec_of;
    use cri_proto::v1;

    /// CRI-DEV-03: as the tests' configuration has it.
    #[test]
    fn devices_belong_to_the_user_of_the_request() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = dir.path().join("node");
        let number = nix::sys::stat::makedev(1, 3);
        nix::sys::stat::mknod(&host, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRUSR, number)
            .expect("mknod");
        std::os::unix::fs::chown(&host, Some(7), Some(8)).expect("chown");
        let owner = |user: Option<i64>, group: Option<i64>| {
            let spec = spec_of(|config, security| {
                let device = v1::Device {
                    host_path: host.display().to_string(),
                    container_path: "/dev/mine".into(),
                    ..Default::default()
                };
                config.devices = vec![device];
                security.run_as_user = user.map(|value| v1::Int64Value { value });
                security.run_as_group = group.map(|value| v1::Int64Value { value });
            });
            let node = spec.expect("spec")["linux"]["devices"][0].clone();
            assert_eq!(node["path"], "/dev/mine");
            (node["uid"].as_i64(), node["gid"].as_i64())
        };
        assert_eq!(owner(Some(1000), Some(2000)), (Some(1000), Some(2000)));
        assert_eq!(owner(Some(1000), None), (Some(1000), Some(8)));
        assert_eq!(owner(None, None), (Some(7), Some(8)), "as on the host");
    }
}
