//! Which plugin has set what. Two plugins that set the same field or key contradict each other, unless the later one
//! removed the former's first (NRI-22, NRI-23).

use crate::error::{Error, Kind, Result};
use cri_proto::nri::{CompoundFieldOwners, Field, FieldOwners, OwningPlugins};
use protobuf::Enum;
use std::collections::BTreeMap;

/// Owners over one request. The key of a field that has no items is empty.
#[derive(Debug, Default)]
pub(crate) struct Owners(BTreeMap<(String, i32, String), String>);

impl Owners {
    /// # Errors
    /// Conflict that names both plugins and the thing.
    pub(crate) fn claim(&mut self, container: &str, field: Field, key: &str, plugin: &str) -> Result<()> {
        let place = (container.to_owned(), field.value(), key.to_owned());
        if let Some(owner) = self.0.get(&place) {
            let what = if key.is_empty() { format!("{field:?}") } else { format!("{field:?} {key:?}") };
            return Err(Error::new(
                Kind::Conflict,
                format!("NRI plugins {owner} and {plugin} both set {what} of container {container}"),
            ));
        }
        self.0.insert(place, plugin.to_owned());
        Ok(())
    }

    /// For hooks, which all plugins may add.
    pub(crate) fn join(&mut self, container: &str, field: Field, plugin: &str) {
        let owners = self.0.entry((container.to_owned(), field.value(), String::new())).or_default();
        if !owners.split(',').any(|owner| owner == plugin) {
            if !owners.is_empty() {
                owners.push(',');
            }
            owners.push_str(plugin);
        }
    }

    pub(crate) fn clear(&mut self, container: &str, field: Field, key: &str) {
        self.0.remove(&(container.to_owned(), field.value(), key.to_owned()));
    }

    pub(crate) fn owner(&self, container: &str, field: Field) -> Option<&str> {
        self.0.get(&(container.to_owned(), field.value(), String::new())).map(String::as_str)
    }

    /// Key and owner of each item of a field.
    pub(crate) fn items(&self, container: &str, field: Field) -> impl Iterator<Item = (&str, &str)> {
        let wanted = (container.to_owned(), field.value());
        let of_field = move |(c, f, _): &(String, i32, String)| *c == wanted.0 && *f == wanted.1;
        self.0
            .iter()
            .filter(move |(k, _)| of_field(k))
            .map(|((_, _, key), owner)| (key.as_str(), owner.as_str()))
    }

    /// For validators.
    pub(crate) fn to_message(&self) -> OwningPlugins {
        let mut all = OwningPlugins::new();
        for ((container, field, key), owner) in &self.0 {
            let fields: &mut FieldOwners = all.owners.entry(container.clone()).or_default();
            if key.is_empty() {
                fields.simple.insert(*field, owner.clone());
            } else {
                let compound: &mut CompoundFieldOwners = fields.compound.entry(*field).or_default();
                compound.owners.insert(key.clone(), owner.clone());
            }
        }
        all
    }
}
