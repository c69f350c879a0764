//! Events for containerd (SHIM-EVT-01..06): one bounded queue, one worker, in order. No address, no events.
//!
//! While the client is away the worker waits with what it has; containers never wait for it. What does not fit into the
//! queue meanwhile is dropped, newest first: the client asks for states when it is back (SHIM-EVT-09).

use crate::process::now;
use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events waiting for a client that does not take them; beyond it they are dropped (SHIM-EVT-06).
const QUEUE: usize = 4096;
/// For one attempt (SHIM-EVT-04).
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts for one event that a living client does not accept. An absent one is waited for without end.
const ATTEMPTS: u32 = 5;
/// Between attempts; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Where events go. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    queue: Option<mpsc::Sender<Envelope>>,
    /// Events not taken yet.
    pending: Arc<AtomicUsize>,
    namespace: String,
}

impl Publisher {
    /// `address_file` holds the address as containerd gives it in TTRPC_ADDRESS; without it nothing is published.
    pub(crate) fn start(address_file: &Path, namespace: &str) -> Self {
        let pending = Arc::new(AtomicUsize::new(0));
        let queue = address(address_file).map(|_| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            tokio::spawn(forward_all(address_file.to_owned(), receiver, Arc::clone(&pending)));
            sender
        });
        Self { queue, pending, namespace: namespace.into() }
    }

    /// The client is one that wants events, as containerd.
    pub(crate) fn is_wanted(&self) -> bool {
        self.queue.is_some()
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
        self.pending.fetch_add(1, Ordering::Relaxed);
        if queue.try_send(envelope).is_err() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(topic, "event dropped: the client does not take its events");
        }
    }
}

impl Publisher {
    /// Returns when everything has been taken, or after `patience`.
    pub(crate) async fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        while self.pending.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// As written by the last `start` action: a client that comes back with another address is found.
fn address(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let address = text.trim();
    (!address.is_empty())
        .then(|| if address.contains("://") { address.into() } else { format!("unix://{address}") })
}

async fn forward_all(address_file: PathBuf, mut queue: mpsc::Receiver<Envelope>, pending: Arc<AtomicUsize>) {
    let mut client = None;
    while let Some(envelope) = queue.recv().await {
        let topic = envelope.topic.clone();
        let request = ForwardRequest { envelope: Some(envelope).into(), ..ForwardRequest::default() };
        let (mut refused, mut pause) = (0, FIRST_PAUSE);
        loop {
            match forward(&mut client, &address_file, &request).await {
                Outcome::Taken => break,
                Outcome::Refused(error) => {
                    refused += 1;
                    if refused == ATTEMPTS {
                        tracing::warn!(topic, "event dropped: the client refused it: {error}");
                        break;
                    }
                }
                // Nobody there.
                Outcome::Lost => {}
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        pending.fetch_sub(1, Ordering::Relaxed);
    }
}

enum Outcome {
    Taken,
    Refused(String),
    Lost,
}

async fn forward(
    client: &mut Option<EventsClient>,
    address_file: &Path,
    request: &ForwardRequest,
) -> Outcome {
    // On a connection that was closed meanwhile: once more at once.
    for _ in 0..2 {
        let fresh = client.is_none();
        if fresh {
            let Some(address) = address(address_file) else { return Outcome::Lost };
            *client = Client::connect(&address).await.ok().map(EventsClient::new);
        }
        let Some(connected) = &*client else { return Outcome::Lost };
        match connected.forward(ttrpc::context::with_duration(PATIENCE), request).await {
            Ok(_) => return Outcome::Taken,
            Err(ttrpc::Error::RpcStatus(status)) => return Outcome::Refused(status.message),
            Err(_) => *client = None,
        }
        if fresh {
            break;
        }
    }
    Outcome::Lost
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
