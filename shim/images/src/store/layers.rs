//! Layers as the store keeps them: looked up, pinned, made visible, stacked.

use super::Inner;
use super::layout::Temporary;
use super::record::{LayerRecord, VERSION, settled_key, shared_key, to_json};
use crate::digest::Digest;
use crate::unpack::settle::{Stack, settle};
use crate::unpack::tree::{RootAttributes, Tree};
use crate::{Error, Result};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A layer that stays while this lives; clones count as one.
#[derive(Debug, Clone)]
pub(crate) struct Pinned(Arc<Pin>);

#[derive(Debug)]
struct Pin {
    // Weak would do, but a store that is being dropped must not lose layers of a pull that still runs.
    inner: Arc<Inner>,
    key: String,
}

impl Pinned {
    pub(crate) fn key(&self) -> &str {
        &self.0.key
    }
}

impl Drop for Pin {
    /// The last pin of a failed or cancelled pull undoes what it brought.
    fn drop(&mut self) {
        let mut ledger = self.inner.shared.ledger();
        ledger.unpin(&self.key);
        self.inner.collect(&mut ledger);
    }
}

/// A layer unpacked in tmp/, not yet visible.
pub(crate) struct Unpacked {
    pub(crate) directory: Temporary,
    pub(crate) tree: Tree,
    pub(crate) diff_id: Digest,
    /// Last, so that it is dropped after the directory went to the trash.
    pub(crate) tidy: Tidy,
}

/// Has the trash emptied when dropped: beside a [`Temporary`], however that ends.
pub(crate) struct Tidy(pub(crate) Arc<Inner>);

impl Drop for Tidy {
    fn drop(&mut self) {
        self.0.tidy();
    }
}

impl Inner {
    /// The layer of `diff_id` whose chain id is `chain`, if it is here: shared by diff id or its own by chain id.
    pub(crate) fn find_layer(self: &Arc<Self>, diff_id: &Digest, chain: &Digest) -> Option<Pinned> {
        let mut ledger = self.shared.ledger();
        let keys = [shared_key(diff_id), settled_key(chain)];
        // A damaged one is got again, but not under the feet of containers.
        let usable = |key: &String| !self.is_damaged(key) || !ledger.held_by(key).is_empty();
        let key = keys.into_iter().find(|key| ledger.layer(key).is_some() && usable(key))?;
        ledger.pin(&key);
        Some(Pinned(Arc::new(Pin { inner: self.clone(), key })))
    }

    /// Keeps the layer `key` of an image.
    ///
    /// # Errors
    /// `NotFound` if it was removed meanwhile.
    pub(crate) fn pin_layer(self: &Arc<Self>, key: &str) -> Result<Pinned> {
        let mut ledger = self.shared.ledger();
        if ledger.layer(key).is_none() {
            return Err(Error::new(crate::Kind::NotFound, "find layer", key, "the image was removed"));
        }
        ledger.pin(key);
        Ok(Pinned(Arc::new(Pin { inner: self.clone(), key: key.to_owned() })))
    }

    /// What is known of the layer `key`.
    ///
    /// # Errors
    /// As [`Inner::pin_layer`].
    pub(crate) fn layer_record(&self, key: &str) -> Result<LayerRecord> {
        let record = self.shared.ledger().layer(key).cloned();
        record.ok_or_else(|| Error::new(crate::Kind::NotFound, "find layer", key, "the image was removed"))
    }

    /// Makes `unpacked` visible: settled with `below` (bottom first), under its diff id if nothing was to settle.
    pub(crate) fn commit_layer(
        self: &Arc<Self>,
        unpacked: Unpacked,
        chain: &Digest,
        below: &[Pinned],
    ) -> Result<Pinned> {
        let Unpacked { directory, mut tree, diff_id, tidy: _tidy } = unpacked;
        let key = if tree.pending.is_empty() { shared_key(&diff_id) } else { settled_key(chain) };
        let opened = self.open_stack(below)?;
        settle(&mut tree, &Stack { layers: opened.iter().map(AsFd::as_fd).collect() })?;
        let record = LayerRecord {
            version: VERSION,
            diff_id: diff_id.to_string(),
            root: tree.root_attributes,
            root_opaque: tree.root_opaque,
            usage: tree.usage,
            seal: None,
            unsynced_in_boot: Some(super::open::boot_id()?),
        };
        let json = to_json(&record, &key)?;
        let mut ledger = self.shared.ledger();
        if ledger.layer(&key).is_none() || (self.is_damaged(&key) && ledger.held_by(&key).is_empty()) {
            let target = self.layout().layer(&key);
            // Left by a removal that failed half-way, or damaged.
            self.layout().discard(&target)?;
            directory.commit(&target)?;
            if let Err(e) = self.layout().write(&self.layout().layer_record(&key), &json) {
                self.layout().discard(&target)?;
                return Err(e);
            }
            ledger.insert_layer(key.clone(), record);
            self.healed(&key);
        }
        ledger.pin(&key);
        Ok(Pinned(Arc::new(Pin { inner: self.clone(), key })))
    }

    /// Descriptors of the layers that show through, top first.
    fn open_stack(&self, below: &[Pinned]) -> Result<Vec<OwnedFd>> {
        let keys: Vec<&str> = below.iter().map(Pinned::key).collect();
        self.open_layers(&visible(&self.shared.ledger(), &keys)?.keys)
    }

    /// The same for layers by their keys.
    pub(crate) fn open_layers(&self, keys: &[String]) -> Result<Vec<OwnedFd>> {
        let open = |key: &String| {
            let path = self.layout().layer(key);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty()).map_err(|e| Error::io("open layer", &path, e))
        };
        keys.iter().map(open).collect()
    }
}

/// The layers that overlayfs gets, top first, and what `/` is on top of them.
pub(crate) struct Visible {
    pub(crate) keys: Vec<String>,
    pub(crate) root: RootAttributes,
}

/// `keys` are bottom first. Below a layer with an opaque root nothing shows; the topmost layer that speaks of `/` decides
/// what it is.
pub(crate) fn visible(ledger: &super::ledger::Ledger, keys: &[&str]) -> Result<Visible> {
    let mut top_first = Vec::new();
    let mut root = None;
    for key in keys.iter().rev() {
        let Some(record) = ledger.layer(key) else {
            return Err(Error::new(crate::Kind::NotFound, "find layer", key, "the image was removed"));
        };
        // The same directory twice in one mount is refused by overlayfs, and shows nothing new.
        if !top_first.iter().any(|seen| seen == key) {
            top_first.push((*key).to_owned());
        }
        root = root.or(record.root);
        if record.root_opaque {
            break;
        }
    }
    Ok(Visible { keys: top_first, root: root.unwrap_or(RootAttributes { mode: 0o755, uid: 0, gid: 0 }) })
}
