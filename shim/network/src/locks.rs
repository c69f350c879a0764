//! One operation at a time per pod (CNI-14); different pods never wait for each other here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

type Table = Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>;

#[derive(Debug, Default, Clone)]
pub(crate) struct PodLocks(Table);

/// Held while one operation works on a pod; the last one out removes the entry.
#[derive(Debug)]
pub(crate) struct PodGuard {
    table: Table,
    id: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl PodLocks {
    pub(crate) async fn lock(&self, id: &str) -> PodGuard {
        let entry = {
            let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            table.entry(id.to_owned()).or_default().clone()
        };
        let guard = entry.lock_owned().await;
        PodGuard { table: self.0.clone(), id: id.to_owned(), guard: Some(guard) }
    }
}

impl Drop for PodGuard {
    fn drop(&mut self) {
        self.guard.take();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.get(&self.id).is_some_and(|entry| Arc::strong_count(entry) == 1) {
            table.remove(&self.id);
        }
    }
}
