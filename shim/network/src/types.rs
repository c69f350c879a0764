//! What the caller gives and gets. Plain data, no behaviour beyond reading it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Debug, Clone)]
pub struct Options {
    /// Directory with *.conflist, *.conf, *.json; read again whenever needed, may appear later (CNI-RT-03).
    pub conf_dir: PathBuf,
    /// Where plugins are looked for, first hit wins (CNI-30); becomes CNI_PATH.
    pub bin_dirs: Vec<PathBuf>,
    /// Records of what was done for each pod, leases of the built-in pool. Must survive a daemon restart; should
    /// survive a reboot, because plugins keep their own leases on disk and only a recorded pod gets its DEL.
    pub state_dir: PathBuf,
    /// Built-in network, used while conf_dir holds no configuration; none: NetworkReady is false then.
    pub builtin: Option<Builtin>,
}

#[derive(Debug, Clone)]
pub struct Builtin {
    /// Name of the bridge, at most 15 characters.
    pub bridge: String,
    /// IPv4 pool, e.g. 10.88.0.0/16; the first address is the bridge's.
    pub pool: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Lower case, as CNI's portMappings and nftables write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    /// Never 0: those without a host port are not listed.
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

/// One pod's request; kept by the caller and given again, equal, to teardown.
#[derive(Debug, Clone)]
pub struct PodNetwork {
    pub id: String,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
    pub annotations: BTreeMap<String, String>,
    pub cgroup_parent: String,
    pub dns_servers: Vec<String>,
    pub dns_searches: Vec<String>,
    pub dns_options: Vec<String>,
}

impl PodNetwork {
    /// `namespace/name (first characters of the id)`, for messages.
    pub(crate) fn label(&self) -> String {
        let short: String = self.id.chars().take(13).collect();
        format!("{}/{} ({short})", self.namespace, self.name)
    }
}

/// What setup achieved.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    /// Main address first (IPv4 preferred), all of eth0.
    pub ips: Vec<IpAddr>,
    /// The final CNI result (in its 1.x shape), or the same shape made by the built-in network, for verbose status.
    pub result: serde_json::Value,
}

/// Why pods can or cannot get a network now.
#[derive(Debug, Clone)]
pub struct Readiness {
    pub ready: bool,
    /// One word in CamelCase for the CRI condition; empty when all is well.
    pub reason: String,
    /// One sentence or more for people; names skipped files even when ready.
    pub message: String,
}
