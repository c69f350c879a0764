//! Single flight: callers that want the same thing at the same time share one task.
//!
//! The task belongs to its waiters together: it is aborted when the last of them is dropped, and only then.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::watch;

/// `V` is cloned for each waiter.
pub(crate) struct Flights<K, V> {
    flying: Arc<Mutex<HashMap<K, Weak<Flight<V>>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { flying: Arc::default() }
    }
}

struct Flight<V> {
    result: watch::Receiver<Option<V>>,
    task: tokio::task::AbortHandle,
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A seat in a flight: keeps it going.
pub(crate) struct Seat<V> {
    flight: Arc<Flight<V>>,
    /// False for the caller whose work is being done.
    pub(crate) joined: bool,
}

impl<V: Clone> Seat<V> {
    /// The result; None if the task died without one (a panic, or the runtime going down).
    pub(crate) async fn wait(self) -> Option<V> {
        let mut result = self.flight.result.clone();
        result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A seat in the flight for `key`; `work` is started if there is none. Must run inside a tokio runtime.
    pub(crate) fn board<F>(&self, key: &K, work: impl FnOnce() -> F) -> Seat<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flying.get(key).and_then(Weak::upgrade) {
            return Seat { flight, joined: true };
        }
        let (sender, result) = watch::channel(None);
        let (work, map, own) = (work(), Arc::downgrade(&self.flying), key.clone());
        let task = tokio::spawn(async move {
            let value = work.await;
            // Landed: whoever comes now starts anew and sees what this one made.
            if let Some(map) = map.upgrade() {
                map.lock().unwrap_or_else(PoisonError::into_inner).remove(&own);
            }
            sender.send_replace(Some(value));
        });
        let flight = Arc::new(Flight { result, task: task.abort_handle() });
        flying.retain(|_, other| other.strong_count() > 0);
        flying.insert(key.clone(), Arc::downgrade(&flight));
        Seat { flight, joined: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn one_task_for_all_and_none_for_nobody() {
        let flights: Flights<&str, u32> = Flights::default();
        let (started, finished) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let work = || {
            let (started, finished) = (started.clone(), finished.clone());
            async move {
                started.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                finished.fetch_add(1, Ordering::SeqCst);
                7
            }
        };
        let (a, b) = (flights.board(&"k", work), flights.board(&"k", work));
        assert!(!a.joined && b.joined);
        // The one who started it leaves; the other still gets the result.
        drop(a);
        assert_eq!(b.wait().await, Some(7));
        assert_eq!((started.load(Ordering::SeqCst), finished.load(Ordering::SeqCst)), (1, 1));

        let c = flights.board(&"k", work);
        assert!(!c.joined);
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(c);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!((started.load(Ordering::SeqCst), finished.load(Ordering::SeqCst)), (2, 1));
    }
}
