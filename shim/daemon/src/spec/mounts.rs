//! `mounts`: the defaults, the pod's files, and what the request asks for (CRI-MNT-*).

use super::{Inputs, oci_maps};
use crate::error::{Error, Result};
use crate::pods::user;
use cri_proto::v1;
use serde_json::{Value, json};
use slipway_runtime::idmap::IdMappings;
use std::path::{Component, Path, PathBuf};

pub(super) fn build(inputs: &Inputs<'_>) -> Result<Vec<Value>> {
    let mut mounts = defaults(inputs);
    let requests = inputs.container.config.mounts.iter().zip(inputs.sources);
    let asked = requests.map(|(mount, source)| requested(mount, source)).collect::<Result<Vec<_>>>()?;
    // A default mount wins over a `VOLUME`: those are the image's, not the request's.
    let has =
        |target: &Path| mounts.iter().any(|m| clean(m["destination"].as_str().unwrap_or_default()) == target);
    let volumes = inputs.volumes.iter().filter(|(_, target)| !has(target));
    let user = inputs.pod.user();
    let volumes: Vec<_> = volumes.map(|pair| volume(pair, user.as_ref())).collect();
    mounts.extend(volumes);
    let targets: Vec<_> =
        asked.iter().map(|m| clean(m["destination"].as_str().unwrap_or_default())).collect();
    // A mount of the request replaces a default one on the same path, and one on /dev all below it (CRI-MNT-02).
    mounts.retain(|m| {
        let own = clean(m["destination"].as_str().unwrap_or_default());
        !targets.iter().any(|t| *t == own || (t == Path::new("/dev") && own.starts_with("/dev")))
    });
    mounts.extend(asked);
    // Parents before children; the order of equals stays (CRI-MNT-01).
    mounts.sort_by_key(|m| clean(m["destination"].as_str().unwrap_or_default()).components().count());
    Ok(mounts)
}

/// CRI-MNT-15, CRI-NET-03, CRI-NET-07, CRI-NET-08, CRI-NET-09.
fn defaults(inputs: &Inputs<'_>) -> Vec<Value> {
    let security = inputs.security();
    let rw = if security.privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", rw]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
               "options": ["nosuid", "noexec", "nodev", "relatime", rw]}),
    ];
    let file_rw = if security.readonly_rootfs { "ro" } else { "rw" };
    for (name, target) in
        [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")]
    {
        let source = inputs.pod_dir.texts().join(name);
        // Also for the host's sake: the container's root may make them what it likes.
        let options = ["rbind", "rprivate", "nosuid", "nodev", "noexec", file_rw];
        mounts.push(json!({"destination": target, "type": "bind", "source": source, "options": options}));
    }
    let host_ipc = inputs.namespaces().ipc() == v1::NamespaceMode::Node;
    let shm = if host_ipc { PathBuf::from("/dev/shm") } else { inputs.pod_dir.shm() };
    let options = ["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"];
    mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": options}));
    mounts
}

/// Its files are the image's, with the ids that the image says.
fn volume((source, target): &(PathBuf, PathBuf), user: Option<&IdMappings>) -> Value {
    let mut mount = json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"]});
    if let Some(user) = user {
        map_ids(&mut mount, user);
    }
    mount
}

fn map_ids(mount: &mut Value, user: &IdMappings) {
    (mount["uidMappings"], mount["gidMappings"]) = (oci_maps(&user.uids), oci_maps(&user.gids));
}

fn requested(mount: &v1::Mount, source: &Path) -> Result<Value> {
    // Symlinks of the source are the host's and resolved before the bind (CRI-MNT-04).
    let source = std::fs::canonicalize(source).map_err(|e| {
        Error::invalid(format!("mount {}: source {}: {e}", mount.container_path, source.display()))
    })?;
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationHostToContainer => "rslave",
        v1::MountPropagation::PropagationBidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation];
    // Read-only is the top mount's alone unless it is asked for recursively (CRI-MNT-07, CRI-MNT-08).
    options.push(match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        _ => "rw",
    });
    options.extend(mount.mount_options.iter().map(String::as_str));
    let mut made = json!({"destination": clean(&mount.container_path), "type": "bind", "source": source, "options": options});
    // A view of an image is mapped already, layer by layer.
    let image = mount.image.as_ref().is_some_and(|image| !image.image.is_empty());
    if !mount.uid_mappings.is_empty() && !image {
        map_ids(&mut made, &user::from_cri(&mount.uid_mappings, &mount.gid_mappings));
    }
    Ok(made)
}

/// A shared mount inside needs a root that lets it out (CRI-MNT-06).
pub(super) fn rootfs_propagation(mounts: &[v1::Mount]) -> Option<&'static str> {
    let any = |wanted| mounts.iter().any(|m| m.propagation() == wanted);
    if any(v1::MountPropagation::PropagationBidirectional) {
        return Some("rshared");
    }
    any(v1::MountPropagation::PropagationHostToContainer).then_some("rslave")
}

/// Absolute, without `.`, `..` and doubled slashes, as text: the runtime resolves it inside the root.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => out.push(part),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec_of;

    fn mount(host: &str, container: &str) -> v1::Mount {
        v1::Mount { host_path: host.into(), container_path: container.into(), ..Default::default() }
    }

    fn find(spec: &Value, target: &str) -> Vec<Value> {
        let all = spec["mounts"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|m| m["destination"] == target).collect()
    }

    /// CRI-MNT-01, CRI-MNT-02, CRI-NET-07.
    #[test]
    fn requests_replace_defaults_and_parents_come_first() {
        let spec = spec_of(|c, _| {
            c.mounts = vec![mount("/etc/hosts", "/etc/hosts"), mount("/tmp", "/a/b"), mount("/tmp", "/a")]
        });
        let spec = spec.expect("spec");
        assert_eq!(find(&spec, "/etc/hosts").len(), 1);
        assert_eq!(find(&spec, "/etc/hosts")[0]["source"], "/etc/hosts");
        let order: Vec<_> =
            spec["mounts"].as_array().expect("list").iter().map(|m| m["destination"].clone()).collect();
        let at = |t: &str| order.iter().position(|d| d == t);
        assert!(at("/a") < at("/a/b") && at("/dev") < at("/dev/pts"));
        let dev = spec_of(|c, _| c.mounts = vec![mount("/dev", "/dev/")]).expect("spec");
        assert_eq!(find(&dev, "/dev").len(), 1);
        assert!(find(&dev, "/dev/pts").is_empty());
    }

    /// CRI-MNT-05, CRI-MNT-06, CRI-MNT-07, CRI-MNT-08.
    #[test]
    fn read_only_and_propagation() {
        let mut rro = mount("/tmp", "/x");
        (rro.readonly, rro.recursive_read_only) = (true, true);
        let mut shared = mount("/tmp", "/y");
        shared.propagation = v1::MountPropagation::PropagationBidirectional.into();
        let spec = spec_of(|c, _| c.mounts = vec![rro, shared]).expect("spec");
        assert_eq!(find(&spec, "/x")[0]["options"], json!(["rbind", "rprivate", "rro"]));
        assert_eq!(find(&spec, "/y")[0]["options"], json!(["rbind", "rshared", "rw"]));
        assert_eq!(spec["linux"]["rootfsPropagation"], "rshared");
    }

    /// The image's `VOLUME`s are mounted, but for one on a path that every container has.
    #[test]
    fn volumes_of_the_image() {
        let spec = spec_of(|_, _| {}).expect("spec");
        assert_eq!(find(&spec, "/data")[0]["source"], "/vol/0");
        assert_eq!(find(&spec, "/dev/shm").len(), 1);
        assert_ne!(find(&spec, "/dev/shm")[0]["source"], "/vol/1");
        let covered = spec_of(|c, _| c.mounts = vec![mount("/tmp", "/data/")]).expect("spec");
        assert_eq!(find(&covered, "/data").len(), 1);
        assert_eq!(find(&covered, "/data")[0]["source"], "/tmp");
    }
}
