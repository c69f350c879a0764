//! What a ContainerConfig must satisfy before anything is made.

use super::{image_mounts, propagation};
use crate::error::{Error, Result};
use crate::pods::{PodRecord, user, without_nul};
use cri_proto::v1;
use std::path::{Component, Path};

/// # Errors
/// InvalidArgument that names the field (CRI-CC-01, CRI-CC-14, CRI-CC-15, CRI-MNT-*).
pub(super) fn check(config: &v1::ContainerConfig, pod: &PodRecord) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("config.metadata is missing"))?;
    if metadata.name.is_empty() || metadata.name.contains(['/', '\0']) {
        return Err(Error::invalid(format!(
            "config.metadata.name {:?} must be non-empty and without '/'",
            metadata.name
        )));
    }
    if config.image.as_ref().is_none_or(|i| i.image.is_empty()) {
        return Err(Error::invalid("config.image.image is empty: pull an image and name it"));
    }
    texts(config).try_for_each(|(field, text)| without_nul(field, text))?;
    if let Some(env) = config.envs.iter().find(|env| env.value.contains(&0)) {
        return Err(Error::invalid(format!("envs: the value of {:?} holds a NUL byte", env.key)));
    }
    let security = config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default();
    if security.privileged && !pod.security().privileged {
        return Err(Error::invalid("a privileged container needs a privileged sandbox"));
    }
    if security.run_as_group.is_some()
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return Err(Error::invalid("run_as_group is set without run_as_user or run_as_username"));
    }
    if security.run_as_user.is_some() && !security.run_as_username.is_empty() {
        return Err(Error::invalid("run_as_user and run_as_username are both set: only one may be"));
    }
    if let Some(options) = &security.namespace_options {
        check_namespaces(options, pod)?;
    }
    config.mounts.iter().try_for_each(|mount| check_mount(mount, pod))
}

/// What the kernel gets as a path, an argument or a variable.
fn texts(config: &v1::ContainerConfig) -> impl Iterator<Item = (&'static str, &str)> {
    let mounts = config.mounts.iter().flat_map(|m| {
        [
            ("mount: container_path", m.container_path.as_str()),
            ("mount: host_path", m.host_path.as_str()),
            ("mount: image_sub_path", m.image_sub_path.as_str()),
        ]
    });
    let devices = config.devices.iter().flat_map(|d| [&d.host_path, &d.container_path]);
    let envs = config.envs.iter().map(|e| e.key.as_str());
    let command = config.command.iter().chain(&config.args);
    [("log_path", config.log_path.as_str()), ("working_dir", config.working_dir.as_str())]
        .into_iter()
        .chain(mounts)
        .chain(devices.map(|text| ("device", text.as_str())))
        .chain(envs.map(|text| ("envs", text)))
        .chain(command.map(|text| ("command", text.as_str())))
}

/// CRI-NS-08, CRI-UNS-02.
fn check_namespaces(options: &v1::NamespaceOption, pod: &PodRecord) -> Result<()> {
    let ours = pod.namespaces();
    if options.network() != ours.network() || options.ipc() != ours.ipc() {
        return Err(Error::invalid("namespace_options of network and ipc must be the sandbox's"));
    }
    // CRI-UNS-05. Who says nothing of it means the pod's.
    if options.userns_options.is_some() && user::mappings(options)? != pod.user() {
        return Err(Error::invalid("namespace_options.userns_options must be the sandbox's"));
    }
    Ok(())
}

fn check_mount(mount: &v1::Mount, pod: &PodRecord) -> Result<()> {
    let path = &mount.container_path;
    if !path.starts_with('/') {
        return Err(Error::invalid(format!("mount: container_path {path:?} is not absolute")));
    }
    // CRI-MNT-14.
    let unknown = mount.mount_options.iter().find(|o| !matches!(o.as_str(), "noexec" | "nodev" | "nosuid"));
    if let Some(option) = unknown {
        return Err(Error::invalid(format!(
            "mount {path}: mount option {option:?} is not noexec, nodev or nosuid"
        )));
    }
    check_maps(mount, pod)?;
    if image_mounts::is_image(mount) {
        return image_mounts::check(mount);
    }
    if !mount.host_path.starts_with('/') {
        return Err(Error::invalid(format!("mount {path}: host_path {:?} is not absolute", mount.host_path)));
    }
    // CRI-MNT-08.
    if mount.recursive_read_only
        && (!mount.readonly || mount.propagation() != v1::MountPropagation::PropagationPrivate)
    {
        return Err(Error::invalid(format!(
            "mount {path}: recursive_read_only needs readonly and private propagation"
        )));
    }
    // CRI-MNT-03: the contract says error; a directory made silently would hide a typing error.
    match std::fs::symlink_metadata(&mount.host_path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::invalid(format!(
            "mount {path}: host_path {} does not exist: create it first",
            mount.host_path
        ))),
        Err(e) => Err(Error::io("look at mount source", Path::new(&mount.host_path), &e)),
        Ok(_) => propagation::check(mount),
    }
}

/// CRI-UNS-06.
fn check_maps(mount: &v1::Mount, pod: &PodRecord) -> Result<()> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(());
    }
    let path = &mount.container_path;
    if pod.user().is_none() {
        return Err(Error::invalid(format!(
            "mount {path}: uid_mappings and gid_mappings need a pod with a user namespace (userns_options mode POD)"
        )));
    }
    let maps = user::from_cri(&mount.uid_mappings, &mount.gid_mappings);
    Ok(maps.check(&format!("mount {path}"), "uid_mappings", "gid_mappings")?)
}

/// `log_directory` joined with `log_path`; empty when either is (CRI-LOG-01, CRI-LOG-02, CRI-CSTAT-09).
pub(super) fn log_path(directory: &str, path: &str) -> Result<String> {
    if directory.is_empty() || path.is_empty() {
        return Ok(String::new());
    }
    let inside = Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !inside {
        return Err(Error::invalid(format!(
            "log_path {path:?} leads out of the pod's log directory {directory}"
        )));
    }
    Ok(Path::new(directory).join(path).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-LOG-01, CRI-LOG-02.
    #[test]
    fn log_paths_stay_inside() {
        assert_eq!(log_path("/logs", "a/0.log"), Ok("/logs/a/0.log".into()));
        assert_eq!(log_path("/logs", ""), Ok(String::new()));
        for bad in ["../x", "/etc/passwd", "a/../../x"] {
            assert!(log_path("/logs", bad).is_err_and(|e| e.to_string().contains(bad)));
        }
    }
}
