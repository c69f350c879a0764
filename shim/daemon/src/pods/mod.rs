//! Pods: made, stopped, removed. A pod is its namespaces (held by the keeper), its network and a few files; no process.

pub(crate) mod files;
mod parse;
mod run;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod user;
mod watch;

pub(crate) use parse::{add_sysctls, without_nul};

use crate::object::Record;
use cri_proto::v1;
use serde::{Deserialize, Serialize};
use slipway_network::{Attachment, PodNetwork, PortMapping, Protocol};
use std::path::PathBuf;

/// Where a pod is in its life. NotReady is final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodPhase {
    /// Intent: what this record names may exist in part. Never listed.
    Creating,
    Ready,
    /// Stopped, or found dead. `released`: namespaces, network and mounts are given back (else a stop tries again).
    NotReady {
        released: bool,
    },
}

/// All that must survive the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) id: String,
    pub(crate) config: v1::PodSandboxConfig,
    pub(crate) handler: String,
    /// What that meant when the pod was made: its containers are all run by the same. Of older records: Slipway itself.
    #[serde(default)]
    pub(crate) settings: crate::config::Handler,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// Pinned network namespace; none: the host's.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) attachment: Option<Attachment>,
    /// Parent of the containers' control groups, and whether it is ours to remove.
    pub(crate) cgroup_parent: String,
    pub(crate) own_cgroup: bool,
    /// What the keeper answered: `/proc/<pid>/ns/…` names this pod's namespaces.
    pub(crate) sandbox_pid: i32,
    /// SELinux labels of its files, and of its containers' processes if they ask for nothing else; none: there are none here.
    #[serde(default)]
    pub(crate) selinux: Option<crate::selinux::Labels>,
    pub(crate) phase: PodPhase,
}

impl Record for PodRecord {
    const KIND: &'static str = "pod";
    fn id(&self) -> &str {
        &self.id
    }
}

impl PodRecord {
    /// Those of its annotations that its handler's shim is to see.
    pub(crate) fn passed_annotations(&self) -> impl Iterator<Item = (String, String)> {
        let passes = |name: &str| {
            self.settings.pod_annotations.iter().any(|wanted| match wanted.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == wanted,
            })
        };
        let own = self.config.annotations.iter().filter(move |(name, _)| passes(name));
        own.map(|(name, value)| (name.clone(), value.clone()))
    }

    /// The record written before anything is made.
    pub(crate) fn intent(
        id: String,
        config: v1::PodSandboxConfig,
        handler: String,
        cgroup_parent: String,
        own_cgroup: bool,
    ) -> Self {
        let created_at = crate::clock::now();
        Self {
            id,
            config,
            handler,
            settings: crate::config::Handler::default(),
            created_at,
            netns: None,
            attachment: None,
            cgroup_parent,
            own_cgroup,
            sandbox_pid: 0,
            selinux: None,
            phase: PodPhase::Creating,
        }
    }

    pub(crate) fn metadata(&self) -> v1::PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// `namespace/name`, for sentences and logs.
    pub(crate) fn label(&self) -> String {
        let metadata = self.metadata();
        format!("{}/{}", metadata.namespace, metadata.name)
    }

    /// The name that only one pod may have (CRI-RUN-06).
    pub(crate) fn name(&self) -> String {
        let m = self.metadata();
        format!("{}_{}_{}_{}", m.name, m.namespace, m.uid, m.attempt)
    }

    pub(crate) fn security(&self) -> v1::LinuxSandboxSecurityContext {
        self.config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
    }

    /// The namespace modes of the request; absent means POD for all (CRI-NS-02).
    pub(crate) fn namespaces(&self) -> v1::NamespaceOption {
        self.security().namespace_options.unwrap_or_default()
    }

    pub(crate) fn host_network(&self) -> bool {
        self.namespaces().network() == v1::NamespaceMode::Node
    }

    pub(crate) fn state(&self) -> v1::PodSandboxState {
        match self.phase {
            PodPhase::Ready => v1::PodSandboxState::SandboxReady,
            _ => v1::PodSandboxState::SandboxNotready,
        }
    }

    /// PodSandboxStatus (CRI-PST-*).
    pub(crate) fn status(&self) -> v1::PodSandboxStatus {
        let ips = match (&self.attachment, self.phase) {
            (Some(attachment), PodPhase::Ready) => attachment.ips.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let mut ips = ips.into_iter();
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: ips.next().unwrap_or_default(),
                additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(self.namespaces()) }),
            }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }

    /// The list item (CRI-PLS-01).
    pub(crate) fn item(&self) -> v1::PodSandbox {
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state().into(),
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }

    /// What the network room is told, equal at setup and teardown.
    pub(crate) fn network(&self, netns: PathBuf) -> PodNetwork {
        let metadata = self.metadata();
        let dns = self.config.dns_config.clone().unwrap_or_default();
        PodNetwork {
            id: self.id.clone(),
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            netns,
            ports: self.config.port_mappings.iter().filter_map(port).collect(),
            annotations: self.config.annotations.clone().into_iter().collect(),
            cgroup_parent: self.config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default(),
            dns_servers: dns.servers,
            dns_searches: dns.searches,
            dns_options: dns.options,
        }
    }
}

/// A host port of 0 or less means none (CRI-NET-10). Ranges were checked when the request came in.
fn port(mapping: &v1::PortMapping) -> Option<PortMapping> {
    let host_port = u16::try_from(mapping.host_port).ok().filter(|p| *p > 0)?;
    Some(PortMapping {
        protocol: match mapping.protocol() {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: u16::try_from(mapping.container_port).ok()?,
        host_port,
        host_ip: mapping.host_ip.parse().ok(),
    })
}
