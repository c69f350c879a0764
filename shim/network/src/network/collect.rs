//! What belongs to nobody any more: found from the records and the kernel, taken back, and told to the plugins (GC).

use super::{Inner, blocking, label};
use crate::cni;
use crate::error::{Error, Result};
use crate::record::{Loaded, MadeBy};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinSet;

/// The reference library's cache, kept by other runtimes of this host.
const REFERENCE_CACHE: &str = "/var/lib/cni/results";

impl Inner {
    pub(super) async fn collect(self: &Arc<Self>, mut live: BTreeSet<String>) -> Result<()> {
        let mut errors = self.collect_pods(&mut live).await?;
        self.reaped().await;
        {
            let _alone = self.gate.write().await;
            errors.extend(self.collect_bridges().await?);
            errors.extend(self.collect_cni(&live).await);
        }
        self.step_aside().await;
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
        live.extend(self.young().iter().cloned());
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
        if self.young().contains(&id) {
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
        for bridge in self.bridges.values() {
            let bridge = bridge.clone();
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
    pub(super) async fn reaped(&self) {
        let handles = std::mem::take(&mut *self.reaping());
        for handle in handles {
            let _ = handle.await;
        }
    }

    pub(super) async fn close(self: &Arc<Self>) -> Result<()> {
        self.reaped().await;
        let _alone = self.gate.write().await;
        for bridge in self.bridges.values() {
            let bridge = bridge.clone();
            blocking("network close", move || bridge.close()).await?;
        }
        Ok(())
    }

    /// A bridge that is not for new pods leaves with its last pod: the built-in one once CNI is in force, one of a
    /// former configuration always.
    pub(super) async fn step_aside(self: &Arc<Self>) {
        let by_cni = self.conf.look().any_file;
        let current = self.builtin.as_ref().map(|b| b.name()).filter(|_| !by_cni);
        let idle: Vec<_> = self.bridges.values().filter(|b| Some(b.name()) != current).cloned().collect();
        if idle.is_empty() {
            return;
        }
        self.reaped().await;
        let Ok(_alone) = self.gate.try_write() else { return };
        for bridge in idle {
            if let Err(e) = blocking("network close", move || bridge.close()).await {
                tracing::warn!(error = %e, "idle built-in bridge not removed");
            }
        }
    }
}
