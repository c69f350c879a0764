//! What is read at the moment of the question: pods and containers by state, images, keeper and guardian, ourselves.

use crate::containers::ContainerRecord;
use crate::daemon::Daemon;
use cri_proto::v1::{ContainerState, PodSandboxState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// A keeper that takes longer than this counts as down; the scrape itself must not wait.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// A registry with the state of now.
pub(super) async fn snapshot(daemon: &Daemon) -> Registry {
    let mut registry = Registry::with_prefix("slipway");
    pods(&mut registry, daemon);
    images(&mut registry, daemon);
    keeper(&mut registry, daemon).await;
    ourselves(&mut registry);
    registry
}

/// All states are there from the beginning: a panel must tell "none" from "no data".
fn by_state(states: &[&'static str], found: impl Iterator<Item = &'static str>) -> Family<State, Gauge> {
    let family = Family::<State, Gauge>::default();
    for state in states {
        family.get_or_create(&State { state }).set(0);
    }
    for state in found {
        family.get_or_create(&State { state }).inc();
    }
    family
}

fn pods(registry: &mut Registry, daemon: &Daemon) {
    let pods = daemon.pods.list().into_iter().map(|pod| match pod.record().item().state() {
        PodSandboxState::SandboxReady => "ready",
        PodSandboxState::SandboxNotready => "not_ready",
    });
    registry.register("pods", "Pod sandboxes by state", by_state(&["ready", "not_ready"], pods));
    let containers = daemon.containers.list().into_iter().map(|c| state_of(&c.record()));
    let states = ["created", "running", "exited", "unknown"];
    registry.register("containers", "Containers by state", by_state(&states, containers));
}

fn state_of(record: &ContainerRecord) -> &'static str {
    match record.item().state() {
        ContainerState::ContainerCreated => "created",
        ContainerState::ContainerRunning => "running",
        ContainerState::ContainerExited => "exited",
        ContainerState::ContainerUnknown => "unknown",
    }
}

fn images(registry: &mut Registry, daemon: &Daemon) {
    let images = daemon.images.list().len();
    gauge(registry, "images", "Images in the local store", images as u64);
    registry.register_with_unit(
        "image_fetched",
        "Bytes of layers that pulls took from registries, as they travel (compressed)",
        Unit::Bytes,
        counter_of(daemon.images.fetched_bytes()),
    );
    counter(
        registry,
        "image_policy_refusals",
        "Pulls, imports and containers that the image policy refused",
        daemon.images.refusals(),
    );
    if let Ok(disk) = daemon.images.fs_info() {
        let gauge: Gauge = gauge_of(disk.used_bytes);
        registry.register_with_unit("image_layers", "Disk used by unpacked layers", Unit::Bytes, gauge);
    }
}

async fn keeper(registry: &mut Registry, daemon: &Daemon) {
    let asked = tokio::time::timeout(PATIENCE, daemon.keeper.info()).await;
    let info = asked.ok().and_then(Result::ok);
    gauge(registry, "keeper_up", "1 if the keeper answers", info.is_some().into());
    let guardian = info.as_ref().is_some_and(|info| info.guardian_pid != 0);
    let help = "1 if the guardian lives; without it the keeper's death would lose exit codes";
    gauge(registry, "guardian_up", help, guardian.into());
    let Some(info) = info else { return };
    let restarts = info.generation.saturating_sub(1);
    counter(
        registry,
        "keeper_restarts",
        "Times that the guardian had to start the keeper again",
        restarts.into(),
    );
    counter(registry, "log_lines", "Lines written to container logs", info.log_lines);
    counter(
        registry,
        "log_dropped_lines",
        "Lines that could not be written to container logs",
        info.log_dropped,
    );
    registry.register_with_unit(
        "log_written",
        "Bytes written to container logs",
        Unit::Bytes,
        counter_of(info.log_bytes),
    );
}

/// As Prometheus' own clients name them for a process, below our prefix.
fn ourselves(registry: &mut Registry) {
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    gauge(registry, "process_open_fds", "Open descriptors of the daemon", descriptors as u64);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = kibibytes.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let gauge: Gauge = gauge_of(kibibytes.unwrap_or(0) * 1024);
    registry.register_with_unit(
        "process_resident_memory",
        "Resident memory of the daemon",
        Unit::Bytes,
        gauge,
    );
}

fn gauge_of(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn counter_of(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, gauge_of(value));
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, counter_of(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_without_anybody_are_zero_and_not_absent() {
        let family = by_state(&["ready", "not_ready"], ["ready", "ready"].into_iter());
        assert_eq!(family.get_or_create(&State { state: "ready" }).get(), 2);
        assert!(family.get(&State { state: "not_ready" }).is_some());
    }
}
