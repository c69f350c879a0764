//! Our pods and containers for the plugins: what there is, and the changes that nobody of ours has asked for.

use super::{container, overlay, pod};
use crate::containers::{Phase, Stop};
use crate::daemon::{Container, Daemon};
use crate::error::{Error, Result};
use crate::pods::PodPhase;
use crate::telemetry::spans;
use cri_proto::nri;
use serde_json::Value;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tonic::Code;
use tracing::Instrument as _;

/// How long a container that is busy is waited for: two plugins may want to change each other's containers.
const BUSY: Duration = Duration::from_secs(1);
/// How long an eviction is waited for; it goes on after that.
const EVICTION: Duration = Duration::from_secs(2);

/// The daemon, for as long as it is there.
#[derive(Debug)]
pub(crate) struct Plugins(pub(crate) Weak<Daemon>);

#[tonic::async_trait]
impl slipway_nri::Host for Plugins {
    fn snapshot(&self) -> (Vec<nri::PodSandbox>, Vec<nri::Container>) {
        let Some(daemon) = self.0.upgrade() else { return Default::default() };
        let pods = daemon.pods.list().into_iter().map(|p| p.record()).filter(|r| r.phase == PodPhase::Ready);
        let containers = daemon.containers.list().into_iter().map(|c| c.record()).filter(|r| !r.has_ended());
        let message = |record: Arc<crate::containers::ContainerRecord>| {
            let text = std::fs::read(record.bundle.join("config.json")).unwrap_or_default();
            container(&record, &serde_json::from_slice(&text).unwrap_or(Value::Null))
        };
        (pods.map(|r| pod(&r)).collect(), containers.map(message).collect())
    }

    async fn update(&self, updates: Vec<nri::ContainerUpdate>) -> Vec<nri::ContainerUpdate> {
        let Some(daemon) = self.0.upgrade() else { return Vec::new() };
        let mut failed = Vec::new();
        for update in updates {
            // Gone meanwhile: nothing to change.
            let Ok(container) = daemon.containers.get(&update.container_id) else { continue };
            if let Err(error) = daemon.update_for_plugin(&container, &update.linux.resources).await {
                tracing::warn!(container = container.record().label(), "update for an NRI plugin: {error}");
                if !update.ignore_failure {
                    failed.push(update);
                }
            }
        }
        failed
    }

    async fn evict(&self, evictions: Vec<nri::ContainerEviction>) {
        let Some(daemon) = self.0.upgrade() else { return };
        for eviction in evictions {
            let Ok(container) = daemon.containers.get(&eviction.container_id) else { continue };
            let label = container.record().label();
            tracing::warn!(container = label, reason = eviction.reason, "evicted by an NRI plugin");
            let daemon = Arc::clone(&daemon);
            let span = spans::of_container(&daemon, &container.record());
            let stop = async move { daemon.stop_container(&container, Stop::Now).await };
            let stop = tokio::spawn(stop.instrument(span));
            if let Ok(Ok(Err(error))) = tokio::time::timeout(EVICTION, stop).await {
                tracing::error!(container = label, "eviction: {error}");
            }
        }
    }
}

impl Daemon {
    /// Puts what a plugin wants over the limits in force.
    async fn update_for_plugin(
        self: &Arc<Self>,
        container: &Arc<Container>,
        asked: &nri::LinuxResources,
    ) -> Result<()> {
        let Ok(_gate) = tokio::time::timeout(BUSY, container.gate.lock()).await else {
            return Err(Error::new(Code::Unavailable, format!("the container is busy for {BUSY:?}")));
        };
        let record = container.record();
        if !matches!(record.phase, Phase::Created | Phase::Running { .. }) {
            return Err(Error::state("the container has ended"));
        }
        let mut over = record.nri.clone();
        super::put_over(&mut over, &overlay(asked)?);
        let in_force = record.config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
        self.write_limits(container, &in_force, &over).await?;
        container.note(&self.records, |r| r.nri = over);
        Ok(())
    }
}
