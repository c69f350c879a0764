//! Clients that watch a running container, and type into it (STR-ATT-*).
//!
//! ```text
//!  container ──▶ log engine ──▶ log file
//!      ▲              └──▶ pipe of each client ([`crate::logs`])
//!      └──────── copy ◀── pipe of each client: ends with that client, or with the container's standard input
//! ```

use super::{Lifecycle, Task};
use crate::error::{Error, Result};
use crate::keeper::Keeper;
use crate::logs::{End, Listener, Outlet, Who};
use crate::readiness::{self, Held};
use crate::stdio::{self, Stdin, Target, key};
use crate::terminal;
use crate::upgrade::Kind;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};
use std::io;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::sync::oneshot;

/// The pipes that a client named, as in a Create request.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Client {
    /// The same for the same pipes.
    fn name(&self) -> String {
        let mut hash = Sha256::new();
        for name in [&self.stdin, &self.stdout, &self.stderr] {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
        }
        hex::encode(&hash.finalize()[..8])
    }
}

/// How far a client came with this keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attached {
    Ended(End),
    /// It is with the guardian, for the next keeper.
    HandedOver,
}

/// Ends a task that must not outlive its client.
struct Copier(tokio::task::JoinHandle<()>);

impl Drop for Copier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    /// Attaches a client and returns when that is over. Dropped before, it takes nothing more from the client; the output
    /// ends when the client closes its pipes.
    pub(crate) async fn attach(self: &Arc<Self>, keeper: &Arc<Keeper>, client: Client) -> Result<Attached> {
        // A keeper that leaves hands over whom it knows of.
        let Some(beginning) = keeper.upgrade.gate.enter(Kind::Work) else {
            return Err(Error::aborted("this keeper makes way for the next one: attach there"));
        };
        let stdin = self.attachable()?;
        let input = stdio::open_client(&client.stdin, OFlags::RDONLY)?;
        let (tell, over) = oneshot::channel();
        let listener = Listener {
            who: Who { container: self.facts.id.clone(), client: client.name() },
            stdout: stdio::open_client(&client.stdout, OFlags::WRONLY)?.map(Outlet::from),
            stderr: stdio::open_client(&client.stderr, OFlags::WRONLY)?.map(Outlet::from),
            end: tell,
        };
        let fail = |e: io::Error| Error::io("attach to", &self.facts.id, &e);
        if !keeper.engine.attach(&self.facts.id, listener).await.map_err(fail)? {
            return Ok(Attached::Ended(End::Over));
        }
        drop(beginning);
        self.listen(keeper, input, stdin, over).await
    }

    /// The same for a client that the former keeper has handed over.
    ///
    /// # Errors
    /// `NotFound`: there is none of these names.
    pub(crate) async fn attach_again(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        client: Client,
    ) -> Result<Attached> {
        let over = self.handed.claim(&client.name()).ok_or_else(|| {
            Error::not_found(format!(
                "container {}: the former keeper has handed no such client over",
                self.facts.id
            ))
        })?;
        let Target::Log { stdin, .. } = Target::parse(&self.facts.streams.stdout)? else {
            return Err(self.wrong("attach to", "its streams are its creator's own"));
        };
        let input = stdio::open_client(&client.stdin, OFlags::RDONLY)?;
        self.listen(keeper, input, stdin, over).await
    }

    async fn listen(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        input: Option<OwnedFd>,
        stdin: Stdin,
        over: oneshot::Receiver<End>,
    ) -> Result<Attached> {
        let fail = |e: io::Error| Error::io("attach to", &self.facts.id, &e);
        // Behind the output, so that a client sees the answer to what it types.
        let _copier = match input {
            Some(input) => self.take_input(keeper, input, stdin).map_err(fail)?,
            None => None,
        };
        tokio::select! {
            over = over => Ok(Attached::Ended(over.unwrap_or(End::Over))),
            () = keeper.upgrade.gate.until(true) => Ok(Attached::HandedOver),
        }
    }

    fn attachable(&self) -> Result<Stdin> {
        if !matches!(&*self.lock(), Lifecycle::Running { .. }) {
            return Err(self.wrong("attach to", "it is not running"));
        }
        match Target::parse(&self.facts.streams.stdout)? {
            Target::Log { stdin, .. } => Ok(stdin),
            _ => Err(self
                .wrong("attach to", "its streams are its creator's own: only cri-log: can be attached to")),
        }
    }

    /// Copies what the client types; nothing where the container has no standard input (STR-ATT-04).
    fn take_input(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        from: OwnedFd,
        stdin: Stdin,
    ) -> io::Result<Option<Copier>> {
        let terminal = self.facts.streams.terminal;
        // A shim has the terminal, and a fifo before it.
        let name = if terminal && self.facts.shim.is_none() { key::PTY } else { key::IN };
        let to = self.kept().get(name).map(OwnedFd::try_clone).transpose()?;
        let Some(to) = to.filter(|_| stdin != Stdin::None) else { return Ok(None) };
        rustix::io::ioctl_fionbio(&to, true)?;
        let from = readiness::watch(Held(Arc::new(from)), Interest::READABLE)?;
        let to = terminal::Sink::new(Held(Arc::new(to)))?;
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        Ok(Some(Copier(tokio::spawn(async move {
            let mut closed = task.stdin_closed.subscribe();
            let copied = tokio::select! {
                copied = terminal::copy(&from, &to) => copied,
                _ = closed.wait_for(|closed| *closed) => return,
            };
            if let Err(error) = copied {
                tracing::debug!(id = task.facts.id, "standard input: {error}");
            }
            drop(to);
            // STR-ATT-05; otherwise only this client is done (STR-ATT-06).
            if stdin == Stdin::Once && !terminal {
                task.close_stdin(&keeper);
            }
        }))))
    }
}
