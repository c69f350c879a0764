//! Where a pod's files are, and what they say: hostname, hosts, resolv.conf, and the shared /dev/shm.

use super::PodRecord;
use crate::error::Result;
use slipway_runtime::sandbox::files::{self, Dns, PodFiles};
use std::fs;
use std::path::{Path, PathBuf};

/// `<state>/pods/<id>`.
#[derive(Debug, Clone)]
pub(crate) struct PodDir(PathBuf);

impl PodDir {
    pub(crate) fn new(state: &Path, id: &str) -> Self {
        Self(state.join("pods").join(id))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes the files and mounts shm, unless the pod uses the host's IPC namespace.
    pub(crate) fn make(&self, pod: &PodRecord) -> Result<()> {
        let hostname = hostname(pod);
        let files = PodFiles {
            hosts: hosts(pod, &hostname),
            hostname,
            resolv_conf: resolv_conf(pod),
            shm: pod.namespaces().ipc() != cri_proto::v1::NamespaceMode::Node,
        };
        Ok(files.make(&self.0)?)
    }

    /// Unmounts shm; missing is success.
    pub(crate) fn release(&self) -> Result<()> {
        Ok(PodFiles::release(&self.0)?)
    }

    /// Unmounts and deletes everything; missing is success.
    pub(crate) fn remove(&self) -> Result<()> {
        Ok(PodFiles::remove(&self.0)?)
    }
}

/// CRI-NET-01: the request's name; with the host's network, or when empty, the node's.
pub(crate) fn hostname(pod: &PodRecord) -> String {
    files::hostname(&pod.config.hostname, pod.host_network())
}

fn hosts(pod: &PodRecord, hostname: &str) -> String {
    if pod.host_network() {
        return fs::read_to_string("/etc/hosts").unwrap_or_default();
    }
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for ip in pod.attachment.iter().flat_map(|a| &a.ips) {
        text += &format!("{ip}\t{hostname}\n");
    }
    text
}

fn resolv_conf(pod: &PodRecord) -> String {
    let dns = pod.config.dns_config.as_ref();
    files::resolv_conf(dns.map(|d| Dns { servers: &d.servers, searches: &d.searches, options: &d.options }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRI-NET-05.
    #[test]
    fn resolv_conf_has_the_lines_asked_for() {
        let mut pod = PodRecord::intent("i".into(), Default::default(), String::new(), "/c".into(), true);
        pod.config.dns_config = Some(cri_proto::v1::DnsConfig {
            servers: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec![],
        });
        assert_eq!(resolv_conf(&pod), "search a.b c\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n");
    }
}
