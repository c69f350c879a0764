//! Objects by id, with ids that are taken while their object is still being made.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A map of objects; locked only to look up, never across anything that waits.
#[derive(Debug)]
pub(crate) struct Registry<T> {
    kind: &'static str,
    slots: Mutex<HashMap<String, Option<Arc<T>>>>,
}

impl<T> Registry<T> {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, slots: Mutex::new(HashMap::new()) }
    }

    /// Takes an id.
    ///
    /// # Errors
    /// `AlreadyExists`, also while the other one is being made.
    pub(crate) fn reserve(&self, id: &str) -> Result<Reservation<'_, T>> {
        let mut slots = self.lock();
        if slots.contains_key(id) {
            return Err(Error::exists(format!("{} {id} exists already", self.kind)));
        }
        slots.insert(id.into(), None);
        Ok(Reservation { registry: self, id: id.into() })
    }

    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it is being made, so that nobody takes it for gone.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<T>> {
        match self.lock().get(id) {
            Some(Some(object)) => Ok(Arc::clone(object)),
            Some(None) => Err(Error::state(format!("{} {id:?} is still being made", self.kind))),
            None => Err(Error::not_found(format!("{} {id:?} not found", self.kind))),
        }
    }

    pub(crate) fn find(&self, id: &str) -> Option<Arc<T>> {
        self.lock().get(id).and_then(Clone::clone)
    }

    pub(crate) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    pub(crate) fn insert(&self, id: &str, object: Arc<T>) {
        self.lock().insert(id.into(), Some(object));
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.lock().values().filter_map(Clone::clone).collect()
    }

    /// Nothing here, and nothing on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<T>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A taken id; dropped without [`Reservation::fill`], it is free again.
#[derive(Debug)]
pub(crate) struct Reservation<'a, T> {
    registry: &'a Registry<T>,
    id: String,
}

impl<T> Reservation<'_, T> {
    pub(crate) fn fill(self, object: Arc<T>) {
        self.registry.insert(&self.id, object);
    }
}

impl<T> Drop for Reservation<'_, T> {
    fn drop(&mut self) {
        let mut slots = self.registry.lock();
        if slots.get(&self.id).is_some_and(Option::is_none) {
            slots.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_until_given_back() {
        // SHIM-TSK-04, SHIM-TSK-20
        let registry = Registry::<u8>::new("task");
        let reservation = registry.reserve("a").unwrap();
        assert_eq!(registry.reserve("a").unwrap_err().code(), ttrpc::Code::ALREADY_EXISTS);
        assert_eq!(registry.get("a").unwrap_err().code(), ttrpc::Code::FAILED_PRECONDITION);
        assert!(!registry.is_empty());
        drop(reservation);
        assert_eq!(registry.get("a").unwrap_err().code(), ttrpc::Code::NOT_FOUND);
        registry.reserve("a").unwrap().fill(Arc::new(1));
        assert_eq!(*registry.get("a").unwrap(), 1);
        registry.remove("a");
        assert!(registry.is_empty());
    }
}
