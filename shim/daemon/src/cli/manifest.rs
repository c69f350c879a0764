//! The part of Kubernetes' v1 Pod that `slipway run` understands, and how a file becomes it.
//!
//! Owns names, types and defaults of the manifest's fields as they are written. Never decides what a field means to
//! CRI: that is `translate`. Fields outside these structs are refused by path, or, where running the pod without
//! them loses nothing that a single node could give, named in a warning.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::quantity::Quantity;

/// Fields that only a cluster can give a meaning to, or that we leave out knowingly: a warning, not an error.
const IGNORED: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "creationTimestamp",
    "enableServiceLinks",
    "ephemeral-storage",
    "finalizers",
    "generation",
    "imagePullSecrets",
    "lifecycle",
    "livenessProbe",
    "managedFields",
    "nodeName",
    "nodeSelector",
    "ownerReferences",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "readinessProbe",
    "resourceVersion",
    "schedulerName",
    "serviceAccount",
    "serviceAccountName",
    "startupProbe",
    "status",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tolerations",
    "topologySpreadConstraints",
    "uid",
];

/// What a file says: its pods in order, and sentences about what will not be done.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) pods: Vec<Pod>,
    pub(crate) warnings: Vec<String>,
}

/// Parses all YAML documents of a file (JSON is YAML). Empty documents are skipped.
pub(crate) fn parse(text: &str) -> Result<Manifest> {
    // Only true and false are booleans: a variable may be named N and have the value "off".
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|e| anyhow!("not valid YAML: {e}"))?;
    let mut manifest = Manifest { pods: Vec::new(), warnings: Vec::new() };
    let documents: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    let several = documents.len() > 1;
    for (index, mut document) in documents.into_iter().enumerate() {
        drop_nulls(&mut document);
        let pod = document_pod(document, &mut manifest.warnings);
        let pod = if several { pod.with_context(|| format!("document {}", index + 1)) } else { pod };
        manifest.pods.push(pod?);
    }
    ensure!(!manifest.pods.is_empty(), "holds no Pod");
    Ok(manifest)
}

/// In Kubernetes a key without a value (`labels:`) is the same as no key.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn document_pod(document: Value, warnings: &mut Vec<String>) -> Result<Pod> {
    let said = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, version) = (said("kind"), said("apiVersion"));
    if kind != "Pod" || version != "v1" {
        bail!("is apiVersion {version:?}, kind {kind:?}: only Pods of v1 can be run here");
    }
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string());
    let pod: Pod = serde_path_to_error::deserialize(serde_ignored::Deserializer::new(document, &mut note))
        .map_err(|e| anyhow!("{}: {}", e.path(), e.inner()))?;

    let ignored = |path: &String| IGNORED.contains(&path.rsplit('.').next().unwrap_or(path));
    let (ignored, refused): (Vec<_>, Vec<_>) = unknown.into_iter().partition(ignored);
    if !refused.is_empty() {
        bail!("field {} is unknown or not supported by `slipway run`", plain(&refused).join(", "));
    }
    warnings
        .extend(plain(&ignored).iter().map(|path| format!("pod {}: {path} is ignored", pod.metadata.name)));
    Ok(pod)
}

/// serde_ignored marks optional levels by `?`; people do not write them.
fn plain(paths: &[String]) -> Vec<String> {
    paths.iter().map(|path| path.replace(".?", "")).collect()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pod {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(crate) metadata: Metadata,
    pub(crate) spec: PodSpec,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    #[serde(default = "default_namespace")]
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".into()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    #[serde(default)]
    pub(crate) init_containers: Vec<Container>,
    pub(crate) containers: Vec<Container>,
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
    #[serde(default)]
    pub(crate) restart_policy: RestartPolicy,
    #[serde(default)]
    pub(crate) host_network: bool,
    #[serde(default, rename = "hostPID")]
    pub(crate) host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    pub(crate) host_ipc: bool,
    #[serde(default)]
    pub(crate) share_process_namespace: bool,
    /// False: a user namespace of the pod's own.
    pub(crate) host_users: Option<bool>,
    pub(crate) hostname: Option<String>,
    #[serde(default)]
    pub(crate) dns_policy: DnsPolicy,
    pub(crate) dns_config: Option<DnsConfig>,
    pub(crate) termination_grace_period_seconds: Option<i64>,
    #[serde(default)]
    pub(crate) security_context: PodSecurityContext,
    #[serde(default)]
    pub(crate) runtime_class_name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// The word of the manifest, which is also the annotation's value.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::OnFailure => "OnFailure",
            Self::Never => "Never",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum DnsPolicy {
    /// There is no cluster DNS here: the same as `Default`, which is also what a kubelet without cluster DNS does.
    #[default]
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct DnsConfig {
    #[serde(default)]
    pub(crate) nameservers: Vec<String>,
    #[serde(default)]
    pub(crate) searches: Vec<String>,
    #[serde(default)]
    pub(crate) options: Vec<DnsOption>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct DnsOption {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSecurityContext {
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) run_as_non_root: Option<bool>,
    pub(crate) fs_group: Option<i64>,
    #[serde(default)]
    pub(crate) supplemental_groups: Vec<i64>,
    #[serde(default)]
    pub(crate) supplemental_groups_policy: GroupsPolicy,
    pub(crate) seccomp_profile: Option<Profile>,
    pub(crate) app_armor_profile: Option<Profile>,
    #[serde(default)]
    pub(crate) sysctls: Vec<Sysctl>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum GroupsPolicy {
    #[default]
    Merge,
    Strict,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Sysctl {
    pub(crate) name: String,
    pub(crate) value: String,
}

/// A seccomp or AppArmor profile.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Profile {
    pub(crate) r#type: ProfileKind,
    pub(crate) localhost_profile: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum ProfileKind {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) image_pull_policy: Option<PullPolicy>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) working_dir: String,
    #[serde(default)]
    pub(crate) env: Vec<EnvVar>,
    #[serde(default)]
    pub(crate) ports: Vec<ContainerPort>,
    #[serde(default)]
    pub(crate) resources: Resources,
    #[serde(default)]
    pub(crate) volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    pub(crate) security_context: SecurityContext,
    #[serde(default)]
    pub(crate) stdin: bool,
    #[serde(default)]
    pub(crate) stdin_once: bool,
    #[serde(default)]
    pub(crate) tty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) value_from: Option<EnvSource>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnvSource {
    pub(crate) field_ref: Option<FieldRef>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FieldRef {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    pub(crate) field_path: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    #[serde(rename = "name")]
    _name: Option<String>,
    pub(crate) container_port: u16,
    #[serde(default)]
    pub(crate) host_port: u16,
    #[serde(default, rename = "hostIP")]
    pub(crate) host_ip: String,
    #[serde(default)]
    pub(crate) protocol: PortProtocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum PortProtocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Resources {
    #[serde(default)]
    pub(crate) requests: ResourceList,
    #[serde(default)]
    pub(crate) limits: ResourceList,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct ResourceList {
    pub(crate) cpu: Option<Quantity>,
    pub(crate) memory: Option<Quantity>,
    #[serde(rename = "hugepages-2Mi")]
    pub(crate) hugepages_2mi: Option<Quantity>,
    #[serde(rename = "hugepages-1Gi")]
    pub(crate) hugepages_1gi: Option<Quantity>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
    #[serde(default)]
    pub(crate) sub_path: String,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) recursive_read_only: Recursive,
    #[serde(default)]
    pub(crate) mount_propagation: Propagation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum Recursive {
    #[default]
    Disabled,
    IfPossible,
    Enabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum Propagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecurityContext {
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) run_as_non_root: Option<bool>,
    #[serde(default)]
    pub(crate) capabilities: Capabilities,
    #[serde(default)]
    pub(crate) privileged: bool,
    #[serde(default)]
    pub(crate) read_only_root_filesystem: bool,
    pub(crate) allow_privilege_escalation: Option<bool>,
    pub(crate) seccomp_profile: Option<Profile>,
    pub(crate) app_armor_profile: Option<Profile>,
    #[serde(default)]
    pub(crate) proc_mount: ProcMount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum ProcMount {
    #[default]
    Default,
    Unmasked,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Capabilities {
    #[serde(default)]
    pub(crate) add: Vec<String>,
    #[serde(default)]
    pub(crate) drop: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) empty_dir: Option<EmptyDir>,
    pub(crate) host_path: Option<HostPath>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EmptyDir {
    #[serde(default)]
    pub(crate) medium: Medium,
    pub(crate) size_limit: Option<Quantity>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum Medium {
    #[default]
    #[serde(rename = "")]
    Disk,
    Memory,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct HostPath {
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) r#type: HostPathType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) enum HostPathType {
    /// No check before the mount.
    #[default]
    #[serde(rename = "")]
    Unchecked,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

#[cfg(test)]
mod tests {
    use super::{RestartPolicy, parse};

    const HEAD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n";

    fn error(text: &str) -> String {
        format!("{:#}", parse(text).expect_err(text))
    }

    #[test]
    fn several_documents_and_defaults() {
        let one = format!("{HEAD}spec: {{volumes: , containers: [{{name: a, image: b, args: }}]}}\n");
        let manifest = parse(&format!("---\n{one}---\n---\n{one}")).unwrap();
        assert_eq!(manifest.pods.len(), 2);
        assert_eq!(manifest.pods[0].metadata.namespace, "default");
        assert_eq!(manifest.pods[1].spec.restart_policy, RestartPolicy::Always);
        assert!(manifest.warnings.is_empty(), "{:?}", manifest.warnings);
    }

    #[test]
    fn an_unknown_field_is_named_by_path() {
        let text = format!("{HEAD}spec:\n  containerz: []\n  containers: [{{name: a, image: b}}]\n");
        assert!(error(&text).contains("field spec.containerz is unknown"), "{}", error(&text));
        let text = format!("{HEAD}spec: {{containers: [{{name: a, image: b, envFrom: []}}]}}\n");
        assert!(error(&text).contains("spec.containers.0.envFrom"), "{}", error(&text));
        let text =
            format!("{HEAD}spec: {{containers: [], volumes: [{{name: v, configMap: {{name: c}}}}]}}\n");
        assert!(error(&text).contains("spec.volumes.0.configMap"), "{}", error(&text));
        let env = "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]";
        let text = format!("{HEAD}spec: {{containers: [{{name: a, image: b, {env}}}]}}\n");
        assert!(error(&text).contains("spec.containers.0.env.0.valueFrom.secretKeyRef"), "{}", error(&text));
    }

    #[test]
    fn what_only_a_cluster_does_is_a_warning() {
        let text = format!(
            "{HEAD}spec:\n  nodeSelector: {{a: b}}\n  containers: [{{name: a, image: b, livenessProbe: {{exec: {{}}}}}}]\n"
        );
        let manifest = parse(&text).unwrap();
        assert_eq!(
            manifest.warnings,
            ["pod p: spec.containers.0.livenessProbe is ignored", "pod p: spec.nodeSelector is ignored"]
        );
    }

    #[test]
    fn wrong_types_missing_fields_and_other_kinds() {
        let text =
            format!("{HEAD}spec: {{containers: [{{name: a, image: b, env: [{{name: N, value: 1}}]}}]}}\n");
        assert!(error(&text).contains("spec.containers[0].env[0].value"), "{}", error(&text));
        let text = format!("{HEAD}spec: {{containers: [{{name: a}}]}}\n");
        assert!(error(&text).contains("missing field `image`"), "{}", error(&text));
        let bad = "resources: {limits: {memory: 64mb}}";
        let text = format!("{HEAD}spec: {{containers: [{{name: a, image: b, {bad}}}]}}\n");
        assert!(error(&text).contains("limits.memory") && error(&text).contains("64mb"), "{}", error(&text));
        assert!(error("apiVersion: apps/v1\nkind: Deployment\n").contains("Deployment"));
        assert!(error("").contains("no Pod"));
        assert!(error("a: [").contains("YAML"));
    }
}
