//! ListPodSandboxMetrics: what the users of cAdvisor know, by its names and labels (CRI-MET-*).
//!
//! ```text
//!  families: the table (name, help, labels, kind) ◀── sheet: one object's values, labels in the table's order
//!                                                        ▲
//!          container: control group, /proc, file system ─┴─ pod: interfaces
//! ```
//!
//! Read on request, like all statistics. The API carries whole numbers only, so times are in whole seconds.

mod container;
mod disk;
mod families;
mod process;
mod sheet;

pub(crate) use families::descriptors;

use crate::containers::ContainerRecord;
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods::stats::networks;
use crate::pods::{PodPhase, PodRecord};
use cri_proto::v1;
use sheet::{Labels, Sheet};
use slipway_network::{Interface, PodStatistics};
use slipway_runtime::cgroup::Cgroup;
use std::sync::Arc;

impl Daemon {
    /// Metrics of every ready pod and its running containers.
    pub(crate) async fn metrics(self: &Arc<Self>) -> Result<Vec<v1::PodSandboxMetrics>> {
        let daemon = Arc::clone(self);
        blocking(move || {
            let pods = daemon.pods.list().into_iter().map(|p| p.record());
            let pods: Vec<_> = pods.filter(|r| r.phase == PodPhase::Ready).collect();
            let networks = networks(&pods);
            let disk = disk::Disk::of(&daemon.config.root);
            let one = |(pod, network): (&Arc<PodRecord>, Option<PodStatistics>)| {
                let containers = daemon.containers_of(&pod.id).into_iter().map(|c| c.record());
                let containers = containers.filter(|c| c.is_running());
                v1::PodSandboxMetrics {
                    pod_sandbox_id: pod.id.clone(),
                    metrics: pod_metrics(pod, network.as_ref()),
                    container_metrics: containers.map(|c| daemon.container_metrics(pod, &c, &disk)).collect(),
                }
            };
            Ok::<_, Error>(pods.iter().zip(networks).map(one).collect())
        })
        .await
    }

    fn container_metrics(
        &self,
        pod: &PodRecord,
        container: &ContainerRecord,
        disk: &disk::Disk,
    ) -> v1::ContainerMetrics {
        let mut sheet = Sheet::new(Labels::of_container(pod, container));
        container::fill(&mut sheet, container);
        let used = self.writable_layer_usage(&container.id).and_then(|u| u.used_bytes);
        disk.fill(&mut sheet, used.map(|u| u.value));
        v1::ContainerMetrics { container_id: container.id.clone(), metrics: sheet.metrics() }
    }
}

/// A pod's own: its control group as a whole (what ended counts, too), and its interfaces unless they are the host's.
fn pod_metrics(pod: &PodRecord, network: Option<&PodStatistics>) -> Vec<v1::Metric> {
    let mut sheet = Sheet::new(Labels::of_pod(pod));
    sheet.put(&families::LAST_SEEN, sheet.at_seconds());
    sheet.put(&families::CREATION_TIME, sheet::seconds(pod.created_at));
    // The group comes with the first container.
    if let Ok(stats) = Cgroup::open(&pod.cgroup_parent).and_then(|group| group.stats()) {
        container::measured(&mut sheet, &stats);
    }
    network.into_iter().flat_map(|n| &n.interfaces).for_each(|one| interface(&mut sheet, one));
    sheet.metrics()
}

fn interface(sheet: &mut Sheet, interface: &Interface) {
    for (family, value) in [
        (&families::NETWORK_RECEIVE_BYTES, interface.rx_bytes),
        (&families::NETWORK_RECEIVE_PACKETS, interface.rx_packets),
        (&families::NETWORK_RECEIVE_DROPPED, interface.rx_dropped),
        (&families::NETWORK_RECEIVE_ERRORS, interface.rx_errors),
        (&families::NETWORK_TRANSMIT_BYTES, interface.tx_bytes),
        (&families::NETWORK_TRANSMIT_PACKETS, interface.tx_packets),
        (&families::NETWORK_TRANSMIT_DROPPED, interface.tx_dropped),
        (&families::NETWORK_TRANSMIT_ERRORS, interface.tx_errors),
    ] {
        sheet.put_with(family, &[&interface.name], value);
    }
}
