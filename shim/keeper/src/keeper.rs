//! What all requests share: the registries, the log engine, the guardian, and the decision to end.

use crate::connections::Connected;
use crate::error::{Error, Result};
use crate::events::Publisher;
use crate::guardian::client::Guardian;
use crate::layout::Layout;
use crate::logs::Engine;
use crate::process::Deaths;
use crate::registry::Registry;
use crate::sandbox::Sandbox;
use crate::shims;
use crate::task::Task;
use crate::upgrade::Upgrade;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A keeper that is told to end waits so long after the last `start` action that answered with its address, as the
/// client's first request is still on its way.
const LINGER: Duration = Duration::from_secs(2);
/// How long a keeper that has nothing waits for something to do.
const UNUSED: Duration = Duration::from_secs(30);

/// The keeper. One per process.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) layout: Layout,
    /// The client's namespace.
    pub(crate) namespace: String,
    pub(crate) guardian: Guardian,
    pub(crate) engine: Engine,
    pub(crate) deaths: Deaths,
    pub(crate) events: Publisher,
    pub(crate) tasks: Registry<Task>,
    pub(crate) sandboxes: Registry<Sandbox>,
    /// Where other shims publish.
    pub(crate) shims: shims::Listener,
    /// Where what waits for other programs is done.
    pub(crate) aside: shims::Aside,
    /// 1 for the first keeper under this guardian.
    pub(crate) generation: u32,
    /// Soft and hard limit of descriptors for containers that say nothing.
    pub(crate) nofile: Option<(u64, u64)>,
    pub(crate) upgrade: Upgrade,
    /// Connections that their client makes again when they end.
    pub(crate) connected: Connected,
    /// Something was made, or found.
    used: AtomicBool,
    ending: Ending,
}

/// When to end.
#[derive(Debug)]
struct Ending {
    asked: AtomicBool,
    /// Decided: nothing new may begin.
    over: AtomicBool,
    greeted: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Keeper {
    pub(crate) fn new(
        layout: Layout,
        namespace: String,
        guardian: Guardian,
        engine: Engine,
        events: Publisher,
        generation: u32,
        nofile: Option<(u64, u64)>,
    ) -> Self {
        Self {
            layout,
            namespace,
            guardian,
            engine,
            deaths: Deaths::default(),
            events,
            tasks: Registry::new("task"),
            sandboxes: Registry::new("sandbox"),
            shims: shims::Listener::default(),
            aside: shims::Aside::default(),
            generation,
            nofile,
            upgrade: Upgrade::default(),
            connected: Connected::default(),
            used: AtomicBool::new(false),
            ending: Ending {
                asked: AtomicBool::new(false),
                over: AtomicBool::new(false),
                greeted: Mutex::new(None),
                changed: Notify::new(),
            },
        }
    }

    /// A client was just given our address.
    pub(crate) fn greet(&self) {
        *self.ending.greeted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// # Errors
    /// `Unavailable` once this keeper is on its way out; a new one takes its place.
    pub(crate) fn must_stay(&self) -> Result<()> {
        if self.ending.over.load(Ordering::Relaxed) {
            return Err(Error::unavailable("this keeper is ending; run the start action again"));
        }
        Ok(())
    }

    /// Something is about to be made here.
    ///
    /// # Errors
    /// As [`Keeper::must_stay`].
    pub(crate) fn must_serve(&self) -> Result<()> {
        self.used.store(true, Ordering::Relaxed);
        self.must_stay()
    }

    /// Ends if nobody makes anything: a client whose `start` was killed does not know of us (SHIM-CMD-11).
    pub(crate) async fn end_unless_used(&self) {
        tokio::time::sleep(UNUSED).await;
        if !self.used.load(Ordering::Relaxed) && self.is_idle() {
            tracing::warn!("nobody came in {} s: ending", UNUSED.as_secs());
            self.ask_to_end(false);
        }
    }

    /// What there is, into the log.
    pub(crate) fn tell(&self) {
        tracing::info!(
            generation = self.generation,
            guardian = self.guardian.pid(),
            "SIGUSR1: what the keeper has"
        );
        for sandbox in self.sandboxes.all() {
            let record = sandbox.record();
            tracing::info!(sandbox = record.id, pid = record.pid, phase = ?record.phase, "has");
        }
        for task in self.tasks.all() {
            let now = task.snapshot();
            tracing::info!(task = now.id, sandbox = now.sandbox, pid = now.pid, phase = ?now.phase, dropped = now.dropped, "has");
            for exec in task.execs.all() {
                let at = exec.snapshot();
                tracing::info!(task = now.id, exec = exec.id(), pid = at.pid, phase = ?at.phase, "has");
            }
        }
    }

    /// End as soon as nothing is left (SHIM-TSK-32). `now`: without waiting for clients on their way.
    pub(crate) fn ask_to_end(&self, now: bool) {
        if now {
            *self.ending.greeted.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.ending.asked.store(true, Ordering::Relaxed);
        self.ending.changed.notify_one();
    }

    /// Returns when the keeper is to end: it was asked to, and has no task and no sandbox. Cancel-safe.
    pub(crate) async fn should_end(&self) {
        loop {
            while self.ending.asked.load(Ordering::Relaxed) {
                if !self.is_idle() {
                    self.ending.asked.store(false, Ordering::Relaxed);
                    break;
                }
                let greeted = *self.ending.greeted.lock().unwrap_or_else(PoisonError::into_inner);
                match greeted.map(|at| LINGER.saturating_sub(at.elapsed())).filter(|left| !left.is_zero()) {
                    Some(left) => tokio::time::sleep(left).await,
                    None => return self.ending.over.store(true, Ordering::Relaxed),
                }
            }
            self.ending.changed.notified().await;
        }
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.sandboxes.is_empty()
    }
}

/// Runs work that must not be cut short by a client that goes away (the server drops its requests then).
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(Error::from)?
}

/// Runs runtime calls, which block for milliseconds, off the event loop.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::from)?
}
