//! What a line of the log, and a trace, is about: each request has a span with its name and its pod.
//!
//! At the level of errors, so that no log level takes the names away from the lines that are left.

use crate::daemon::Daemon;
use std::future::Future;
use tokio::task::JoinHandle;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

/// A request's span; [`about`] fills in the rest.
pub(super) fn of_request(method: &str) -> Span {
    tracing::error_span!("request", rpc = method, pod = Empty, container = Empty)
}

/// Something about a pod that no request asks for.
pub(crate) fn of_pod(pod: &str) -> Span {
    tracing::error_span!("pod", pod)
}

/// The same about a container; its pod is in the record still when nothing else of it is.
pub(crate) fn of_container(daemon: &Daemon, container: &crate::containers::ContainerRecord) -> Span {
    let span = tracing::error_span!("container", pod = Empty, container = container.label());
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
