//! Which pods and containers plugins know, so that each is told once of its stop and of its removal (NRI-30, NRI-31).

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::OnceCell;

/// Known ids; the cell is set once the stop was told.
#[derive(Debug, Default)]
pub(crate) struct Lives(Mutex<HashMap<String, Arc<OnceCell<()>>>>);

impl Lives {
    pub(crate) fn know<'a>(&self, ids: impl Iterator<Item = &'a String>) {
        let mut lives = self.lock();
        for id in ids {
            lives.entry(id.clone()).or_default();
        }
    }

    /// Tells of a stop, once: who comes meanwhile waits until it is told.
    pub(crate) async fn stop(&self, id: &str, tell: impl Future<Output = ()>) {
        let cell = self.lock().get(id).cloned();
        if let Some(cell) = cell {
            cell.get_or_init(|| tell).await;
        }
    }

    /// True once, for what is known.
    pub(crate) fn forget(&self, id: &str) -> bool {
        self.lock().remove(id).is_some()
    }

    // A poisoned lock only means that a holder panicked: the map is whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<()>>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
