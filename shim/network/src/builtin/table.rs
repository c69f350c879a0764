//! The nftables table of one bridge over time: written once, changed per pod, written again when somebody lost it.
//!
//! Serialises transactions. What the table should hold is asked from the caller at the moment of writing.

use super::pool::Pool;
use super::rules::{self, Redirect};
use crate::error::Result;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the table is looked for while somebody asks for readiness (`nft flush ruleset` by a firewall).
const CHECK: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Table {
    bridge: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// This process has written the whole table.
    written: bool,
    /// The kernel may hold more than it should: the next transaction must write everything.
    stale: bool,
    checked: Option<Instant>,
    note: Option<String>,
}

/// Everything the table is to hold.
pub(crate) type Wanted = (Pool, Vec<Redirect>);

impl Table {
    pub(crate) fn new(bridge: &str) -> Self {
        Self { bridge: bridge.to_owned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `redirects`, which `wanted` holds already.
    pub(crate) fn publish(&self, redirects: &[Redirect], wanted: impl FnOnce() -> Wanted) -> Result<()> {
        let mut state = self.state();
        if state.written && !state.stale && rules::apply(&rules::add(&self.bridge, redirects)).is_ok() {
            return Ok(());
        }
        // Not written by this process yet, or the table is not what it should be: write all of it.
        self.write(&mut state, wanted())
    }

    /// Takes out `redirects`, which `wanted` holds no more. Repeatable with nothing to take out: a failed former
    /// attempt is then finished.
    pub(crate) fn withdraw(&self, redirects: &[Redirect], wanted: impl FnOnce() -> Wanted) -> Result<()> {
        let mut state = self.state();
        if redirects.is_empty() && !state.stale {
            return Ok(());
        }
        let usable = state.written && !state.stale;
        if usable && rules::apply(&rules::remove(&self.bridge, redirects)).is_ok() {
            return Ok(());
        }
        state.stale = true;
        self.write(&mut state, wanted())
    }

    /// Writes the whole table; with `only_if_new` not if this process has done so before.
    pub(crate) fn ensure(&self, only_if_new: bool, wanted: impl FnOnce() -> Wanted) -> Result<()> {
        let mut state = self.state();
        if only_if_new && state.written {
            return Ok(());
        }
        self.write(&mut state, wanted())
    }

    /// Now and then looks whether the table is still there and writes it again if not; a note for people.
    pub(crate) fn look_after(&self, in_use: bool, wanted: impl FnOnce() -> Wanted) -> Result<String> {
        let mut state = self.state();
        if in_use && state.checked.is_none_or(|at| at.elapsed() > CHECK) {
            state.checked = Some(Instant::now());
            if !self.exists() {
                tracing::warn!(bridge = self.bridge, "somebody removed the nftables table; writing it again");
                self.write(&mut state, wanted())?;
            }
        }
        Ok(state.note.clone().unwrap_or_default())
    }

    pub(crate) fn exists(&self) -> bool {
        rules::table_exists(&self.bridge)
    }

    /// True if this process has written it.
    pub(crate) fn written(&self) -> bool {
        self.state().written
    }

    /// Missing is success.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut state = self.state();
        rules::apply(&rules::drop_table(&self.bridge))?;
        *state = State::default();
        Ok(())
    }

    /// One transaction that replaces the table.
    fn write(&self, state: &mut State, (pool, redirects): Wanted) -> Result<()> {
        rules::apply(&rules::full(&self.bridge, pool, &redirects))?;
        if !state.written {
            state.note = forward_note(&self.bridge);
        }
        state.written = true;
        state.stale = false;
        state.checked = Some(Instant::now());
        Ok(())
    }
}

fn forward_note(bridge: &str) -> Option<String> {
    let chains = rules::foreign_forward_drop();
    if chains.is_empty() {
        return None;
    }
    let note = format!(
        "chain {} drops forwarded packets by policy: pods on {bridge} do not reach the outside (nor each other if \
         net.bridge.bridge-nf-call-iptables is 1) until it accepts them (iifname \"{bridge}\" accept; oifname \
         \"{bridge}\" accept)",
        chains.join(", ")
    );
    tracing::warn!("{note}");
    Some(note)
}
