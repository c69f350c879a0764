//! Threads of its own for work that waits for other people's programs.
//!
//! ```text
//!  request ──▶ Aside::run ── a thread of ours, which may wait ──▶ Pod::outside ── the common pool, for one call ──▶ BIN
//! ```
//!
//! The common pool ([`blocking`]) is for what takes milliseconds. Work that held one of its threads and waited there for a
//! second one would, with enough of its kind, wait for ever, and everybody else behind it: so [`wait`] is for threads from
//! here alone, and nothing that runs in the pool waits for the pool.

use crate::error::{Error, Result};
use crate::keeper::blocking;
use std::cell::Cell;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

/// How much of such work may be under way at once: more than a node has pods of shims that hang at the same time.
const THREADS: usize = 256;
/// How many calls of other people's programs may run at once: a part of the common pool, whatever they do.
const CALLS: usize = 32;
/// Stack of a thread, in bytes, as those of the common pool.
const STACK: usize = 512 << 10;

thread_local! {
    static IS_ASIDE: Cell<bool> = const { Cell::new(false) };
}

/// See the module. One per keeper.
#[derive(Debug)]
pub(crate) struct Aside {
    threads: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

impl Default for Aside {
    fn default() -> Self {
        Self { threads: Arc::new(Semaphore::new(THREADS)), calls: Arc::new(Semaphore::new(CALLS)) }
    }
}

impl Aside {
    /// Work that may [`wait`].
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let closed = |_| Error::internal("the keeper is ending");
        let permit = Arc::clone(&self.threads).acquire_owned().await.map_err(closed)?;
        let (handle, (done, result)) = (Handle::current(), oneshot::channel());
        let body = move || {
            let _runtime = handle.enter();
            IS_ASIDE.set(true);
            let outcome = work();
            drop(permit);
            let _ = done.send(outcome);
        };
        let thread = std::thread::Builder::new().name("aside".into()).stack_size(STACK).spawn(body);
        thread.map_err(|e| Error::io("start", "a thread", &e))?;
        result.await.map_err(|_| Error::internal("the work was cut short: its thread panicked"))?
    }

    /// The same where a shim has part in it; else it is work for the common pool.
    pub(crate) async fn run_if<T: Send + 'static>(
        &self,
        of_shim: bool,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if of_shim { self.run(work).await } else { blocking(work).await }
    }

    pub(super) fn calls(&self) -> Arc<Semaphore> {
        Arc::clone(&self.calls)
    }
}

/// Waits, on a thread of [`Aside`].
pub(crate) fn wait<T>(work: impl Future<Output = T>) -> T {
    debug_assert!(IS_ASIDE.get(), "a thread of the common pool waits for what may need that pool");
    Handle::current().block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn more_work_than_the_pool_has_threads_comes_to_its_end() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .unwrap();
        let aside = Aside::default();
        let all = async {
            let one = || {
                aside.run(|| {
                    // Long enough for all the others to be here, too.
                    std::thread::sleep(Duration::from_millis(100));
                    wait(blocking(|| Ok(7)))
                })
            };
            tokio::join!(one(), one(), one(), one(), blocking(|| Ok(7)))
        };
        let ended = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), all).await });
        let (a, b, c, d, native) = ended.expect("they wait for each other");
        for done in [a, b, c, d, native] {
            assert_eq!(done.unwrap(), 7);
        }
    }

    #[tokio::test]
    #[should_panic(expected = "waits for what may need that pool")]
    async fn the_pool_does_not_wait_for_itself() {
        let waited = tokio::task::spawn_blocking(|| wait(async {})).await;
        std::panic::resume_unwind(waited.unwrap_err().into_panic());
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let error = Aside::default().run(|| -> Result<()> { panic!("boo") }).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
