//! The files that all containers of a pod see: hostname, hosts, resolv.conf, and the shared /dev/shm.
//!
//! Containers may write to all of them, without an end: hostname, hosts and resolv.conf belong on a disk, or on a file system
//! that holds no more than it should ([`PodFiles::make_apart`]); never on one where the node has its own state.

use crate::{Error, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
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
    /// User and group of the host that they belong to: the pod's root (CRI-UNS-08).
    pub owner: (u32, u32),
}

/// A pod's DNS configuration (CRI's DNSConfig).
#[derive(Debug, Clone, Copy)]
pub struct Dns<'a> {
    pub servers: &'a [String],
    pub searches: &'a [String],
    pub options: &'a [String],
}

/// The three that are text.
pub const TEXTS: [&str; 3] = ["hostname", "hosts", "resolv.conf"];
/// What containers may add to the texts where they have a file system of their own, in bytes.
const ROOM: usize = 1 << 20;

impl PodFiles {
    /// Writes the texts into `dir`, which is made if need be. For nobody but root to reach by its path: what containers make of
    /// the files, set-user-ID programs even, is not for others of the host.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| failed("make pod directory", dir, e))?;
        for (name, text) in TEXTS.iter().zip(self.texts()) {
            let path = dir.join(name);
            let written = fs::write(&path, text);
            let owned = written.and_then(|()| chown(&path, Some(self.owner.0), Some(self.owner.1)));
            owned.map_err(|e| failed("write pod file", &path, e))?;
        }
        Ok(())
    }

    /// Mounts `shm` in `dir`, which is made if need be, unless the pod has none.
    pub fn mount_shm(&self, dir: &Path) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
        made.map_err(|e| failed("make pod directory", dir, e))?;
        if self.shm { mount_shm(&dir.join("shm"), self.owner) } else { Ok(()) }
    }

    /// All of them in `dir`, for whom has no disk: `dir` is made and becomes a small tmpfs.
    pub fn make_apart(&self, dir: &Path) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| failed("make pod directory", dir, e))?;
        let size = self.texts().iter().map(|text| text.len()).sum::<usize>() + ROOM;
        mount_tmpfs(dir, "pod", &format!("mode=700,size={size}"))?;
        self.write(dir)?;
        self.mount_shm(dir)
    }

    fn texts(&self) -> [String; 3] {
        [format!("{}\n", self.hostname), self.hosts.clone(), self.resolv_conf.clone()]
    }

    /// Unmounts shm, and `dir` if that is a mount; missing is success.
    pub fn release(dir: &Path) -> Result<()> {
        for path in [&dir.join("shm"), dir] {
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Not there, or not a mount point.
                Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(failed("unmount", path, e.into())),
            }
        }
        Ok(())
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
fn mount_shm(path: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make shm directory", path, e));
        }
        _ => {}
    }
    mount_tmpfs(path, "shm", &format!("mode=1777,size=65536k,uid={uid},gid={gid}"))
}

fn mount_tmpfs(path: &Path, source: &str, options: &str) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::new(options).map_err(|e| failed("mount tmpfs", path, e.into()))?;
    mount(source, path, "tmpfs", flags, options.as_c_str()).map_err(|e| failed("mount tmpfs", path, e.into()))
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
