//! Who is inside the keeper: calls are counted, and once the gate is closed no new one begins.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What is lost if a call is cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: it waits for something to happen, and may take for ever. The client asks again.
    Wait,
    /// It is waited for.
    Work,
    /// More than the call: criu in the middle of a dump leaves a container frozen.
    Whole,
}

impl Kind {
    /// Of a method of any of our services.
    pub(crate) fn of(method: &str) -> Self {
        match method {
            "Wait" | "WaitTask" | "WaitSandbox" | "Attach" => Self::Wait,
            "Checkpoint" => Self::Whole,
            _ => Self::Work,
        }
    }
}

/// Calls inside, but for waits.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Inside {
    works: usize,
    whole: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Gate {
    closed: watch::Sender<bool>,
    inside: Arc<watch::Sender<Inside>>,
}

/// A call that is inside until this is dropped.
#[derive(Debug)]
pub(crate) struct Call {
    kind: Kind,
    inside: Arc<watch::Sender<Inside>>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.inside.send_modify(|inside| match self.kind {
            Kind::Wait => {}
            Kind::Work => inside.works -= 1,
            Kind::Whole => inside.whole -= 1,
        });
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed: watch::Sender::new(false), inside: Arc::new(watch::Sender::new(Inside::default())) }
    }
}

impl Gate {
    /// None: it is closed.
    pub(crate) fn enter(&self, kind: Kind) -> Option<Call> {
        if *self.closed.borrow() {
            return None;
        }
        self.inside.send_modify(|inside| match kind {
            Kind::Wait => {}
            Kind::Work => inside.works += 1,
            Kind::Whole => inside.whole += 1,
        });
        Some(Call { kind, inside: Arc::clone(&self.inside) })
    }

    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(crate) fn open(&self) {
        self.closed.send_replace(false);
    }

    /// Returns when the gate is closed, or open, which it may be already.
    pub(crate) async fn until(&self, closed: bool) {
        // The sender is ours.
        let _ = self.closed.subscribe().wait_for(|is| *is == closed).await;
    }

    /// Somebody is inside who must not be cut short.
    pub(crate) fn must_stay(&self) -> bool {
        self.inside.borrow().whole > 0
    }

    /// Returns when nobody is inside, or after `patience`; answers how many are left.
    pub(crate) async fn emptied(&self, patience: Duration) -> usize {
        let mut inside = self.inside.subscribe();
        let _ = tokio::time::timeout(patience, inside.wait_for(|now| *now == Inside::default())).await;
        let left = *self.inside.borrow();
        left.works + left.whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_inside_is_waited_for_and_nobody_else_comes_in() {
        let gate = Gate::default();
        let (work, wait) = (gate.enter(Kind::of("Start")), gate.enter(Kind::of("WaitTask")));
        let whole = gate.enter(Kind::of("Checkpoint"));
        assert!(gate.must_stay());
        gate.close();
        gate.until(true).await;
        assert!(gate.enter(Kind::Work).is_none() && gate.enter(Kind::Wait).is_none());
        assert_eq!(gate.emptied(Duration::from_millis(1)).await, 2);
        drop(work);
        drop(whole);
        assert!(!gate.must_stay());
        assert_eq!(gate.emptied(Duration::from_secs(60)).await, 0, "waits are not waited for");
        gate.open();
        assert!(gate.enter(Kind::Work).is_some());
        drop(wait);
    }
}
