//! GetContainerEvents: every listener sees every event in order, with the status it announces (CRI-EVT-01 to 07).
//!
//! A slow listener is cut off rather than waited for; events without any listener are kept for the next one for a while.

use cri_proto::v1::ContainerEventResponse;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events a listener may be behind before it is cut off.
const BEHIND: usize = 4096;
/// Events kept while nobody listens, and for how long (containerd: 5 minutes).
const KEPT: usize = 1024;
const KEPT_FOR: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
struct Inner {
    listeners: Vec<mpsc::Sender<ContainerEventResponse>>,
    kept: VecDeque<(Instant, ContainerEventResponse)>,
    last: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Events {
    inner: Mutex<Inner>,
}

impl Events {
    /// Sends to all; never blocks. Sets a `created_at` that never goes back (CRI-EVT-04).
    pub(crate) fn publish(&self, mut event: ContainerEventResponse) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last = inner.last.max(crate::clock::now());
        event.created_at = inner.last;
        inner.listeners.retain(|listener| listener.try_send(event.clone()).is_ok());
        if inner.listeners.is_empty() {
            inner.kept.push_back((Instant::now(), event));
            if inner.kept.len() > KEPT {
                inner.kept.pop_front();
            }
        }
    }

    /// A new listener; gets what was kept first.
    pub(crate) fn listen(&self) -> mpsc::Receiver<ContainerEventResponse> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, event) in inner.kept.drain(..) {
            if at.elapsed() < KEPT_FOR {
                // KEPT is below BEHIND: there is always room.
                let _ = sender.try_send(event);
            }
        }
        inner.listeners.push(sender);
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> ContainerEventResponse {
        ContainerEventResponse { container_id: id.into(), ..Default::default() }
    }

    /// CRI-EVT-01, CRI-EVT-04, CRI-EVT-07.
    #[tokio::test]
    async fn kept_events_come_first_and_slow_listeners_are_cut_off() {
        let events = Events::default();
        events.publish(event("early"));
        let mut fast = events.listen();
        let mut slow = events.listen();
        for n in 0..=BEHIND {
            events.publish(event(&n.to_string()));
            if n == 0 {
                assert_eq!(fast.recv().await.map(|e| e.container_id).as_deref(), Some("early"));
            }
            assert_eq!(fast.recv().await.map(|e| e.container_id), Some(n.to_string()));
        }
        let mut times = Vec::new();
        while let Some(event) = slow.recv().await {
            times.push(event.created_at);
        }
        assert_eq!(times.len(), BEHIND, "cut off, with what fitted");
        assert!(times.is_sorted());
    }
}
