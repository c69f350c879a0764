//! The network room's front: which path makes a pod's network, in what order, and who undoes it.
//!
//! ```text
//!  setup:    lock pod ─▶ configuration? ─CNI──▶ intent ─▶ ADD ─▶ result recorded ─▶ Attachment
//!                                       └none─▶ lease ─▶ intent ─▶ veth, rules   ─▶ Attachment
//!  teardown: lock pod ─▶ record says which path ─▶ DEL / unplug ─▶ record removed
//! ```
//! Every operation runs in a task of its own, so a caller that stops waiting changes nothing about its order: a
//! set-up whose caller is gone is undone by the same task. Knows no CRI types and keeps nothing in memory that is
//! not on disk too.

mod collect;
mod readiness;
mod setup;
mod teardown;

use crate::builtin::Bridge;
use crate::cni::Cni;
use crate::cni::config::ConfDir;
use crate::error::{Error, Result};
use crate::locks::PodLocks;
use crate::record::{Loaded, MadeBy, Record, Store};
use crate::types::{Attachment, Options, PodNetwork, Readiness};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{RwLock, oneshot};
use tokio::task::JoinHandle;

/// For one CNI operation over all plugins of a network. Kubelet waits four minutes for a sandbox.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(150);

/// The network room. Calls for different pods run at once; calls for one pod one after another.
#[derive(Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conf: ConfDir,
    cni: Cni,
    store: Store,
    /// The one for new pods, if configured.
    builtin: Option<Arc<Bridge>>,
    /// By name, with those of former configurations that still have pods.
    bridges: BTreeMap<String, Arc<Bridge>>,
    locks: PodLocks,
    /// Read by ADD and DEL, written by GC and by the removal of a bridge (CNI-15).
    gate: RwLock<()>,
    /// Set up by this process: alive whatever an older list of living pods says.
    young: Mutex<BTreeSet<String>>,
    /// Links still being deleted.
    reaping: Mutex<Vec<JoinHandle<()>>>,
}

impl Network {
    /// Reads the records of earlier runs. Neither plugin nor kernel is touched.
    pub fn open(options: Options) -> Result<Self> {
        let store = Store::open(&options.state_dir)?;
        let builtin = match &options.builtin {
            Some(b) => Some(Arc::new(Bridge::open(b, &options.state_dir)?)),
            None => None,
        };
        let former = Bridge::former(&options.state_dir, builtin.as_ref().map(|b| b.name()));
        let bridges: BTreeMap<String, Arc<Bridge>> = former
            .into_iter()
            .map(Arc::new)
            .chain(builtin.clone())
            .map(|bridge| (bridge.name().to_owned(), bridge))
            .collect();
        for id in store.ids()? {
            if let Loaded::Found(record) = store.load(&id)?
                && let MadeBy::Builtin(lease) = &record.made_by
                && let Some(bridge) = bridges.get(&lease.bridge)
            {
                bridge.adopt(&id, &label(&record), lease);
            }
        }
        let inner = Inner {
            conf: ConfDir::new(options.conf_dir),
            cni: Cni { bin_dirs: options.bin_dirs, timeout: PLUGIN_TIMEOUT },
            store,
            builtin,
            bridges,
            locks: PodLocks::default(),
            gate: RwLock::new(()),
            young: Mutex::default(),
            reaping: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How long all plugins of a network together may take for one operation (default 150 s). Call it before use:
    /// it has no effect once an operation has been started.
    #[must_use]
    pub fn with_plugin_timeout(mut self, timeout: Duration) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.cni.timeout = timeout;
        }
        self
    }

    /// Cheap; asks the configuration directory (and STATUS for CNI 1.1), never a pod (CRI-STA-03).
    pub async fn readiness(&self) -> Readiness {
        self.inner.readiness().await
    }

    /// Gives the pod its address(es); on error everything done is undone, also when cancelled: dropping the future
    /// lets the work come to its end in the background and then takes it back.
    pub async fn setup(&self, pod: &PodNetwork) -> Result<Attachment> {
        let (inner, pod) = (self.inner.clone(), pod.clone());
        let object = pod.label();
        let (answer, answered) = oneshot::channel();
        let (taken, is_taken) = oneshot::channel();
        tokio::spawn(async move {
            let _turn = inner.locks.lock(&pod.id).await;
            let done = inner.setup(&pod).await;
            let made = done.is_ok();
            let _ = answer.send(done);
            // Dropped unsent: the caller went away before it had the answer.
            if made && is_taken.await.is_err() {
                tracing::info!(pod = pod.label(), "nobody waits for this network any more; taking it back");
                if let Err(e) = inner.teardown(&pod, Some(&pod.netns)).await {
                    tracing::warn!(pod = pod.label(), error = %e, "abandoned network not taken back yet");
                }
            }
        });
        let done = answered.await;
        let _ = taken.send(());
        done.unwrap_or_else(|_| Err(Error::new("network setup", object, "the task ended without an answer")))
    }

    /// Takes them back; idempotent; works with the namespace gone (`netns` none) and after a configuration change.
    /// A pod without a record was never begun, so there is nothing to do for it.
    pub async fn teardown(&self, pod: &PodNetwork, netns: Option<&Path>) -> Result<()> {
        let (inner, pod, netns) = (self.inner.clone(), pod.clone(), netns.map(Path::to_owned));
        let object = pod.label();
        let task = tokio::spawn(async move {
            {
                let _turn = inner.locks.lock(&pod.id).await;
                inner.teardown(&pod, netns.as_deref()).await?;
            }
            inner.step_aside().await;
            Ok(())
        });
        joined(task.await, "network teardown", &object)
    }

    /// CHECK: is the pod's network still what ADD made? Success where the plugins cannot tell.
    pub async fn check(&self, pod: &PodNetwork) -> Result<()> {
        let _turn = self.inner.locks.lock(&pod.id).await;
        self.inner.check(pod).await.map_err(|e| e.within("network check of pod", pod.label()))
    }

    /// Frees what belongs to pods not in `live` (leases, rules, cached results); run at daemon start. Pods that this
    /// process has set up count as live. Goes on after errors and returns the first.
    pub async fn collect(&self, live: &[String]) -> Result<()> {
        let (inner, live) = (self.inner.clone(), live.iter().cloned().collect());
        joined(tokio::spawn(async move { inner.collect(live).await }).await, "network collect", "all pods")
    }

    /// Removes the built-in bridge and its rules when no pod uses them (daemon stop of an idle node).
    pub async fn close(&self) -> Result<()> {
        let inner = self.inner.clone();
        joined(tokio::spawn(async move { inner.close().await }).await, "network close", "built-in network")
    }
}

fn joined<T>(done: Result<Result<T>, tokio::task::JoinError>, step: &str, object: &str) -> Result<T> {
    done.unwrap_or_else(|e| Err(Error::new(step, object, e)))
}

fn label(record: &Record) -> String {
    format!("{}/{}", record.namespace, record.name)
}

impl Inner {
    fn young(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reaping(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.reaping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::new(step, "worker thread", e)))
}

/// True if a namespace is pinned at `path`; what a vanished pin leaves (nothing, or a plain file) is none.
fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}
