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

use crate::builtin::{Bridge, Lease};
use crate::cni::config::{ConfDir, NetworkList, check_name};
use crate::cni::{self, Cni, CniAttachment, Target};
use crate::error::{Error, Result};
use crate::locks::PodLocks;
use crate::record::{Loaded, MadeBy, Record, Store};
use crate::types::{Attachment, Options, PodNetwork, Readiness};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{RwLock, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// For one CNI operation over all plugins of a network. Kubelet waits four minutes for a sandbox.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(150);
/// For STATUS, asked every few seconds.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// How often ADD is tried when a plugin says "try again later" (code 11).
const ADD_TRIES: u32 = 3;
/// The reference library's cache, kept by other runtimes of this host.
const REFERENCE_CACHE: &str = "/var/lib/cni/results";

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
    async fn readiness(&self) -> Readiness {
        let found = self.conf.look();
        let skipped = match found.skipped.len() {
            0 => String::new(),
            _ => format!("skipped: {}", found.skipped.join("; ")),
        };
        let not = |reason: &str, message: String| Readiness { ready: false, reason: reason.into(), message };
        if let Some(list) = &found.list {
            return match self.cni.status(list, STATUS_TIMEOUT).await {
                Ok(()) => Readiness { ready: true, reason: String::new(), message: skipped },
                Err(e) => {
                    let file = list.file.display();
                    not(
                        "NetworkPluginNotReady",
                        format!("{} (configured in {file}) {skipped}", e.error).trim().into(),
                    )
                }
            };
        }
        if let Some(why) = &found.unreadable {
            return not("NetworkConfigurationUnreadable", format!("{why}; hint: check its permissions"));
        }
        if found.any_file {
            let dir = self.conf.dir().display();
            return not(
                "NetworkConfigurationInvalid",
                format!("no usable CNI configuration in {dir}; {skipped}"),
            );
        }
        let Some(bridge) = self.builtin.clone() else {
            let dir = self.conf.dir().display();
            return not(
                "NetworkPluginNotReady",
                format!(
                    "no CNI configuration in {dir}; hint: install a CNI network there or enable the built-in one"
                ),
            );
        };
        match blocking("network readiness", move || bridge.readiness()).await {
            Ok(note) => Readiness { ready: true, reason: String::new(), message: note },
            Err(e) => not("BuiltinNetworkNotReady", e.to_string()),
        }
    }

    /// The caller holds the pod's lock.
    async fn setup(self: &Arc<Self>, pod: &PodNetwork) -> Result<Attachment> {
        let done = self.setup_by_any_path(pod).await;
        if done.is_ok() {
            self.young.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.id.clone());
        }
        done.map_err(|e| e.within("network setup of pod", pod.label()))
    }

    async fn setup_by_any_path(self: &Arc<Self>, pod: &PodNetwork) -> Result<Attachment> {
        check_name("pod id", &pod.id).map_err(|why| Error::new("read request", "pod", why))?;
        if pod.id.len() > 200 {
            return Err(Error::new("read request", "pod id", "longer than 200 characters"));
        }
        // Whatever an earlier try left is taken back first: two ADDs without a DEL between are not allowed.
        if !matches!(self.store.load(&pod.id)?, Loaded::Missing) {
            self.teardown(pod, Some(&pod.netns)).await?;
        }
        let _gate = self.gate.read().await;
        let found = self.conf.look();
        match (&found.list, &self.builtin) {
            (Some(list), _) => self.setup_cni(pod, list).await,
            (None, Some(bridge)) if !found.any_file => self.setup_builtin(pod, bridge.clone()).await,
            (None, _) => {
                let dir = self.conf.dir().display().to_string();
                let why = found.skipped.first().or(found.unreadable.as_ref());
                let why = why.map_or("there is no file".to_owned(), Clone::clone);
                Err(Error::new("find a CNI configuration", dir, why).hint(
                    "put a valid configuration there, or enable the built-in network and leave it empty",
                ))
            }
        }
    }

    async fn setup_builtin(self: &Arc<Self>, pod: &PodNetwork, bridge: Arc<Bridge>) -> Result<Attachment> {
        let (inner, pod) = (self.clone(), pod.clone());
        blocking("network setup", move || {
            let record =
                |lease: &Lease| inner.store.write(&Record::new(&pod, MadeBy::Builtin(lease.clone())));
            bridge.setup(&pod, record).inspect_err(|_| {
                // Still leased means that undoing failed: the record stays for the next teardown.
                if bridge.address_of(&pod.id).is_none() {
                    let _ = inner.store.remove(&pod.id);
                }
            })
        })
        .await
    }

    async fn setup_cni(self: &Arc<Self>, pod: &PodNetwork, list: &NetworkList) -> Result<Attachment> {
        let bad = |why: String| Error::new("read request", "pod", why);
        if !pod.netns.exists() {
            return Err(bad(format!("network namespace {} does not exist", pod.netns.display())));
        }
        let mut attachment = CniAttachment {
            list: list.clone(),
            ifname: cni::IFNAME.into(),
            cni_args: cni::args::cni_args(pod).map_err(bad)?,
            capability_args: cni::args::capability_args(pod).map_err(bad)?,
            result: None,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let (error, again) = match self.add_once(pod, &mut attachment).await {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            // CNI-12, CNI-31, CNI-RT-11: whatever was done is taken back, with a deadline of its own.
            attachment.result = None;
            if let Err(second) = self.del(&pod.id, &attachment, Some(&pod.netns)).await {
                return Err(error.and_also(&second));
            }
            if !again || tries >= ADD_TRIES {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Intent, ADD, result. The error says whether trying again makes sense.
    async fn add_once(
        self: &Arc<Self>,
        pod: &PodNetwork,
        attachment: &mut CniAttachment,
    ) -> Result<Attachment, (Error, bool)> {
        let no = |e| (e, false);
        self.write_record(pod, attachment).await.map_err(no)?;
        // The disk is waited for beside the plugins: what they write is not on it any earlier.
        let (inner, id) = (self.clone(), pod.id.clone());
        let persisted = tokio::task::spawn_blocking(move || inner.store.persist(&id));
        let target = Target { container_id: &pod.id, netns: Some(&pod.netns) };
        let added = self.cni.add(attachment, target).await;
        let persisted =
            persisted.await.unwrap_or_else(|e| Err(Error::new("sync network record", &pod.id, e)));
        let result = added.map_err(|e| (e.error, e.failure.code == Some(cni::TRY_AGAIN)))?;
        persisted.map_err(no)?;
        let modern =
            result.as_ref().map(|r| cni::result::convert(r, modern_version(&attachment.list.cni_version)));
        let modern = modern.unwrap_or_default();
        let object = format!("CNI network {}", attachment.list.name);
        let ips = cni::result::addresses(&modern, &attachment.ifname)
            .map_err(|why| no(Error::new("CNI ADD", &object, why)))?;
        if ips.is_empty() {
            // CNI-RT-09
            let cause = format!("the plugins gave {} no address", attachment.ifname);
            return Err(no(
                Error::new("CNI ADD", &object, cause).hint("the configuration needs an \"ipam\" section")
            ));
        }
        attachment.result = result;
        self.write_record(pod, attachment).await.map_err(no)?;
        Ok(Attachment { ips, result: modern })
    }

    async fn write_record(self: &Arc<Self>, pod: &PodNetwork, attachment: &CniAttachment) -> Result<()> {
        let record = Record::new(pod, MadeBy::Cni(attachment.clone()));
        let inner = self.clone();
        blocking("write network record", move || inner.store.write(&record)).await
    }

    /// DEL, then the record goes. On failure the record stays, so that DEL is repeated until it succeeds.
    async fn del(self: &Arc<Self>, id: &str, attachment: &CniAttachment, netns: Option<&Path>) -> Result<()> {
        let target = Target { container_id: id, netns: netns.filter(|p| p.exists()) };
        if let Err(e) = self.cni.del(attachment, target).await {
            let uninstalled = self.conf.look().list.as_ref().is_none_or(|l| l.name != attachment.list.name);
            if !(e.failure.missing && uninstalled) {
                return Err(e.error);
            }
            // CNI-RT-13: network and plugin are both gone from this host; nobody will ever be able to do this DEL.
            tracing::warn!(pod = id, error = %e.error, "its network was uninstalled; nothing left to call");
        }
        self.store.remove(id)
    }

    /// The caller holds the pod's lock.
    async fn teardown(self: &Arc<Self>, pod: &PodNetwork, netns: Option<&Path>) -> Result<()> {
        let _gate = self.gate.read().await;
        let done = match self.store.load(&pod.id)? {
            Loaded::Missing => Ok(()),
            Loaded::Found(record) => self.take_back(*record, netns).await,
            Loaded::Damaged => self.take_back_by_guess(pod, netns).await,
        };
        if done.is_ok() {
            self.young.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.id);
        }
        done.map_err(|e| e.within("network teardown of pod", pod.label()))
    }

    /// By the path that made it, whatever is configured now (CNI-27, CNI-RT-12).
    async fn take_back(self: &Arc<Self>, record: Record, netns: Option<&Path>) -> Result<()> {
        match record.made_by {
            MadeBy::Cni(attachment) => self.del(&record.id, &attachment, netns).await,
            MadeBy::Builtin(lease) => match self.bridges.get(&lease.bridge) {
                Some(bridge) => self.unplug(bridge.clone(), record.id, lease.address).await,
                None => self.store.remove(&record.id), // the bridge and its leases are gone
            },
        }
    }

    async fn unplug(self: &Arc<Self>, bridge: Arc<Bridge>, id: String, address: Ipv4Addr) -> Result<()> {
        let inner = self.clone();
        let unplugging = bridge.clone();
        blocking("network teardown", move || {
            unplugging.unplug(&id, address)?;
            inner.store.remove(&id)
        })
        .await?;
        let reaper = tokio::task::spawn_blocking(move || {
            if let Err(e) = bridge.reap(address) {
                tracing::warn!(%address, error = %e, "address stays reserved until the next collection");
            }
        });
        let mut reaping = self.reaping.lock().unwrap_or_else(PoisonError::into_inner);
        reaping.retain(|handle| !handle.is_finished());
        reaping.push(reaper);
        Ok(())
    }

    /// Its record was damaged: try what the rest of the state and the present configuration know.
    async fn take_back_by_guess(self: &Arc<Self>, pod: &PodNetwork, netns: Option<&Path>) -> Result<()> {
        for bridge in self.bridges.values() {
            if let Some(address) = bridge.address_of(&pod.id) {
                return self.unplug(bridge.clone(), pod.id.clone(), address).await;
            }
        }
        let Some(list) = self.conf.look().list.clone() else { return Ok(()) };
        let attachment = CniAttachment {
            list: NetworkList::clone(&list),
            ifname: cni::IFNAME.into(),
            cni_args: cni::args::cni_args(pod).unwrap_or_default(),
            capability_args: cni::args::capability_args(pod).unwrap_or_default(),
            result: None,
        };
        self.del(&pod.id, &attachment, netns).await
    }

    async fn check(self: &Arc<Self>, pod: &PodNetwork) -> Result<()> {
        let _gate = self.gate.read().await;
        let Loaded::Found(record) = self.store.load(&pod.id)? else {
            return Err(Error::new(
                "read network record",
                &pod.id,
                "there is none: the pod was never set up",
            ));
        };
        match record.made_by {
            MadeBy::Cni(attachment) => {
                let target = Target { container_id: &pod.id, netns: Some(&pod.netns) };
                self.cni.check(&attachment, target).await.map_err(|e| e.error)
            }
            MadeBy::Builtin(lease) => match self.bridges.get(&lease.bridge).cloned() {
                Some(bridge) => blocking("network check", move || bridge.check(lease.address)).await,
                None => Err(Error::new("check pod network", lease.bridge, "the bridge is gone")),
            },
        }
    }

    async fn collect(self: &Arc<Self>, mut live: BTreeSet<String>) -> Result<()> {
        let mut errors = self.collect_pods(&mut live).await?;
        self.reaped().await;
        let _alone = self.gate.write().await;
        errors.extend(self.collect_bridges().await?);
        errors.extend(self.collect_cni(&live).await);
        for error in errors.iter().skip(1) {
            tracing::warn!(%error, "network collection");
        }
        let count = errors.len();
        match errors.into_iter().next() {
            None => Ok(()),
            Some(first) if count == 1 => Err(first),
            Some(first) => Err(Error::new("network collect", format!("first of {count} failures"), first)),
        }
    }

    /// Takes back every recorded pod that is not alive, some at a time. Adds to `live` the pods of this process.
    async fn collect_pods(self: &Arc<Self>, live: &mut BTreeSet<String>) -> Result<Vec<Error>> {
        const AT_ONCE: usize = 8;
        live.extend(self.young.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        let mut dead = self.store.ids()?.into_iter().filter(|id| !live.contains(id));
        let (mut running, mut errors) = (JoinSet::new(), Vec::new());
        loop {
            while running.len() < AT_ONCE
                && let Some(id) = dead.next()
            {
                let inner = self.clone();
                running.spawn(async move { inner.collect_one(id).await });
            }
            match running.join_next().await {
                None => return Ok(errors),
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(e))) => errors.push(e),
                Some(Err(e)) => errors.push(Error::new("network collect", "a pod", e)),
            }
        }
    }

    async fn collect_one(self: Arc<Self>, id: String) -> Result<()> {
        let _turn = self.locks.lock(&id).await;
        if self.young.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) {
            return Ok(()); // set up while we waited
        }
        let _gate = self.gate.read().await;
        match self.store.load(&id)? {
            Loaded::Found(record) => {
                tracing::info!(pod = id, name = label(&record), "network of a pod that is gone taken back");
                let netns = record.netns.clone();
                let what = format!("{} ({id})", label(&record));
                self.take_back(*record, Some(&netns))
                    .await
                    .map_err(|e| e.within("network collect of pod", what))
            }
            Loaded::Missing | Loaded::Damaged => Ok(()), // a damaged record's lease is an orphan, freed below
        }
    }

    /// The caller holds the gate for writing.
    async fn collect_bridges(self: &Arc<Self>) -> Result<Vec<Error>> {
        let mut owned: BTreeMap<String, Vec<Ipv4Addr>> = BTreeMap::new();
        for id in self.store.ids()? {
            if let Loaded::Found(record) = self.store.load(&id)?
                && let MadeBy::Builtin(lease) = record.made_by
            {
                owned.entry(lease.bridge).or_default().push(lease.address);
            }
        }
        let mut errors = Vec::new();
        for bridge in self.bridges.values().cloned() {
            let owned = owned.remove(bridge.name()).unwrap_or_default();
            errors.extend(blocking("network collect", move || bridge.collect(&owned)).await.err());
        }
        Ok(errors)
    }

    /// GC of the network in force; the caller holds the gate for writing.
    async fn collect_cni(&self, live: &BTreeSet<String>) -> Vec<Error> {
        let Some(list) = self.conf.look().list.clone() else { return Vec::new() };
        let mut valid: BTreeSet<(String, String)> =
            live.iter().map(|id| (id.clone(), cni::IFNAME.to_owned())).collect();
        // A DEL that still fails is repeated later and needs its lease until then.
        valid.extend(self.store.ids().unwrap_or_default().into_iter().map(|id| (id, cni::IFNAME.to_owned())));
        valid.extend(cni::foreign_attachments(Path::new(REFERENCE_CACHE), &list.name));
        let valid: Vec<(String, String)> = valid.into_iter().collect();
        self.cni.gc(&list, &valid).await
    }

    /// Waits for links that are being deleted.
    async fn reaped(&self) {
        let handles = std::mem::take(&mut *self.reaping.lock().unwrap_or_else(PoisonError::into_inner));
        for handle in handles {
            let _ = handle.await;
        }
    }

    async fn close(self: &Arc<Self>) -> Result<()> {
        self.reaped().await;
        let _alone = self.gate.write().await;
        for bridge in self.bridges.values().cloned() {
            blocking("network close", move || bridge.close()).await?;
        }
        Ok(())
    }

    /// The built-in bridge leaves with its last pod once CNI is in force.
    async fn step_aside(self: &Arc<Self>) {
        if !self.conf.look().any_file || self.bridges.is_empty() {
            return;
        }
        self.reaped().await;
        let Ok(_alone) = self.gate.try_write() else { return };
        for bridge in self.bridges.values().cloned() {
            if let Err(e) = blocking("network close", move || bridge.close()).await {
                tracing::warn!(error = %e, "idle built-in bridge not removed");
            }
        }
    }
}

/// Results are kept for people and clients in a 1.x shape.
fn modern_version(version: &str) -> &str {
    if cni::config::at_least(version, "1.0.0") { version } else { "1.0.0" }
}

async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::new(step, "worker thread", e)))
}
