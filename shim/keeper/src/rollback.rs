//! Undo beside each act: whatever was acquired is given back in reverse order unless the whole thing succeeds.

use std::fmt;

type Undo<'a> = Box<dyn FnOnce() + Send + 'a>;

/// What is to be undone; dropped without [`Rollback::commit`], it undoes.
#[derive(Default)]
pub(crate) struct Rollback<'a> {
    undos: Vec<(&'static str, Undo<'a>)>,
}

impl<'a> Rollback<'a> {
    pub(crate) fn push(&mut self, name: &'static str, undo: impl FnOnce() + Send + 'a) {
        self.undos.push((name, Box::new(undo)));
    }

    /// All went well.
    pub(crate) fn commit(mut self) {
        self.undos.clear();
    }
}

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        while let Some((name, undo)) = self.undos.pop() {
            tracing::debug!("undo: {name}");
            undo();
        }
    }
}

impl fmt::Debug for Rollback<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.undos.iter().map(|(name, _)| name)).finish()
    }
}
