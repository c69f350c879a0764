//! Where shims publish (SHIM-EVT-01, SHIM-EVT-02): one socket for all of them. What they tell is known better by Wait, but for
//! memory that ran out in a place that we do not see (a virtual machine). Of containers that are not known to be a shim's
//! nothing is taken down.

use crate::error::{Error, Result};
use crate::layout::Layout;
use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message as _;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use ttrpc::r#async::{Server, TtrpcContext};

const OUT_OF_MEMORY: &str = "/tasks/oom";
/// How long before a container's end its memory may have run out to be the reason for that: what was killed need not have been
/// its first process, which may have had the end of that to see to.
const RECENT: Duration = Duration::from_secs(10);

/// The socket, once there is somebody to publish.
#[derive(Default)]
pub(crate) struct Listener {
    server: tokio::sync::Mutex<Option<Server>>,
    heard: Arc<Heard>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("heard", &self.heard).finish_non_exhaustive()
    }
}

/// The containers of shims, and when their memory ran out.
#[derive(Debug, Default)]
struct Heard(Mutex<HashMap<String, Option<Instant>>>);

impl Heard {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, id: &str, at: Instant) {
        if let Some(known) = self.lock().get_mut(id) {
            *known = Some(at);
        }
    }

    fn ran_out(&self, id: &str, before: Instant) -> bool {
        self.lock().get(id).copied().flatten().is_some_and(|at| before.saturating_duration_since(at) < RECENT)
    }
}

impl Listener {
    /// Makes sure of the socket. A former keeper's is replaced: shims connect again.
    pub(crate) async fn open(&self, layout: &Layout) -> Result<()> {
        let mut server = self.server.lock().await;
        if server.is_some() {
            return Ok(());
        }
        let path = layout.shim_events();
        let fail = |error: ttrpc::Error| Error::internal(format!("listen at {}: {error}", path.display()));
        let _ = std::fs::remove_file(&path);
        let events = create_events(Arc::clone(&self.heard) as Arc<dyn Events + Send + Sync>);
        let mut fresh =
            Server::new().bind(&format!("unix://{}", path.display())).map_err(fail)?.register_service(events);
        fresh.start().await.map_err(fail)?;
        *server = Some(fresh);
        Ok(())
    }

    /// A shim may have something to tell of this container.
    pub(crate) fn expect(&self, id: &str) {
        self.heard.lock().entry(id.into()).or_default();
    }

    /// It is no more.
    pub(crate) fn forget(&self, id: &str) {
        self.heard.lock().remove(id);
    }

    /// Whether memory ran out in a container so short a time ago that it has ended of that.
    pub(crate) fn ran_out(&self, id: &str) -> bool {
        self.heard.ran_out(id, Instant::now())
    }
}

#[async_trait]
impl Events for Heard {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let Some(envelope) = request.envelope.into_option() else { return Ok(Empty::default()) };
        tracing::debug!(topic = envelope.topic, "a shim publishes");
        if envelope.topic == OUT_OF_MEMORY
            && let Ok(event) = TaskOOM::parse_from_bytes(&envelope.event.value)
        {
            self.note(&event.container_id, Instant::now());
        }
        Ok(Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_and_recent_counts() {
        // SHIM-EVT-08
        let heard = Heard::default();
        let start = Instant::now();
        heard.note("nobody", start);
        assert!(heard.lock().is_empty(), "of one that is not there nothing is kept");
        heard.lock().insert("vm".into(), None);
        assert!(!heard.ran_out("vm", start));
        heard.note("vm", start);
        assert!(heard.ran_out("vm", start + Duration::from_secs(1)));
        assert!(!heard.ran_out("vm", start + RECENT), "a child's, long ago");
        heard.note("vm", start + RECENT);
        assert!(heard.ran_out("vm", start + RECENT), "and again");
    }
}
