//! From a request to an attachment: the path is chosen, the intent written, the act done, or everything undone.

use super::{Inner, blocking, is_namespace};
use crate::builtin::{Bridge, Lease};
use crate::cni::config::{NetworkList, check_name};
use crate::cni::{self, CniAttachment, Target};
use crate::error::{Error, Kind, Result};
use crate::record::{Loaded, MadeBy, Record};
use crate::types::{Attachment, PodNetwork};
use std::sync::Arc;
use std::time::Duration;

/// How often ADD is tried when a plugin says "try again later" (code 11).
const ADD_TRIES: u32 = 3;

impl Inner {
    /// The caller holds the pod's lock.
    pub(super) async fn setup(self: &Arc<Self>, pod: &PodNetwork) -> Result<Attachment> {
        let done = self.setup_by_any_path(pod).await;
        if done.is_ok() {
            self.young().insert(pod.id.clone());
        }
        done.map_err(|e| e.within("network setup of pod", pod.label()))
    }

    async fn setup_by_any_path(self: &Arc<Self>, pod: &PodNetwork) -> Result<Attachment> {
        check_name("pod id", &pod.id)
            .map_err(|why| Error::new("read request", "pod", why).kind(Kind::Invalid))?;
        if pod.id.len() > 200 {
            return Err(
                Error::new("read request", "pod id", "longer than 200 characters").kind(Kind::Invalid)
            );
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
                Err(Error::new("find a CNI configuration", dir, why).kind(Kind::NotReady).hint(
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
        let bad = |why: String| Error::new("read request", "pod", why).kind(Kind::Invalid);
        if !is_namespace(&pod.netns) {
            return Err(bad(format!("there is no network namespace at {}", pod.netns.display())));
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
}

/// Results are kept for people and clients in a 1.x shape.
fn modern_version(version: &str) -> &str {
    if cni::config::at_least(version, "1.0.0") { version } else { "1.0.0" }
}
