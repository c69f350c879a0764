//! GetContainerEvents: every listener sees every event in order, with the status it announces (CRI-EVT-01 to 07).
//!
//! A slow listener is cut off rather than waited for; events without any listener are kept for the next one for a while.
//! An observer (the daemon's own restarter) hears everything and counts as nobody: what it hears is kept all the same.

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

/// Who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ear {
    /// A client, such as the kubelet: what it hears is delivered.
    Client,
    /// Part of the daemon: hears from now on, and takes nothing away from clients.
    Observer,
}

/// Request metadata by which a part of the daemon says that it only observes.
pub(crate) const OBSERVER: &str = "slipway-observer";

#[derive(Debug, Default)]
struct Inner {
    listeners: Vec<(Ear, mpsc::Sender<ContainerEventResponse>)>,
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
        inner.listeners.retain(|(_, listener)| listener.try_send(event.clone()).is_ok());
        if !inner.listeners.iter().any(|(ear, _)| *ear == Ear::Client) {
            inner.kept.push_back((Instant::now(), event));
            let full = inner.kept.len() > KEPT;
            let old = inner.kept.front().is_some_and(|(at, _)| at.elapsed() >= KEPT_FOR);
            if full || old {
                inner.kept.pop_front();
            }
        }
    }

    /// A new listener; a client gets what was kept first.
    pub(crate) fn listen(&self, ear: Ear) -> mpsc::Receiver<ContainerEventResponse> {
        let (sender, receiver) = mpsc::channel(BEHIND);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if ear == Ear::Client {
            for (at, event) in inner.kept.drain(..) {
                if at.elapsed() < KEPT_FOR {
                    // KEPT is below BEHIND: there is always room.
                    let _ = sender.try_send(event);
                }
            }
        }
        inner.listeners.push((ear, sender));
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
        let mut fast = events.listen(Ear::Client);
        let mut slow = events.listen(Ear::Client);
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

    /// CRI-EVT-07: the daemon's own ear must not make events look delivered.
    #[tokio::test]
    async fn an_observer_takes_nothing_away() {
        let events = Events::default();
        events.publish(event("before"));
        let mut observer = events.listen(Ear::Observer);
        events.publish(event("during"));
        assert_eq!(observer.recv().await.map(|e| e.container_id).as_deref(), Some("during"));
        let mut kubelet = events.listen(Ear::Client);
        for expected in ["before", "during"] {
            assert_eq!(kubelet.recv().await.map(|e| e.container_id).as_deref(), Some(expected));
        }
        drop(kubelet);
        events.publish(event("after it left"));
        let mut next = events.listen(Ear::Client);
        assert_eq!(next.recv().await.map(|e| e.container_id).as_deref(), Some("after it left"));
    }
}
