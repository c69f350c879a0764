//! What an operator's Prometheus sees: timings and outcomes as they happen, state as it is at the moment of the question.
//!
//! ```text
//!  layer (every RPC) ─┐
//!  pulls, network  ───┼─▶ Telemetry ─┐
//!                     records, keeper ┴─ state ─▶ endpoint: GET /metrics (OpenMetrics text)
//! ```
//!
//! Owns names and labels of the metrics. Names follow <https://prometheus.io/docs/practices/naming/>: seconds, bytes,
//! `_total`. No label holds the name of a pod, container or image: their number would have no bound. What single
//! containers use is CRI's affair (`ListPodSandboxMetrics`), and the kubelet's to publish.

mod endpoint;
pub(crate) mod laps;
mod layer;
pub(crate) mod spans;
mod state;
mod traces;

pub(crate) use endpoint::Endpoint;
pub(crate) use layer::Measure;
pub(crate) use traces::{Traces, is_sampled};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::future::Future;
use std::time::{Duration, Instant};
use tracing::Instrument as _;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    /// Name of the RPC: `RunPodSandbox`.
    method: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answer {
    method: String,
    /// gRPC code: `OK`, `NotFound`; `Cancelled` also when the client went away.
    code: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Phase {
    method: &'static str,
    /// What is being waited for: `network`, `writable layer`.
    phase: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
    /// `ok` or `error`.
    outcome: &'static str,
}

type Timings<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted as it happens. Cheap to touch: atomics behind a short read lock.
#[derive(Debug)]
pub(crate) struct Telemetry {
    registry: Registry,
    requests: Family<Answer, Counter>,
    durations: Timings<Method>,
    in_flight: Family<Method, Gauge>,
    phases: Timings<Phase>,
    network: Timings<Operation>,
    pulls: Timings<Operation>,
}

impl Default for Telemetry {
    fn default() -> Self {
        let mut telemetry = Self {
            registry: Registry::with_prefix("slipway"),
            requests: Family::default(),
            durations: Family::new_with_constructor(from_a_millisecond),
            in_flight: Family::default(),
            phases: Family::new_with_constructor(from_a_tenth_of_a_millisecond),
            network: Family::new_with_constructor(from_a_millisecond),
            pulls: Family::new_with_constructor(from_a_tenth_of_a_second),
        };
        telemetry.register();
        telemetry
    }
}

/// 0.1 ms to 3.3 s.
fn from_a_tenth_of_a_millisecond() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 16))
}

/// 1 ms to 65 s.
fn from_a_millisecond() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// 0.1 s to 27 min.
fn from_a_tenth_of_a_second() -> Histogram {
    Histogram::new(exponential_buckets(0.1, 2.0, 15))
}

impl Telemetry {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("cri_requests", "Answered CRI requests", self.requests.clone());
        registry.register_with_unit(
            "cri_request_duration",
            "Time to the answer of a CRI request; of a stream, to its beginning",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register("cri_requests_in_flight", "CRI requests under way", self.in_flight.clone());
        registry.register_with_unit(
            "cri_phase_duration",
            "Where the time of a CRI request goes: its steps, one after the other",
            Unit::Seconds,
            self.phases.clone(),
        );
        registry.register_with_unit(
            "network_duration",
            "Time to connect a pod to its network (setup) or take it off (teardown), CNI plugins included",
            Unit::Seconds,
            self.network.clone(),
        );
        registry.register_with_unit(
            "image_pull_duration",
            "Time of image pulls",
            Unit::Seconds,
            self.pulls.clone(),
        );
    }

    /// Runs one step of a request under the clock.
    pub(crate) async fn phase<T>(
        &self,
        method: &'static str,
        phase: &'static str,
        step: impl Future<Output = T>,
    ) -> T {
        let start = Instant::now();
        let result = step.instrument(spans::of_step(phase)).await;
        self.phases.get_or_create(&Phase { method, phase }).observe(seconds(start.elapsed()));
        result
    }

    /// Runs a step of the pod's network under the clock; `operation` is `setup` or `teardown`.
    pub(crate) async fn network<T, E>(
        &self,
        operation: &'static str,
        step: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timed(&self.network, operation, step).await
    }

    /// Runs a pull under the clock.
    pub(crate) async fn pull<T, E>(&self, pull: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        timed(&self.pulls, "pull", pull).await
    }
}

async fn timed<T, E>(
    timings: &Timings<Operation>,
    operation: &'static str,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let start = Instant::now();
    let result = step.await;
    let outcome = if result.is_ok() { "ok" } else { "error" };
    timings.get_or_create(&Operation { operation, outcome }).observe(seconds(start.elapsed()));
    result
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
