//! Pod networks: CNI as the reference library does it; the built-in bridge where no CNI configuration exists.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// `network setup of pod ns/name: bridge: ADD: …`.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {object}: {cause}")]
pub struct Error {
    pub step: String,
    pub object: String,
    pub cause: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone)]
pub struct Options {
    /// Directory with *.conflist, *.conf, *.json; read again whenever needed, may appear later (CNI-RT-03).
    pub conf_dir: PathBuf,
    pub bin_dirs: Vec<PathBuf>,
    /// Results of ADD, leases of the built-in pool: under `--root`/`--state` as fits (must survive a daemon restart).
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
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

/// What setup achieved.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Attachment {
    /// Main address first (IPv4 preferred), all of eth0.
    pub ips: Vec<IpAddr>,
    /// The final CNI result, or the same shape made by the built-in network, for verbose status.
    pub result: serde_json::Value,
}

/// Why pods can or cannot get a network now.
#[derive(Debug, Clone)]
pub struct Readiness {
    pub ready: bool,
    pub reason: String,
    pub message: String,
}

/// The network room. Calls for different pods run at once; calls for one pod one after another.
#[derive(Debug)]
pub struct Network {
    _options: Options,
}

impl Network {
    pub fn open(options: Options) -> Result<Self> {
        Ok(Self { _options: options })
    }

    /// Cheap; asks the configuration directory (and STATUS for CNI 1.1), never a pod.
    pub async fn readiness(&self) -> Readiness {
        todo!()
    }

    /// Gives the pod its address(es); on error everything done is undone, also when cancelled.
    pub async fn setup(&self, pod: &PodNetwork) -> Result<Attachment> {
        let _ = pod;
        todo!()
    }

    /// Takes them back; idempotent; works with the namespace gone (`netns` none) and after a configuration change.
    pub async fn teardown(&self, pod: &PodNetwork, netns: Option<&Path>) -> Result<()> {
        let _ = (pod, netns);
        todo!()
    }

    /// Frees what belongs to pods not in `live` (leases, rules, cached results); run at daemon start.
    pub async fn collect(&self, live: &[String]) -> Result<()> {
        let _ = live;
        todo!()
    }

    /// Removes the built-in bridge and its rules when no pod uses them (daemon stop of an idle node).
    pub async fn close(&self) -> Result<()> {
        todo!()
    }
}
