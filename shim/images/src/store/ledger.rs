//! Which layers there are and who needs them. In memory; the records on disk are its truth at open.

use super::record::{ImageRecord, LayerRecord};
use std::collections::{BTreeMap, HashMap, HashSet};

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    layers: HashMap<String, LayerRecord>,
    /// Layers of pulls and imports under way.
    pins: HashMap<String, usize>,
    /// Containers and the layers they hold.
    owners: BTreeMap<String, Vec<String>>,
}

impl Ledger {
    pub(crate) fn insert_layer(&mut self, key: String, record: LayerRecord) {
        self.layers.insert(key, record);
    }

    pub(crate) fn layer(&self, key: &str) -> Option<&LayerRecord> {
        self.layers.get(key)
    }

    pub(crate) fn layer_mut(&mut self, key: &str) -> Option<&mut LayerRecord> {
        self.layers.get_mut(key)
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &LayerRecord> {
        self.layers.values()
    }

    pub(crate) fn unsynced(&self) -> Vec<String> {
        self.layers.iter().filter(|(_, r)| r.unsynced_in_boot.is_some()).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn hold(&mut self, owner: &str, layers: Vec<String>) {
        self.owners.insert(owner.to_owned(), layers);
    }

    pub(crate) fn holds(&self, owner: &str) -> bool {
        self.owners.contains_key(owner)
    }

    /// The layers that `owner` holds, bottom first.
    pub(crate) fn held(&self, owner: &str) -> Option<Vec<String>> {
        self.owners.get(owner).cloned()
    }

    pub(crate) fn release(&mut self, owner: &str) {
        self.owners.remove(owner);
    }

    pub(crate) fn owners(&self) -> Vec<String> {
        self.owners.keys().cloned().collect()
    }

    /// Those that are on disk and not yet sealed.
    pub(crate) fn unsealed(&self) -> Vec<String> {
        let open = |record: &LayerRecord| record.seal.is_none() && record.unsynced_in_boot.is_none();
        self.layers.iter().filter(|(_, record)| open(record)).map(|(key, _)| key.clone()).collect()
    }

    /// The containers that have this layer.
    pub(crate) fn held_by(&self, key: &str) -> Vec<String> {
        let holds = |keys: &Vec<String>| keys.iter().any(|held| held == key);
        self.owners.iter().filter(|(_, keys)| holds(keys)).map(|(owner, _)| owner.clone()).collect()
    }

    pub(crate) fn pin(&mut self, key: &str) {
        *self.pins.entry(key.to_owned()).or_default() += 1;
    }

    pub(crate) fn unpin(&mut self, key: &str) {
        if let Some(count) = self.pins.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.pins.remove(key);
            }
        }
    }

    /// Takes out and returns the layers that no image, container or pull needs.
    pub(crate) fn take_unreachable<'a>(
        &mut self,
        images: impl Iterator<Item = &'a ImageRecord>,
    ) -> Vec<String> {
        let mut needed: HashSet<&str> = self.pins.keys().map(String::as_str).collect();
        needed.extend(self.owners.values().flatten().map(String::as_str));
        needed.extend(images.flat_map(|image| &image.layers).map(|layer| layer.key.as_str()));
        let gone: Vec<String> =
            self.layers.keys().filter(|key| !needed.contains(key.as_str())).cloned().collect();
        for key in &gone {
            self.layers.remove(key);
        }
        gone
    }
}
