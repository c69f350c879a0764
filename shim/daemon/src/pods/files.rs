//! Where a pod's files are, and what they say: hostname, hosts, resolv.conf, the shared /dev/shm, and views of images.

use super::PodRecord;
use crate::config::Config;
use crate::error::{Error, Result};
use nix::mount::{MntFlags, umount2};
use slipway_runtime::sandbox::files::{self, Dns, PodFiles};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// What dies with the boot is in `<state>/pods/<id>`: shm, which has a limit of its own, and the views of images. What containers
/// can write to without an end is on the disk, in `<root>/sandboxes/<id>`: hostname, hosts, resolv.conf.
#[derive(Debug, Clone)]
pub(crate) struct PodDir {
    state: PathBuf,
    texts: PathBuf,
}

impl PodDir {
    pub(crate) fn new(config: &Config, id: &str) -> Self {
        Self::at(&config.root, &config.state, id)
    }

    pub(crate) fn at(root: &Path, state: &Path, id: &str) -> Self {
        Self { state: state.join("pods").join(id), texts: Self::all_texts(root).join(id) }
    }

    /// Where all pods have their texts, a directory for each.
    pub(crate) fn all_texts(root: &Path) -> PathBuf {
        root.join("sandboxes")
    }

    /// What dies with the boot; with links to the texts, for shims and for a former version that a node goes back to.
    pub(crate) fn path(&self) -> &Path {
        &self.state
    }

    /// The directory of hostname, hosts and resolv.conf. Pods of former versions have them beside shm.
    pub(crate) fn texts(&self) -> &Path {
        let is_old = fs::symlink_metadata(self.state.join("hosts")).is_ok_and(|hosts| hosts.is_file());
        if is_old { &self.state } else { &self.texts }
    }

    pub(crate) fn shm(&self) -> PathBuf {
        self.state.join("shm")
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
        files.write(&self.texts)?;
        files.mount_shm(&self.state)?;
        self.link()?;
        pod.selinux.as_ref().map_or(Ok(()), |labels| self.label(&labels.file))
    }

    fn link(&self) -> Result<()> {
        for name in files::TEXTS {
            let link = self.state.join(name);
            symlink(self.texts.join(name), &link).map_err(|e| Error::io("link pod file", &link, &e))?;
        }
        Ok(())
    }

    /// Gives the files and shm an SELinux label. What containers make in shm gets its type, and their own categories.
    pub(crate) fn label(&self, label: &str) -> Result<()> {
        let texts = self.texts();
        let paths = files::TEXTS.iter().map(|name| texts.join(name));
        for path in paths.chain([self.shm()]).filter(|path| path.exists()) {
            slipway_runtime::lsm::set_file_label(&path, label)?;
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
        self.state.join("images")
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
        Ok(PodFiles::release(&self.state)?)
    }

    /// Unmounts and deletes everything; missing is success.
    pub(crate) fn remove(&self) -> Result<()> {
        self.release()?;
        PodFiles::remove(&self.state)?;
        Ok(PodFiles::remove(&self.texts)?)
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

    fn tree() -> (tempfile::TempDir, PodDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let pod = PodDir::at(&dir.path().join("root"), &dir.path().join("state"), "p");
        (dir, pod)
    }

    /// In the host's IPC namespace, so that nothing is mounted.
    fn record() -> PodRecord {
        let mut pod = PodRecord::intent("p".into(), Default::default(), String::new(), "/c".into(), true);
        let security = pod.config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().ipc = cri_proto::v1::NamespaceMode::Node.into();
        pod.config.hostname = "web".into();
        pod
    }

    #[test]
    fn the_texts_are_on_the_disk() {
        let (dir, pod) = tree();
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        pod.make(&record()).expect("made");
        let texts = dir.path().join("root/sandboxes/p");
        assert_eq!(pod.texts(), texts);
        assert_eq!(fs::read_to_string(texts.join("hostname")).expect("a file"), "web\n");
        for name in files::TEXTS {
            // A former version, or a pod's shim, finds them here.
            assert_eq!(fs::canonicalize(pod.path().join(name)).expect("a link"), texts.join(name));
        }
        assert_eq!(fs::metadata(&texts).expect("a directory").mode() & 0o077, 0, "for nobody else");
        pod.release().expect("released");
        assert!(texts.join("hosts").exists());
        pod.remove().expect("removed");
        assert!(!texts.exists() && !pod.path().exists());
        pod.remove().expect("missing is success");
    }

    #[test]
    fn a_pod_of_a_former_version_has_its_texts_where_they_were() {
        let (dir, pod) = tree();
        let old = dir.path().join("state/pods/p");
        fs::create_dir_all(&old).expect("made");
        for name in files::TEXTS {
            fs::write(old.join(name), name).expect("written");
        }
        assert_eq!(pod.texts(), old);
        pod.remove().expect("removed");
        assert!(!old.exists());
    }

    /// After a boot.
    #[test]
    fn what_is_left_on_the_disk_alone_goes() {
        let (dir, pod) = tree();
        let texts = dir.path().join("root/sandboxes/p");
        fs::create_dir_all(&texts).expect("made");
        fs::write(texts.join("hosts"), "").expect("written");
        pod.remove().expect("removed");
        assert!(!texts.exists());
    }

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
