//! StopPodSandbox and RemovePodSandbox: repeatable, each step idempotent.

use super::files::PodDir;
use super::{PodPhase, PodRecord};
use crate::containers::Stop;
use crate::daemon::{Daemon, Pod, blocking};
use crate::error::{Error, Result};
use crate::telemetry::spans;
use cri_proto::v1::ContainerEventType;
use slipway_runtime::cgroup::Cgroup;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::Instrument as _;

const METHOD: &str = "StopPodSandbox";

/// How long the last processes may take to leave a pod's control group.
const GROUP_PATIENCE: Duration = Duration::from_secs(2);

impl Daemon {
    /// Kills what runs, gives the network and the namespaces back; unknown ids are fine (CRI-PSTOP-01 to 06).
    pub(crate) async fn stop_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(pod) = self.pods.get_if_any(id)? else { return Ok(()) };
        let daemon = Arc::clone(self);
        // On its own task: a caller that goes away must not leave it half done.
        finish(spans::spawn(async move { daemon.stop_known(&pod).await })).await
    }

    async fn stop_known(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let _gate = pod.gate.lock().await;
        self.stop_gated(pod).await
    }

    async fn stop_gated(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let record = pod.record();
        let label = record.label();
        if record.phase == (PodPhase::NotReady { released: true }) {
            return Ok(());
        }
        let was_ready = record.phase == PodPhase::Ready;
        // First, so that no container starts behind our back; those that are starting are waited for.
        pod.note(&self.records, |r| r.phase = PodPhase::NotReady { released: false });
        let stopped = self.telemetry.phase(METHOD, "containers", self.stop_containers(pod)).await;
        let released = match stopped {
            Ok(()) => {
                // All containers have ended, and the status still answers (CRI-PSTOP-07).
                self.nri.stop_pod(&crate::nri::pod(&record)).await;
                self.release(&record).await
            }
            Err(error) => Err(error),
        };
        if released.is_ok() {
            pod.note(&self.records, |r| r.phase = PodPhase::NotReady { released: true });
        }
        if was_ready {
            self.announce(&pod.id, pod, ContainerEventType::ContainerStoppedEvent);
            tracing::info!(pod = label, id = pod.id, "pod is stopped");
        }
        released.map_err(|e| e.of(format_args!("stop pod {label}")))
    }

    /// All at once: a pod with many containers stops as fast as its slowest. All are tried, the first error is answered.
    async fn stop_containers(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let mut stops = JoinSet::new();
        for container in self.containers_of(&pod.id) {
            let daemon = Arc::clone(self);
            let stop = async move {
                // A start under way is waited for: what it starts must be stopped.
                drop(container.gate.lock().await);
                daemon.stop_container(&container, Stop::Now).await
            };
            stops.spawn(stop.in_current_span());
        }
        let mut outcome = Ok(());
        while let Some(stopped) = stops.join_next().await {
            outcome = outcome.and(stopped.unwrap_or_else(|e| Err(Error::internal(e.to_string()))));
        }
        outcome
    }

    /// Network, namespaces, mounts: all are tried, the first error is answered.
    async fn release(self: &Arc<Self>, record: &PodRecord) -> Result<()> {
        let telemetry = &self.telemetry;
        let mut outcome = telemetry.phase(METHOD, "network", self.disconnect(record)).await;
        let removed = self.keeper.remove_sandbox(&record.id);
        outcome = outcome.and(telemetry.phase(METHOD, "keeper: namespaces", removed).await);
        if let Some(netns) = record.netns.clone() {
            let unpinned = blocking(move || slipway_runtime::sandbox::unpin_netns(&netns));
            outcome = outcome.and(telemetry.phase(METHOD, "network namespace", unpinned).await);
        }
        let dir = PodDir::new(&self.config, &record.id);
        let (daemon, id) = (Arc::clone(self), record.id.clone());
        let unmounted = blocking(move || dir.release().and_then(|()| daemon.release_views(&id)));
        outcome.and(telemetry.phase(METHOD, "mounts", unmounted).await)
    }

    async fn disconnect(&self, record: &PodRecord) -> Result<()> {
        let Some(netns) = record.netns.clone() else { return Ok(()) };
        let there = netns.exists();
        let network = record.network(netns.clone());
        let teardown = self.network.teardown(&network, there.then_some(netns.as_path()));
        Ok(self.telemetry.network("teardown", teardown).await?)
    }

    /// Stops, removes the containers, then the pod; unknown ids are fine (CRI-PREM-01 to 05).
    pub(crate) async fn remove_pod(self: &Arc<Self>, id: &str) -> Result<()> {
        let Some(pod) = self.pods.get_if_any(id)? else { return Ok(()) };
        let daemon = Arc::clone(self);
        finish(spans::spawn(async move { daemon.remove_known(&pod).await })).await
    }

    async fn remove_known(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<()> {
        let _gate = pod.gate.lock().await;
        let record = pod.record();
        // A removal that waited for another one finds nothing left to do.
        if self.pods.get(&pod.id).is_err() {
            return Ok(());
        }
        self.stop_gated(pod).await?;
        for container in self.containers_of(&pod.id) {
            self.remove_container(&container).await?;
        }
        self.erase_pod(&record).await.map_err(|e| e.of(format_args!("remove pod {}", record.label())))?;
        self.pods.remove(&pod.id);
        self.nri.remove_pod(&crate::nri::pod(&record)).await;
        self.rates.forget(&pod.id);
        self.announce(&pod.id, pod, ContainerEventType::ContainerDeletedEvent);
        // Last, so that a new pod of this name never meets left-overs (CRI-PREM-04).
        self.pod_names.free(&record.name(), &pod.id);
        tracing::info!(pod = record.label(), id = pod.id, "pod is removed");
        Ok(())
    }

    /// Files, control group, record.
    pub(crate) async fn erase_pod(&self, record: &PodRecord) -> Result<()> {
        let dir = PodDir::new(&self.config, &record.id);
        let own = record.own_cgroup.then(|| record.cgroup_parent.clone());
        let root = self.config.cgroups.removable_root();
        blocking(move || {
            dir.remove()?;
            if let Some(parent) = own {
                remove_group(&parent)?;
                // A slice is a unit of systemd's, too.
                Cgroup::remove_if_empty(&parent)?;
                root.map_or(Ok(()), |root| Cgroup::remove_if_empty(&root))?;
            }
            Ok::<_, Error>(())
        })
        .await?;
        self.selinux.free(&record.id);
        self.records.delete::<PodRecord>(&record.id)
    }
}

/// A pod's own control group with whatever its containers have made below it; missing is success. Blocks.
fn remove_group(path: &str) -> Result<()> {
    let group = match Cgroup::open(path) {
        Ok(group) => group,
        Err(error) if error.kind() == slipway_runtime::error::Kind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    group.kill_all()?;
    Ok(group.remove(GROUP_PATIENCE)?)
}

/// The outcome of work that goes on when its caller leaves.
pub(crate) async fn finish(work: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    work.await.unwrap_or_else(|e| Err(Error::internal(format!("the request failed inside: {e}"))))
}
