//! `slipway events`: what happens to pods and containers, as it happens. Ends with the daemon, or with Ctrl-C.

use anyhow::Result;
use cri_proto::v1 as cri;
use serde::Serialize;

use super::client::{Client, said};
use super::output::{Output, print};

/// One line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    /// Nanoseconds since the epoch.
    at: i64,
    what: &'static str,
    pod: String,
    /// Absent: the pod itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
}

pub(crate) async fn run(client: &mut Client, output: Output) -> Result<()> {
    let answer = client.runtime.get_container_events(cri::GetEventsRequest {}).await;
    let mut events = answer.map_err(said("follow events"))?.into_inner();
    while let Some(event) = events.message().await.map_err(said("follow events"))? {
        let event = decode(&event);
        let line = match output {
            Output::Json => serde_json::to_string(&event)?,
            Output::Table => text(&event),
        };
        print(&(line + "\n"))?;
    }
    Ok(())
}

fn decode(event: &cri::ContainerEventResponse) -> Event {
    let status = event.pod_sandbox_status.clone().unwrap_or_default();
    let meta = status.metadata.unwrap_or_default();
    let own = event.containers_statuses.iter().find(|container| container.id == event.container_id);
    let what = match event.container_event_type() {
        cri::ContainerEventType::ContainerCreatedEvent => "created",
        cri::ContainerEventType::ContainerStartedEvent => "started",
        cri::ContainerEventType::ContainerStoppedEvent => "stopped",
        cri::ContainerEventType::ContainerDeletedEvent => "deleted",
    };
    let ended = own.filter(|container| container.finished_at != 0);
    Event {
        at: event.created_at,
        what,
        pod: format!("{}/{}", meta.namespace, meta.name),
        container: own.map(|container| container.metadata.clone().unwrap_or_default().name),
        id: event.container_id.clone(),
        exit_code: ended.map(|container| container.exit_code),
    }
}

fn text(event: &Event) -> String {
    let whom = match &event.container {
        Some(container) => format!("container {container} of {}", event.pod),
        None if event.id.is_empty() => format!("pod {}", event.pod),
        None => format!("pod {} ({})", event.pod, event.id.chars().take(13).collect::<String>()),
    };
    let code = event.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    format!("{}  {:<8} {whom}{code}", super::output::clock(event.at), event.what)
}
