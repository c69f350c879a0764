//! Events for containerd (SHIM-EVT-01..06): one bounded queue, one worker, in order. No address, no events.

use crate::process::now;
use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events waiting for a client that does not take them; beyond it they are dropped (SHIM-EVT-06).
const QUEUE: usize = 1024;
/// For one attempt (SHIM-EVT-04).
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts for one event.
const ATTEMPTS: u64 = 5;

/// Where events go. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    queue: Option<mpsc::Sender<Envelope>>,
    namespace: String,
}

impl Publisher {
    /// `address` as containerd gives it in TTRPC_ADDRESS; empty publishes nothing.
    pub(crate) fn start(address: &str, namespace: &str) -> Self {
        let queue = (!address.is_empty()).then(|| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let address = if address.contains("://") { address.into() } else { format!("unix://{address}") };
            tokio::spawn(forward_all(address, receiver));
            sender
        });
        Self { queue, namespace: namespace.into() }
    }

    /// Puts an event in the queue; never waits.
    pub(crate) fn publish(&self, topic: &str, event: &dyn MessageDyn) {
        let Some(queue) = &self.queue else { return };
        let value = match event.write_to_bytes_dyn() {
            Ok(value) => value,
            Err(error) => return tracing::error!(topic, "encode event: {error}"),
        };
        // containerd's type URLs have no host in front (SHIM-EVT-03).
        let type_url = event.descriptor_dyn().full_name().to_owned();
        let envelope = Envelope {
            timestamp: Some(timestamp(now())).into(),
            namespace: self.namespace.clone(),
            topic: topic.into(),
            event: Some(Any { type_url, value, ..Any::default() }).into(),
            ..Envelope::default()
        };
        if queue.try_send(envelope).is_err() {
            tracing::warn!(topic, "event dropped: the client does not take its events");
        }
    }
}

async fn forward_all(address: String, mut queue: mpsc::Receiver<Envelope>) {
    let mut client = None;
    while let Some(envelope) = queue.recv().await {
        let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
        for attempt in 1..=ATTEMPTS {
            if client.is_none() {
                client = Client::connect(&address).await.ok().map(EventsClient::new);
            }
            if let Some(connected) = &client {
                let context = ttrpc::context::with_duration(PATIENCE);
                if connected.forward(context, &request).await.is_ok() {
                    break;
                }
                client = None;
            }
            tokio::time::sleep(Duration::from_secs(attempt)).await;
        }
    }
}

/// Nanoseconds since the epoch as a protobuf timestamp.
pub(crate) fn timestamp(nanos: i64) -> Timestamp {
    Timestamp {
        seconds: nanos.div_euclid(1_000_000_000),
        // Less than 10^9 by construction.
        nanos: i32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default(),
        ..Timestamp::default()
    }
}
