//! Where the time of a creation and a start went, kept until the client that wanted to know has asked.

use slipway_runtime::container::{Clocked, Lap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Metadata of a Create request: its steps are to be clocked, and those of the start.
pub(crate) const WANTED: &str = "slipway-clocked";

/// Of one container; empty unless its creation was clocked by this keeper.
#[derive(Debug, Default)]
pub(crate) struct Laps(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Nobody has asked for these yet.
    new: Vec<Lap>,
    clocked: Clocked,
}

impl Laps {
    pub(super) fn created(&self, clocked: Clocked) {
        *self.lock() = Known { new: clocked.creation().to_vec(), clocked };
    }

    /// `steps`: the sentences of the parked program.
    pub(super) fn started(&self, steps: &[String]) {
        let mut known = self.lock();
        let laps = std::mem::take(&mut known.clocked).start(steps);
        known.new.extend(laps);
    }

    /// Those that are new.
    pub(crate) fn take(&self) -> Vec<Lap> {
        std::mem::take(&mut self.lock().new)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
