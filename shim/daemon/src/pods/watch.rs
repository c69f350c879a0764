//! A pod is over without our doing when its reaper dies (a shared PID namespace has one), or when its namespaces are lost
//! with the keeper and the guardian that held them.

use super::PodPhase;
use crate::daemon::{Daemon, Pod};
use crate::telemetry::spans;
use cri_proto::v1::ContainerEventType;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use tracing::Instrument as _;

/// Pause before a wait that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

impl Daemon {
    /// Follows a ready pod to its end.
    pub(crate) fn watch_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        if pod.record().phase != PodPhase::Ready {
            return;
        }
        let (daemon, pod) = (Arc::clone(self), Arc::clone(pod));
        let span = spans::of_pod(&pod.record().label());
        let watch = async move {
            loop {
                match daemon.keeper.wait_sandbox(&pod.id).await {
                    Ok(()) => break,
                    // Removed meanwhile, or lost with the keeper that knew it: over in any case.
                    Err(error) if error.code() == Code::NotFound => break,
                    Err(error) => {
                        tracing::warn!(
                            pod = pod.record().label(),
                            "wait for the pod's end: {error}; trying again"
                        );
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
            daemon.pod_died(&pod).await;
        };
        tokio::spawn(watch.instrument(span));
    }

    /// NOTREADY by itself; the kubelet kills the containers and makes a new sandbox (CRI-PSTOP-09).
    async fn pod_died(&self, pod: &Pod) {
        // Behind a stop or removal under way, whose record must not be written again.
        let _gate = pod.gate.lock().await;
        if pod.record().phase != PodPhase::Ready || self.pods.get(&pod.id).is_err() {
            return;
        }
        pod.note(&self.records, |record| record.phase = PodPhase::NotReady { released: false });
        tracing::warn!(
            pod = pod.record().label(),
            id = pod.id,
            "the pod's first process, or a namespace of it, is gone: not ready"
        );
        self.announce(&pod.id, pod, ContainerEventType::ContainerStoppedEvent);
    }
}
