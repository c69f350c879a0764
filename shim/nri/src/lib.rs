//! The Node Resource Interface (NRI): plugins that see pods and containers and change them on the way.
//!
//! Owns the plugins: how they come and go, in which order they are asked, how their wishes become one answer, and what
//! happens when they contradict each other, say no, or say nothing. Knows pods and containers only as NRI's messages: the
//! [`Host`] finds and changes them, whoever calls makes the messages and carries an adjustment into a spec.
//!
//! ```text
//!  CRI request ─▶ Nri ─▶ plugins 00, 10, 20 … in turn ─▶ merge ─▶ validators ─▶ one answer
//!  socket, directory ─▶ joining ─▶ link (mux, ttrpc) ─▶ plugin
//! ```
//! No lock is held over a call: requests of different pods ask the same plugin at the same time, so a plugin that is stuck
//! costs each of them at most one time-out, after which it is gone.
#![forbid(unsafe_code)]

mod error;
mod events;
mod host;
mod joining;
mod launch;
mod link;
mod lives;
mod merge;
mod mux;
mod options;
mod owners;
mod plugin;
mod tell;
mod validator;

pub use error::{Error, Kind, Result};
pub use host::Host;
pub use options::Options;
pub use validator::Validator;

use cri_proto::nri::Event;
use lives::Lives;
use plugin::Plugin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use tokio::sync::OwnedRwLockReadGuard;
use tokio::task::AbortHandle;

/// All plugins of one runtime.
pub struct Nri {
    options: Options,
    host: OnceLock<Arc<dyn Host>>,
    /// By index.
    plugins: RwLock<Vec<Arc<Plugin>>>,
    /// Read by each creation, from its first question until the object can be found; written for the moment in which a
    /// plugin joins.
    creations: Arc<tokio::sync::RwLock<()>>,
    lives: Lives,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// As long as it lives, no plugin joins: what is being created is either told to a plugin or found by it.
#[derive(Debug)]
pub struct Admission(#[allow(dead_code)] Option<OwnedRwLockReadGuard<()>>);

impl std::fmt::Debug for Nri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nri")
            .field("options", &self.options)
            .field("plugins", &self.plugins())
            .finish_non_exhaustive()
    }
}

impl Nri {
    /// Starts nothing yet.
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            options,
            host: OnceLock::new(),
            plugins: RwLock::default(),
            creations: Arc::default(),
            lives: Lives::default(),
            tasks: Mutex::default(),
        })
    }

    /// Whether anybody would be asked about this.
    pub fn wants(&self, event: Event) -> bool {
        self.plugins().iter().any(|p| p.wants(event))
    }

    /// Whether the creation of a container concerns anybody: a plugin, or the built-in validator.
    pub fn concerns_creation(&self) -> bool {
        !self.options.disable && (self.options.validator.is_some() || !self.plugins().is_empty())
    }

    /// Takes part in what is being created.
    pub async fn admit(&self) -> Admission {
        if self.options.disable {
            return Admission(None);
        }
        Admission(Some(Arc::clone(&self.creations).read_owned().await))
    }

    /// In the order in which they are asked.
    fn plugins(&self) -> Vec<Arc<Plugin>> {
        // A poisoned lock only means that a holder panicked: the list is whole.
        self.plugins.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Arc<Plugin>>> {
        self.plugins.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
