//! The images by id, as one immutable value: readers take it and never wait for a writer.

use super::record::{Stored, hex_of};
use crate::reference::Reference;
use crate::types::Image;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug, Default, Clone)]
pub(crate) struct Catalog {
    /// By hex id.
    images: BTreeMap<String, Stored>,
}

impl Catalog {
    pub(crate) fn insert(&mut self, image: Stored) {
        self.images.insert(image.hex().to_owned(), image);
    }

    pub(crate) fn remove(&mut self, hex: &str) {
        self.images.remove(hex);
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Stored> {
        self.images.get(hex_of(id))
    }

    pub(crate) fn images(&self) -> impl Iterator<Item = &Stored> {
        self.images.values()
    }

    pub(crate) fn list(&self) -> Vec<Arc<Image>> {
        self.images.values().map(|stored| stored.image.clone()).collect()
    }

    /// IMG-REF-05: exact id, then normalised name, then unique id prefix.
    pub(crate) fn find(&self, text: &str) -> Option<&Stored> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(stored) = self.images.get(hex) {
            return Some(stored);
        }
        if let Ok(reference) = Reference::parse(text) {
            let name = reference.to_string();
            let names = |stored: &Stored| match reference.digest {
                Some(_) => stored.record.digests.contains(&name),
                None => stored.record.tags.contains(&name),
            };
            if let Some(stored) = self.images.values().find(|stored| names(stored)) {
                return Some(stored);
            }
        }
        if hex.is_empty() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut found = self.images.range(hex.to_owned()..).take_while(|(id, _)| id.starts_with(hex));
        let first = found.next()?;
        found.next().is_none().then_some(first.1)
    }
}
