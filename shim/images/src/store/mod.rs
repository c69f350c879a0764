//! The image store: what there is, who needs it, and how it comes and goes. Knows files, not registries.
//!
//! Readers see an immutable [`catalog::Catalog`]. Writers change disk first, then the catalog, under one lock. Removing
//! takes names first and content later (IMG-GC-08): what is visible is always whole.

pub(crate) mod catalog;
mod checkpoint;
mod containers;
mod janitor;
pub(crate) mod layers;
pub(crate) mod layout;
mod ledger;
mod open;
mod project;
pub(crate) mod record;
mod seal;
mod verify;
mod volumes;
mod walk;

use crate::digest::Digest;
use crate::flight::Flights;
use crate::policy::{Policy, Verification};
use crate::pull::Pulled;
use crate::types::{Auth, FsInfo, Image, Imported, Options, ProgressFn, Registries};
use crate::{Error, Kind, Result};
use catalog::Catalog;
use janitor::{Janitor, Shared};
use layers::Pinned;
use record::{ImageRecord, LayerRef, Stored, VERSION, to_json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
pub use verify::{Verdict, Verified};

/// The image store. Cheap to clone; all calls may run at once; lists come from memory.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: std::path::PathBuf,
    registries: RwLock<Arc<Registries>>,
    policy: RwLock<Policy>,
    shared: Arc<Shared>,
    catalog: RwLock<Arc<Catalog>>,
    janitor: Janitor,
    projects: project::Projects,
    /// See [`Store::limit_writable_layers`].
    writable_limit: AtomicU64,
    pub(crate) pulls: Flights<(String, Option<Auth>), Result<Pulled>>,
    pub(crate) layer_flights: Flights<Digest, Result<crate::plan::Stacked>>,
    /// One unpacking of a diff id at a time, whatever lies below it.
    pub(crate) diff_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    pub(crate) connector: crate::registry::Connector,
    /// Layers that a verification found to be something else than was unpacked.
    pub(crate) damaged: Mutex<std::collections::HashSet<String>>,
    /// Bytes of blobs taken from registries since the store was opened.
    pub(crate) fetched: AtomicU64,
    /// Pulls, imports and containers that the policy refused since the store was opened.
    pub(crate) refused: AtomicU64,
    /// Released by the kernel when the process ends.
    _lock: std::os::fd::OwnedFd,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

/// An image about to be stored.
pub(crate) struct NewImage {
    pub(crate) id: Digest,
    pub(crate) config: String,
    pub(crate) is_artifact: bool,
    pub(crate) checkpoint: Option<String>,
    pub(crate) size: u64,
    pub(crate) chain_ids: Vec<Digest>,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) verified: Vec<Verification>,
}

impl Store {
    /// Opens the store, sets aside and names what is damaged, removes what an unclean stop left half-made.
    pub fn open(options: Options) -> Result<Self> {
        let (inner, unclean) = Inner::open(options)?;
        let inner = Arc::new(inner);
        if unclean {
            verify::in_the_background(&inner);
        }
        Ok(Self { inner })
    }

    /// Pulls `reference` (tag, digest, or both: then the digest decides). Single flight per image and per layer.
    /// Dropping the future cancels the pull unless another caller waits for it too.
    ///
    /// # Errors
    /// `Invalid` (reference, hosts.toml), `NotFound`, `Unauthorized`, `Unavailable` (text begins with
    /// `RegistryUnavailable`), `Untrusted` (with `SignatureValidationFailed`), `Corrupt`, `Exhausted`, `Io`; after each nothing half-made is left.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<Auth>,
        progress: Option<ProgressFn>,
    ) -> Result<Arc<Image>> {
        crate::pull::pull(self, reference, auth, progress).await
    }

    /// Imports a `docker save` or OCI-layout archive (tar, or compressed tar), or an OCI layout directory. `name`
    /// replaces the names in the archive, and is needed when there are none.
    ///
    /// # Errors
    /// As [`Store::pull`]; nothing half-made is left.
    pub async fn import(&self, archive: &Path, name: Option<&str>) -> Result<Imported> {
        crate::import::import(self, archive, name).await
    }

    /// Bytes of layers that pulls took from registries since the store was opened, as they travelled (compressed).
    pub fn fetched_bytes(&self) -> u64 {
        self.inner.fetched.load(Ordering::Relaxed)
    }

    /// Pulls, imports and containers that the policy refused since the store was opened.
    pub fn refusals(&self) -> u64 {
        self.inner.refused.load(Ordering::Relaxed)
    }

    /// What may be pulled, imported and run from now on; pulls under way are judged again when they are to be run.
    pub fn set_policy(&self, policy: Policy) {
        *self.inner.policy.write().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// How registries are asked from now on; pulls under way go on as they began.
    pub fn set_registries(&self, registries: Registries) {
        let mut current = self.inner.registries.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(registries);
    }

    /// Bytes that each writable layer made from now on may hold, as a project quota of the file system; 0: any. What goes
    /// beyond fails inside with EDQUOT.
    ///
    /// # Errors
    /// `Invalid` where the file system has no such quotas: the layers are not limited then, and the text says why.
    pub fn limit_writable_layers(&self, bytes: u64) -> Result<()> {
        self.inner.writable_limit.store(bytes, Ordering::Relaxed);
        match self.inner.projects.missing() {
            Some(why) if bytes > 0 => {
                Err(Error::invalid("limit writable layers", self.inner.root.display(), why))
            }
            _ => Ok(()),
        }
    }

    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.catalog().list()
    }

    /// By id (with or without `sha256:`), normalised tag or digest reference, or unique id prefix (IMG-REF-05).
    pub fn find(&self, image: &str) -> Option<Arc<Image>> {
        self.inner.catalog().find(image).map(|stored| stored.image.clone())
    }

    /// Removes the image with all its names; unknown is success. Layers in use by containers stay until released.
    pub async fn remove(&self, image: &str) -> Result<()> {
        let (inner, image) = (self.inner.clone(), image.to_owned());
        let removed = tokio::task::spawn_blocking(move || inner.remove(&image)).await;
        removed.unwrap_or_else(|_| Err(Error::cancelled("remove image", "task")))
    }

    /// Bytes and inodes of all unpacked layers. Writable layers are not walked: see [`Store::usage`].
    pub fn fs_info(&self) -> Result<FsInfo> {
        let ledger = self.inner.shared.ledger();
        let (mut used_bytes, mut inodes_used) = (0, 0);
        for layer in ledger.layers() {
            used_bytes += layer.usage.bytes;
            inodes_used += layer.usage.inodes;
        }
        Ok(FsInfo { mountpoint: self.inner.root.clone(), used_bytes, inodes_used })
    }
}

impl Inner {
    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn registries(&self) -> Arc<Registries> {
        self.registries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts what the policy refuses.
    pub(crate) fn counted<T>(&self, verdict: Result<T>) -> Result<T> {
        if verdict.as_ref().is_err_and(|error| error.kind == Kind::Untrusted) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        verdict
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn layout(&self) -> &layout::Layout {
        &self.shared.layout
    }

    /// Stores `new` over its layers, and takes its tags from other images. `pinned` keeps the layers until then.
    pub(crate) fn commit_image(&self, new: NewImage, pinned: &[Pinned]) -> Result<Arc<Image>> {
        let layers = new.chain_ids.iter().zip(pinned);
        let layers =
            layers.map(|(chain, pin)| LayerRef { chain_id: chain.to_string(), key: pin.key().to_owned() });
        let record = ImageRecord {
            version: VERSION,
            id: new.id.to_string(),
            generation: 0,
            tags: new.tags,
            digests: new.digests,
            size: new.size,
            config: new.config,
            is_artifact: new.is_artifact,
            checkpoint: new.checkpoint,
            verified: new.verified,
            layers: layers.collect(),
        };
        self.put(&Stored::new(record)?, &mut self.shared.ledger())
    }

    /// Gives the stored image `id` more tags, and a signature; None if it has been removed meanwhile.
    pub(crate) fn add_tags(
        &self,
        id: &str,
        tags: &[String],
        verified: Option<&Verification>,
    ) -> Result<Option<Arc<Image>>> {
        let mut ledger = self.shared.ledger();
        let catalog = self.catalog();
        let Some(stored) = catalog.get(id) else { return Ok(None) };
        let named =
            stored.renamed(tags.to_vec(), Vec::new(), 0).known_by(verified.cloned().into_iter().collect());
        self.put(&named, &mut ledger).map(Some)
    }

    /// Writes `new`, with the names it has already, and moves its tags. The ledger is the writers' lock.
    fn put(&self, new: &Stored, _ledger: &mut ledger::Ledger) -> Result<Arc<Image>> {
        let mut catalog = Catalog::clone(&self.catalog());
        let generation = 1 + catalog.images().map(|stored| stored.record.generation).max().unwrap_or(0);
        let moved = new.record.tags.clone();
        let (mut tags, mut digests) = (moved.clone(), new.record.digests.clone());
        let (mut verified, mut checkpoint) = (new.record.verified.clone(), new.record.checkpoint.clone());
        if let Some(old) = catalog.get(&new.record.id) {
            tags.extend_from_slice(&old.record.tags);
            digests.extend_from_slice(&old.record.digests);
            let more = old.record.verified.iter().filter(|one| !new.record.verified.contains(one));
            verified.extend(more.cloned());
            // The same config and layers by another manifest: one publisher's word must not keep another's image from running.
            checkpoint = old.record.checkpoint.clone().and(checkpoint);
        }
        for names in [&mut tags, &mut digests] {
            names.sort();
            names.dedup();
        }
        let stored = new.renamed(tags, digests, generation).known_by(verified).marked(checkpoint);
        self.write_image(&stored)?;
        let image = stored.image.clone();
        let has_moved = |tag: &String| moved.contains(tag);
        let robbed = |other: &&Stored| other.record.id != image.id && other.record.tags.iter().any(has_moved);
        let robbed: Vec<Stored> = catalog.images().filter(robbed).cloned().collect();
        catalog.insert(stored);
        for other in robbed {
            let kept = other.record.tags.iter().filter(|tag| !has_moved(tag)).cloned().collect();
            // The new record is written: should this write fail, its generation wins at the next open.
            let renamed = other.renamed(kept, other.record.digests.clone(), other.record.generation);
            if let Err(e) = self.write_image(&renamed) {
                tracing::warn!(image = %renamed.record.id, error = %e, "cannot take the moved tag out of the old record");
            }
            catalog.insert(renamed);
        }
        self.publish(catalog);
        self.janitor.sync();
        Ok(image)
    }

    /// Has deleted what was thrown away.
    pub(crate) fn tidy(&self) {
        self.janitor.empty_trash();
    }

    fn write_image(&self, stored: &Stored) -> Result<()> {
        let json = to_json(&stored.record, &stored.record.id)?;
        self.layout().write(&self.layout().image(stored.hex()), &json)
    }

    fn publish(&self, catalog: Catalog) {
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
    }

    /// Names first, content later.
    fn remove(&self, image: &str) -> Result<()> {
        let mut ledger = self.shared.ledger();
        let mut catalog = Catalog::clone(&self.catalog());
        let Some(hex) = catalog.find(image).map(|stored| stored.hex().to_owned()) else {
            return Ok(());
        };
        let path = self.layout().image(&hex);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove image", &path, e));
            }
            _ => {}
        }
        catalog.remove(&hex);
        self.publish(catalog);
        self.collect(&mut ledger);
        Ok(())
    }

    /// Throws away the layers nobody needs. A layer that cannot be moved away is found again at the next open.
    fn collect(&self, ledger: &mut ledger::Ledger) {
        let catalog = self.catalog();
        let gone = ledger.take_unreachable(catalog.images().map(|stored| &stored.record));
        for key in &gone {
            let record = self.layout().discard(&self.layout().layer_record(key));
            let moved = record.and_then(|()| self.layout().discard(&self.layout().layer(key)));
            if let Err(e) = moved {
                tracing::warn!(error = %e, "cannot throw a layer away");
            }
        }
        self.janitor.empty_trash();
    }
}
