//! Image layers with other owners: each a detached, id-mapped mount of its directory, so that one copy on disk serves
//! containers of every mapping.

use super::Overlay;
use crate::error::Kind;
use crate::idmap::{self, IdMap, IdMappings, Setgroups};
use crate::sys::mount;
use crate::sys::raw::MountAttr;
use crate::{Error, Result};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The lower layers of an overlay, if they are id-mapped.
#[derive(Debug, Default)]
pub(super) struct Layers {
    user: Option<OwnedFd>,
    mapped: Vec<OwnedFd>,
}

impl Layers {
    /// `user`: a namespace with the overlay's maps; else one is made.
    pub(super) fn of(overlay: &Overlay, user: Option<BorrowedFd<'_>>) -> Result<Self> {
        let Some(mappings) = &overlay.idmap else { return Ok(Self::default()) };
        let user = match user {
            Some(user) => user.try_clone_to_owned().map_err(|e| Error::sys("prepare layers", "fcntl", e))?,
            None => idmap::user_namespace(mappings, Setgroups::Allow)?,
        };
        let mapped = overlay.lower.iter().map(|path| layer(path, user.as_fd())).collect::<Result<_>>()?;
        Ok(Self { user: Some(user), mapped })
    }

    pub(super) fn are_mapped(&self) -> bool {
        self.user.is_some()
    }

    pub(super) fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    /// In the overlay's order; empty if they are as they are.
    pub(super) fn mapped(&self) -> &[OwnedFd] {
        &self.mapped
    }
}

/// Whether containers whose layers and writable directories lie in `directory` can have a user namespace: tried out, since
/// kernel, file system and limits all have a say.
///
/// # Errors
/// What failed, and what to do.
pub fn try_idmapped(directory: &Path) -> Result<()> {
    let map = vec![IdMap { container: 0, host: 1 << 30, size: 65536 }];
    let mappings = IdMappings { uids: map.clone(), gids: map };
    let home = directory.join(format!(".idmap-{}", std::process::id()));
    let tried = try_overlay(&home, mappings);
    let _ = fs::remove_dir_all(&home);
    tried
}

fn try_overlay(home: &Path, mappings: IdMappings) -> Result<()> {
    let make = |name: &str| {
        let path = home.join(name);
        let made = fs::create_dir_all(&path).map(|()| path.clone());
        made.map_err(|e| Error::sys("try id-mapped layers", path.display().to_string(), e))
    };
    let lower = vec![make("upmost")?, make("lower")?];
    let (upper, work) = (Some(make("upper")?), Some(make("work")?));
    let overlay = Overlay { lower, upper, work, volatile: true, idmap: Some(mappings), label: None };
    super::mount_root(&super::Rootfs::Overlay(overlay), None).map(drop)
}

fn layer(path: &Path, user: BorrowedFd<'_>) -> Result<OwnedFd> {
    let error = |e| Error::sys("prepare a layer", path.display().to_string(), e);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| error(e.into()))?;
    let tree = mount::clone_path(&name, false).map_err(error)?;
    // A copy of a shared mount is its peer: what is attached on one would show on the host.
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount::set_attributes(&tree, false, &private).map_err(error)?;
    map_ids(&tree, user, path)?;
    Ok(tree)
}

/// For a detached mount of a directory of the root filesystem.
pub(super) fn map_ids(tree: &OwnedFd, user: BorrowedFd<'_>, path: &Path) -> Result<()> {
    mount::map_ids(tree, false, user).map_err(|e| {
        let unsupported = matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EPERM));
        let error = Error::sys("map the ids of a layer", path.display().to_string(), e);
        if unsupported {
            error.with_kind(Kind::Unsupported).hint(
                "its file system cannot be id-mapped: keep images on ext4, xfs or btrfs, or use no user namespace",
            )
        } else {
            error
        }
    })
}
