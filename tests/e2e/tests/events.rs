//! GetContainerEvents: order, and the status that each event announces.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use std::time::Duration;

/// CRI-EVT-01, CRI-EVT-02, CRI-EVT-03, CRI-EVT-04, CRI-EVT-05, CRI-EVT-06.
#[test]
fn events_come_in_order_with_the_status_they_announce() {
    on_a_node(Setup::default(), |node| Box::pin(events(node)));
}

async fn events(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut stream = node.runtime().await?.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let config = pod(node, "events");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exit 2")).await?;
    node.ended(&id).await?;
    node.remove_container(&id).await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), stream.message())
            .await??
            .context("stream ended")?;
        let last = event.container_id == sandbox
            && event.container_event_type() == v1::ContainerEventType::ContainerDeletedEvent;
        seen.push(event);
        if last {
            break;
        }
    }
    use v1::ContainerEventType as T;
    let of = |id: &str| {
        seen.iter().filter(|e| e.container_id == id).map(|e| e.container_event_type()).collect::<Vec<_>>()
    };
    let whole = [
        T::ContainerCreatedEvent,
        T::ContainerStartedEvent,
        T::ContainerStoppedEvent,
        T::ContainerDeletedEvent,
    ];
    ensure!(of(&id) == whole, "the container's: {:?}", of(&id));
    ensure!(of(&sandbox) == whole, "the sandbox's: {:?}", of(&sandbox));
    ensure!(seen.windows(2).all(|w| w[0].created_at <= w[1].created_at), "time does not go back");
    let stopped =
        seen.iter().find(|e| e.container_id == id && e.container_event_type() == T::ContainerStoppedEvent);
    let stopped = stopped.context("a stopped event")?;
    let status = stopped.containers_statuses.iter().find(|s| s.id == id).context("the status beside it")?;
    ensure!(status.state() == v1::ContainerState::ContainerExited && status.exit_code == 2, "{status:?}");
    ensure!(
        seen.iter()
            .filter(|e| e.container_event_type() != T::ContainerDeletedEvent)
            .all(|e| e.pod_sandbox_status.is_some()),
        "pod status"
    );
    Ok(())
}
