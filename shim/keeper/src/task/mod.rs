//! Containers: from Create to Delete.
//!
//! ```text
//!  (Creating) ──▶ Created ──start──▶ Starting ──▶ Running ⇄ paused ──exit──▶ Stopped ──delete──▶ gone
//!                    └────────────────── killed ──────────────────────────────┘
//! ```
//!
//! One lock per container serialises what changes it; readers look at a snapshot. Every change is on record before it
//! is done, so that a new keeper can go on or undo ([`crate::recovery`]).

mod attach;
mod end;
mod frozen;
mod handed;
pub(crate) mod laps;
mod make;
mod restore;
mod shimmed;

pub(crate) use attach::{Attached, Client};
pub(crate) use end::remove_cgroup;
pub(crate) use frozen::clear;
pub(crate) use handed::{forget_clients, hand_over_clients};
pub(crate) use restore::Restored;

use crate::checkpoint::Frozen;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::foreign::{self, Runtime};
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::Layout;
use crate::process::{Process, now};
use crate::records::{self, Ended, Streams, TaskPhase, TaskRecord, VERSION};
use crate::registry::Registry;
use crate::shims;
use crate::stdio::{self, Kept, Target, key};
use crate::terminal::{self, Copying};
use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed, TaskStart};
use oci_spec::runtime::LinuxResources;
use protobuf::well_known_types::any::Any;
use slipway_runtime::cgroup::{Cgroup, OomBefore, Stats};
use slipway_runtime::container::StartPipe;
use slipway_runtime::rootfs::Rootfs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// SIGKILL, by its number on every architecture.
pub(crate) const SIGKILL: i32 = 9;
/// What a Create request says, decoded.
#[derive(Debug)]
pub(crate) struct NewTask {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) streams: Streams,
    /// Directory of a checkpoint to be restored; usually empty.
    pub(crate) checkpoint: String,
    /// Runtime options of the client's configuration.
    pub(crate) options: Option<Any>,
    /// The client will ask where the time went.
    pub(crate) clocked: bool,
}

/// What does not change in a container's life.
#[derive(Debug)]
struct Facts {
    id: String,
    bundle: PathBuf,
    sandbox: String,
    cgroup: String,
    oom_before: Option<OomBefore>,
    streams: Streams,
    rootfs: Rootfs,
    mounted: bool,
    foreign_pids: bool,
    attended: bool,
    io_owner: Option<(u32, u32)>,
    criu: PathBuf,
    /// The OCI runtime that makes and runs it, where that is not ours.
    foreign: Option<Runtime>,
    /// The same by the shim of its pod.
    shim: Option<Arc<shims::Container>>,
}

/// What holds a container back until its start.
#[derive(Debug)]
pub(crate) enum Gate {
    Pipe(StartPipe),
    /// Its runtime, or its shim, does, and lets it go.
    Foreign,
}

impl Gate {
    /// As [`StartPipe::steps`].
    fn steps(&self) -> Vec<String> {
        match self {
            Self::Pipe(pipe) => pipe.steps.clone(),
            Self::Foreign => Vec::new(),
        }
    }
}

/// How far the container is.
#[derive(Debug, Clone)]
enum Lifecycle {
    /// From a checkpoint: without a process until its start has restored it. `begun`: that is under way.
    Frozen {
        frozen: Frozen,
        begun: bool,
    },
    Created {
        process: Process,
        start: Arc<Gate>,
    },
    Starting {
        process: Process,
        start: Arc<Gate>,
    },
    Running {
        process: Process,
        started_at: i64,
        paused: bool,
    },
    Stopped {
        pid: i32,
        started_at: i64,
        ended: Ended,
    },
}

/// A container.
#[derive(Debug)]
pub(crate) struct Task {
    facts: Facts,
    state: Mutex<Lifecycle>,
    /// Held by whatever changes the container.
    changing: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
    copying: Mutex<Copying>,
    /// Attached clients of a former keeper.
    handed: handed::Clients,
    /// Nobody may write to its standard input any more.
    stdin_closed: watch::Sender<bool>,
    exit: watch::Sender<Option<Ended>>,
    dropped: AtomicU64,
    /// start_time of init, as in its record.
    born: AtomicU64,
    /// SIGKILL was sent to it, by request, while it was alive.
    killed: AtomicBool,
    pub(crate) laps: laps::Laps,
    pub(crate) execs: Registry<Exec>,
    /// Groups of ended sessions may be left below the container's, because something still runs in them, or did.
    pub(crate) leaves_groups: AtomicBool,
}

/// What readers see.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) sandbox: String,
    pub(crate) streams: Streams,
    pub(crate) pid: i32,
    pub(crate) phase: Phase,
    pub(crate) started_at: i64,
    pub(crate) ended: Option<Ended>,
    pub(crate) dropped: u64,
}

/// A process's phase, as clients know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Task {
    /// Start: lets the parked process go (SHIM-TSK-07, 10).
    pub(crate) async fn start(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<i32> {
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let _changing = task.changing.lock().await;
            if let Some(frozen) = task.frozen() {
                return task.thaw(&keeper, frozen).await;
            }
            let (process, start) = match &*task.lock() {
                Lifecycle::Created { process, start } => (process.clone(), Arc::clone(start)),
                Lifecycle::Stopped { .. } => return Err(task.wrong("start", "it has ended")),
                _ => return Err(task.wrong("start", "it is started already")),
            };
            task.go_to(&keeper, Lifecycle::Starting { process: process.clone(), start: Arc::clone(&start) })?;
            let pid = process.pid;
            // Taken before, as the process may end before we hear that it began.
            let started_at = now();
            let (starter, started) = (Arc::clone(&task), process.clone());
            let layout = keeper.layout.clone();
            let release = move || {
                starter.release(&layout, &started, &start)?;
                if let Gate::Pipe(pipe) = &*start {
                    starter.laps.started(&pipe.steps);
                }
                Ok(())
            };
            keeper.aside.run_if(task.facts.shim.is_some(), release).await?;
            task.go_to(&keeper, Lifecycle::Running { process, started_at, paused: false })?;
            keeper.guardian.forget(&format!("{}start", task.prefix()));
            task.let_go_of_places(&keeper);
            task.publish_start(&keeper, pid);
            Ok(pid)
        })
        .await
    }

    fn publish_start(&self, keeper: &Keeper, pid: i32) {
        let event = TaskStart {
            container_id: self.facts.id.clone(),
            pid: pid.cast_unsigned(),
            ..TaskStart::default()
        };
        keeper.events.publish("/tasks/start", &event);
    }

    /// Kill: a signal to init, or to all processes (SHIM-TSK-13, 14, 15).
    pub(crate) async fn kill(self: &Arc<Self>, keeper: &Keeper, signal: i32, all: bool) -> Result<()> {
        if self.frozen().is_some() && self.end_unborn(keeper, signal).await? {
            return Ok(());
        }
        let (process, paused) = match &*self.lock() {
            Lifecycle::Frozen { .. } => return Err(self.wrong("signal", "it has no process yet")),
            Lifecycle::Stopped { .. } => return Err(self.finished()),
            Lifecycle::Running { process, paused, .. } => (process.clone(), *paused),
            Lifecycle::Created { process, .. } | Lifecycle::Starting { process, .. } => {
                (process.clone(), false)
            }
        };
        if let Some(shim) = &self.facts.shim {
            return self.kill_by_shim(shim, &process, signal, all, paused).await;
        }
        let (task, layout) = (Arc::clone(self), keeper.layout.clone());
        blocking(move || {
            let cgroup = || Cgroup::open(&task.facts.cgroup);
            let killed = all && signal == SIGKILL;
            if signal == SIGKILL && !process.has_ended() {
                task.killed.store(true, Ordering::Relaxed);
            }
            if killed {
                cgroup()?.kill_all()?;
            } else if all {
                for pid in cgroup()?.pids()? {
                    signal_pid(pid, signal);
                }
            }
            if signal != SIGKILL && task.signal_by_runtime(&layout, &process, signal)? {
                return Ok(());
            }
            // Init always gets it itself: the control group may be one it has not entered yet.
            match process.signal(signal) {
                // Dead of the first blow, and reaped since.
                Err(error) if error.raw_os_error() == Some(3) && killed => {}
                Err(error) if error.raw_os_error() == Some(3) => return Err(task.finished()),
                Err(error) if error.raw_os_error() == Some(22) => {
                    return Err(Error::invalid(format!("{signal} is not a signal")));
                }
                result => result.map_err(|e| Error::io("signal", &task.facts.id, &e))?,
            }
            if paused && signal == SIGKILL {
                // A frozen process dies only once it is thawed (version 1).
                cgroup()?.freeze(false)?;
            }
            Ok(())
        })
        .await
    }

    /// Pause and Resume (SHIM-TSK-24).
    pub(crate) async fn freeze(self: &Arc<Self>, keeper: &Arc<Keeper>, frozen: bool) -> Result<()> {
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let _changing = task.changing.lock().await;
            let (process, started_at) = match &*task.lock() {
                Lifecycle::Running { paused, .. } if *paused == frozen => {
                    return Err(task.wrong(if frozen { "pause" } else { "resume" }, "it is so already"));
                }
                Lifecycle::Running { process, started_at, .. } => (process.clone(), *started_at),
                _ => return Err(task.wrong(if frozen { "pause" } else { "resume" }, "it is not running")),
            };
            let cgroup = task.facts.cgroup.clone();
            match &task.facts.shim {
                Some(shim) => shim.freeze(frozen).await?,
                None => blocking(move || Ok(Cgroup::open(&cgroup)?.freeze(frozen)?)).await?,
            }
            task.go_to(&keeper, Lifecycle::Running { process, started_at, paused: frozen })?;
            let container_id = task.facts.id.clone();
            if frozen {
                keeper.events.publish("/tasks/paused", &TaskPaused { container_id, ..TaskPaused::default() });
            } else {
                keeper
                    .events
                    .publish("/tasks/resumed", &TaskResumed { container_id, ..TaskResumed::default() });
            }
            Ok(())
        })
        .await
    }

    /// Update of limits (SHIM-TSK-29).
    pub(crate) async fn update(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        resources: LinuxResources,
    ) -> Result<()> {
        let (task, layout) = (Arc::clone(self), keeper.layout.clone());
        detached(async move {
            let _changing = task.changing.lock().await;
            if task.ended().is_some() {
                return Err(task.wrong("update", "it has ended"));
            }
            if let Some(shim) = &task.facts.shim {
                return shim.update(&resources).await;
            }
            let updated = Arc::clone(&task);
            blocking(move || match updated.foreign(&layout) {
                Some(foreign) => foreign.update(&resources),
                None => Ok(Cgroup::open(&updated.facts.cgroup)?.update(&resources)?),
            })
            .await
        })
        .await
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        let cgroup = self.facts.cgroup.clone();
        blocking(move || Ok(Cgroup::open(&cgroup)?.stats()?)).await
    }

    /// All host pids in it, with the id of the exec session each one belongs to as far as it is a session's first.
    ///
    /// Init is always among them, parked outside its control group or dead but not deleted: containerd asks this after its
    /// restart, and throws away whatever has no process, with its exit status.
    pub(crate) async fn pids(&self) -> Result<Vec<(i32, Option<String>)>> {
        let Snapshot { pid: init, phase, .. } = self.snapshot();
        let mut pids = vec![init];
        if phase != Phase::Stopped {
            let cgroup = self.facts.cgroup.clone();
            let inside = blocking(move || Ok(Cgroup::open(&cgroup)?.pids()?)).await?;
            pids.extend(inside.into_iter().filter(|pid| *pid != init));
        }
        let execs: Vec<_> =
            self.execs.all().iter().map(|exec| (exec.snapshot().pid, exec.id().to_owned())).collect();
        let of = |pid| execs.iter().find(|(first, _)| *first == pid).map(|(_, id)| id.clone());
        Ok(pids.into_iter().map(|pid| (pid, of(pid))).collect())
    }

    /// Reopens the log file under its path (CRI-LOG-12, 13).
    pub(crate) async fn reopen_log(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<()> {
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let _changing = task.changing.lock().await;
            if task.ended().is_some() {
                return Err(task.wrong("reopen the log of", "it has ended"));
            }
            task.put_log(&keeper).await
        })
        .await
    }

    /// Opens the log file under its path, and lets all later lines go there.
    async fn put_log(&self, keeper: &Keeper) -> Result<()> {
        let Target::Log { path: Some(path), .. } = Target::parse(&self.facts.streams.stdout)? else {
            return Err(self.wrong("reopen the log of", "it has no log file"));
        };
        let file = blocking(move || stdio::open_log(&path)).await?;
        let fail = |e: std::io::Error| Error::io("reopen the log of", &self.facts.id, &e);
        let name = format!("{}{}", self.prefix(), key::LOG);
        keeper.guardian.keep(&[(&name, file.as_fd())]).map_err(fail)?;
        if !keeper.engine.reopen(&self.facts.id, file).await.map_err(fail)? {
            return Err(self.wrong("reopen the log of", "its output is over"));
        }
        Ok(())
    }

    pub(crate) async fn resize(&self, width: u32, height: u32) -> Result<()> {
        if let Some(shim) = self.facts.shim.as_ref().filter(|_| self.facts.streams.terminal) {
            return shim.resize("", width, height).await;
        }
        terminal::resize(&self.kept(), width, height)
            .map_err(|e| Error::io("resize the terminal of", &self.facts.id, &e))
    }

    /// CloseIO: the process sees the end of its standard input once the client has closed it too (SHIM-TSK-26).
    pub(crate) fn close_stdin(&self, keeper: &Keeper) {
        self.stdin_closed.send_replace(true);
        self.kept().remove(key::IN);
        keeper.guardian.forget(&format!("{}{}", self.prefix(), key::IN));
        if let Some(shim) = &self.facts.shim {
            shims::close_stdin(shim, "");
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let (pid, phase, started_at, ended) = match &*self.lock() {
            Lifecycle::Frozen { .. } => (0, Phase::Created, 0, None),
            Lifecycle::Created { process, .. } | Lifecycle::Starting { process, .. } => {
                (process.pid, Phase::Created, 0, None)
            }
            Lifecycle::Running { process, started_at, paused } => {
                (process.pid, if *paused { Phase::Paused } else { Phase::Running }, *started_at, None)
            }
            Lifecycle::Stopped { pid, started_at, ended } => {
                (*pid, Phase::Stopped, *started_at, Some(*ended))
            }
        };
        Snapshot {
            id: self.facts.id.clone(),
            bundle: self.facts.bundle.clone(),
            sandbox: self.facts.sandbox.clone(),
            streams: self.facts.streams.clone(),
            pid,
            phase,
            started_at,
            ended,
            dropped: self.dropped(),
        }
    }

    /// It runs, or has run.
    pub(crate) fn has_started(&self) -> bool {
        match &*self.lock() {
            Lifecycle::Frozen { .. } | Lifecycle::Created { .. } | Lifecycle::Starting { .. } => false,
            Lifecycle::Running { .. } => true,
            Lifecycle::Stopped { started_at, .. } => *started_at != 0,
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.facts.id
    }

    pub(crate) fn bundle(&self) -> &std::path::Path {
        &self.facts.bundle
    }

    pub(crate) fn sandbox(&self) -> &str {
        &self.facts.sandbox
    }

    /// Owner of the streams, where the client's options name one.
    pub(crate) fn io_owner(&self) -> Option<(u32, u32)> {
        self.facts.io_owner
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.facts.cgroup
    }

    /// The container as the OCI runtime knows it that made it, where that is not ours.
    pub(crate) fn foreign(&self, layout: &Layout) -> Option<foreign::Container<'_>> {
        let runtime = self.facts.foreign.as_ref()?;
        Some(runtime.container(layout, &self.facts.id))
    }

    /// A signal by way of a foreign runtime. False: it is for us to send. Blocks.
    fn signal_by_runtime(&self, layout: &Layout, process: &Process, signal: i32) -> Result<bool> {
        let Some(foreign) = self.foreign(layout) else { return Ok(false) };
        if process.has_ended() {
            return Err(self.finished());
        }
        match foreign.signal(signal) {
            Ok(()) => Ok(true),
            Err(_) if process.has_ended() => Err(self.finished()),
            Err(error) => {
                tracing::warn!(id = self.facts.id, "{error}; the process that we see gets the signal");
                Ok(false)
            }
        }
    }

    /// The container as its pod's shim knows it that made it, where that is so.
    pub(crate) fn shim(&self) -> Option<&Arc<shims::Container>> {
        self.facts.shim.as_ref()
    }

    fn ended(&self) -> Option<Ended> {
        match &*self.lock() {
            Lifecycle::Stopped { ended, .. } => Some(*ended),
            _ => None,
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Init, unless it has ended.
    fn process(&self) -> Option<Process> {
        match &*self.lock() {
            Lifecycle::Created { process, .. }
            | Lifecycle::Starting { process, .. }
            | Lifecycle::Running { process, .. } => Some(process.clone()),
            Lifecycle::Frozen { .. } | Lifecycle::Stopped { .. } => None,
        }
    }

    /// What its start is to restore.
    fn frozen(&self) -> Option<Frozen> {
        match &*self.lock() {
            Lifecycle::Frozen { frozen, .. } => Some(frozen.clone()),
            _ => None,
        }
    }

    /// Init of a container in which something can be executed (SHIM-TSK-09, 23).
    pub(crate) fn running_process(&self) -> Result<Process> {
        match &*self.lock() {
            Lifecycle::Running { process, paused: false, .. } => Ok(process.clone()),
            Lifecycle::Running { .. } => Err(self.wrong("execute in", "it is paused")),
            Lifecycle::Stopped { .. } => Err(self.wrong("execute in", "it has ended")),
            _ => Err(self.wrong("execute in", "it is not started")),
        }
    }

    /// On record first, then in memory.
    fn go_to(&self, keeper: &Keeper, next: Lifecycle) -> Result<()> {
        let record = self.record_of(&next);
        records::save(&keeper.layout.tasks(), &record)
            .map_err(|e| Error::io("record", &self.facts.id, &e))?;
        *self.lock() = next;
        Ok(())
    }

    fn record(&self) -> TaskRecord {
        let state = self.lock().clone();
        self.record_of(&state)
    }

    fn record_of(&self, state: &Lifecycle) -> TaskRecord {
        let phase = match state {
            Lifecycle::Frozen { frozen, begun } => {
                TaskPhase::Frozen { frozen: frozen.clone(), begun: *begun }
            }
            Lifecycle::Created { process, start } => {
                TaskPhase::Created { pid: process.pid, steps: start.steps() }
            }
            Lifecycle::Starting { process, start } => {
                TaskPhase::Starting { pid: process.pid, steps: start.steps() }
            }
            Lifecycle::Running { process, started_at, paused } => {
                TaskPhase::Running { pid: process.pid, started_at: *started_at, paused: *paused }
            }
            Lifecycle::Stopped { pid, started_at, ended } => {
                TaskPhase::Stopped { pid: *pid, started_at: *started_at, ended: *ended }
            }
        };
        self.facts.record(phase, self.dropped(), self.born.load(Ordering::Relaxed))
    }

    fn prefix(&self) -> String {
        prefix(&self.facts.id)
    }

    fn wrong(&self, what: &str, why: &str) -> Error {
        Error::state(format!("cannot {what} container {}: {why}", self.facts.id))
    }

    fn finished(&self) -> Error {
        Error::not_found(format!("container {}: process already finished", self.facts.id))
    }

    fn lock(&self) -> MutexGuard<'_, Lifecycle> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copying(&self) -> MutexGuard<'_, Copying> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn assemble(facts: Facts, state: Lifecycle, kept: Kept, ended: Option<Ended>, dropped: u64) -> Self {
        Self {
            facts,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::new(()),
            kept: Mutex::new(kept),
            copying: Mutex::default(),
            handed: handed::Clients::default(),
            stdin_closed: watch::Sender::new(false),
            exit: watch::Sender::new(ended),
            dropped: dropped.into(),
            born: AtomicU64::new(0),
            killed: false.into(),
            laps: laps::Laps::default(),
            execs: Registry::new("exec"),
            // A former keeper may have left some.
            leaves_groups: AtomicBool::new(true),
        }
    }
}

impl Facts {
    fn record(&self, phase: TaskPhase, dropped: u64, born: u64) -> TaskRecord {
        TaskRecord {
            version: VERSION,
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            sandbox: self.sandbox.clone(),
            cgroup: self.cgroup.clone(),
            oom_before: self.oom_before,
            streams: self.streams.clone(),
            rootfs: self.rootfs.clone(),
            mounted: self.mounted,
            foreign_pids: self.foreign_pids,
            attended: self.attended,
            io_owner: self.io_owner,
            criu: self.criu.clone(),
            foreign: self.foreign.clone(),
            by_shim: self.shim.is_some(),
            born,
            dropped,
            phase,
        }
    }
}

/// A signal to a process known by number only, if it is still there.
fn signal_pid(pid: i32, signal: i32) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        let _ = slipway_runtime::sys::signal::send(pidfd.as_fd(), signal);
    }
}

/// Of the container's keys with the guardian.
pub(crate) fn prefix(id: &str) -> String {
    format!("t/{id}/")
}
