//! What a line of the log, and a trace, is about: each request has a span with its name and its pod.
//!
//! At the level of errors, so that no log level takes the names away from the lines that are left.

use super::traces;
use crate::daemon::Daemon;
use std::future::Future;
use tokio::task::JoinHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

/// The names of the spans that a trace is made of: those of this module that end with their request.
pub(super) const TRACED: [&str; 2] = ["request", "step"];

/// A request's span; [`about`] fills in the rest.
pub(super) fn of_request(method: &str) -> Span {
    let span = tracing::error_span!(
        "request",
        rpc = method,
        pod = Empty,
        container = Empty,
        otel.name = Empty,
        otel.kind = Empty,
        otel.status_code = Empty
    );
    if traces::are_on() {
        span.record("otel.name", method).record("otel.kind", "server");
    }
    span
}

/// One step of a request: of traces only, a line of the log says by itself what it is about.
pub(super) fn of_step(step: &'static str) -> Span {
    if !traces::are_on() {
        return Span::none();
    }
    tracing::error_span!("step", step, otel.name = step)
}

/// Says in the trace that a request failed.
pub(super) fn failed(span: &Span) {
    if traces::are_on() {
        span.record("otel.status_code", "error");
    }
}

/// Something about a pod that no request asks for; it outlives the one in which it began.
pub(crate) fn of_pod(pod: &str) -> Span {
    tracing::error_span!(parent: None, "pod", pod)
}

/// The same about a container; its pod is in the record still when nothing else of it is.
pub(crate) fn of_container(daemon: &Daemon, container: &crate::containers::ContainerRecord) -> Span {
    let span = tracing::error_span!(parent: None, "container", pod = Empty, container = container.label());
    if let Ok(pod) = daemon.pods.get(&container.pod_id) {
        span.record("pod", pod.record().label());
    }
    span
}

/// Names the pod or container `id` in the span of the request under way.
pub(crate) fn about(daemon: &Daemon, id: &str) {
    let span = Span::current();
    let pod = match daemon.containers.get(id) {
        Ok(container) => {
            let record = container.record();
            span.record("container", record.label());
            record.pod_id.clone()
        }
        Err(_) => id.to_owned(),
    };
    if let Ok(pod) = daemon.pods.get(&pod) {
        about_pod(&pod.record().label());
    }
}

/// The same by the pod's `namespace/name`.
pub(crate) fn about_pod(label: &str) {
    Span::current().record("pod", label);
}

/// A task that goes on when its request's client goes away, and logs as the request does.
pub(crate) fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(task.in_current_span())
}
