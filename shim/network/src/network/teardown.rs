//! Back from an attachment to nothing, by the path that made it, as often as it takes.

use super::{Inner, blocking, is_namespace};
use crate::builtin::Bridge;
use crate::cni::config::NetworkList;
use crate::cni::{self, CniAttachment, Target};
use crate::error::{Error, Result};
use crate::record::{Loaded, MadeBy, Record};
use crate::types::PodNetwork;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

impl Inner {
    /// DEL, then the record goes. On failure the record stays, so that DEL is repeated until it succeeds.
    pub(super) async fn del(
        self: &Arc<Self>,
        id: &str,
        attachment: &CniAttachment,
        netns: Option<&Path>,
    ) -> Result<()> {
        let target = Target { container_id: id, netns: netns.filter(|p| is_namespace(p)) };
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
    pub(super) async fn teardown(self: &Arc<Self>, pod: &PodNetwork, netns: Option<&Path>) -> Result<()> {
        let _gate = self.gate.read().await;
        let done = match self.store.load(&pod.id)? {
            Loaded::Missing => Ok(()),
            Loaded::Found(record) => self.take_back(*record, netns).await,
            Loaded::Damaged => self.take_back_by_guess(pod, netns).await,
        };
        if done.is_ok() {
            self.young().remove(&pod.id);
        }
        done.map_err(|e| e.within("network teardown of pod", pod.label()))
    }

    /// By the path that made it, whatever is configured now (CNI-27, CNI-RT-12).
    pub(super) async fn take_back(self: &Arc<Self>, record: Record, netns: Option<&Path>) -> Result<()> {
        match record.made_by {
            MadeBy::Cni(attachment) => self.del(&record.id, &attachment, netns).await,
            MadeBy::Builtin(lease) => match self.bridges.get(&lease.bridge) {
                Some(bridge) => self.unplug(bridge.clone(), record.id, lease.address).await,
                None => self.store.remove(&record.id), // the bridge and its leases are gone
            },
        }
    }

    pub(super) async fn unplug(
        self: &Arc<Self>,
        bridge: Arc<Bridge>,
        id: String,
        address: Ipv4Addr,
    ) -> Result<()> {
        let inner = self.clone();
        let unplugging = bridge.clone();
        blocking("network teardown", move || {
            unplugging.unplug(&id)?;
            inner.store.remove(&id)
        })
        .await?;
        let reaper = tokio::task::spawn_blocking(move || {
            if let Err(e) = bridge.reap(address) {
                tracing::warn!(%address, error = %e, "address stays reserved until the next collection");
            }
        });
        let mut reaping = self.reaping();
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

    pub(super) async fn check(self: &Arc<Self>, pod: &PodNetwork) -> Result<()> {
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
}
