//! Pod manifest to CRI: what a kubelet would send for this pod. Pure: no file, socket or clock is touched here; what
//! must be known of the host and the image comes in [`Facts`] and [`ImageFacts`].
//!
//! Owns the meaning of the manifest's fields. `check` refuses everything that can be refused before anything is made.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1 as cri;

use super::expand::expand;
use super::manifest::{
    Container, DnsConfig, DnsPolicy, EnvVar, GroupsPolicy, Pod, PortProtocol, RestartPolicy,
};
use super::resources::resources;
use super::security;
use super::volumes::{mounts, volumes};

/// On the sandbox: `Always` or `OnFailure`. Containers whose request lies in the pod's directory are kept running.
pub(crate) const RESTART_POLICY: &str = "io.slipway.restart-policy";
/// On the sandbox: seconds that the pod's containers get between their stop signal and SIGKILL.
pub(crate) const GRACE_PERIOD: &str = "io.slipway.termination-grace-period";
pub(crate) const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";

const DEFAULT_GRACE_PERIOD: i64 = 30;

/// What must be known of the host and of this run of the pod.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) uid: String,
    /// The pod's own directory; volumes/ and logs/ lie below it.
    pub(crate) pod_dir: PathBuf,
    /// Relative seccomp profile names are looked up here.
    pub(crate) manifest_dir: PathBuf,
    /// In a pod with the host's network also the pod's address.
    pub(crate) host_ip: String,
    pub(crate) node_name: String,
    /// Bytes of memory of the machine, for oom_score_adj of burstable containers.
    pub(crate) memory_capacity: i64,
    /// Whether the daemon can do recursive read-only mounts.
    pub(crate) recursive_read_only: bool,
    /// First id of the host for a pod with a user namespace; none where the daemon cannot make one.
    pub(crate) users: Option<u32>,
    /// Files of this host that the kubelet masks beside its fixed list.
    pub(crate) masked_extra: Vec<String>,
    /// Empty until the sandbox runs.
    pub(crate) pod_ips: Vec<String>,
}

impl Facts {
    /// First id of the host for the pod's user namespace, if it wants one.
    pub(crate) fn users_of(&self, pod: &Pod) -> Option<u32> {
        self.users.filter(|_| pod.spec.host_users == Some(false))
    }
}

/// What ImageStatus says of a container's image.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageFacts {
    pub(crate) id: String,
    pub(crate) uid: Option<i64>,
    pub(crate) username: String,
}

/// A container's configuration and the directories of volumes (volume root, path below it) it wants to exist.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPlan {
    pub(crate) config: cri::ContainerConfig,
    pub(crate) sub_paths: Vec<(PathBuf, String)>,
}

/// Everything that can be wrong with a manifest by itself, before anything is made.
pub(crate) fn check(pod: &Pod, facts: &Facts) -> Result<()> {
    let meta = &pod.metadata;
    ensure!(is_name(&meta.name, 253, true), "metadata.name {:?}: {}", meta.name, NAME_RULE);
    ensure!(is_name(&meta.namespace, 63, false), "metadata.namespace {:?}: {}", meta.namespace, NAME_RULE);
    ensure!(!pod.spec.containers.is_empty(), "spec.containers is empty: a pod needs at least one container");
    ensure!(
        pod.spec.host_users != Some(false) || facts.users.is_some(),
        "spec.hostUsers: false needs user namespaces and id-mapped mounts, which this host cannot do: see `slipway check`"
    );
    let shared = pod.spec.share_process_namespace && pod.spec.host_pid;
    ensure!(!shared, "spec.shareProcessNamespace and spec.hostPID exclude each other");
    if let Some(hostname) = &pod.spec.hostname {
        ensure!(is_name(hostname, 63, false), "spec.hostname {hostname:?}: {NAME_RULE}");
    }
    let grace = pod.spec.termination_grace_period_seconds.unwrap_or(0);
    ensure!(grace >= 0, "spec.terminationGracePeriodSeconds {grace} is negative");

    let mut names = HashSet::new();
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        let name = &container.name;
        ensure!(is_name(name, 63, false), "container name {name:?}: {NAME_RULE}");
        ensure!(names.insert(name), "two containers are named {name:?}");
    }
    volumes(pod, facts)?;
    sandbox_config(pod, facts)?;
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        container_config(pod, container, facts, None)
            .with_context(|| format!("container {}", container.name))?;
    }
    Ok(())
}

pub(crate) const NAME_RULE: &str =
    "must be lower-case letters, digits and '-', begin and end with a letter or digit, and be short";

/// RFC 1123 label, or (with `dots`) subdomain. Such names are also safe as file names.
pub(crate) fn is_name(name: &str, longest: usize, dots: bool) -> bool {
    let label = |label: &str| {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !label.is_empty() && label.bytes().all(good) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= longest && if dots { name.split('.').all(label) } else { label(name) }
}

/// Where the logs of a pod's containers go.
pub(crate) fn log_directory(facts: &Facts) -> PathBuf {
    facts.pod_dir.join("logs")
}

pub(crate) fn sandbox_config(pod: &Pod, facts: &Facts) -> Result<cri::PodSandboxConfig> {
    let spec = &pod.spec;
    let meta = &pod.metadata;
    let mut labels: HashMap<_, _> = meta.labels.clone().into_iter().collect();
    labels.insert(LABEL_POD_NAME.into(), meta.name.clone());
    labels.insert(LABEL_POD_NAMESPACE.into(), meta.namespace.clone());
    labels.insert(LABEL_POD_UID.into(), facts.uid.clone());
    let mut annotations: HashMap<_, _> = meta.annotations.clone().into_iter().collect();
    annotations.insert(GRACE_PERIOD.into(), grace_period(pod).to_string());
    if spec.restart_policy == RestartPolicy::Never {
        annotations.remove(RESTART_POLICY);
    } else {
        annotations.insert(RESTART_POLICY.into(), spec.restart_policy.word().into());
    }

    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: meta.name.clone(),
            uid: facts.uid.clone(),
            namespace: meta.namespace.clone(),
            attempt: 0,
        }),
        hostname: hostname(pod),
        log_directory: path_text(&log_directory(facts))?,
        dns_config: dns(spec.dns_policy, spec.dns_config.as_ref())?,
        port_mappings: port_mappings(pod)?,
        labels,
        annotations,
        linux: Some(security::sandbox(pod, facts)),
        windows: None,
    })
}

pub(crate) fn grace_period(pod: &Pod) -> i64 {
    pod.spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_PERIOD)
}

/// CRI-NET-02: none with the host's network. A long pod name is cut like the kubelet does.
fn hostname(pod: &Pod) -> String {
    if pod.spec.host_network {
        return String::new();
    }
    let wanted = pod.spec.hostname.as_ref().unwrap_or(&pod.metadata.name);
    let cut = &wanted[..wanted.len().min(63)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// CRI-NET-05: none means the host's resolv.conf.
fn dns(policy: DnsPolicy, config: Option<&DnsConfig>) -> Result<Option<cri::DnsConfig>> {
    let Some(config) = config else {
        ensure!(policy != DnsPolicy::None, "spec.dnsPolicy None needs spec.dnsConfig.nameservers");
        return Ok(None);
    };
    ensure!(
        policy != DnsPolicy::None || !config.nameservers.is_empty(),
        "spec.dnsPolicy None needs spec.dnsConfig.nameservers"
    );
    ensure!(
        !config.nameservers.is_empty(),
        "spec.dnsConfig without nameservers would have to be merged with the host's resolv.conf: name them here"
    );
    let option = |option: &super::manifest::DnsOption| match &option.value {
        Some(value) => format!("{}:{value}", option.name),
        None => option.name.clone(),
    };
    Ok(Some(cri::DnsConfig {
        servers: config.nameservers.clone(),
        searches: config.searches.clone(),
        options: config.options.iter().map(option).collect(),
    }))
}

/// Only ports with a host port matter to CRI; with the host's network there is nothing to map.
fn port_mappings(pod: &Pod) -> Result<Vec<cri::PortMapping>> {
    let mut mappings = Vec::new();
    let mut taken = HashSet::new();
    for (container, port) in pod.spec.containers.iter().flat_map(|c| c.ports.iter().map(move |p| (c, p))) {
        ensure!(port.container_port != 0, "container {}: containerPort must be 1 to 65535", container.name);
        if port.host_port == 0 {
            continue;
        }
        if pod.spec.host_network {
            ensure!(
                port.host_port == port.container_port,
                "container {}: with hostNetwork, hostPort {} must equal containerPort {}",
                container.name,
                port.host_port,
                port.container_port
            );
            continue;
        }
        let ip_is_good = port.host_ip.is_empty() || port.host_ip.parse::<std::net::IpAddr>().is_ok();
        ensure!(ip_is_good, "container {}: hostIP {:?} is not an address", container.name, port.host_ip);
        let protocol = match port.protocol {
            PortProtocol::Tcp => cri::Protocol::Tcp,
            PortProtocol::Udp => cri::Protocol::Udp,
            PortProtocol::Sctp => cri::Protocol::Sctp,
        };
        ensure!(
            taken.insert((protocol, port.host_ip.clone(), port.host_port)),
            "container {}: hostPort {} is asked for twice in this pod",
            container.name,
            port.host_port
        );
        mappings.push(cri::PortMapping {
            protocol: protocol.into(),
            container_port: port.container_port.into(),
            host_port: port.host_port.into(),
            host_ip: port.host_ip.clone(),
        });
    }
    Ok(mappings)
}

/// One container. Without `image` (nothing pulled yet) the checks that need it are left out and the image is named as
/// in the manifest.
pub(crate) fn container_config(
    pod: &Pod,
    container: &Container,
    facts: &Facts,
    image: Option<&ImageFacts>,
) -> Result<ContainerPlan> {
    let env = environment(pod, container, facts)?;
    let known: HashMap<_, _> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expanded = |words: &[String]| words.iter().map(|word| expand(word, &known)).collect();
    let (mounts, sub_paths) = mounts(pod, container, facts)?;
    let name = &container.name;
    let labels = [
        (LABEL_CONTAINER_NAME, name),
        (LABEL_POD_NAME, &pod.metadata.name),
        (LABEL_POD_NAMESPACE, &pod.metadata.namespace),
        (LABEL_POD_UID, &facts.uid),
    ];
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.clone(), attempt: 0 }),
        image: Some(cri::ImageSpec {
            image: image.map_or_else(|| container.image.clone(), |image| image.id.clone()),
            user_specified_image: container.image.clone(),
            runtime_handler: pod.spec.runtime_class_name.clone(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into() }).collect(),
        mounts,
        labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        log_path: log_path(name, 0),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(container, facts)?),
            security_context: Some(security::container(pod, container, facts, image)?),
        }),
        ..Default::default()
    };
    Ok(ContainerPlan { config, sub_paths })
}

/// Below the pod's log directory; one file per attempt (CRI-LOG-01).
pub(crate) fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// Variables in order; each value may use those before it.
fn environment(pod: &Pod, container: &Container, facts: &Facts) -> Result<Vec<(String, String)>> {
    let mut env: Vec<(String, String)> = Vec::new();
    for var in &container.env {
        ensure!(
            !var.name.is_empty() && !var.name.contains(['=', '\0']),
            "env name {:?} is empty or contains '='",
            var.name
        );
        let value = env_value(pod, var, facts, &env).with_context(|| format!("env {}", var.name))?;
        env.retain(|(name, _)| *name != var.name);
        env.push((var.name.clone(), value));
    }
    Ok(env)
}

fn env_value(pod: &Pod, var: &EnvVar, facts: &Facts, before: &[(String, String)]) -> Result<String> {
    match (&var.value, &var.value_from) {
        (Some(_), Some(_)) => bail!("value and valueFrom exclude each other"),
        (value, None) => {
            let known: HashMap<_, _> = before.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            Ok(expand(value.as_deref().unwrap_or_default(), &known))
        }
        (None, Some(source)) => {
            let field = source.field_ref.as_ref().context("valueFrom: only fieldRef is supported")?;
            field_value(pod, &field.field_path, facts)
        }
    }
}

fn field_value(pod: &Pod, path: &str, facts: &Facts) -> Result<String> {
    let meta = &pod.metadata;
    let own_ips = || if pod.spec.host_network { vec![facts.host_ip.clone()] } else { facts.pod_ips.clone() };
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = keyed("metadata.labels") {
        return Ok(meta.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Ok(meta.annotations.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => facts.uid.clone(),
        "spec.nodeName" => facts.node_name.clone(),
        "status.hostIP" => facts.host_ip.clone(),
        "status.podIP" => own_ips().into_iter().next().unwrap_or_default(),
        "status.podIPs" => own_ips().join(","),
        _ => bail!(
            "fieldPath {path:?} is not supported; there are metadata.name, .namespace, .uid, .labels['KEY'], \
             .annotations['KEY'], spec.nodeName, status.hostIP, status.podIP and status.podIPs"
        ),
    })
}

/// CRI carries paths as text.
pub(crate) fn path_text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("path {} is not UTF-8", path.display()))
}

pub(crate) fn groups_policy(policy: GroupsPolicy) -> i32 {
    match policy {
        GroupsPolicy::Merge => cri::SupplementalGroupsPolicy::Merge,
        GroupsPolicy::Strict => cri::SupplementalGroupsPolicy::Strict,
    }
    .into()
}
