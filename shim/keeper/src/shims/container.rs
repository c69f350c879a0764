//! One container of a shim: what a task asks of it, as calls of the Task service (SHIM-TSK-*).

use super::aside::wait;
use super::deadline::Deadline;
use super::link::Fault;
use super::pod::{Lost, Pause, Pod, TAKING_BACK};
use super::{KILL, QUICK, SIGNAL, bundle, log, pause, program};
use crate::error::{Error, Result};
use crate::events::timestamp_nanos;
use crate::foreign;
use crate::keeper::blocking;
use crate::prepare::Namespaces;
use crate::records::{Ended, Streams};
use crate::stdio;
use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
    ExecProcessRequest, KillRequest, PauseRequest, ResizePtyRequest, ResumeRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rustix::fd::OwnedFd;
use serde::Serialize;
use slipway_runtime::container::Stdio;
use slipway_runtime::rootfs::Rootfs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// SIGKILL, by its number on every architecture.
const SIGKILL: u32 = 9;
/// What the specification's types are called in an Any (SHIM-TSK-21, SHIM-TSK-29).
const SPEC_TYPES: &str = "types.containerd.io/opencontainers/runtime-spec/1/";
/// How often in a row a shim that lives may refuse to be asked after a container before it is taken at its word, and the first
/// and the longest pause between two: half a minute in all.
const WAITS: u32 = 18;
const WAIT_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a killed container may take to be deletable, and how often that is looked at.
const DYING: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);

/// What a container is made of.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) spec: Spec,
    pub(crate) rootfs: &'a Rootfs,
    /// The client's own bundle: where relative paths begin.
    pub(crate) bundle: &'a Path,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) cgroup: &'a str,
    pub(crate) streams: &'a Streams,
}

/// One container of a shim. Its id is that of the task, or of the pod for the sandbox container.
#[derive(Debug)]
pub(crate) struct Container {
    pod: Arc<Pod>,
    id: String,
    /// The shim has forgotten it; held by whoever sees to that.
    gone: tokio::sync::Mutex<bool>,
}

impl Container {
    pub(crate) fn new(pod: Arc<Pod>, id: &str) -> Arc<Self> {
        Arc::new(Self { pod, id: id.into(), gone: tokio::sync::Mutex::new(false) })
    }

    pub(crate) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Why nobody knows how it ended.
    pub(crate) fn lost(&self) -> Option<Lost> {
        self.pod.lost(&self.id)
    }

    fn dir(&self) -> PathBuf {
        self.pod.bundle(&self.id)
    }

    /// See [`stdio::by_name::reopen`].
    pub(crate) fn reopen(&self, streams: &Streams, kept: &mut stdio::Kept) {
        stdio::by_name::reopen(streams, &self.dir(), kept);
    }

    /// Create: the container waits for its start. The pid is whatever the shim says. On error all is taken back; what cannot be
    /// is told in the log, and goes with the pod. [`wait`]s.
    pub(crate) fn create(&self, new: New<'_>) -> Result<(i32, stdio::Opened)> {
        self.try_create(new).inspect_err(|_| wait(self.give_up()))
    }

    fn try_create(&self, new: New<'_>) -> Result<(i32, stdio::Opened)> {
        let deadline = self.deadline();
        let dir = self.dir();
        bundle::make(&dir)?;
        let scope = foreign::is_scope(&new.spec);
        let asked = foreign::New {
            spec: new.spec,
            rootfs: new.rootfs,
            bundle: new.bundle,
            namespaces: new.namespaces,
            cgroup: new.cgroup,
            stdio: Stdio::default(),
            overheard: None,
        };
        bundle::write(&dir, &foreign::prepared(&dir, &asked)?)?;
        let (mut opened, names) = stdio::by_name::logged(new.streams, &dir)?;
        // Held by its server, if ever.
        let made = log::make(&dir).and_then(|_log| wait(self.make(&names, scope, deadline)));
        match made {
            Ok(pid) => Ok((pid, opened)),
            Err(error) => {
                opened.undo()();
                Err(error)
            }
        }
    }

    /// What the making of it may take.
    fn deadline(&self) -> Deadline {
        Deadline::after(self.pod.shim().patience())
    }

    /// The same for the sandbox container; with the end of the shim's log that is to be read. Runs already. [`wait`]s.
    pub(super) fn create_sandbox(&self, what: &Pause<'_>) -> Result<OwnedFd> {
        let deadline = self.deadline();
        let dir = self.dir();
        bundle::make(&dir)?;
        let rootfs = dir.join("rootfs");
        pause::install(&rootfs)?;
        let spec = pause::spec(&self.id, &rootfs, &self.pod.shim().cgroup, what)?;
        bundle::write(&dir, &spec)?;
        let log = log::make(&dir)?;
        wait(async {
            self.make(&Streams::default(), foreign::is_scope(&spec), deadline).await?;
            let request = StartRequest { id: self.id.clone(), ..StartRequest::default() };
            let started = self.pod.call_by::<StartResponse>("Start", &request, QUICK, deadline).await;
            started.map(drop).map_err(|fault| self.failed("Start", fault))
        })?;
        Ok(log)
    }

    /// Its bundle is there.
    async fn make(&self, names: &Streams, scope: bool, deadline: Deadline) -> Result<i32> {
        let options = self.pod.shim().options(scope)?;
        self.pod.reach(&self.id, options.as_ref(), deadline).await?;
        let request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.dir().to_string_lossy().into_owned(),
            terminal: names.terminal,
            stdin: names.stdin.clone(),
            stdout: names.stdout.clone(),
            stderr: names.stderr.clone(),
            options: options.into(),
            ..CreateTaskRequest::default()
        };
        let patience = deadline.whole();
        let made = self.pod.call_by::<CreateTaskResponse>("Create", &request, patience, deadline).await;
        Ok(made.map_err(|fault| self.failed("Create", fault))?.pid.cast_signed())
    }

    /// Start: returns when the container's command runs.
    pub(crate) async fn start(&self) -> Result<()> {
        self.start_of("").await.map(drop)
    }

    async fn start_of(&self, exec: &str) -> Result<i32> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec.into(), ..StartRequest::default() };
        let started: StartResponse = self.call("Start", &request, QUICK).await?;
        Ok(started.pid.cast_signed())
    }

    /// Whether a start that a former keeper began is still to be done.
    pub(crate) async fn is_waiting(&self) -> Result<bool> {
        let state = self.state("").await.map_err(|fault| self.failed("State", fault))?;
        Ok(state.status.enum_value() == Ok(Status::CREATED))
    }

    /// How a process ends; none when nobody can say: its shim is gone or does not know it ([`Pod::lost`]).
    pub(super) async fn wait(&self, exec: &str) -> Option<Ended> {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.into(), ..WaitRequest::default() };
        let (mut refusals, mut silences, mut pause) = (0, 0, WAIT_PAUSE);
        let why = loop {
            let fault = match self.pod.call::<WaitResponse>("Wait", &request, None).await {
                Ok(ended) => return Some(end(ended.exit_status, timestamp_nanos(&ended.exited_at))),
                Err(fault) => fault,
            };
            if fault.is_not_found() {
                break Lost::Unknown;
            }
            tracing::warn!(id = self.id, exec, "wait: {fault}");
            match self.state(exec).await {
                Ok(state) if state.status.enum_value() == Ok(Status::STOPPED) => {
                    return Some(end(state.exit_status, timestamp_nanos(&state.exited_at)));
                }
                // Whatever keeps it from waiting is no end of the container.
                Ok(_) | Err(Fault::Late(_)) => (refusals, silences) = (0, 0),
                Err(fault) if fault.is_not_found() => break Lost::Unknown,
                Err(Fault::Refused(..)) => refusals += 1,
                Err(Fault::Lost(_)) if !self.pod.is_running().await => break Lost::Gone,
                Err(Fault::Lost(_)) => silences += 1,
            }
            if refusals == WAITS {
                break Lost::Unknown;
            }
            if silences == WAITS {
                // Nobody will ever reach it again.
                if let Err(error) = self.pod.end_shim().await {
                    tracing::warn!(id = self.id, "{error}");
                }
                break Lost::Gone;
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        };
        if exec.is_empty() {
            self.pod.lose(&self.id, why);
            if why == Lost::Gone {
                self.bury().await;
            }
        }
        None
    }

    async fn state(&self, exec: &str) -> Result<StateResponse, Fault> {
        let request = StateRequest { id: self.id.clone(), exec_id: exec.into(), ..StateRequest::default() };
        self.pod.call("State", &request, Some(QUICK)).await
    }

    /// Whether a call was refused because the shim does not know what it was for. One that says no without a reason does not,
    /// if it cannot tell its state either.
    async fn is_unknown(&self, exec: &str, fault: &Fault) -> bool {
        fault.is_not_found()
            || fault.is_vague()
                && matches!(self.state(exec).await, Err(state) if state.is_not_found() || state.is_vague())
    }

    /// A signal to its first process, to a session's, or with `all` to all of them.
    pub(crate) async fn signal(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let request =
            KillRequest { id: self.id.clone(), exec_id: exec.into(), signal, all, ..KillRequest::default() };
        self.call::<Empty>("Kill", &request, SIGNAL).await.map(drop)
    }

    /// SIGKILL to all of it, by all means: a shim that does not answer is ended itself, and what it had with it.
    pub(crate) async fn kill(&self) -> Result<()> {
        let request =
            KillRequest { id: self.id.clone(), signal: SIGKILL, all: true, ..KillRequest::default() };
        match self.pod.call::<Empty>("Kill", &request, Some(KILL)).await {
            Err(fault @ Fault::Late(_)) => {
                tracing::error!(id = self.id, "Kill: {fault}; the shim is ended");
                self.pod.end_shim().await
            }
            // Whoever waits for it finds out by himself.
            Err(Fault::Lost(_)) => Ok(()),
            Err(fault) if self.is_unknown("", &fault).await => Ok(()),
            Err(fault) => Err(self.failed("Kill", fault)),
            Ok(_) => Ok(()),
        }
    }

    /// Pause, or Resume.
    pub(crate) async fn freeze(&self, frozen: bool) -> Result<()> {
        let id = self.id.clone();
        if frozen {
            let request = PauseRequest { id, ..PauseRequest::default() };
            self.call::<Empty>("Pause", &request, QUICK).await.map(drop)
        } else {
            let request = ResumeRequest { id, ..ResumeRequest::default() };
            self.call::<Empty>("Resume", &request, QUICK).await.map(drop)
        }
    }

    /// Changes limits.
    pub(crate) async fn update(&self, resources: &LinuxResources) -> Result<()> {
        let resources = Some(any("LinuxResources", resources)?).into();
        let request = UpdateTaskRequest { id: self.id.clone(), resources, ..UpdateTaskRequest::default() };
        self.call::<Empty>("Update", &request, QUICK).await.map(drop)
    }

    /// Statistics, of version 1 or 2, whatever the shim has.
    pub(crate) async fn stats(&self) -> Result<Any> {
        let request = StatsRequest { id: self.id.clone(), ..StatsRequest::default() };
        let answer: StatsResponse = self.call("Stats", &request, QUICK).await?;
        answer
            .stats
            .into_option()
            .ok_or_else(|| Error::internal(format!("stats of {}: there are none", self.id)))
    }

    /// Size of a terminal in characters.
    pub(crate) async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), exec.into());
        let request = ResizePtyRequest { id, exec_id, width, height, ..ResizePtyRequest::default() };
        self.call::<Empty>("ResizePty", &request, QUICK).await.map(drop)
    }

    /// Ends standard input, once all that write to it have closed their ends.
    pub(crate) async fn close_stdin(&self, exec: &str) -> Result<()> {
        let (id, exec_id) = (self.id.clone(), exec.into());
        let request = CloseIORequest { id, exec_id, stdin: true, ..CloseIORequest::default() };
        self.call::<Empty>("CloseIO", &request, QUICK).await.map(drop)
    }

    /// A session: returns its pid when its command runs. On error nothing does.
    pub(crate) async fn exec(&self, exec: &str, process: &ProcessSpec, streams: Streams) -> Result<i32> {
        let mut process = process.clone();
        foreign::within_reach(&mut process);
        let request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            terminal: streams.terminal,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            spec: Some(any("Process", &process)?).into(),
            ..ExecProcessRequest::default()
        };
        self.call::<Empty>("Exec", &request, QUICK).await?;
        match self.start_of(exec).await {
            Ok(pid) => Ok(pid),
            Err(error) => {
                let _ = self.signal(exec, SIGKILL, false).await;
                let _ = self.forget_session(exec).await;
                Err(error)
            }
        }
    }

    /// Lets the shim forget an ended session, after what it wrote is with its client (SHIM-EXIT-07). Unknown is success.
    pub(crate) async fn forget_session(&self, exec: &str) -> Result<()> {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec.into(), ..DeleteRequest::default() };
        match self.pod.call::<DeleteResponse>("Delete", &request, Some(QUICK)).await {
            Ok(_) | Err(Fault::Lost(_)) => Ok(()),
            Err(fault) if self.is_unknown(exec, &fault).await => Ok(()),
            Err(fault) => Err(self.failed("Delete", fault)),
        }
    }

    /// Lets the shim forget an ended container, and takes its bundle away. Repeatable.
    ///
    /// # Errors
    /// What the shim says, for one that has not ended.
    pub(crate) async fn delete(&self) -> Result<()> {
        let mut gone = self.gone.lock().await;
        if *gone {
            return Ok(());
        }
        let request = DeleteRequest { id: self.id.clone(), ..DeleteRequest::default() };
        match self.pod.call::<DeleteResponse>("Delete", &request, Some(QUICK)).await {
            Ok(_) => {}
            Err(fault) if self.is_unknown("", &fault).await => {}
            Err(fault @ Fault::Refused(..)) => return Err(self.failed("Delete", fault)),
            // Dead, or as good as that.
            Err(fault) => {
                if matches!(fault, Fault::Late(_)) {
                    tracing::error!(id = self.id, "Delete: {fault}; the shim is ended");
                    self.pod.end_shim().await?;
                }
                self.without_shim().await;
            }
        }
        self.take_bundle().await?;
        *gone = true;
        Ok(())
    }

    /// [`Self::delete`] for one in whatever state. What the shim cannot or does not do is done without it.
    pub(crate) async fn remove(&self) {
        if *self.gone.lock().await || !self.dir().exists() {
            return;
        }
        if let Err(error) = self.kill().await {
            tracing::debug!(id = self.id, "{error}");
        }
        let end = Instant::now() + DYING;
        loop {
            match self.delete().await {
                Ok(()) => return,
                Err(_) if Instant::now() < end => tokio::time::sleep(LOOK).await,
                Err(error) => {
                    tracing::warn!(id = self.id, "{error}; removed without the shim");
                    return self.bury().await;
                }
            }
        }
    }

    /// [`Self::remove`] for one whose making failed: a shim that takes long over that is ended.
    pub(super) async fn give_up(&self) {
        if tokio::time::timeout(TAKING_BACK, self.remove()).await.is_ok() {
            return;
        }
        let is_alone = self.id == self.pod.id();
        tracing::error!(id = self.id, is_alone, "not taken back within {} s", TAKING_BACK.as_secs());
        if is_alone && let Err(error) = self.pod.end_shim().await {
            tracing::warn!(id = self.id, "{error}");
        }
        self.bury().await;
    }

    /// For one whose shim is gone.
    async fn bury(&self) {
        let mut gone = self.gone.lock().await;
        if *gone || !self.dir().exists() {
            return;
        }
        self.without_shim().await;
        match self.take_bundle().await {
            Ok(()) => *gone = true,
            Err(error) => tracing::warn!(id = self.id, "{error}"),
        }
    }

    /// Its `delete` action (SHIM-DEL-04).
    async fn without_shim(&self) {
        let (pod, id) = (Arc::clone(&self.pod), self.id.clone());
        if let Err(error) = self.pod.outside(move || program::delete(&pod, &id)).await {
            tracing::warn!(id = self.id, "{error}");
        }
    }

    async fn take_bundle(&self) -> Result<()> {
        let dir = self.dir();
        blocking(move || bundle::remove(&dir).map_err(|e| Error::io("remove", dir.display(), &e))).await
    }

    async fn call<A: Message>(&self, method: &str, request: &impl Message, limit: Duration) -> Result<A> {
        self.pod.call(method, request, Some(limit)).await.map_err(|fault| self.failed(method, fault))
    }

    fn failed(&self, method: &str, fault: Fault) -> Error {
        fault.within(&format!("{} {method}", self.pod.shim().path.display()))
    }
}

fn any(name: &str, value: &impl Serialize) -> Result<Any> {
    let value = serde_json::to_vec(value).map_err(|e| Error::internal(format!("encode {name}: {e}")))?;
    Ok(Any { type_url: format!("{SPEC_TYPES}{name}"), value, ..Any::default() })
}

fn end(status: u32, at: i64) -> Ended {
    Ended { status: status & 0xff, at, known: true, oom: None }
}

/// [`Container::close_stdin`] without waiting for it.
pub(crate) fn close_stdin(container: &Arc<Container>, exec: &str) {
    let (container, exec) = (Arc::clone(container), exec.to_owned());
    tokio::spawn(async move {
        if let Err(error) = container.close_stdin(&exec).await {
            tracing::debug!("{error}");
        }
    });
}

/// Ends a session that a former keeper began, without waiting for it.
pub(crate) fn end_session(container: &Arc<Container>, exec: &str) {
    let (container, exec) = (Arc::clone(container), exec.to_owned());
    tokio::spawn(async move {
        let _ = container.signal(&exec, SIGKILL, false).await;
        tokio::time::sleep(LOOK).await;
        if let Err(error) = container.forget_session(&exec).await {
            tracing::debug!("{error}");
        }
    });
}
