//! What `run` must know of daemon and host before it can translate a manifest. Only looks.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cri_proto::v1 as cri;

use super::client::{Client, said};
use super::manifest::Pod;
use super::translate::Facts;
use super::{pod_dir, users};

/// Facts that all pods of a manifest share.
#[derive(Debug)]
pub(crate) struct Host {
    /// The daemon's root directory; pods/ lies below it.
    pub(crate) root: PathBuf,
    shared: Facts,
    /// Whether pods can have user namespaces.
    user_namespaces: bool,
}

impl Host {
    /// Facts of one new pod, with a uid of its own, and ids of the host for its users.
    pub(crate) fn for_pod(&self, users: Option<u32>) -> Facts {
        let uid = uuid::Uuid::new_v4().to_string();
        Facts { pod_dir: pod_dir::of(&self.root, &uid), uid, users, ..self.shared.clone() }
    }
}

impl Host {
    /// For each pod, if this host can give pods user namespaces and one of them wants that.
    pub(crate) async fn users(&self, client: &mut Client, pods: &[Pod]) -> Result<Vec<Option<u32>>> {
        if !self.user_namespaces || pods.iter().all(|pod| pod.spec.host_users != Some(false)) {
            return Ok(vec![None; pods.len()]);
        }
        Ok(users::free(client, pods.len()).await?.into_iter().map(Some).collect())
    }
}

pub(crate) async fn gather(client: &mut Client, manifest: &Path) -> Result<Host> {
    let answer = client.runtime.status(cri::StatusRequest { verbose: true }).await;
    let status = answer.map_err(said("ask the daemon for its status"))?.into_inner();
    let default_handler = status.runtime_handlers.iter().find(|handler| handler.name.is_empty());
    let features = default_handler.and_then(|handler| handler.features);
    let shared = of_this_host(manifest, features.is_some_and(|f| f.recursive_read_only_mounts))?;
    let user_namespaces = features.is_some_and(|features| features.user_namespaces);
    Ok(Host { root: root_dir(&status.info)?, shared, user_namespaces })
}

/// Without a daemon: what it would say on a host that can do everything.
pub(crate) fn offline(manifest: &Path, root: &Path) -> Result<Host> {
    let root = std::path::absolute(root).with_context(|| format!("path {}", root.display()))?;
    Ok(Host { root, shared: of_this_host(manifest, true)?, user_namespaces: true })
}

fn of_this_host(manifest: &Path, recursive_read_only: bool) -> Result<Facts> {
    let directory =
        manifest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(Facts {
        uid: String::new(),
        pod_dir: PathBuf::new(),
        manifest_dir: std::path::absolute(directory).context("find the manifest's directory")?,
        host_ip: host_ip(),
        node_name: nix::unistd::gethostname().context("gethostname")?.to_string_lossy().into_owned(),
        memory_capacity: memory_capacity()?,
        recursive_read_only,
        users: None,
        masked_extra: thermal_throttle(),
        pod_ips: Vec::new(),
    })
}

/// The daemon's root directory, from the verbose status.
pub(crate) async fn root(client: &mut Client) -> Result<PathBuf> {
    let answer = client.runtime.status(cri::StatusRequest { verbose: true }).await;
    root_dir(&answer.map_err(said("ask the daemon for its status"))?.into_inner().info)
}

fn root_dir(info: &std::collections::HashMap<String, String>) -> Result<PathBuf> {
    let missing =
        "the daemon's verbose status does not say its rootDir: is another runtime at this --address?";
    let config: serde_json::Value =
        serde_json::from_str(info.get("config").context(missing)?).context(missing)?;
    let root = PathBuf::from(config.get("rootDir").and_then(serde_json::Value::as_str).context(missing)?);
    anyhow::ensure!(root.is_absolute(), "the daemon's rootDir {} is not absolute", root.display());
    Ok(root)
}

/// The address that traffic to the outside would have. Connecting a datagram socket sends nothing.
fn host_ip() -> String {
    let ask = |own: &str, far: &str| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(far).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    ask("0.0.0.0:0", "192.0.2.1:9")
        .or_else(|| ask("[::]:0", "[2001:db8::1]:9"))
        .unwrap_or_else(|| "127.0.0.1".into())
}

fn memory_capacity() -> Result<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib =
        line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<i64>().ok());
    Ok(kib.context("/proc/meminfo has no MemTotal")?.saturating_mul(1024))
}

/// The kubelet masks these of each CPU where they exist.
fn thermal_throttle() -> Vec<String> {
    let Ok(cpus) = std::fs::read_dir("/sys/devices/system/cpu") else { return Vec::new() };
    let mut found: Vec<String> = cpus
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"cpu"))
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .filter_map(|path| path.to_str().map(str::to_owned))
        .collect();
    found.sort();
    found
}
