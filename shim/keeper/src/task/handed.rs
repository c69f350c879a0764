//! Attached clients on their way from one keeper to the next: their pipes go by the guardian, with what they are behind.
//!
//! The next keeper knows them before it reads a byte of the container's output, so that they miss none; whoever waits for
//! their end comes back to it ([`Task::attach_again`]).

use super::Task;
use crate::keeper::Keeper;
use crate::logs::{End, Listener, Outlet, Who};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;

/// Of their keys with the guardian: `a/<container>/<client>/<what>`.
const PREFIX: &str = "a/";
/// The ends of both pipes, and what has not gone into them yet. The first of these is always there.
const OUT_BEHIND: &str = "out-behind";
const OUT: &str = "out";
const ERR_BEHIND: &str = "err-behind";
const ERR: &str = "err";

/// Of one container.
#[derive(Debug, Default)]
pub(super) struct Clients {
    arrived: Mutex<Vec<Listener>>,
    unclaimed: Mutex<HashMap<String, oneshot::Receiver<End>>>,
}

impl Clients {
    /// Those that the log engine does not know yet.
    pub(super) fn listeners(&self) -> Vec<Listener> {
        std::mem::take(&mut self.arrived.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The end of this client, once.
    pub(super) fn claim(&self, client: &str) -> Option<oneshot::Receiver<End>> {
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).remove(client)
    }

    fn add(&self, who: Who, stdout: Option<Outlet>, stderr: Option<Outlet>) {
        let (tell, over) = oneshot::channel();
        let client = who.client.clone();
        let listener = Listener { who, stdout, stderr, end: tell };
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
        self.unclaimed.lock().unwrap_or_else(PoisonError::into_inner).insert(client, over);
    }
}

impl Task {
    /// Takes its clients out of `held`, where the former keeper has put them.
    pub(crate) fn take_clients(&self, held: &mut HashMap<String, OwnedFd>) {
        let prefix = format!("{PREFIX}{}/", self.facts.id);
        let client = |key: &String| Some(key.strip_prefix(&prefix)?.strip_suffix(OUT_BEHIND)?.to_owned());
        for client in held.keys().filter_map(client).collect::<Vec<_>>() {
            let mut take = |what: &str| held.remove(&format!("{prefix}{client}{what}"));
            let mut outlet = |pipe: &str, behind: &str| {
                let (pipe, behind) = (take(pipe), take(behind));
                pipe.map(|pipe| Outlet { pipe, behind: behind.and_then(read).unwrap_or_default() })
            };
            let (stdout, stderr) = (outlet(OUT, OUT_BEHIND), outlet(ERR, ERR_BEHIND));
            let who = Who { container: self.facts.id.clone(), client: client.trim_end_matches('/').into() };
            self.handed.add(who, stdout, stderr);
        }
    }
}

/// The guardian needs them no more: a keeper that dies cuts its clients off.
pub(crate) fn forget_clients(keeper: &Keeper) {
    keeper.guardian.forget_all(PREFIX);
}

/// Ends the log engine, and gives the clients to the guardian. One that cannot be given is cut off, as by a keeper's death.
pub(crate) async fn hand_over_clients(keeper: &Keeper) {
    let clients = match keeper.engine.retire().await {
        Ok(clients) => clients,
        Err(error) => return tracing::error!("hand attached clients over: {error}"),
    };
    for client in clients {
        if let Err(error) = hand_over(keeper, &client) {
            tracing::error!(id = client.who.container, "hand an attached client over: {error}");
        }
    }
}

fn hand_over(keeper: &Keeper, client: &Listener) -> io::Result<()> {
    let prefix = format!("{PREFIX}{}/{}/", client.who.container, client.who.client);
    let outlets = [(OUT, OUT_BEHIND, &client.stdout), (ERR, ERR_BEHIND, &client.stderr)];
    let mut items = Vec::new();
    for (pipe, behind, outlet) in outlets {
        let rest = outlet.as_ref().map(|outlet| &outlet.behind);
        items.push((format!("{prefix}{behind}"), written(rest)?));
        if let Some(outlet) = outlet {
            items.push((format!("{prefix}{pipe}"), outlet.pipe.try_clone()?));
        }
    }
    let items: Vec<_> = items.iter().map(|(key, fd)| (key.as_str(), fd.as_fd())).collect();
    keeper.guardian.keep(&items)
}

fn written(bytes: Option<&VecDeque<u8>>) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("slipway-behind", MemfdFlags::CLOEXEC)?);
    let (first, second) = bytes.map(VecDeque::as_slices).unwrap_or_default();
    file.write_all(first)?;
    file.write_all(second)?;
    file.rewind()?;
    Ok(file.into())
}

/// The offset is shared with the guardian's copy, which nobody reads.
fn read(file: OwnedFd) -> Option<VecDeque<u8>> {
    let mut bytes = Vec::new();
    File::from(file).read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}
