//! Where a pod's files are, and what they say: hostname, hosts, resolv.conf, the shared /dev/shm, and views of images.

use super::PodRecord;
use crate::error::{Error, Result};
use nix::mount::{MntFlags, umount2};
use slipway_runtime::sandbox::files::{self, Dns, PodFiles};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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
            owner: pod.user().map_or((0, 0), |user| user.host_root()),
        };
        files.make(&self.0)?;
        pod.selinux.as_ref().map_or(Ok(()), |labels| self.label(&labels.file))
    }

    /// Gives the files and shm an SELinux label. What containers make in shm gets its type, and their own categories.
    pub(crate) fn label(&self, label: &str) -> Result<()> {
        for name in ["hostname", "hosts", "resolv.conf", "shm"] {
            let path = self.0.join(name);
            if path.exists() {
                slipway_runtime::lsm::set_file_label(&path, label)?;
            }
        }
        Ok(())
    }

    /// The mounted view `name` of an image; `make` gives a detached mount where there is none yet.
    pub(crate) fn image_view(&self, name: &str, make: impl FnOnce() -> Result<OwnedFd>) -> Result<PathBuf> {
        let path = self.images().join(name);
        // Left without its mount, the directory is empty: nobody may take that for the image.
        if fs::read_dir(&path).is_ok_and(|_| is_mount_point(&path)) {
            return Ok(path);
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|e| Error::io("make mount point", &path, &e))?;
        slipway_runtime::rootfs::attach(&make()?, &path)?;
        Ok(path)
    }

    fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Unmounts shm and the views of images; missing is success.
    pub(crate) fn release(&self) -> Result<()> {
        for view in fs::read_dir(self.images()).into_iter().flatten().flatten() {
            match umount2(&view.path(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Not there, or not a mount point.
                Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
                Err(e) => return Err(Error::io("unmount", &view.path(), &e.into())),
            }
        }
        Ok(PodFiles::release(&self.0)?)
    }

    /// Unmounts and deletes everything; missing is success.
    pub(crate) fn remove(&self) -> Result<()> {
        self.release()?;
        Ok(PodFiles::remove(&self.0)?)
    }
}

/// Whether something is mounted exactly here: a directory and its parent are then on different file systems.
fn is_mount_point(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).map(|m| m.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
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
