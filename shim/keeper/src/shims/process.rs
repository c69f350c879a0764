//! A process that only its shim sees: a container's first one, or a session's.

use super::container::Container;
use crate::process::now;
use crate::records::Ended;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module.
#[derive(Debug)]
pub(crate) struct Process {
    container: Arc<Container>,
    /// Empty: the container's first process.
    exec: String,
    ended: AtomicBool,
}

impl Process {
    pub(crate) fn new(container: Arc<Container>, exec: &str) -> Arc<Self> {
        Arc::new(Self { container, exec: exec.into(), ended: AtomicBool::new(false) })
    }

    /// Waits for its end. To be called once, by whoever follows it.
    pub(crate) async fn follow(&self) -> Ended {
        let ended = self.container.wait(&self.exec).await.unwrap_or_else(lost);
        self.ended.store(true, Ordering::Relaxed);
        ended
    }

    /// Its end has been seen.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// Its shim is gone, or has forgotten it.
fn lost() -> Ended {
    Ended { status: 255, at: now(), known: false, oom: None }
}
