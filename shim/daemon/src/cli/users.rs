//! Ids of the host for pods with `hostUsers: false`: what the kubelet's user namespace manager does on a cluster.

use std::collections::HashSet;

use anyhow::{Context, Result};
use cri_proto::v1 as cri;

use super::client::{Client, said};

/// Ids of a pod, as the kubelet gives them.
const SIZE: u32 = 65536;
/// The ranges begin far above those that people, /etc/subuid and a kubelet use.
const FIRST: u32 = 1 << 30;
const RANGES: u32 = FIRST / SIZE;

/// First ids of ranges that no pod of this daemon has, as many as asked for.
pub(crate) async fn free(client: &mut Client, wanted: usize) -> Result<Vec<u32>> {
    let mut taken = HashSet::new();
    for sandbox in client.sandboxes().await? {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id, ..Default::default() };
        match client.runtime.pod_sandbox_status(request).await {
            Ok(answer) => taken.extend(of_status(answer.into_inner().status)),
            // Removed meanwhile.
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => return Err(said("look at a pod's users")(status)),
        }
    }
    // Two runs at once must not choose the same.
    let start = u32::try_from(uuid::Uuid::new_v4().as_u128() % u128::from(RANGES)).unwrap_or_default();
    let all = (0..RANGES).map(|n| FIRST + (start + n) % RANGES * SIZE);
    let found: Vec<u32> = all.filter(|first| !taken.contains(first)).take(wanted).collect();
    (found.len() == wanted).then_some(found).context("no range of ids is left for a user namespace")
}

fn of_status(status: Option<cri::PodSandboxStatus>) -> Option<u32> {
    let user = status?.linux?.namespaces?.options?.userns_options?;
    user.uids.first().map(|map| map.host_id)
}

/// A pod's one mapping.
pub(crate) fn map(first: u32) -> cri::IdMapping {
    cri::IdMapping { container_id: 0, host_id: first, length: SIZE }
}

/// `userns_options` of a pod.
pub(crate) fn options(first: u32) -> cri::UserNamespace {
    let maps = vec![map(first)];
    cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: maps.clone(), gids: maps }
}
