//! PodSandboxStats: the pod's control group as a whole, its interfaces, and its containers (CRI-SS-14 to CRI-SS-17).

use super::{PodPhase, PodRecord};
use crate::daemon::{Daemon, Pod, blocking};
use crate::error::{Error, Result};
use crate::usage::{self, value};
use cri_proto::v1;
use slipway_network::{Interface, PodStatistics};
use slipway_runtime::cgroup::Cgroup;
use std::sync::Arc;

impl Daemon {
    /// Statistics of one pod.
    ///
    /// # Errors
    /// FailedPrecondition for one that is not ready (CRI-SS-14).
    pub(crate) async fn pod_stats(self: &Arc<Self>, pod: &Pod) -> Result<v1::PodSandboxStats> {
        let record = pod.record();
        if record.phase != PodPhase::Ready {
            return Err(Error::state(format!("stats of pod {}: it is not ready", record.label())));
        }
        let label = record.label();
        let mut stats = self.stats_of_pods(vec![record]).await?;
        stats.pop().ok_or_else(|| Error::state(format!("stats of pod {label}: it has ended meanwhile")))
    }

    /// The same for those of these pods that are ready; one that goes away meanwhile is left out.
    pub(crate) async fn stats_of_pods(
        self: &Arc<Self>,
        records: Vec<Arc<PodRecord>>,
    ) -> Result<Vec<v1::PodSandboxStats>> {
        let daemon = Arc::clone(self);
        let all = records.iter().flat_map(|record| self.containers_of(&record.id));
        self.ask_shims(all.map(|container| container.record()).collect::<Vec<_>>()).await;
        blocking(move || {
            let ready: Vec<_> = records.into_iter().filter(|r| r.phase == PodPhase::Ready).collect();
            let networks = networks(&ready);
            let read = ready.iter().zip(networks).filter_map(|(record, net)| daemon.read_pod(record, net));
            Ok::<_, Error>(read.collect())
        })
        .await
    }

    fn read_pod(&self, record: &PodRecord, network: Option<PodStatistics>) -> Option<v1::PodSandboxStats> {
        // Read from the pod's own group, not summed up: what ended counts, too (CRI-SS-15).
        let group = Cgroup::open(&record.cgroup_parent).and_then(|group| group.stats());
        let group = match group {
            Ok(group) => Some(group),
            // The group comes with the first container.
            Err(error) if error.kind() == slipway_runtime::error::Kind::NotFound => None,
            Err(error) => {
                tracing::warn!(pod = record.label(), "stats: {error}");
                return None;
            }
        };
        let at = crate::clock::now();
        let group = group.unwrap_or_default();
        let rate = self.rates.rate(&record.id, at, group.cpu_usage_ns.unwrap_or(0));
        let containers = self.containers_of(&record.id);
        let containers = containers.iter().map(|c| c.record()).filter(|c| c.is_running());
        Some(v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(usage::cpu(at, &group, rate)),
                memory: Some(usage::memory(at, &group)),
                network: network.map(|n| network_usage(at, &n)),
                process: Some(v1::ProcessUsage {
                    timestamp: at,
                    process_count: group.pids_current.and_then(value),
                }),
                containers: containers.map(|c| self.read_stats(&c)).collect(),
                io: usage::io(at, &group),
            }),
            windows: None,
        })
    }
}

/// Interfaces of each pod; none with the host's network (CRI-SS-17), or when its namespace is gone.
pub(crate) fn networks(records: &[Arc<PodRecord>]) -> Vec<Option<PodStatistics>> {
    let paths: Vec<_> = records.iter().filter_map(|r| r.netns.clone()).collect();
    let mut read = slipway_network::statistics(&paths).into_iter();
    let one = |record: &Arc<PodRecord>| {
        record.netns.as_ref()?;
        match read.next()? {
            Ok(statistics) => Some(statistics),
            Err(error) => {
                tracing::warn!(pod = record.label(), "stats: {error}");
                None
            }
        }
    };
    records.iter().map(one).collect()
}

/// CRI-SS-16.
fn network_usage(at: i64, network: &PodStatistics) -> v1::NetworkUsage {
    let usage = |i: &Interface| v1::NetworkInterfaceUsage {
        name: i.name.clone(),
        rx_bytes: value(i.rx_bytes),
        rx_errors: value(i.rx_errors),
        tx_bytes: value(i.tx_bytes),
        tx_errors: value(i.tx_errors),
    };
    v1::NetworkUsage {
        timestamp: at,
        default_interface: network.main().map(usage),
        interfaces: network.interfaces.iter().map(usage).collect(),
    }
}
