//! Volumes of a pod and their mounts in a container. Pure, part of `translate`; making them is `pod_dir`'s.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1 as cri;

use super::manifest::{Container, EmptyDir, HostPath, Medium, Pod, Propagation, Recursive, VolumeMount};
use super::translate::{Facts, NAME_RULE, is_name, path_text};
use super::users;
use crate::quantity::Quantity;

/// A directory or file that must be there before a container is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumePlan {
    /// A new directory at `path`: on disk, or a tmpfs of `size` bytes (`None`: the kernel's default).
    EmptyDir {
        path: PathBuf,
        memory: bool,
        size: Option<i64>,
        group: Option<i64>,
    },
    HostPath(HostPath),
}

impl PartialEq for HostPath {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.r#type == other.r#type
    }
}
impl Eq for HostPath {}

/// The volumes by name. Each is of exactly one kind.
pub(crate) fn volumes(pod: &Pod, facts: &Facts) -> Result<BTreeMap<String, VolumePlan>> {
    let mut plans = BTreeMap::new();
    for volume in &pod.spec.volumes {
        let name = &volume.name;
        ensure!(is_name(name, 63, false), "volume name {name:?}: {NAME_RULE}");
        let plan = match (&volume.empty_dir, &volume.host_path) {
            (Some(empty), None) => empty_dir(pod, name, empty, facts),
            (None, Some(host)) => {
                let path = Path::new(&host.path);
                let climbs = path.components().any(|c| c == std::path::Component::ParentDir);
                ensure!(
                    path.is_absolute() && !climbs,
                    "volume {name}: hostPath.path {:?} must be absolute, without '..'",
                    host.path
                );
                VolumePlan::HostPath(host.clone())
            }
            _ => bail!(
                "volume {name}: needs exactly one of emptyDir and hostPath (other kinds need a cluster)"
            ),
        };
        ensure!(plans.insert(name.clone(), plan).is_none(), "two volumes are named {name:?}");
    }
    Ok(plans)
}

fn empty_dir(pod: &Pod, name: &str, empty: &EmptyDir, facts: &Facts) -> VolumePlan {
    VolumePlan::EmptyDir {
        path: facts.pod_dir.join("volumes").join(name),
        memory: empty.medium == Medium::Memory,
        size: empty.size_limit.map(Quantity::units).filter(|&size| size > 0),
        group: pod.spec.security_context.fs_group,
    }
}

/// Root of a volume, and the path below it.
pub(crate) type SubPaths = Vec<(PathBuf, String)>;

pub(crate) fn mounts(pod: &Pod, container: &Container, facts: &Facts) -> Result<(Vec<cri::Mount>, SubPaths)> {
    let volumes = volumes(pod, facts)?;
    let mut mounts = Vec::new();
    let mut sub_paths = Vec::new();
    let mut targets = HashSet::new();
    for mount in &container.volume_mounts {
        let target = &mount.mount_path;
        ensure!(
            target.starts_with('/') && !target.contains(':'),
            "mountPath {target:?} must be absolute, without ':'"
        );
        ensure!(
            targets.insert(target.trim_end_matches('/')),
            "two volumeMounts have the mountPath {target:?}"
        );
        let volume = volumes
            .get(&mount.name)
            .with_context(|| format!("volumeMounts names no volume: {:?}", mount.name))?;
        let root = match volume {
            VolumePlan::EmptyDir { path, .. } => path.clone(),
            VolumePlan::HostPath(host) => PathBuf::from(&host.path),
        };
        if !mount.sub_path.is_empty() {
            let plain = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
            let sub_path_is_good = Path::new(&mount.sub_path).components().all(plain);
            ensure!(
                sub_path_is_good,
                "subPath {:?} must be relative and must not contain '..'",
                mount.sub_path
            );
            sub_paths.push((root.clone(), mount.sub_path.clone()));
        }
        mounts.push(bind(pod, container, mount, &root, facts)?);
    }
    Ok((mounts, sub_paths))
}

fn bind(
    pod: &Pod,
    container: &Container,
    mount: &VolumeMount,
    root: &Path,
    facts: &Facts,
) -> Result<cri::Mount> {
    let target = &mount.mount_path;
    let propagation = match mount.mount_propagation {
        Propagation::None => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => {
            ensure!(
                container.security_context.privileged,
                "mount {target}: mountPropagation Bidirectional needs a privileged container"
            );
            cri::MountPropagation::PropagationBidirectional
        }
    };
    if mount.recursive_read_only != Recursive::Disabled {
        ensure!(mount.read_only, "mount {target}: recursiveReadOnly needs readOnly: true");
        let private = propagation == cri::MountPropagation::PropagationPrivate;
        ensure!(private, "mount {target}: recursiveReadOnly needs mountPropagation None");
    }
    let recursive_read_only = match mount.recursive_read_only {
        Recursive::Disabled => false,
        Recursive::IfPossible => facts.recursive_read_only,
        Recursive::Enabled => {
            ensure!(
                facts.recursive_read_only,
                "mount {target}: the runtime cannot do recursiveReadOnly here"
            );
            true
        }
    };
    let source = if mount.sub_path.is_empty() { root.to_owned() } else { root.join(&mount.sub_path) };
    let maps: Vec<_> = facts.users_of(pod).map(users::map).into_iter().collect();
    Ok(cri::Mount {
        container_path: target.clone(),
        host_path: path_text(&source)?,
        readonly: mount.read_only,
        propagation: propagation.into(),
        recursive_read_only,
        // CRI-UNS-07.
        uid_mappings: maps.clone(),
        gid_mappings: maps,
        ..Default::default()
    })
}
