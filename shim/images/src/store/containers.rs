//! Writable layers of containers and read-only views. Fast: no sync here, and deleting is the janitor's.

use super::layers::{Visible, visible};
use super::record::{OwnerRecord, VERSION, to_json};
use super::{Inner, Store};
use crate::types::Image;
use crate::unpack::tree::RootAttributes;
use crate::{Error, Kind, Result};
use rustix::io::Errno;
use slipway_runtime::idmap::IdMappings;
use slipway_runtime::rootfs::Overlay;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

impl Store {
    /// Makes the writable layer of container `owner` on top of `image` and holds the layers until [`Store::release`].
    ///
    /// `user`: the maps of the container's user namespace; the image's layers are shown through them, and the writable
    /// layer belongs to its users (IMG-OVL-14).
    ///
    /// # Errors
    /// `Invalid` if `owner` is no plain name or has one already, `NotFound` if the image was removed meanwhile.
    pub fn prepare(&self, image: &Image, owner: &str, user: Option<&IdMappings>) -> Result<Overlay> {
        check_owner(owner)?;
        let inner = &self.inner;
        let (seen, keys) = {
            let mut ledger = inner.shared.ledger();
            if ledger.holds(owner) {
                return Err(Error::invalid("prepare rootfs", owner, "has a writable layer already"));
            }
            let keys = inner.keys_of(image)?;
            let seen = visible(&ledger, &keys.iter().map(String::as_str).collect::<Vec<_>>())?;
            ledger.hold(owner, keys.clone());
            (seen, keys)
        };
        let record = OwnerRecord { version: VERSION, image: image.id.clone(), layers: keys };
        let made = inner.make_container(owner, &record, on_host(seen.root, user));
        if made.is_err()
            && let Err(e) = self.release(owner)
        {
            tracing::warn!(owner, error = %e, "cannot undo a half-made writable layer");
        }
        made?;
        let directory = inner.layout().container(owner);
        Ok(Overlay {
            lower: inner.lower(&seen)?,
            upper: Some(directory.join("upper")),
            work: Some(directory.join("work")),
            volatile: true,
            idmap: user.cloned(),
            label: None,
        })
    }

    /// A read-only view of `image` that stays whole until [`Store::release`] of `owner`, also when the image is removed:
    /// for image volumes. Holding it twice is fine.
    ///
    /// # Errors
    /// As [`Store::prepare`].
    pub fn hold_view(&self, image: &Image, owner: &str) -> Result<Overlay> {
        check_owner(owner)?;
        let inner = &self.inner;
        let mut ledger = inner.shared.ledger();
        if !ledger.holds(owner) {
            let layers = inner.keys_of(image)?;
            let record = OwnerRecord { version: VERSION, image: image.id.clone(), layers: layers.clone() };
            ledger.hold(owner, layers);
            if let Err(error) = inner.make_owner(owner, &record) {
                ledger.release(owner);
                return Err(error);
            }
        }
        drop(ledger);
        self.view(image)
    }

    /// A read-only view of `image` (to read its /etc/passwd). Holds nothing.
    pub fn view(&self, image: &Image) -> Result<Overlay> {
        let keys = self.inner.keys_of(image)?;
        let seen = {
            let ledger = self.inner.shared.ledger();
            visible(&ledger, &keys.iter().map(String::as_str).collect::<Vec<_>>())?
        };
        // The empty directory on top gives `/` its mode and owner, and makes at least two layers, without which
        // overlayfs mounts nothing read-only (IMG-OVL-08, -09).
        let mut lower = vec![self.inner.root_directory(seen.root)?];
        lower.extend(self.inner.lower(&seen)?);
        Ok(Overlay { lower, ..Overlay::default() })
    }

    /// Drops the writable layer of `owner`; missing is success. Deleting happens off the caller's path.
    pub fn release(&self, owner: &str) -> Result<()> {
        check_owner(owner)?;
        let inner = &self.inner;
        let mut ledger = inner.shared.ledger();
        let directory = inner.layout().container(owner);
        inner.projects.end(&directory);
        inner.layout().discard(&directory)?;
        ledger.release(owner);
        inner.collect(&mut ledger);
        Ok(())
    }

    /// Bytes (allocated blocks, hard links once) and inodes of `owner`'s writable layer (IMG-OVL-17).
    pub fn usage(&self, owner: &str) -> Result<(u64, u64)> {
        check_owner(owner)?;
        let upper = self.inner.layout().container(owner).join("upper");
        super::walk::usage(&upper).map_err(|e| match e {
            Errno::NOENT => Error::new(Kind::NotFound, "measure writable layer", owner, e),
            _ => Error::io("measure writable layer", &upper, e),
        })
    }

    /// Owners that hold writable layers; the daemon compares them with its records at start.
    pub fn owners(&self) -> Vec<String> {
        self.inner.shared.ledger().owners()
    }
}

/// An owner is a directory's name.
pub(super) fn check_owner(owner: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if owner.is_empty() || owner.len() > 200 || owner.starts_with('.') || !owner.bytes().all(plain) {
        return Err(Error::invalid(
            "check owner",
            owner,
            "want 1 to 200 of A-Z a-z 0-9 _ - . and no leading dot",
        ));
    }
    Ok(())
}

impl Inner {
    fn keys_of(&self, image: &Image) -> Result<Vec<String>> {
        let catalog = self.catalog();
        let stored = catalog.get(&image.id);
        let stored =
            stored.ok_or_else(|| Error::new(Kind::NotFound, "find image", &image.id, "it was removed"))?;
        Ok(stored.record.layers.iter().map(|layer| layer.key.clone()).collect())
    }

    /// Lower directories, top first; never none, as overlayfs wants one.
    fn lower(&self, seen: &Visible) -> Result<Vec<PathBuf>> {
        if seen.keys.is_empty() {
            return Ok(vec![self.plain_directory("empty", RootAttributes { mode: 0o755, uid: 0, gid: 0 })?]);
        }
        Ok(seen.keys.iter().map(|key| self.layout().layer(key)).collect())
    }

    fn root_directory(&self, root: RootAttributes) -> Result<PathBuf> {
        self.plain_directory(&format!("{:o}-{}-{}", root.mode, root.uid, root.gid), root)
    }

    /// An empty directory in roots/, made once.
    fn plain_directory(&self, name: &str, root: RootAttributes) -> Result<PathBuf> {
        let path = self.layout().dir("roots").join(name);
        if path.is_dir() {
            return Ok(path);
        }
        let temporary = super::layout::Temporary::directory(self.layout())?;
        set_root(temporary.path(), root)?;
        match temporary.commit(&path) {
            // Another caller was faster.
            Err(_) if path.is_dir() => Ok(path),
            other => other.map(|()| path),
        }
    }

    fn make_container(&self, owner: &str, record: &OwnerRecord, root: RootAttributes) -> Result<()> {
        let directory = self.make_owner(owner, record)?;
        self.projects.begin(&directory, owner, self.writable_limit())?;
        make(&directory.join("work"))?;
        let upper = directory.join("upper");
        make(&upper)?;
        set_root(&upper, root)
    }

    /// The owner's directory with its record: who holds what must be known before anything is there to hold.
    fn make_owner(&self, owner: &str, record: &OwnerRecord) -> Result<PathBuf> {
        let directory = self.layout().container(owner);
        make(&directory)?;
        self.layout().write(&directory.join("owner.json"), &to_json(record, owner)?)?;
        Ok(directory)
    }
}

/// The host's owner of a root directory; its root's for ids that are nobody inside.
fn on_host(root: RootAttributes, user: Option<&IdMappings>) -> RootAttributes {
    let Some(user) = user else { return root };
    let uid = user.host_uid(root.uid).or_else(|| user.host_uid(0)).unwrap_or(root.uid);
    let gid = user.host_gid(root.gid).or_else(|| user.host_gid(0)).unwrap_or(root.gid);
    RootAttributes { uid, gid, ..root }
}

fn make(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(|e| Error::io("prepare rootfs", path, e))
}

/// IMG-OVL-13.
fn set_root(path: &Path, root: RootAttributes) -> Result<()> {
    chown(path, Some(root.uid), Some(root.gid))
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(root.mode)))
        .map_err(|e| Error::io("prepare rootfs", path, e))
}
