//! Events for containerd (SHIM-EVT-01..06): one bounded queue, one worker, in order. No address, no events.
//!
//! While the client is away the worker waits with what it has; containers never wait for it. What does not fit into the
//! queue meanwhile is dropped, newest first: the client asks for states when it is back (SHIM-EVT-09). Each event is a
//! file until the client has it, so that a keeper's death loses none; one that died in between is told twice.

use crate::layout::Layout;
use crate::process::now;
use containerd_shim_protos::protobuf::MessageDyn;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    queue: Option<mpsc::Sender<Waiting>>,
    next: Arc<AtomicU64>,
    dir: PathBuf,
    /// Events not taken yet.
    pending: Arc<AtomicUsize>,
    namespace: String,
}

impl Publisher {
    /// Goes on with what a former keeper could not tell any more. No address in `layout`: nothing is published.
    pub(crate) fn start(layout: &Layout, namespace: &str) -> io::Result<Self> {
        let (dir, address_file) = (layout.events(), layout.events_address());
        let pending = Arc::new(AtomicUsize::new(0));
        let mut publisher = Self {
            queue: None,
            next: Arc::default(),
            dir,
            pending: Arc::clone(&pending),
            namespace: namespace.into(),
        };
        if address(&address_file).is_some() {
            let left = left_over(&publisher.dir)?;
            let (sender, receiver) = mpsc::channel(QUEUE);
            for waiting in left {
                publisher.next.fetch_max(waiting.number + 1, Ordering::Relaxed);
                publisher.pending.fetch_add(1, Ordering::Relaxed);
                // At most as many as there were: they fit.
                let _ = sender.try_send(waiting);
            }
            tokio::spawn(forward_all(address_file, publisher.dir.clone(), receiver, pending));
            publisher.queue = Some(sender);
        }
        Ok(publisher)
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
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = keep(&self.dir, number, &envelope) {
            tracing::warn!(topic, "keep event: {error}");
        }
        self.pending.fetch_add(1, Ordering::Relaxed);
        if queue.try_send(Waiting { number, envelope }).is_err() {
            forget(&self.dir, number);
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

/// An event in the queue, and the name of its file.
#[derive(Debug)]
struct Waiting {
    number: u64,
    envelope: Envelope,
}

fn keep(dir: &Path, number: u64, envelope: &Envelope) -> io::Result<()> {
    fs::write(dir.join(number.to_string()), envelope.write_to_bytes()?)
}

fn forget(dir: &Path, number: u64) {
    let _ = fs::remove_file(dir.join(number.to_string()));
}

/// In the order in which they were published; damaged ones (a write that was cut off) are removed.
fn left_over(dir: &Path) -> io::Result<Vec<Waiting>> {
    fs::create_dir_all(dir)?;
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        match (number, Envelope::parse_from_bytes(&fs::read(&path)?)) {
            (Some(number), Ok(envelope)) if envelope.event.is_some() => {
                all.push(Waiting { number, envelope })
            }
            _ => fs::remove_file(&path)?,
        }
    }
    all.sort_by_key(|waiting| waiting.number);
    Ok(all)
}

async fn forward_all(
    address_file: PathBuf,
    dir: PathBuf,
    mut queue: mpsc::Receiver<Waiting>,
    pending: Arc<AtomicUsize>,
) {
    let mut client = None;
    while let Some(Waiting { number, envelope }) = queue.recv().await {
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
        forget(&dir, number);
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

/// The reverse of [`timestamp`]; now where there is none.
pub(crate) fn timestamp_nanos(timestamp: &Timestamp) -> i64 {
    let nanos = timestamp.seconds.saturating_mul(1_000_000_000).saturating_add(timestamp.nanos.into());
    if nanos > 0 { nanos } else { crate::process::now() }
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
