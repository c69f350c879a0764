//! A command in a container, driven by a client.
//!
//! What becomes of it when the client goes: its input ends, a terminal hangs up (SIGHUP), and otherwise it runs on to its
//! end with its output thrown away (STR-STM-16); the keeper sees to it, also when this daemon is gone.

use super::INTERACTIVE;
use super::pipes::{self, Pipe};
use crate::containers::exec_process;
use crate::daemon::{Container, Daemon, blocking};
use crate::error::{Error, Result};
use crate::keeper::ExecStreams;
use crate::telemetry::spans;
use slipway_streaming::{Input, Session, Size};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::watch;
use tonic::Code;
use tracing::Instrument as _;

/// How long the streams may be silent after the end of the command, when a child of it still holds them.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs the command to its end and answers its exit code.
pub(super) async fn run(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    command: Vec<String>,
    session: Session,
) -> Result<u8> {
    let record = container.record();
    let random = crate::ids::new()?[..16].to_owned();
    let mut exec = Exec {
        daemon: Arc::clone(daemon),
        id: record.id.clone(),
        exec_id: format!("{INTERACTIVE}{random}"),
        over: false,
    };
    let (bundle, terminal) = (record.bundle.clone(), session.terminal);
    let process = blocking(move || exec_process(&bundle, &command, terminal)).await?;
    let outcome = exec.run(process, session).await;
    exec.over = outcome.is_ok();
    outcome.map_err(|e| e.of(format_args!("exec in container {}", record.label())))
}

/// A session known to the keeper; dropped before its end it is abandoned.
#[derive(Debug)]
struct Exec {
    daemon: Arc<Daemon>,
    id: String,
    exec_id: String,
    over: bool,
}

impl Drop for Exec {
    fn drop(&mut self) {
        let (daemon, id, exec_id, over) =
            (Arc::clone(&self.daemon), self.id.clone(), self.exec_id.clone(), self.over);
        let container = daemon.containers.get(&id);
        let span = container
            .map(|c| spans::of_container(&daemon, &c.record()))
            .unwrap_or_else(|_| tracing::Span::none());
        let forget = async move {
            let keeper = &daemon.keeper;
            let forgotten =
                if over { keeper.delete(&id, &exec_id).await } else { keeper.abandon(&id, &exec_id).await };
            if let Err(error) = forgotten {
                tracing::warn!(
                    "exec session {exec_id} stays with the keeper until its container goes: {error}"
                );
            }
        };
        tokio::spawn(forget.instrument(span));
    }
}

/// The pipes of a session.
struct Pipes {
    stdin: Option<Pipe<Sender>>,
    stdout: Option<Pipe<Receiver>>,
    stderr: Option<Pipe<Receiver>>,
}

impl Pipes {
    /// A terminal's output is read in any case: it would hold the command up.
    fn make(session: &Session) -> Result<Self> {
        let stdout = session.stdout.is_some() || session.terminal;
        Ok(Self {
            stdin: session.stdin.is_some().then(pipes::input).transpose()?,
            stdout: stdout.then(pipes::output).transpose()?,
            stderr: session.stderr.is_some().then(pipes::output).transpose()?,
        })
    }

    fn names(&self, terminal: bool) -> ExecStreams {
        ExecStreams {
            stdin: pipes::name(self.stdin.as_ref()),
            stdout: pipes::name(self.stdout.as_ref()),
            stderr: pipes::name(self.stderr.as_ref()),
            terminal,
        }
    }
}

impl Exec {
    async fn run(&self, process: Vec<u8>, session: Session) -> Result<u8> {
        let pipes = Pipes::make(&session)?;
        let Self { daemon, id, exec_id, .. } = self;
        daemon.keeper.exec(id, exec_id, process, &pipes.names(session.terminal)).await?;
        daemon.keeper.start(id, exec_id).await?;
        let Session { stdin, stdout, stderr, sizes, client, .. } = session;
        let (tell, ended) = watch::channel(false);
        let input = pipes.stdin.map(Pipe::handed_over).zip(stdin);
        let out = pipes.stdout.map(Pipe::handed_over);
        let err = pipes.stderr.map(Pipe::handed_over);
        let drain = async |pipe: Option<Receiver>, output| {
            if let Some(pipe) = pipe {
                pipes::drain(pipe, output, || silent(ended.clone())).await;
            }
        };
        let wait = async {
            let status = daemon.keeper.wait_exec(id, exec_id).await;
            tell.send_replace(true);
            status
        };
        let work = async { tokio::join!(wait, drain(out, stdout), drain(err, stderr)).0 };
        tokio::select! {
            status = work => Ok(u8::try_from(status?).unwrap_or(255)),
            () = client.gone() => Err(Error::new(Code::Cancelled, "the client left")),
            never = self.feed(input) => never,
            never = self.follow(sizes) => never,
        }
    }

    /// Standard input to its end, then closed (STR-STM-07); never returns.
    async fn feed<Never>(&self, input: Option<(Sender, Input)>) -> Never {
        if let Some((pipe, input)) = input {
            pipes::feed(input, pipe).await;
            if let Err(error) = self.daemon.keeper.close_stdin(&self.id, &self.exec_id).await {
                tracing::debug!("close standard input of {}: {error}", self.exec_id);
            }
        }
        std::future::pending().await
    }

    /// The client's sizes, the one from before the start too (STR-STM-19); never returns.
    async fn follow<Never>(&self, mut sizes: watch::Receiver<Option<Size>>) -> Never {
        self.daemon.follow_sizes(&self.id, &self.exec_id, &mut sizes).await;
        std::future::pending().await
    }
}

/// Returns when the command has ended a while ago.
async fn silent(mut ended: watch::Receiver<bool>) {
    // The sender lives as long as the session.
    let _ = ended.wait_for(|ended| *ended).await;
    tokio::time::sleep(DRAIN).await;
}

impl Daemon {
    /// Passes the client's sizes on to a terminal until the client tells no more. `exec_id` empty: the container's.
    pub(super) async fn follow_sizes(
        &self,
        id: &str,
        exec_id: &str,
        sizes: &mut watch::Receiver<Option<Size>>,
    ) {
        loop {
            let size = *sizes.borrow_and_update();
            if let Some(Size { width, height }) = size
                && let Err(error) = self.keeper.resize(id, exec_id, width, height).await
            {
                tracing::debug!("resize {id} {exec_id}: {error}");
            }
            if sizes.changed().await.is_err() {
                return;
            }
        }
    }
}
