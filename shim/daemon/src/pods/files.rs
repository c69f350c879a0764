//! The files that all containers of a pod see: hostname, hosts, resolv.conf, the shared /dev/shm, and views of images.

use super::PodRecord;
use crate::error::{Error, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
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

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes the files and mounts shm, unless the pod uses the host's IPC namespace.
    pub(crate) fn make(&self, pod: &PodRecord) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.0);
        made.map_err(|e| Error::io("make pod directory", &self.0, &e))?;
        let hostname = hostname(pod);
        self.write("hostname", &format!("{hostname}\n"))?;
        self.write("hosts", &hosts(pod, &hostname))?;
        self.write("resolv.conf", &resolv_conf(pod))?;
        if pod.namespaces().ipc() == cri_proto::v1::NamespaceMode::Node { Ok(()) } else { self.mount_shm() }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, text).map_err(|e| Error::io("write pod file", &path, &e))
    }

    /// CRI-NET-09: tmpfs, mode 1777, nosuid,nodev,noexec, 64 MiB.
    fn mount_shm(&self) -> Result<()> {
        let path = self.file("shm");
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("make shm directory", &path, &e));
            }
            _ => {}
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("shm"), &path, Some("tmpfs"), flags, Some("mode=1777,size=65536k"))
            .map_err(|e| Error::io("mount shm", &path, &e.into()))
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
        self.file("images")
    }

    /// Unmounts shm and the views of images; missing is success.
    pub(crate) fn release(&self) -> Result<()> {
        let views = fs::read_dir(self.images()).into_iter().flatten().flatten().map(|e| e.path());
        views.chain([self.file("shm")]).try_for_each(|path| {
            match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                // Not there, or not a mount point.
                Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => Ok(()),
                Err(e) => Err(Error::io("unmount", &path, &e.into())),
            }
        })
    }

    /// Unmounts and deletes everything; missing is success.
    pub(crate) fn remove(&self) -> Result<()> {
        self.release()?;
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove pod directory", &self.0, &e))
            }
            _ => Ok(()),
        }
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
    if !pod.config.hostname.is_empty() && !pod.host_network() {
        return pod.config.hostname.clone();
    }
    let node = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
    node.unwrap_or_else(|| "localhost".into())
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

/// CRI-NET-05: no dns_config copies the host's; an empty list writes no line.
fn resolv_conf(pod: &PodRecord) -> String {
    let Some(dns) = &pod.config.dns_config else {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
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
