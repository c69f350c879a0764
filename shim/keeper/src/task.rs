//! Containers: from Create to Delete.
//!
//! ```text
//!  (Creating) ──▶ Created ──start──▶ Starting ──▶ Running ⇄ paused ──exit──▶ Stopped ──delete──▶ gone
//!                    └────────────────── killed ──────────────────────────────┘
//! ```
//!
//! One lock per container serialises what changes it; readers look at a snapshot. Every change is on record before it
//! is done, so that a new keeper can go on or undo ([`crate::recovery`]).

use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::exec::Exec;
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::is_valid_id;
use crate::logs::Log;
use crate::prepare;
use crate::process::{Awaited, Process, born, now, wait_end};
use crate::records::{self, Ended, Streams, TaskPhase, TaskRecord, VERSION};
use crate::registry::Registry;
use crate::rollback::Rollback;
use crate::stdio::{self, Kept, Target, key};
use crate::terminal;
use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use oci_spec::runtime::LinuxResources;
use slipway_runtime::cgroup::{Cgroup, Stats};
use slipway_runtime::container::{CreateRequest, Created, StartPipe};
use slipway_runtime::rootfs::Rootfs;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// SIGKILL, by its number on every architecture.
pub(crate) const SIGKILL: i32 = 9;
/// How long the last zombies may stay in a control group that is to be removed.
pub(crate) const CGROUP_PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed process is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long exec sessions are waited for at their container's end, as their exits come first (SHIM-EXIT-02).
const EXEC_PATIENCE: Duration = Duration::from_secs(2);

/// What a Create request says, decoded.
#[derive(Debug)]
pub(crate) struct NewTask {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) streams: Streams,
}

/// What does not change in a container's life.
#[derive(Debug)]
struct Facts {
    id: String,
    bundle: PathBuf,
    sandbox: String,
    cgroup: String,
    streams: Streams,
    rootfs: Rootfs,
    foreign_pids: bool,
    born: u64,
}

/// How far the container is.
#[derive(Debug, Clone)]
enum Lifecycle {
    Created { process: Process, start: Arc<StartPipe> },
    Starting { process: Process, start: Arc<StartPipe> },
    Running { process: Process, started_at: i64, paused: bool },
    Stopped { pid: i32, started_at: i64, ended: Ended },
}

/// A container.
#[derive(Debug)]
pub(crate) struct Task {
    facts: Facts,
    state: Mutex<Lifecycle>,
    /// Held by whatever changes the container.
    changing: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
    exit: watch::Sender<Option<Ended>>,
    dropped: std::sync::atomic::AtomicU64,
    pub(crate) execs: Registry<Exec>,
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
    /// Create: a container parked before its execve.
    pub(crate) async fn create(keeper: &Arc<Keeper>, new: NewTask) -> Result<Arc<Self>> {
        let keeper = Arc::clone(keeper);
        detached(async move {
            if !is_valid_id(&new.id) {
                return Err(Error::invalid(format!("bad container id {:?}", new.id)));
            }
            let reservation = keeper.tasks.reserve(&new.id)?;
            let maker = Arc::clone(&keeper);
            let (task, mounts) = blocking(move || {
                let mounts = new.mounts.clone();
                make(&maker, new).map(|task| (task, mounts))
            })
            .await?;
            if let Err(error) = task.connect(&keeper).await {
                task.tear_down(&keeper).await;
                return Err(error);
            }
            reservation.fill(Arc::clone(&task));
            keeper.events.publish("/tasks/create", &task.create_event(mounts));
            task.watch(&keeper, None);
            Ok(task)
        })
        .await
    }

    /// Hands the container's output to the log engine, or its terminal to a copier.
    async fn connect(&self, keeper: &Keeper) -> Result<()> {
        let fail = |e: std::io::Error| Error::io("connect the streams of", &self.facts.id, &e);
        if let Target::Log { max_line, .. } = Target::parse(&self.facts.streams.stdout)? {
            let log = {
                let mut kept = self.kept();
                let file = kept.remove(key::LOG).map(File::from);
                let streams = stdio::take_log_inputs(&mut kept).map_err(fail)?;
                Log { id: self.facts.id.clone(), file, max_line, dropped: self.dropped(), streams }
            };
            keeper.engine.add(log).await.map_err(fail)?;
        }
        terminal::connect(&self.kept()).map_err(fail)
    }

    /// Start: lets the parked process go (SHIM-TSK-07, 10).
    pub(crate) async fn start(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<i32> {
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let _changing = task.changing.lock().await;
            let (process, start) = match &*task.lock() {
                Lifecycle::Created { process, start } => (process.clone(), Arc::clone(start)),
                Lifecycle::Stopped { .. } => return Err(task.wrong("start", "it has ended")),
                _ => return Err(task.wrong("start", "it is started already")),
            };
            task.go_to(&keeper, Lifecycle::Starting { process: process.clone(), start: Arc::clone(&start) })?;
            let pid = process.pid;
            // Taken before, as the process may end before we hear that it began.
            let started_at = now();
            blocking(move || Ok(start.start()?)).await?;
            task.go_to(&keeper, Lifecycle::Running { process, started_at, paused: false })?;
            keeper.guardian.forget(&format!("{}start", task.prefix()));
            let event = TaskStart {
                container_id: task.facts.id.clone(),
                pid: pid.cast_unsigned(),
                ..TaskStart::default()
            };
            keeper.events.publish("/tasks/start", &event);
            Ok(pid)
        })
        .await
    }

    /// Kill: a signal to init, or to all processes (SHIM-TSK-13, 14, 15).
    pub(crate) async fn kill(self: &Arc<Self>, signal: i32, all: bool) -> Result<()> {
        let (process, paused) = match &*self.lock() {
            Lifecycle::Stopped { .. } => return Err(self.finished()),
            Lifecycle::Running { process, paused, .. } => (process.clone(), *paused),
            Lifecycle::Created { process, .. } | Lifecycle::Starting { process, .. } => {
                (process.clone(), false)
            }
        };
        let task = Arc::clone(self);
        blocking(move || {
            let cgroup = || Cgroup::open(&task.facts.cgroup);
            if all && signal == SIGKILL {
                cgroup()?.kill_all()?;
            } else if all {
                for pid in cgroup()?.pids()? {
                    signal_pid(pid, signal);
                }
            }
            // Init always gets it itself: the control group may be one it has not entered yet.
            match process.signal(signal) {
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

    /// Kills everything in it and returns when init is gone; nothing to do is success.
    pub(crate) async fn end_by_force(self: &Arc<Self>) -> Result<()> {
        if self.ended().is_none() {
            match self.kill(SIGKILL, true).await {
                Err(_) if self.ended().is_some() => {}
                result => result?,
            }
            tokio::time::timeout(KILL_PATIENCE, self.wait())
                .await
                .map_err(|_| Error::internal(format!("container {} does not die", self.facts.id)))??;
        }
        Ok(())
    }

    /// Wait: until it has ended and its log is complete.
    pub(crate) async fn wait(&self) -> Result<Ended> {
        let mut exit = self.exit.subscribe();
        let ended =
            exit.wait_for(Option::is_some).await.map_err(|_| Error::internal("the container is gone"))?;
        ended.ok_or_else(|| Error::internal("the container is gone"))
    }

    /// Delete: only what has ended, or never began (SHIM-TSK-18).
    pub(crate) async fn delete(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<(i32, Ended)> {
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let phase = task.snapshot().phase;
            match phase {
                Phase::Stopped => {}
                Phase::Created => task.end_by_force().await?,
                Phase::Running | Phase::Paused => return Err(task.wrong("delete", "it is running")),
            }
            let _changing = task.changing.lock().await;
            if keeper.tasks.find(&task.facts.id).is_none_or(|found| !Arc::ptr_eq(&found, &task)) {
                return Err(Error::not_found(format!("task {:?} not found", task.facts.id)));
            }
            let snapshot = task.snapshot();
            let ended = snapshot.ended.ok_or_else(|| task.wrong("delete", "it is running"))?;
            for exec in task.execs.all() {
                let _ = exec.delete(&keeper, &task).await;
            }
            let (remover, remover_keeper) = (Arc::clone(&task), Arc::clone(&keeper));
            blocking(move || remover.remove(&remover_keeper)).await?;
            keeper.tasks.remove(&task.facts.id);
            let event = TaskDelete {
                container_id: task.facts.id.clone(),
                id: task.facts.id.clone(),
                pid: snapshot.pid.cast_unsigned(),
                exit_status: ended.status,
                exited_at: Some(timestamp(ended.at)).into(),
                ..TaskDelete::default()
            };
            keeper.events.publish("/tasks/delete", &event);
            Ok((snapshot.pid, ended))
        })
        .await
    }

    /// Gives back what a dead container still has: control group, descriptors, record.
    fn remove(&self, keeper: &Keeper) -> Result<()> {
        remove_cgroup(&self.facts.cgroup)?;
        keeper.engine.remove(&self.facts.id);
        keeper.guardian.forget_all(&self.prefix());
        records::remove(&keeper.layout.tasks(), &self.record())
            .map_err(|e| Error::io("remove record of", &self.facts.id, &e))
    }

    /// Undoes a container that nobody has seen yet.
    async fn tear_down(self: &Arc<Self>, keeper: &Arc<Keeper>) {
        let process = self.process();
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        if let Some(process) = process {
            let end = move || {
                process.kill_and_reap();
                Ok(())
            };
            let _ = blocking(end).await;
        }
        let _ = blocking(move || task.remove(&keeper)).await;
    }

    /// Follows the process to its end; called once for each container.
    pub(crate) fn watch(self: &Arc<Self>, keeper: &Arc<Keeper>, adopted: Option<Awaited>) {
        let Some(process) = self.process() else { return };
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        tokio::spawn(async move {
            let end = wait_end(&process, adopted).await;
            // A start in flight tells its client, and the world, first (SHIM-TSK-08).
            let changing = task.changing.lock().await;
            let ended = task.settle(&keeper, end.ended).await;
            let snapshot = task.snapshot();
            let stopped = Lifecycle::Stopped { pid: process.pid, started_at: snapshot.started_at, ended };
            if let Err(error) = task.go_to(&keeper, stopped.clone()) {
                // Known in memory at least; the record still says running, and the next keeper will find out.
                tracing::error!(id = task.facts.id, "record the end: {error}");
                *task.lock() = stopped;
            }
            process.reap();
            if let Some(report) = end.report {
                keeper.guardian.recorded(report);
            }
            task.let_go(&keeper);
            drop(changing);
            task.exit.send_replace(Some(ended));
            task.publish_exit(&keeper, process.pid, ended);
        });
    }

    /// What must be done between the death of init and the moment anybody hears of it.
    async fn settle(self: &Arc<Self>, keeper: &Arc<Keeper>, ended: Ended) -> Ended {
        if self.facts.foreign_pids {
            let cgroup = self.facts.cgroup.clone();
            if let Err(error) = blocking(move || Ok(Cgroup::open(&cgroup)?.kill_all()?)).await {
                tracing::warn!(id = self.facts.id, "kill what is left in the container: {error}");
            }
        }
        for exec in self.execs.all() {
            let _ = tokio::time::timeout(EXEC_PATIENCE, exec.wait_if_running()).await;
        }
        match keeper.engine.drain(&self.facts.id).await {
            Ok(dropped) if dropped > 0 => self.dropped.store(dropped, std::sync::atomic::Ordering::Relaxed),
            _ => {}
        }
        keeper.engine.remove(&self.facts.id);
        let cgroup = self.facts.cgroup.clone();
        let oom = blocking(move || Ok(Cgroup::open(&cgroup)?.oom_killed()?)).await;
        Ended { oom: oom.unwrap_or_default(), ..ended }
    }

    /// After the end only the client's fifos matter, until Delete: what it has not read yet must stay (SHIM-IO-04).
    fn let_go(&self, keeper: &Keeper) {
        let mut kept = self.kept();
        kept.retain(|key, _| stdio::is_reader(key));
        if kept.is_empty() {
            keeper.guardian.forget_all(&self.prefix());
        }
    }

    fn publish_exit(&self, keeper: &Keeper, pid: i32, ended: Ended) {
        let id = self.facts.id.clone();
        if ended.oom {
            keeper.events.publish("/tasks/oom", &TaskOOM { container_id: id.clone(), ..TaskOOM::default() });
        }
        let event = TaskExit {
            container_id: id.clone(),
            id,
            pid: pid.cast_unsigned(),
            exit_status: ended.status,
            exited_at: Some(timestamp(ended.at)).into(),
            ..TaskExit::default()
        };
        keeper.events.publish("/tasks/exit", &event);
    }

    fn create_event(&self, rootfs: Vec<Mount>) -> TaskCreate {
        let streams = &self.facts.streams;
        let io = TaskIO {
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            ..TaskIO::default()
        };
        TaskCreate {
            container_id: self.facts.id.clone(),
            bundle: self.facts.bundle.to_string_lossy().into_owned(),
            rootfs,
            io: Some(io).into(),
            pid: self.snapshot().pid.cast_unsigned(),
            ..TaskCreate::default()
        }
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
            blocking(move || Ok(Cgroup::open(&cgroup)?.freeze(frozen)?)).await?;
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
    pub(crate) async fn update(self: &Arc<Self>, resources: LinuxResources) -> Result<()> {
        let task = Arc::clone(self);
        detached(async move {
            let _changing = task.changing.lock().await;
            if task.ended().is_some() {
                return Err(task.wrong("update", "it has ended"));
            }
            let cgroup = task.facts.cgroup.clone();
            blocking(move || Ok(Cgroup::open(&cgroup)?.update(&resources)?)).await
        })
        .await
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        let cgroup = self.facts.cgroup.clone();
        blocking(move || Ok(Cgroup::open(&cgroup)?.stats()?)).await
    }

    /// All host pids in it, with the id of the exec session each one belongs to as far as it is a session's first.
    pub(crate) async fn pids(&self) -> Result<Vec<(i32, Option<String>)>> {
        let cgroup = self.facts.cgroup.clone();
        let pids = blocking(move || Ok(Cgroup::open(&cgroup)?.pids()?)).await?;
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
            let Target::Log { path: Some(path), .. } = Target::parse(&task.facts.streams.stdout)? else {
                return Err(task.wrong("reopen the log of", "it has no log file"));
            };
            let file = blocking(move || stdio::open_log(&path)).await?;
            let fail = |e: std::io::Error| Error::io("reopen the log of", &task.facts.id, &e);
            keeper
                .guardian
                .keep(&[(&format!("{}{}", task.prefix(), key::LOG), file.as_fd())])
                .map_err(fail)?;
            if !keeper.engine.reopen(&task.facts.id, file).await.map_err(fail)? {
                return Err(task.wrong("reopen the log of", "its output is over"));
            }
            Ok(())
        })
        .await
    }

    pub(crate) fn resize(&self, width: u32, height: u32) -> Result<()> {
        terminal::resize(&self.kept(), width, height)
            .map_err(|e| Error::io("resize the terminal of", &self.facts.id, &e))
    }

    /// CloseIO: the process sees the end of its standard input once the client has closed it too (SHIM-TSK-26).
    pub(crate) fn close_stdin(&self, keeper: &Keeper) {
        self.kept().remove(key::IN);
        keeper.guardian.forget(&format!("{}{}", self.prefix(), key::IN));
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let (pid, phase, started_at, ended) = match &*self.lock() {
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

    pub(crate) fn id(&self) -> &str {
        &self.facts.id
    }

    pub(crate) fn bundle(&self) -> &std::path::Path {
        &self.facts.bundle
    }

    pub(crate) fn sandbox(&self) -> &str {
        &self.facts.sandbox
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.facts.cgroup
    }

    fn ended(&self) -> Option<Ended> {
        match &*self.lock() {
            Lifecycle::Stopped { ended, .. } => Some(*ended),
            _ => None,
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Init, unless it has ended.
    fn process(&self) -> Option<Process> {
        match &*self.lock() {
            Lifecycle::Created { process, .. }
            | Lifecycle::Starting { process, .. }
            | Lifecycle::Running { process, .. } => Some(process.clone()),
            Lifecycle::Stopped { .. } => None,
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
            Lifecycle::Created { process, start } => {
                TaskPhase::Created { pid: process.pid, steps: start.steps.clone() }
            }
            Lifecycle::Starting { process, start } => {
                TaskPhase::Starting { pid: process.pid, steps: start.steps.clone() }
            }
            Lifecycle::Running { process, started_at, paused } => {
                TaskPhase::Running { pid: process.pid, started_at: *started_at, paused: *paused }
            }
            Lifecycle::Stopped { pid, started_at, ended } => {
                TaskPhase::Stopped { pid: *pid, started_at: *started_at, ended: *ended }
            }
        };
        self.facts.record(phase, self.dropped())
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

    /// A container as a former keeper left it; see [`crate::recovery`].
    pub(crate) fn restore(record: TaskRecord, kept: Kept, restored: Restored) -> Arc<Self> {
        let state = match restored {
            Restored::Parked { process, start, sent: false } => {
                Lifecycle::Created { process, start: Arc::new(start) }
            }
            Restored::Parked { process, start, sent: true } => {
                Lifecycle::Starting { process, start: Arc::new(start) }
            }
            Restored::Running { process, started_at, paused } => {
                Lifecycle::Running { process, started_at, paused }
            }
            Restored::Stopped { pid, started_at, ended } => Lifecycle::Stopped { pid, started_at, ended },
        };
        let ended = match &state {
            Lifecycle::Stopped { ended, .. } => Some(*ended),
            _ => None,
        };
        let facts = Facts {
            id: record.id,
            bundle: record.bundle,
            sandbox: record.sandbox,
            cgroup: record.cgroup,
            streams: record.streams,
            rootfs: record.rootfs,
            foreign_pids: record.foreign_pids,
            born: record.born,
        };
        Arc::new(Self::assemble(facts, state, kept, ended, record.dropped))
    }

    /// Goes on where a former keeper stopped: streams first, then a start that was under way.
    pub(crate) async fn resume(self: &Arc<Self>, keeper: &Arc<Keeper>, adopted: Option<Awaited>) {
        if self.ended().is_some() {
            // Perhaps only found out now.
            if let Err(error) = records::save(&keeper.layout.tasks(), &self.record()) {
                tracing::error!(id = self.facts.id, "record the end: {error}");
            }
            return self.let_go(keeper);
        }
        if let Err(error) = self.connect(keeper).await {
            tracing::error!(id = self.facts.id, "take over the streams: {error}");
        }
        let starting = match &*self.lock() {
            Lifecycle::Starting { process, start } => Some((process.clone(), Arc::clone(start))),
            _ => None,
        };
        if let Some((process, start)) = starting {
            match blocking(move || finish_start(&start)).await {
                Ok(()) => {
                    let running = Lifecycle::Running { process, started_at: now(), paused: false };
                    if let Err(error) = self.go_to(keeper, running) {
                        tracing::error!(id = self.facts.id, "record the start: {error}");
                    }
                }
                Err(error) => tracing::warn!(id = self.facts.id, "start begun by the former keeper: {error}"),
            }
        }
        self.watch(keeper, adopted);
    }

    fn assemble(facts: Facts, state: Lifecycle, kept: Kept, ended: Option<Ended>, dropped: u64) -> Self {
        Self {
            facts,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::new(()),
            kept: Mutex::new(kept),
            exit: watch::Sender::new(ended),
            dropped: dropped.into(),
            execs: Registry::new("exec"),
        }
    }
}

/// The living part of a recovered container.
#[derive(Debug)]
pub(crate) enum Restored {
    /// `sent`: the start byte may have been sent.
    Parked {
        process: Process,
        start: StartPipe,
        sent: bool,
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

impl Facts {
    fn record(&self, phase: TaskPhase, dropped: u64) -> TaskRecord {
        TaskRecord {
            version: VERSION,
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            sandbox: self.sandbox.clone(),
            cgroup: self.cgroup.clone(),
            streams: self.streams.clone(),
            rootfs: self.rootfs.clone(),
            foreign_pids: self.foreign_pids,
            born: self.born,
            dropped,
            phase,
        }
    }
}

/// Makes the container; on error nothing is left of it. Blocks.
fn make(keeper: &Keeper, new: NewTask) -> Result<Arc<Task>> {
    let mut spec = prepare::load_spec(&new.bundle)?;
    let sandbox_id = prepare::sandbox_of(&spec);
    let sandbox = keeper.sandboxes.find(&sandbox_id);
    let namespaces = prepare::namespaces(&mut spec, sandbox.as_deref())?;
    let cgroup = prepare::cgroup_path(&mut spec, &keeper.namespace, &new.id);
    if let Some(process) = spec.process_mut() {
        prepare::process(process, None, keeper.nofile);
        process.set_terminal(Some(new.streams.terminal));
    }
    let owner = prepare::owner(&spec, spec.process().as_ref());
    let mut facts = Facts {
        rootfs: prepare::rootfs(&new.mounts, &new.bundle, &spec)?,
        id: new.id,
        bundle: new.bundle,
        sandbox: sandbox_id,
        cgroup,
        streams: new.streams,
        foreign_pids: namespaces.foreign_pids,
        born: 0,
    };
    let opened = stdio::open(&facts.streams, owner)?;
    let save = |record: &TaskRecord| {
        records::save(&keeper.layout.tasks(), record).map_err(|e| Error::io("record", &record.id, &e))
    };
    let mut rollback = Rollback::default();
    let intent = facts.record(TaskPhase::Creating, 0);
    save(&intent)?;
    rollback.push("record", move || drop(records::remove(&keeper.layout.tasks(), &intent)));
    let Created { pid, pidfd, cgroup, pty, start } = slipway_runtime::container::create(CreateRequest {
        id: facts.id.clone(),
        bundle: facts.bundle.clone(),
        spec,
        rootfs: facts.rootfs.clone(),
        join: namespaces.join,
        stdio: opened.child,
    })?;
    let process = Process::new(pid, pidfd);
    facts.cgroup = cgroup.path().to_owned();
    let (undo_process, undo_cgroup) = (process.clone(), facts.cgroup.clone());
    rollback.push("process and control group", move || {
        undo_process.kill_and_reap();
        let _ = remove_cgroup(&undo_cgroup);
    });
    facts.born = born(pid).unwrap_or_default();
    let mut kept = opened.kept;
    if let Some(pty) = pty {
        kept.insert(key::PTY, pty);
    }
    let prefix = prefix(&facts.id);
    let undo_prefix = prefix.clone();
    rollback.push("kept descriptors", move || keeper.guardian.forget_all(&undo_prefix));
    let more = [("pidfd", process.pidfd.as_fd()), ("start", start.socket.as_fd())];
    stdio::keep_all(&keeper.guardian, &prefix, &kept, &more)
        .map_err(|e| Error::io("keep the descriptors of", &facts.id, &e))?;
    let state = Lifecycle::Created { process, start: Arc::new(start) };
    let task = Task::assemble(facts, state, kept, None, 0);
    save(&task.record())?;
    rollback.commit();
    Ok(Arc::new(task))
}

/// A start whose byte the former keeper may have sent. The process's end of the socket closes with execve; while it is
/// open, a second byte does no harm, as only one is read.
fn finish_start(start: &StartPipe) -> Result<()> {
    use rustix::net::{RecvFlags, recv};
    match recv(&start.socket, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Ok(()),
        _ => Ok(start.start()?),
    }
}

/// Kills what is left in a control group and removes it; missing is success. Blocks.
pub(crate) fn remove_cgroup(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let cgroup = match Cgroup::open(path) {
        Ok(cgroup) => cgroup,
        Err(error) if error.kind() == slipway_runtime::error::Kind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = cgroup.kill_all() {
        tracing::debug!(path, "kill the control group: {error}");
    }
    Ok(cgroup.remove(CGROUP_PATIENCE)?)
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
