//! A pod as NRI's message (NRI-35).

use super::from_cri;
use crate::pods::PodRecord;
use cri_proto::nri;

pub(crate) fn pod(record: &PodRecord) -> nri::PodSandbox {
    let metadata = record.metadata();
    let linux = record.config.linux.clone().unwrap_or_default();
    let ips = record.attachment.iter().flat_map(|a| a.ips.iter().map(ToString::to_string));
    nri::PodSandbox {
        id: record.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
        linux: Some(nri::LinuxPodSandbox {
            pod_overhead: linux.overhead.as_ref().map(from_cri).into(),
            pod_resources: linux.resources.as_ref().map(from_cri).into(),
            cgroup_parent: record.cgroup_parent.clone(),
            cgroups_path: record.cgroup_parent.clone(),
            namespaces: namespaces(record),
            ..Default::default()
        })
        .into(),
        pid: record.sandbox_pid.unsigned_abs(),
        ips: ips.collect(),
        ..Default::default()
    }
}

/// Those that the pod has of its own; the network's only while it is there.
fn namespaces(record: &PodRecord) -> Vec<nri::LinuxNamespace> {
    let netns = record.netns.as_ref().filter(|path| path.exists());
    let network = netns.map(|path| nri::LinuxNamespace {
        type_: "network".into(),
        path: path.display().to_string(),
        ..Default::default()
    });
    network.into_iter().collect()
}
