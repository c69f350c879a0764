//! The files that all containers of a pod see: hostname, hosts, resolv.conf, and the shared /dev/shm.

use crate::{Error, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// What they say.
#[derive(Debug, Clone, Default)]
pub struct PodFiles {
    /// Without a newline at its end.
    pub hostname: String,
    pub hosts: String,
    pub resolv_conf: String,
    /// A /dev/shm of the pod's own: not for pods in the host's IPC namespace.
    pub shm: bool,
}

/// A pod's DNS configuration (CRI's DNSConfig).
#[derive(Debug, Clone, Copy)]
pub struct Dns<'a> {
    pub servers: &'a [String],
    pub searches: &'a [String],
    pub options: &'a [String],
}

impl PodFiles {
    /// Writes the files into `dir`, which is made if need be, and mounts `shm` there.
    pub fn make(&self, dir: &Path) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
        made.map_err(|e| failed("make pod directory", dir, e))?;
        for (name, text) in [
            ("hostname", &format!("{}\n", self.hostname)),
            ("hosts", &self.hosts),
            ("resolv.conf", &self.resolv_conf),
        ] {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|e| failed("write pod file", &path, e))?;
        }
        if self.shm { mount_shm(&dir.join("shm")) } else { Ok(()) }
    }

    /// Unmounts shm; missing is success.
    pub fn release(dir: &Path) -> Result<()> {
        let path = dir.join("shm");
        match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Not there, or not a mount point.
            Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(()),
            Err(e) => Err(failed("unmount shm", &path, e.into())),
        }
    }

    /// Unmounts and deletes everything; missing is success.
    pub fn remove(dir: &Path) -> Result<()> {
        Self::release(dir)?;
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove pod directory", dir, e)),
            _ => Ok(()),
        }
    }
}

/// CRI-NET-09: tmpfs, mode 1777, nosuid,nodev,noexec, 64 MiB.
fn mount_shm(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make shm directory", path, e));
        }
        _ => {}
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", path, "tmpfs", flags, Some(c"mode=1777,size=65536k"))
        .map_err(|e| failed("mount shm", path, e.into()))
}

fn failed(step: &str, path: &Path, error: io::Error) -> Error {
    Error::sys(step, path.display().to_string(), error)
}

/// CRI-NET-05: no configuration copies the host's; an empty list writes no line.
pub fn resolv_conf(dns: Option<Dns<'_>>) -> String {
    let Some(dns) = dns else {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// CRI-NET-01: the name asked for; with the host's network, or when empty, the node's.
pub fn hostname(asked: &str, host_network: bool) -> String {
    if !asked.is_empty() && !host_network {
        return asked.to_owned();
    }
    let node = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
    node.unwrap_or_else(|| "localhost".into())
}
