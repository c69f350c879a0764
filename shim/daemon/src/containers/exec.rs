//! ExecSync: one process in a running container, its output byte for byte (CRI-XS-*).

use super::{ContainerRecord, Phase};
use crate::daemon::{Container, Daemon, blocking};
use crate::error::{Error, Result};
use crate::keeper::ExecStreams;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tonic::Code;

/// Bytes kept of each stream; the rest is read and thrown away (CRI-XS-05).
const KEEP: usize = 16 << 20;
/// How long a child that holds the streams may keep the answer waiting after the process itself ended (CRI-XS-06).
const DRAIN: Duration = Duration::from_secs(1);

/// How long a killed session may take to be gone before the keeper is asked to forget it all the same.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// The same while a client waits for the answer.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What an ended session left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) exit_code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// The two pipes of a session. The keeper opens the write ends by their names in /proc, so that a session needs no file:
/// probes work on a full disk.
struct Pipes {
    read: [pipe::Receiver; 2],
    /// Closed once the process has its own: else the output would never end.
    write: [OwnedFd; 2],
}

impl Pipes {
    fn make() -> Result<Self> {
        let one = || {
            let (write, read) = pipe::pipe()?;
            Ok((read, write.into_blocking_fd()?))
        };
        let fail = |e: std::io::Error| Error::io("make pipe", Path::new("for a command's output"), &e);
        let ((out, out_write), (err, err_write)) = (one().map_err(fail)?, one().map_err(fail)?);
        Ok(Self { read: [out, err], write: [out_write, err_write] })
    }
}

/// As keeper.proto names pipes of a client.
fn names(ends: &[OwnedFd; 2]) -> ExecStreams {
    let name = |end: &OwnedFd| format!("pipe://{}/{}", std::process::id(), end.as_raw_fd());
    ExecStreams { stdout: name(&ends[0]), stderr: name(&ends[1]), ..ExecStreams::default() }
}

impl Daemon {
    /// Runs `command` in a running container. `timeout` none: as long as it takes.
    ///
    /// # Errors
    /// DeadlineExceeded after the timeout, with the whole session dead (CRI-XS-03, CRI-XS-04, CRI-XS-07).
    pub(crate) async fn exec_sync(
        self: &Arc<Self>,
        container: &Arc<Container>,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<Output> {
        let record = container.record();
        if command.is_empty() {
            return Err(Error::invalid("cmd is empty: name a command"));
        }
        if !matches!(record.phase, Phase::Running { .. }) {
            let state = record.state().as_str_name();
            return Err(Error::state(format!(
                "exec in container {}: it is {state}, not running",
                record.label()
            )));
        }
        let exec_id = crate::ids::new()?[..16].to_owned();
        let session = Session { daemon: Arc::clone(self), id: record.id.clone(), exec_id };
        // Dropped also when our caller goes away in the middle.
        let mut guard = Guard { session, ended: false };
        let outcome = guard.session.run(&record, command, timeout).await;
        // What a command that ended by itself left in the background is the container's business, as with other runtimes.
        guard.ended = outcome.is_ok();
        if outcome.as_ref().is_err_and(|e| e.code() == Code::DeadlineExceeded) {
            // Dead with its whole subtree before the answer (CRI-XS-04); bounded, as a probe must not hang on what does not die.
            if tokio::time::timeout(END_PATIENCE, guard.session.kill()).await.is_err() {
                tracing::warn!(container = record.label(), "a timed-out command does not die");
            }
        }
        outcome.map_err(|e| e.of(format_args!("exec in container {}", record.label())))
    }
}

/// A session known to the keeper.
#[derive(Debug, Clone)]
struct Session {
    daemon: Arc<Daemon>,
    id: String,
    exec_id: String,
}

/// Makes the keeper forget a session when dropped; one that has not ended is killed first.
struct Guard {
    session: Session,
    ended: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (session, ended) = (self.session.clone(), self.ended);
        crate::telemetry::spans::spawn(async move {
            if !ended {
                session.kill().await;
            }
            session.forget().await;
        });
    }
}

impl Session {
    async fn run(
        &self,
        record: &ContainerRecord,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<Output> {
        let Pipes { mut read, write } = Pipes::make()?;
        let bundle = record.bundle.clone();
        let mut output = Output::default();
        let all = async {
            let process = blocking(move || process(&bundle, &command, false)).await?;
            self.daemon.keeper.exec(&self.id, &self.exec_id, process, &names(&write)).await?;
            self.daemon.keeper.start(&self.id, &self.exec_id).await?;
            drop(write);
            self.collect(&mut read, &mut output).await
        };
        match limit {
            None => all.await?,
            // A start may hang, too: in a frozen container, or at another runtime.
            Some(limit) => tokio::time::timeout(limit, all).await.unwrap_or_else(|_| {
                let text = format!("command timed out after {} s", limit.as_secs());
                Err(Error::new(Code::DeadlineExceeded, text))
            })?,
        }
        Ok(output)
    }

    /// Reads both streams and waits for the exit; a child that keeps the streams open holds us up for [`DRAIN`] only.
    async fn collect(&self, ends: &mut [pipe::Receiver; 2], output: &mut Output) -> Result<()> {
        let [out, err] = ends;
        let Output { exit_code, stdout, stderr } = output;
        let mut read = std::pin::pin!(async { tokio::try_join!(drain(out, stdout), drain(err, stderr)) });
        let mut wait = std::pin::pin!(self.daemon.keeper.wait_exec(&self.id, &self.exec_id));
        let status = tokio::select! {
            read = &mut read => {
                read.map_err(|e| Error::internal(format!("read the command's output: {e}")))?;
                wait.await?
            }
            status = &mut wait => {
                let status = status?;
                // Time-out here is no error: what was written so far is the answer.
                let _ = tokio::time::timeout(DRAIN, read).await;
                status
            }
        };
        *exit_code = i32::try_from(status).unwrap_or(255);
        Ok(())
    }

    /// SIGKILL to the whole session; returns when it is gone, or after [`KILL_PATIENCE`].
    async fn kill(&self) {
        let Self { daemon, id, exec_id } = self;
        // One that has not begun never will, then.
        if daemon.keeper.kill_all(id, exec_id).await.is_ok() {
            // The keeper refuses to forget a session whose end it has not seen yet.
            let _ = tokio::time::timeout(KILL_PATIENCE, daemon.keeper.wait_exec(id, exec_id)).await;
        }
    }

    async fn forget(&self) {
        let Self { daemon, id, exec_id } = self;
        let Err(error) = daemon.keeper.delete(id, exec_id).await else { return };
        // Its start hangs, or it does not die: the keeper forgets it when that is over.
        if let Err(again) = daemon.keeper.abandon(id, exec_id).await {
            tracing::warn!(
                "exec session {exec_id} stays with the keeper until its container goes: {error}; {again}"
            );
        }
    }
}

async fn drain(from: &mut pipe::Receiver, into: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let room = KEEP.saturating_sub(into.len()).min(n);
        into.extend_from_slice(&buffer[..room]);
    }
}

/// The container's own process with another command: same environment, user, capabilities, seccomp (CRI-XS-08).
pub(crate) fn process(bundle: &Path, command: &[String], terminal: bool) -> Result<Vec<u8>> {
    let file = bundle.join("config.json");
    let text = std::fs::read(&file).map_err(|e| Error::io("read bundle", &file, &e))?;
    let spec: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| Error::internal(format!("decode {}: {e}", file.display())))?;
    let mut process = spec["process"].clone();
    process["args"] = serde_json::json!(command);
    process["terminal"] = terminal.into();
    // CRI-XS-09; one that the container sets itself stays.
    if terminal
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|v| v.as_str().is_some_and(|v| v.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    if let Some(fields) = process.as_object_mut() {
        // It belongs to the container's init; a session inherits what its cgroup's processes have.
        fields.remove("consoleSize");
    }
    serde_json::to_vec(&process).map_err(|e| Error::internal(format!("encode process: {e}")))
}
