//! Is what the store holds still what was unpacked, and getting it again where it is not.

use super::Inner;
use super::seal::seal;
use crate::store::Store;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What became of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Intact,
    /// Nothing to compare with yet: it is being taken in the background.
    Unknown,
    /// Not what was unpacked.
    Damaged,
    /// Was damaged; pulled again.
    Repaired,
    /// Damaged, and why it could not be pulled again.
    Broken(String),
}

/// A layer that was looked at.
#[derive(Debug, Clone)]
pub struct Verified {
    pub diff_id: String,
    /// Of the images that have it.
    pub images: Vec<String>,
    pub verdict: Verdict,
}

impl Store {
    /// Compares all layers (or those of `images`) with what they were when unpacked. With `repair` damaged ones are pulled
    /// again, by digest and with the node's own credentials; containers that still have one must go first.
    ///
    /// # Errors
    /// For an image that is not here; for a store that cannot be read.
    pub async fn verify(&self, images: &[String], repair: bool) -> Result<Vec<Verified>> {
        let (inner, wanted) = (self.inner.clone(), images.to_owned());
        let looked = tokio::task::spawn_blocking(move || inner.verify(&wanted)).await;
        let found = looked.unwrap_or_else(|_| Err(Error::cancelled("verify", "images")))?;
        let mut verified = Vec::new();
        for (key, mut layer) in found {
            if repair && layer.verdict == Verdict::Damaged {
                layer.verdict = match self.repair(&key, &layer).await {
                    Ok(()) => Verdict::Repaired,
                    Err(error) => Verdict::Broken(error.to_string()),
                };
            }
            verified.push(layer);
        }
        Ok(verified)
    }

    async fn repair(&self, key: &str, layer: &Verified) -> Result<()> {
        let owners = self.inner.shared.ledger().held_by(key);
        if !owners.is_empty() {
            let why = format!("in use by {}: remove these containers first", owners.join(", "));
            return Err(Error::invalid("repair layer", &layer.diff_id, why));
        }
        let catalog = self.inner.catalog();
        let mut names = catalog
            .images()
            .filter(|stored| stored.record.layers.iter().any(|layer| layer.key == key))
            .flat_map(|stored| stored.record.digests.clone());
        let name = names.next().ok_or_else(|| {
            let why = "its images came from archives: import them again";
            Error::invalid("repair layer", &layer.diff_id, why)
        })?;
        self.pull(&name, None, None).await?;
        if self.inner.is_damaged(key) {
            let why = format!("{name} was pulled again and does not have it any more");
            return Err(Error::corrupt("repair layer", &layer.diff_id, why));
        }
        Ok(())
    }
}

impl Inner {
    /// By key; damaged ones are remembered, so that the next pull gets them again.
    fn verify(&self, wanted: &[String]) -> Result<BTreeMap<String, Verified>> {
        let catalog = self.catalog();
        let mut layers: BTreeMap<String, Verified> = BTreeMap::new();
        for name in wanted {
            if catalog.find(name).is_none() {
                let why = "it is not in the store";
                return Err(Error::new(crate::Kind::NotFound, "verify image", name, why));
            }
        }
        let is_wanted = |id: &str| {
            wanted.is_empty() || wanted.iter().any(|w| catalog.find(w).is_some_and(|s| s.record.id == id))
        };
        for stored in catalog.images().filter(|stored| is_wanted(&stored.record.id)) {
            let record = &stored.record;
            let name = record.tags.first().or(record.digests.first()).unwrap_or(&record.id);
            for layer in &record.layers {
                let entry = layers.entry(layer.key.clone());
                let unknown =
                    || Verified { diff_id: String::new(), images: Vec::new(), verdict: Verdict::Unknown };
                entry.or_insert_with(unknown).images.push(name.clone());
            }
        }
        for (key, verified) in &mut layers {
            let record = self.shared.ledger().layer(key).cloned();
            // Removed since the catalog was read.
            let Some(record) = record else { continue };
            verified.diff_id = record.diff_id;
            if let Some(sealed) = record.seal {
                verified.verdict = self.compare(key, &sealed);
            }
        }
        layers.retain(|_, verified| !verified.diff_id.is_empty());
        Ok(layers)
    }

    fn compare(&self, key: &str, sealed: &str) -> Verdict {
        let intact = is_intact(&self.layout().layer(key), sealed);
        let mut damaged = self.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if intact {
            damaged.remove(key);
            return Verdict::Intact;
        }
        damaged.insert(key.to_owned());
        Verdict::Damaged
    }

    pub(crate) fn is_damaged(&self, key: &str) -> bool {
        self.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(key)
    }

    /// Whole again: it was unpacked anew.
    pub(crate) fn healed(&self, key: &str) {
        self.damaged.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }
}

/// One that cannot be read is not intact: that is how a bad disk looks.
fn is_intact(directory: &Path, sealed: &str) -> bool {
    match seal(directory, &AtomicBool::new(false)) {
        Ok(now) => now.as_deref() == Some(sealed),
        Err(error) => {
            tracing::warn!("{error}");
            false
        }
    }
}

/// After an unclean stop: everything is looked at in the background, and damage is told.
pub(super) fn in_the_background(inner: &Arc<Inner>) {
    let weak = Arc::downgrade(inner);
    let look = move || {
        let Some(inner) = weak.upgrade() else { return };
        lower_priority();
        tracing::warn!("the machine went down without stopping the image store: verifying all layers");
        match inner.verify(&[]) {
            Ok(layers) => {
                let damaged = layers.values().filter(|layer| layer.verdict == Verdict::Damaged);
                for layer in damaged {
                    tracing::error!(
                        layer = layer.diff_id,
                        images = layer.images.join(" "),
                        "a layer is damaged: `slipway images verify --repair` pulls it again"
                    );
                }
                tracing::info!(layers = layers.len(), "verified");
            }
            Err(error) => tracing::warn!("{error}"),
        }
    };
    if let Err(error) = std::thread::Builder::new().name("images-verify".to_owned()).spawn(look) {
        tracing::warn!("cannot verify layers: {error}");
    }
}

/// Nobody waits for this thread, and it must not hold up those that somebody waits for.
pub(super) fn lower_priority() {
    // Without the right to, it is as urgent as the others.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}
