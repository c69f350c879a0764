//! Undo beside each act: what a failed request acquired is given back, last first.

use std::future::Future;
use std::pin::Pin;

type Undo = Pin<Box<dyn Future<Output = crate::error::Result<()>> + Send>>;

/// Undos pushed so far; [`Rollback::commit`] forgets them, [`Rollback::undo`] runs them.
#[derive(Default)]
pub(crate) struct Rollback {
    undos: Vec<(&'static str, Undo)>,
}

impl std::fmt::Debug for Rollback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.undos.iter().map(|(name, _)| name)).finish()
    }
}

impl Rollback {
    /// Call it before the act, when a half-done act needs the undo too; undos must therefore be idempotent.
    pub(crate) fn push(
        &mut self,
        name: &'static str,
        undo: impl Future<Output = crate::error::Result<()>> + Send + 'static,
    ) {
        self.undos.push((name, Box::pin(undo)));
    }

    pub(crate) fn commit(mut self) {
        self.undos.clear();
    }

    /// Runs all undos; answers the names of those that failed (and logs why).
    pub(crate) async fn undo(mut self) -> Vec<&'static str> {
        let mut failed = Vec::new();
        while let Some((name, undo)) = self.undos.pop() {
            if let Err(error) = undo.await {
                tracing::error!("undo of {name}: {error}");
                failed.push(name);
            }
        }
        failed
    }
}
