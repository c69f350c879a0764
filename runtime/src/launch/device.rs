//! Device nodes for user namespaces, in which nobody may make any: made here, on a file system that nobody sees, and placed
//! one by one as binds.

use crate::plan::DevicePlan;
use crate::sys::{mount, namespace};
use crate::{Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mknodat, openat};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

/// The file system with the nodes; it lives as long as one of them is mounted.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    place: Option<OwnedFd>,
    made: u32,
}

impl Nodes {
    /// The node as a detached bind. Where this process may not make nodes either (it is in a user namespace itself), the
    /// host's node of the same path, if it is the same device.
    pub(super) fn make(&mut self, device: &DevicePlan, label: Option<&str>) -> Result<OwnedFd> {
        let shown = device.path.display().to_string();
        let error = |e: Errno| Error::sys("prepare a device", shown.clone(), e);
        let place = self.place(label)?;
        let name = format!("{}", self.made);
        self.made += 1;
        let number = libc::makedev(device.major, device.minor);
        let kind = FileType::from_raw_mode(device.mode);
        let mode = Mode::from_raw_mode(device.mode & 0o7777);
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let node = match mknodat(&place, &name, kind, mode, number) {
            Err(Errno::PERM) => host_node(device, number)?,
            made => {
                made.map_err(error)?;
                let owner = (Some(Uid::from_raw(device.uid)), Some(Gid::from_raw(device.gid)));
                chownat(&place, &name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(error)?;
                // Our umask had a say before.
                chmodat(&place, &name, mode, AtFlags::empty()).map_err(error)?;
                openat(&place, &name, flags, Mode::empty()).map_err(error)?
            }
        };
        let cloned = match mount::clone_fd(&node, false) {
            // Before 6.15 nothing is copied out of a mount that is in no mount namespace.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => self.clone_attached(&place, &node),
            cloned => cloned,
        };
        let attr = crate::sys::raw::MountAttr { propagation: libc::MS_PRIVATE, ..Default::default() };
        let bind = cloned.and_then(|bind| mount::set_attributes(&bind, false, &attr).map(|()| bind));
        bind.map_err(|e| Error::sys("prepare a device", shown, e))
    }

    /// The bind, made while the file system hangs in a mount namespace that nobody else sees. With that namespace it is gone,
    /// so that the next node needs another one.
    fn clone_attached(&mut self, place: &OwnedFd, node: &OwnedFd) -> io::Result<OwnedFd> {
        self.place = None;
        namespace::on_own_thread("devices", || {
            namespace::unshare((libc::CLONE_NEWNS | libc::CLONE_FS) as u32)?;
            mount::make_tree_private()?;
            // Any directory that is there will do.
            mount::attach(place, c"/proc")?;
            mount::clone_fd(node, false)
        })?
    }

    fn place(&mut self, label: Option<&str>) -> Result<OwnedFd> {
        let error = |e: io::Error| Error::sys("prepare devices", "tmpfs", e);
        let place = match self.place.take() {
            Some(place) => place,
            None => {
                let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
                let context = label.map(|label| ("context", Some(label)));
                let options: Vec<_> = [("mode", Some("755"))].into_iter().chain(context).collect();
                mount::fresh("tmpfs", &options, set).map_err(error)?
            }
        };
        let copy = place.try_clone().map_err(error)?;
        self.place = Some(place);
        Ok(copy)
    }
}

fn host_node(device: &DevicePlan, number: u64) -> Result<OwnedFd> {
    let shown = device.path.display().to_string();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let node = openat(CWD, &device.path, flags, Mode::empty());
    let node = node.map_err(|e| Error::sys("prepare a device", shown.clone(), e))?;
    let stat = rustix::fs::fstat(&node).map_err(|e| Error::sys("prepare a device", shown.clone(), e))?;
    if stat.st_rdev == number && stat.st_mode & libc::S_IFMT == device.mode & libc::S_IFMT {
        return Ok(node);
    }
    let what = format!("{shown}: this process may not make devices, and the host's is another one");
    Err(Error::new(crate::error::Kind::Unsupported, "prepare a device", what))
}
