//! File systems that the parent mounts for a container: those of the host's own making, and copies of the image's.

use crate::error::Kind;
use crate::plan::FreshPlan;
use crate::rootfs::{Overlay, copy_tree, mount_overlay, open_directory_in_root};
use crate::sys::mount;
use crate::sys::raw::MountAttr;
use crate::{Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// A file system of any kind the kernel has, detached and apart from the host unless `plan` says otherwise.
pub(super) fn foreign(plan: &FreshPlan) -> Result<OwnedFd> {
    let made = if plan.fstype == "overlay" { overlay(plan)? } else { instance(plan, &[])? };
    let (kind, recursive) = plan.propagation.unwrap_or((libc::MS_PRIVATE, false));
    set(&made, plan, recursive, &MountAttr { propagation: kind, ..MountAttr::default() })?;
    Ok(made)
}

/// A tmpfs that begins as a copy of the directory `below` the root; empty when that is missing.
pub(super) fn copy_up(plan: &FreshPlan, root: impl AsFd, below: &Path) -> Result<OwnedFd> {
    let error = |e| Error::sys("copy into a tmpfs", below.display().to_string(), e);
    // Written first, read-only afterwards if that was asked for.
    let writable = FreshPlan { attributes: plan.attributes & !libc::MOUNT_ATTR_RDONLY, ..plan.clone() };
    let Some(source) = open_directory_in_root(&root, below)? else { return foreign(plan) };
    let given = |key: &str| plan.options.iter().any(|(known, _)| known == key);
    let stat = rustix::fs::fstat(&source).map_err(|e| error(e.into()))?;
    let (mode, uid, gid) =
        (format!("{:o}", stat.st_mode & 0o7777), stat.st_uid.to_string(), stat.st_gid.to_string());
    let all = [("mode", mode.as_str()), ("uid", uid.as_str()), ("gid", gid.as_str())];
    let inherited: Vec<_> = all.into_iter().filter(|(key, _)| !given(key)).collect();
    let made = instance(&writable, &inherited)?;
    copy_tree(&source, &made).map_err(|e| {
        let full = e.raw_os_error() == Some(libc::ENOSPC);
        let error = error(e);
        if full {
            error.hint("what the image has there is larger than the tmpfs: raise its size")
        } else {
            error
        }
    })?;
    let (propagation, recursive) = plan.propagation.unwrap_or((libc::MS_PRIVATE, false));
    let readonly = plan.attributes & libc::MOUNT_ATTR_RDONLY;
    set(&made, plan, recursive, &MountAttr { set: readonly, propagation, ..MountAttr::default() })?;
    Ok(made)
}

fn instance(plan: &FreshPlan, more: &[(&str, &str)]) -> Result<OwnedFd> {
    let mut options = vec![("source", Some(plan.source.as_str()))];
    options.extend(more.iter().map(|(key, value)| (*key, Some(*value))));
    options.extend(plan.options.iter().map(|(key, value)| (key.as_str(), value.as_deref())));
    mount::fresh(&plan.fstype, &options, plan.attributes).map_err(|e| {
        let errno = e.raw_os_error();
        let error = Error::sys(format!("mount {}", plan.fstype), plan.source.clone(), e);
        match errno {
            Some(libc::ENODEV) => error
                .with_kind(Kind::Unsupported)
                .hint("this kernel does not have that file system (mounts.type): see /proc/filesystems"),
            Some(libc::EINVAL) => error.with_kind(Kind::Invalid).hint("it refused one of mounts.options"),
            Some(libc::ENOTBLK) => {
                error.with_kind(Kind::Invalid).hint("mounts.source must be a block device")
            }
            _ => error,
        }
    })
}

/// Layers go one by one, as the room for root filesystems does it: no limit of 255 bytes.
fn overlay(plan: &FreshPlan) -> Result<OwnedFd> {
    let made = mount_overlay(&Overlay::from_options(&plan.options)?)?;
    set(&made, plan, false, &MountAttr { set: plan.attributes, ..MountAttr::default() })?;
    Ok(made)
}

fn set(mount: &OwnedFd, plan: &FreshPlan, recursive: bool, attr: &MountAttr) -> Result<()> {
    mount::set_attributes(mount, recursive, attr)
        .map_err(|e| Error::sys("set mount attributes", plan.source.clone(), e))
}
