//! From (pod, container, image, user) to an OCI runtime spec. Pure: no system call decides anything here, except that the
//! host's devices are listed for a privileged container.

mod apparmor;
mod capabilities;
mod devices;
mod mounts;
mod process;
pub(crate) mod resources;
mod security;

pub(crate) use mounts::clean;

use crate::cdi::{self, Edits};
use crate::containers::ContainerRecord;
use crate::error::{Error, Result};
use crate::pods::PodRecord;
use crate::pods::files::PodDir;
use crate::user::Identity;
use cri_proto::v1;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use slipway_images::ImageConfig;
use slipway_runtime::idmap::IdMap;
use std::path::PathBuf;

/// All that decides a spec.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) pod: &'a PodRecord,
    pub(crate) container: &'a ContainerRecord,
    pub(crate) image: &'a ImageConfig,
    pub(crate) identity: &'a Identity,
    /// Where hostname, hosts, resolv.conf and shm of the pod are.
    pub(crate) pod_dir: &'a PodDir,
    /// Where the content of each mount of the request is on the host, in their order.
    pub(crate) sources: &'a [PathBuf],
    /// Source and target of each `VOLUME`.
    pub(crate) volumes: &'a [(PathBuf, PathBuf)],
    /// What the container's CDI devices change.
    pub(crate) cdi: &'a [Edits],
    /// What the configuration gives every container.
    pub(crate) defaults: &'a crate::config::Containers,
    /// What runs it.
    pub(crate) handler: &'a crate::config::Handler,
    /// Init of the container whose PID namespace is joined (pid=TARGET).
    pub(crate) target_pid: Option<u32>,
}

impl Inputs<'_> {
    fn linux(&self) -> v1::LinuxContainerConfig {
        self.container.config.linux.clone().unwrap_or_default()
    }

    fn security(&self) -> v1::LinuxContainerSecurityContext {
        self.linux().security_context.unwrap_or_default()
    }

    fn namespaces(&self) -> v1::NamespaceOption {
        self.security().namespace_options.unwrap_or_else(|| self.pod.namespaces())
    }
}

/// Builds the spec.
///
/// # Errors
/// InvalidArgument that names what cannot be expressed.
pub(crate) fn build(inputs: &Inputs<'_>) -> Result<Spec> {
    let security = inputs.security();
    let resources = resources::build(&inputs.linux().resources.unwrap_or_default())?;
    let mut linux = json!({
        "cgroupsPath": inputs.container.cgroup,
        "namespaces": namespaces(inputs),
        "resources": resources,
    });
    if let Some(labels) = &inputs.container.selinux {
        linux["mountLabel"] = labels.file.clone().into();
    }
    if let Some(user) = inputs.pod.user() {
        (linux["uidMappings"], linux["gidMappings"]) = (oci_maps(&user.uids), oci_maps(&user.gids));
    }
    security::apply(&mut linux, inputs)?;
    devices::apply(&mut linux, inputs)?;
    let mounts = mounts::build(inputs)?;
    if let Some(propagation) = mounts::rootfs_propagation(&inputs.container.config.mounts) {
        linux["rootfsPropagation"] = propagation.into();
    }
    let mut spec = json!({
        "ociVersion": "1.3.0",
        "process": process::build(inputs)?,
        "root": {"path": "rootfs", "readonly": security.readonly_rootfs},
        "mounts": mounts,
        "linux": linux,
        "annotations": annotations(inputs),
    });
    // After everything else of ours (CRI-DEV-04).
    if !inputs.cdi.is_empty() {
        cdi::apply(&mut spec, inputs.cdi)?;
    }
    serde_json::from_value(spec)
        .map_err(|e| Error::invalid(format!("the request makes no valid OCI spec: {e}")))
}

/// As containerd names them: other tools look for these (CRI-CC-17).
fn annotations(inputs: &Inputs<'_>) -> Value {
    let pod = inputs.pod.metadata();
    let mut all = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": inputs.pod.id,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
        "io.kubernetes.cri.container-name": inputs.container.metadata().name,
        "io.kubernetes.cri.image-name": inputs.container.image_name,
    });
    for (name, value) in inputs.pod.passed_annotations() {
        // Whose container it is is not a pod's to say.
        if all.get(&name).is_none() {
            all[name] = value.into();
        }
    }
    all
}

/// A map in the words of the OCI specification.
fn oci_maps(maps: &[IdMap]) -> Value {
    let line = |m: &IdMap| json!({"containerID": m.container, "hostID": m.host, "size": m.size});
    maps.iter().map(line).collect()
}

/// The sandbox's namespaces by the pid its keeper answered, as containerd writes them; NODE means none is listed.
fn namespaces(inputs: &Inputs<'_>) -> Vec<Value> {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    let options = inputs.namespaces();
    let of = |pid: i64, kind: &str| format!("/proc/{pid}/ns/{kind}");
    let sandbox = i64::from(inputs.pod.sandbox_pid);
    let mut all = vec![json!({"type": "mount"})];
    if inputs.pod.user().is_some() {
        all.push(json!({"type": "user", "path": of(sandbox, "user")}));
    }
    if options.ipc() != Node {
        all.push(json!({"type": "ipc", "path": of(sandbox, "ipc")}));
    }
    // UTS follows the network (CRI-NS-07).
    if options.network() != Node {
        all.push(json!({"type": "uts", "path": of(sandbox, "uts")}));
        let netns = inputs.pod.netns.as_ref().map(|p| p.display().to_string());
        all.push(json!({"type": "network", "path": netns.unwrap_or_else(|| of(sandbox, "net"))}));
    }
    match options.pid() {
        Pod => all.push(json!({"type": "pid", "path": of(sandbox, "pid")})),
        Container => all.push(json!({"type": "pid"})),
        Target => {
            let pid = inputs.target_pid.unwrap_or_default();
            all.push(json!({"type": "pid", "path": of(pid.into(), "pid")}));
        }
        Node => {}
    }
    // CRI-CG-05: a private view of the control groups, unless privileged.
    if !inputs.security().privileged {
        all.push(json!({"type": "cgroup"}));
    }
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::containers::Phase;
    use std::path::Path;

    pub(crate) fn pod() -> PodRecord {
        let mut pod =
            PodRecord::intent("p".repeat(64), Default::default(), String::new(), "/slipway/p".into(), true);
        pod.config.metadata = Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "ns".into(),
            attempt: 0,
        });
        pod.config.hostname = "web".into();
        pod.netns = Some("/run/netns/p".into());
        pod.sandbox_pid = 42;
        pod
    }

    /// What a kubelet gives its first pod.
    pub(crate) fn maps() -> slipway_runtime::idmap::IdMappings {
        let map = vec![IdMap { container: 0, host: 65536, size: 65536 }];
        slipway_runtime::idmap::IdMappings { uids: map.clone(), gids: map }
    }

    pub(crate) fn in_user_namespace(pod: &mut PodRecord) {
        let map = vec![v1::IdMapping { container_id: 0, host_id: 65536, length: 65536 }];
        let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
        let security = pod.config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().userns_options = Some(user);
    }

    pub(crate) fn container() -> ContainerRecord {
        ContainerRecord {
            id: "c".repeat(64),
            pod_id: "p".repeat(64),
            config: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
                ..Default::default()
            },
            created_at: 1,
            image_id: "sha256:1".into(),
            image_name: "r/i:1".into(),
            image_ref: "r/i@sha256:2".into(),
            log_path: String::new(),
            user: Default::default(),
            stop_signal: 15,
            stop_signal_name: 0,
            cgroup: "/slipway/p/c".into(),
            bundle: "/b".into(),
            nri: Value::Null,
            restored: false,
            selinux: None,
            phase: Phase::Creating,
        }
    }

    pub(crate) fn spec_of(
        change: impl FnOnce(&mut v1::ContainerConfig, &mut v1::LinuxContainerSecurityContext),
    ) -> Result<Value> {
        spec_in(&pod(), change)
    }

    pub(crate) fn spec_in(
        pod: &PodRecord,
        change: impl FnOnce(&mut v1::ContainerConfig, &mut v1::LinuxContainerSecurityContext),
    ) -> Result<Value> {
        spec_under(&crate::config::Handler::default(), pod, change)
    }

    pub(crate) fn spec_under(
        handler: &crate::config::Handler,
        pod: &PodRecord,
        change: impl FnOnce(&mut v1::ContainerConfig, &mut v1::LinuxContainerSecurityContext),
    ) -> Result<Value> {
        let mut container = container();
        let mut security = v1::LinuxContainerSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                pid: v1::NamespaceMode::Container.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut container.config, &mut security);
        container.config.linux.get_or_insert_default().security_context = Some(security);
        spec_for(handler, pod, &container)
    }

    pub(crate) fn spec_of_container(container: &ContainerRecord) -> Result<Value> {
        spec_for(&crate::config::Handler::default(), &pod(), container)
    }

    fn spec_for(
        handler: &crate::config::Handler,
        pod: &PodRecord,
        container: &ContainerRecord,
    ) -> Result<Value> {
        let image = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["arg".into()],
            env: vec!["PATH=/bin".into(), "A=image".into()],
            ..Default::default()
        };
        let identity = Identity { uid: 5, gid: 6, groups: vec![6, 7] };
        let built = build(&Inputs {
            pod,
            container,
            image: &image,
            identity: &identity,
            pod_dir: &PodDir::at(Path::new("/root"), Path::new("/state"), "p"),
            sources: &container.config.mounts.iter().map(|m| m.host_path.clone().into()).collect::<Vec<_>>(),
            volumes: &[("/vol/0".into(), "/data".into()), ("/vol/1".into(), "/dev/shm".into())],
            cdi: &[],
            defaults: &crate::config::Containers {
                default_ulimits: vec!["nofile=5:6".to_owned().try_into().map_err(Error::invalid)?],
                device_ownership_from_security_context: true,
                writable_layer_limit: None,
            },
            handler,
            target_pid: Some(77),
        })?;
        serde_json::to_value(built).map_err(|e| Error::internal(e.to_string()))
    }

    fn namespace(spec: &Value, kind: &str) -> Option<Value> {
        spec["linux"]["namespaces"].as_array()?.iter().find(|n| n["type"] == kind).cloned()
    }

    /// CRI-NS-02, CRI-NS-04, CRI-NS-05, CRI-NS-07, CRI-CG-05.
    #[test]
    fn namespaces_follow_the_modes() {
        let spec = spec_of(|_, _| {}).expect("spec");
        assert_eq!(namespace(&spec, "ipc").map(|n| n["path"].clone()), Some("/proc/42/ns/ipc".into()));
        assert_eq!(namespace(&spec, "network").map(|n| n["path"].clone()), Some("/run/netns/p".into()));
        assert!(namespace(&spec, "pid").is_some_and(|n| n.get("path").is_none()));
        assert!(namespace(&spec, "cgroup").is_some());
        let target = spec_of(|_, s| {
            s.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Target.into();
        });
        assert_eq!(
            namespace(&target.expect("spec"), "pid").map(|n| n["path"].clone()),
            Some("/proc/77/ns/pid".into())
        );
        let node = spec_of(|_, s| {
            s.namespace_options = Some(v1::NamespaceOption {
                network: v1::NamespaceMode::Node.into(),
                pid: v1::NamespaceMode::Node.into(),
                ipc: v1::NamespaceMode::Node.into(),
                ..Default::default()
            });
        });
        let node = node.expect("spec");
        for kind in ["ipc", "uts", "network", "pid"] {
            assert_eq!(namespace(&node, kind), None, "{kind}");
        }
    }

    /// CRI-UNS-01, CRI-UNS-06, CRI-UNS-07.
    #[test]
    fn a_pod_s_user_namespace_is_every_container_s() {
        let mut pod = pod();
        in_user_namespace(&mut pod);
        let map = vec![v1::IdMapping { container_id: 0, host_id: 65536, length: 65536 }];
        let spec = spec_in(&pod, |config, _| {
            config.mounts = vec![v1::Mount {
                host_path: "/tmp".into(),
                container_path: "/x".into(),
                uid_mappings: map.clone(),
                gid_mappings: map,
                ..Default::default()
            }];
        });
        let spec = spec.expect("spec");
        let oci = json!([{"containerID": 0, "hostID": 65536, "size": 65536}]);
        assert_eq!(namespace(&spec, "user").map(|n| n["path"].clone()), Some("/proc/42/ns/user".into()));
        assert_eq!((&spec["linux"]["uidMappings"], &spec["linux"]["gidMappings"]), (&oci, &oci));
        for target in ["/x", "/data"] {
            let mounts = spec["mounts"].as_array().expect("list");
            let mount = mounts.iter().find(|m| m["destination"] == target).expect(target);
            assert_eq!((&mount["uidMappings"], &mount["gidMappings"]), (&oci, &oci), "{target}");
        }
        assert_eq!(namespace(&spec_of(|_, _| {}).expect("spec"), "user"), None);
    }

    /// The parts that other tools rely on, word for word.
    #[test]
    fn identity_and_annotations() {
        let spec = spec_of(|_, _| {}).expect("spec");
        assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], "p".repeat(64));
        assert_eq!(spec["linux"]["cgroupsPath"], "/slipway/p/c");
        assert_eq!(spec["process"]["user"], json!({"uid": 5, "gid": 6, "additionalGids": [6, 7]}));
    }
}
