//! The keeper makes way for the program that is installed now (DESIGN 4, "keeper upgraded").
//!
//! ```text
//!  SIGHUP, Upgrade ──▶ does the new file run? ──▶ gate closed ──▶ calls inside end ──▶ attached clients to the guardian ──▶ exit
//!                         │ no: all goes on                                                        guardian: the next one, from the path
//! ```
//!
//! It ends, and its guardian starts the next one, as after a death; the only difference is that nobody is in the middle of
//! anything. It could execute itself instead, and stay the parent of its containers; but then there would be two ways by
//! which a keeper comes to its state, and the one that every upgrade needs would not be the one that every crash test
//! takes. The guardian is the other way round ([`crate::guardian`]): it must never end, so it executes itself.
//!
//! Containers do not notice: what they write waits in their pipes for the time that the next keeper takes to start (tens of
//! milliseconds), exits wait with the guardian, exec sessions have their streams or a terminal whose bytes nobody holds in
//! memory ([`crate::terminal`]). A client that loses nothing by a lost connection is told `ABORTED`, which means that
//! nothing of the call was done, and connects again; from others no request is taken any more, or it is done by the next
//! keeper ([`crate::connections`]).

mod action;
mod gate;

pub(crate) use action::{ACTION, upgrade_all};
pub(crate) use gate::{Call, Gate, Kind};

use crate::binary::{self, Identity};
use crate::connections;
use crate::error::{Error, Result};
use crate::keeper::{Keeper, blocking};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use ttrpc::r#async::Server;

/// How long calls under way may take to end.
const CALLS: Duration = Duration::from_secs(10);
/// How long clients get to hear that they must connect again, and to leave.
const FAREWELL: Duration = Duration::from_millis(500);
/// For events that a client has not taken: those it gets from the next keeper come twice to one that was about to.
const EVENTS: Duration = Duration::from_secs(1);
/// How long messages larger than a socket's buffer may take to be whole.
const LARGE: Duration = Duration::from_secs(5);
/// Answers are on their way out when the gate is empty.
const ANSWERS: Duration = Duration::from_millis(20);
/// How long a guardian may take to be the new program.
const RENEWAL: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);

/// What to become, and whether that was asked for.
#[derive(Debug)]
pub(crate) struct Upgrade {
    pub(crate) gate: Gate,
    path: Mutex<PathBuf>,
    asked: Notify,
}

impl Default for Upgrade {
    fn default() -> Self {
        Self { gate: Gate::default(), path: Mutex::new(binary::installed()), asked: Notify::new() }
    }
}

impl Upgrade {
    /// Where the next keeper comes from.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when this keeper is to leave; [`leave`] is next.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }
}

/// Asks this keeper to make way for the program at `path`, by default the one at the path where it was installed. Returns
/// before it leaves. Nothing happens if it runs that file already.
///
/// # Errors
/// `FailedPrecondition` in one sentence: the file does not run, or something here must not be cut short.
pub(crate) async fn ask(keeper: &Arc<Keeper>, path: Option<PathBuf>) -> Result<()> {
    let path = path.unwrap_or_else(|| keeper.upgrade.path());
    if !path.is_absolute() {
        return Err(Error::invalid(format!("upgrade: {} is not an absolute path", path.display())));
    }
    let refused = |why: String| Error::state(format!("upgrade: {why}; the keeper that runs goes on"));
    let told = |path: &Path| {
        let told = keeper.guardian.start_from(path);
        told.map_err(|error| refused(format!("the guardian cannot be told of {}: {error}", path.display())))
    };
    if is_ours(&path) {
        told(&path)?;
        *keeper.upgrade.path.lock().unwrap_or_else(PoisonError::into_inner) = path;
        tracing::info!("upgrade: this keeper runs the installed file");
        return renew_guardian(keeper).await;
    }
    let candidate = path.clone();
    let version = blocking(move || Ok(binary::ask_version(&candidate))).await?.map_err(refused)?;
    if keeper.guardian.pid() == 0 {
        return Err(refused("the guardian is gone, another one is on its way; ask again".into()));
    }
    if keeper.upgrade.gate.must_stay() {
        return Err(refused("a checkpoint is under way; ask again when it is done".into()));
    }
    told(&path)?;
    tracing::info!(version, path = %path.display(), "upgrade: this keeper makes way");
    *keeper.upgrade.path.lock().unwrap_or_else(PoisonError::into_inner) = path;
    keeper.upgrade.asked.notify_one();
    Ok(())
}

fn is_ours(path: &Path) -> bool {
    matches!((Identity::of(path), Identity::own()), (Ok(theirs), Ok(ours)) if theirs == ours)
}

/// Has a guardian that is another file become what we are. The guardian goes on as it is if it cannot.
pub(crate) async fn renew_guardian(keeper: &Keeper) -> Result<()> {
    let ours = Identity::own().map_err(|error| Error::io("look at", binary::OURS, &error))?;
    let is_old = || {
        let guardian = keeper.guardian.pid();
        // One that is gone is made anew, of our file.
        guardian != 0 && Identity::of_process(guardian).is_ok_and(|theirs| theirs != ours)
    };
    if !is_old() {
        return Ok(());
    }
    keeper.guardian.renew();
    let end = tokio::time::Instant::now() + RENEWAL;
    while is_old() {
        if tokio::time::Instant::now() > end {
            let text =
                "upgrade: the guardian has not become the new program; it goes on as it is, its log says why";
            return Err(Error::state(text));
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::info!(pid = keeper.guardian.pid(), "the guardian is renewed");
    Ok(())
}

/// The end of this process, unless something turns up that must not be cut short: then everything goes on.
pub(crate) async fn leave(keeper: &Keeper, server: &mut Server) -> Result<()> {
    // Whoever connects from now on waits for the next keeper, in the listener that it gets.
    server.stop_listen().await;
    let gate = &keeper.upgrade.gate;
    gate.close();
    let left = gate.emptied(CALLS).await;
    if gate.must_stay() || keeper.guardian.pid() == 0 {
        gate.open();
        server.start().await.map_err(|error| Error::internal(format!("listen again: {error}")))?;
        return Err(Error::state(
            "upgrade: given up, a checkpoint is under way or the guardian is gone; ask again",
        ));
    }
    if left > 0 {
        let seconds = CALLS.as_secs();
        tracing::warn!(
            "{left} calls have not ended within {seconds} s: what they are at is undone or gone on with"
        );
    }
    if keeper.events.is_wanted() {
        tokio::time::sleep(ANSWERS).await;
        connections::whole(&keeper.layout, LARGE).await;
        keeper.events.flush(EVENTS).await;
    } else {
        keeper.connected.none_left(FAREWELL).await;
    }
    crate::task::hand_over_clients(keeper).await;
    tracing::info!("this keeper is done");
    // Nothing is dropped: to the guardian that would mean that connections and descriptors are over.
    std::process::exit(0)
}
