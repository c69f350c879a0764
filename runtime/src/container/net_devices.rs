//! The host's network devices in the hands of a container.
//!
//! They are moved before its hooks run. When its network namespace ends, the kernel moves real ones home and deletes
//! virtual ones (network_namespaces(7)), as with every other runtime; a creation that fails gives all of them back.

use crate::plan::NetDevicePlan;
use crate::sys::link::{self, Moved};
use crate::sys::namespace;
use crate::{Error, Result};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// For plans that are printed.
pub(super) fn sentence(NetDevicePlan { host, name }: &NetDevicePlan) -> String {
    format!("network device {host}, moved in as {name} when the namespaces are there")
}

/// Devices that were moved; by the end of a failed creation they go home.
#[derive(Debug, Default)]
pub(super) struct Lent {
    home: Option<(OwnedFd, File)>,
    /// The name at home, and what it is inside.
    devices: Vec<(String, Moved)>,
}

impl Lent {
    /// Moves each into the network namespace of the process `pid`.
    pub(super) fn lend(&mut self, plans: &[NetDevicePlan], pid: i32) -> Result<()> {
        if plans.is_empty() {
            return Ok(());
        }
        let error = |object: &str, e: io::Error| Error::sys("move a network device", object.to_owned(), e);
        let theirs = format!("/proc/{pid}/ns/net");
        let there = File::open(&theirs).map_err(|e| error(&theirs, e))?;
        let here = namespace::own("net").map_err(|e| error("our own network namespace", e))?;
        for NetDevicePlan { host, name } in plans {
            let shown = format!("linux.netDevices: {host} as {name}");
            let inside = link::transfer(here.as_fd(), there.as_fd(), host, name, true).map_err(|e| {
                let hint = match e.raw_os_error() {
                    Some(libc::ENODEV) => "the host has no such device",
                    Some(libc::EEXIST) => "the container has a device of that name",
                    Some(libc::EINVAL) => "that device cannot leave its network namespace",
                    _ => return error(&shown, e),
                };
                error(&shown, e).hint(hint)
            });
            match inside {
                Ok(inside) => self.devices.push((host.clone(), inside)),
                Err(e) => {
                    self.home = Some((here, there));
                    return Err(e);
                }
            }
        }
        self.home = Some((here, there));
        Ok(())
    }

    /// Moves them home. The first error of the creation is the one to tell: what fails here goes the kernel's way.
    pub(super) fn back(self) {
        let Some((here, there)) = self.home else { return };
        for (host, moved) in self.devices.iter().rev() {
            let _ = link::transfer(there.as_fd(), here.as_fd(), &moved.name, host, moved.was_up);
        }
    }
}
