//! An object with a life (pod, container): its record in memory and on disk, watchers, and the gate of its transitions.
//!
//! One holder of the gate changes the record; everybody else reads the last published snapshot and never waits.

use crate::error::{Error, Result};
use crate::records::Records;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use tokio::sync::{Mutex, watch};

/// What a record must tell to be kept in a [`Table`] and in [`Records`].
pub(crate) trait Record: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// `pod` or `container`: for sentences and for the directory.
    const KIND: &'static str;
    fn id(&self) -> &str;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Object<R> {
    pub(crate) id: String,
    published: watch::Sender<Arc<R>>,
    /// Held for the length of one transition (start, stop, remove).
    pub(crate) gate: Mutex<()>,
    /// Held while a record is read, changed and published: the end of a container comes without the gate.
    writing: std::sync::Mutex<()>,
    /// The stop signal was sent: it is sent once, however often a client asks (CRI-STOP-05).
    stopping: AtomicBool,
}

impl<R: Record> Object<R> {
    pub(crate) fn new(record: R) -> Self {
        let id = record.id().to_owned();
        Self {
            id,
            published: watch::Sender::new(Arc::new(record)),
            gate: Mutex::new(()),
            writing: std::sync::Mutex::new(()),
            stopping: AtomicBool::new(false),
        }
    }

    /// True for the first caller only.
    pub(crate) fn first_stop(&self) -> bool {
        !self.stopping.swap(true, Ordering::Relaxed)
    }

    /// The stop signal could not be sent: the next caller is the first again.
    pub(crate) fn stop_failed(&self) {
        self.stopping.store(false, Ordering::Relaxed);
    }

    /// The last published record.
    pub(crate) fn record(&self) -> Arc<R> {
        Arc::clone(&self.published.borrow())
    }

    /// Saves, then publishes a changed record: observers never see what is not on disk.
    pub(crate) fn set(&self, records: &Records, record: R) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        records.save(&record)?;
        self.published.send_replace(Arc::new(record));
        Ok(())
    }

    /// Changes the record in force, whoever changed it meanwhile, then saves and publishes it. For what has already
    /// happened: a full disk is logged and hides nothing from clients; recovery finds the truth again by the keeper.
    /// False when it is not on disk.
    pub(crate) fn note(&self, records: &Records, change: impl FnOnce(&mut R)) -> bool
    where
        R: Clone,
    {
        // A poisoned lock only means that a change panicked before it was published: the record is whole.
        let _writing = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut record = R::clone(&self.record());
        change(&mut record);
        let saved = records.save(&record);
        self.published.send_replace(Arc::new(record));
        saved.inspect_err(|error| tracing::error!("{} {}: {error}", R::KIND, self.id)).is_ok()
    }

    /// Waits until the record satisfies `condition`, and returns it.
    pub(crate) async fn wait_until(&self, condition: impl FnMut(&Arc<R>) -> bool) -> Arc<R> {
        let mut watcher = self.published.subscribe();
        match watcher.wait_for(condition).await {
            Ok(record) => Arc::clone(&record),
            // The sender lives in `self`, which we borrow: it cannot be gone.
            Err(_) => self.record(),
        }
    }
}

/// All objects of one kind.
#[derive(Debug)]
pub(crate) struct Table<R> {
    objects: RwLock<BTreeMap<String, Arc<Object<R>>>>,
}

impl<R> Default for Table<R> {
    fn default() -> Self {
        Self { objects: RwLock::default() }
    }
}

impl<R: Record> Table<R> {
    pub(crate) fn insert(&self, object: Arc<Object<R>>) {
        self.write().insert(object.id.clone(), object);
    }

    pub(crate) fn remove(&self, id: &str) {
        self.write().remove(id);
    }

    pub(crate) fn list(&self) -> Vec<Arc<Object<R>>> {
        self.read().values().cloned().collect()
    }

    /// By id or unique prefix (CRI-GEN-08).
    ///
    /// # Errors
    /// NotFound, or InvalidArgument for an ambiguous prefix.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Object<R>>> {
        let objects = self.read();
        if let Some(object) = objects.get(id) {
            return Ok(Arc::clone(object));
        }
        let unknown = || Error::not_found(format!("{} {id:?} does not exist", R::KIND));
        if id.is_empty() {
            return Err(unknown());
        }
        let mut hits =
            objects.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id)).map(|(_, o)| o);
        match (hits.next(), hits.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            (None, _) => Err(unknown()),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("{} id {id:?} is ambiguous: give more digits", R::KIND)))
            }
        }
    }

    /// The same, for calls that succeed when there is nothing left to do.
    ///
    /// # Errors
    /// InvalidArgument for an ambiguous prefix: doing nothing must not look like success.
    pub(crate) fn get_if_any(&self, id: &str) -> Result<Option<Arc<Object<R>>>> {
        match self.get(id) {
            Err(error) if error.code() == tonic::Code::NotFound => Ok(None),
            found => found.map(Some),
        }
    }

    // A poisoned lock only means that a reader panicked: the map itself is whole.
    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Object<R>>>> {
        self.objects.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Object<R>>>> {
        self.objects.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::PodRecord;
    use tonic::Code;

    /// CRI-GEN-08.
    #[test]
    fn a_prefix_must_be_of_one_only() {
        let table = Table::<PodRecord>::default();
        for id in ["aab", "aac", "b"] {
            let record = PodRecord::intent(id.into(), Default::default(), String::new(), "/x".into(), true);
            table.insert(Arc::new(Object::new(record)));
        }
        let found = |id: &str| table.get(id).map(|o| o.id.clone()).map_err(|e| e.code());
        assert_eq!(found("b"), Ok("b".into()));
        assert_eq!(found("aac"), Ok("aac".into()));
        assert_eq!(found("aa"), Err(Code::InvalidArgument));
        assert_eq!(found(""), Err(Code::NotFound), "no id is nobody's, not everybody's");
        assert_eq!(found("aabb"), Err(Code::NotFound));
        assert!(table.get_if_any("c").is_ok_and(|o| o.is_none()) && table.get_if_any("a").is_err());
    }
}
