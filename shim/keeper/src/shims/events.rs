//! Where shims publish (SHIM-EVT-01, SHIM-EVT-02): one socket for all of them. What they tell is known better by Wait, but for
//! memory that ran out in a place that we do not see (a virtual machine).

use crate::error::{Error, Result};
use crate::layout::Layout;
use async_trait::async_trait;
use containerd_shim_protos::api::{Empty, ForwardRequest};
use containerd_shim_protos::events::task::TaskOOM;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::Message as _;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use ttrpc::r#async::{Server, TtrpcContext};

const OUT_OF_MEMORY: &str = "/tasks/oom";

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

/// Containers whose memory ran out.
#[derive(Debug, Default)]
struct Heard(Mutex<HashSet<String>>);

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

    /// Whether memory ran out in a container; asked once, at its end.
    pub(crate) fn ran_out(&self, id: &str) -> bool {
        self.heard.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
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
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(event.container_id);
        }
        Ok(Empty::default())
    }
}
