//! Keyed items: lists and maps whose entries are added, replaced, and removed by a key that begins with "-".

use super::super::owners::Owners;
use crate::error::Result;
use cri_proto::nri::Field;
use std::collections::HashMap;

/// The key, when it asks for a removal (NRI-22).
pub(crate) fn removal(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// Who claims what.
pub(super) struct Claim<'a> {
    pub(super) owners: &'a mut Owners,
    pub(super) container: &'a str,
    pub(super) plugin: &'a str,
    pub(super) field: Field,
}

impl Claim<'_> {
    fn take(&mut self, key: &str) -> Result<()> {
        self.owners.claim(self.container, self.field, key, self.plugin)
    }

    fn clear(&mut self, key: &str) {
        self.owners.clear(self.container, self.field, key);
    }
}

/// Adds one plugin's items to those collected. A removal takes a former plugin's item away and stays in the collection,
/// in front: the container's own item goes, too.
pub(super) fn list<T: Clone>(
    claim: &mut Claim<'_>,
    collected: &mut Vec<T>,
    asked: &[T],
    key: impl Fn(&T) -> &str,
) -> Result<()> {
    for item in asked.iter().filter(|i| removal(key(i)).is_some()) {
        let gone = removal(key(item)).unwrap_or_default();
        claim.clear(gone);
        collected.retain(|old| key(old) != gone && key(old) != key(item));
        collected.push(item.clone());
    }
    for item in asked.iter().filter(|i| removal(key(i)).is_none()) {
        claim.take(key(item))?;
        collected.push(item.clone());
    }
    Ok(())
}

/// The same for what the next plugin sees: no markers there.
pub(super) fn show_list<T: Clone>(seen: &mut Vec<T>, asked: &[T], key: impl Fn(&T) -> &str) {
    for item in asked {
        let name = removal(key(item)).unwrap_or(key(item)).to_owned();
        seen.retain(|old| key(old) != name);
    }
    seen.extend(asked.iter().filter(|i| removal(key(i)).is_none()).cloned());
}

pub(super) fn map<V: Clone>(
    claim: &mut Claim<'_>,
    collected: &mut HashMap<String, V>,
    asked: &HashMap<String, V>,
) -> Result<()> {
    for (marked, value) in asked {
        if let Some(gone) = removal(marked) {
            claim.clear(gone);
            collected.remove(gone);
            collected.insert(marked.clone(), value.clone());
        }
    }
    for (key, value) in asked.iter().filter(|(k, _)| removal(k).is_none()) {
        claim.take(key)?;
        collected.insert(key.clone(), value.clone());
    }
    Ok(())
}

pub(super) fn show_map<V: Clone>(seen: &mut HashMap<String, V>, asked: &HashMap<String, V>) {
    for key in asked.keys().filter_map(|k| removal(k)) {
        seen.remove(key);
    }
    let added = asked.iter().filter(|(k, _)| removal(k).is_none());
    seen.extend(added.map(|(k, v)| (k.clone(), v.clone())));
}
