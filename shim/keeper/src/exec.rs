//! Processes beside a container's init.
//!
//! ```text
//!  Added ──start──▶ Starting ──▶ Running ──exit──▶ Stopped ──delete──▶ gone
//! ```

mod by_shim;

use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::is_valid_id;
use crate::logger::{self, Logger};
use crate::prepare;
use crate::process::{Awaited, Process, now, wait_end};
use crate::records::{self, Ended, ExecPhase, ExecRecord, Streams, VERSION};
use crate::shims;
use crate::stdio::{self, Kept, Target, key};
use crate::task::{Phase, SIGKILL, Task};
use crate::terminal::{self, Copying};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted, TaskExit};
use oci_spec::runtime::Process as ProcessSpec;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{ExecRequest, Subject};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Status of a process that was killed, as a shell tells it.
const KILLED: u32 = 128 + SIGKILL.unsigned_abs();
const SIGHUP: i32 = 1;
/// By its number on every architecture but MIPS.
const SIGCONT: i32 = 18;
/// How long the processes of a killed session may take to be gone.
const GONE_PATIENCE: Duration = Duration::from_secs(1);

/// How far the session is.
#[derive(Debug, Clone)]
enum Lifecycle {
    Added { process: serde_json::Value },
    Starting,
    Running { process: Process, cgroup: String },
    Stopped { pid: i32, cgroup: String, ended: Ended },
}

/// By what a former keeper's session is known.
enum ExecHold {
    Descriptor(std::os::fd::OwnedFd),
    Shim(Arc<shims::Process>),
}

/// An exec session.
#[derive(Debug)]
pub(crate) struct Exec {
    id: String,
    task: String,
    streams: Streams,
    state: Mutex<Lifecycle>,
    changing: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
    copying: Mutex<Copying>,
    exit: watch::Sender<Option<Ended>>,
    /// Its client is gone.
    abandoned: AtomicBool,
    /// It was killed before it had begun.
    doomed: AtomicBool,
}

/// What readers see.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) streams: Streams,
    pub(crate) pid: i32,
    pub(crate) phase: Phase,
    pub(crate) ended: Option<Ended>,
}

impl Exec {
    /// Exec: registers the session; nothing runs yet (SHIM-TSK-21, 22).
    pub(crate) fn add(
        keeper: &Keeper,
        task: &Task,
        id: String,
        streams: Streams,
        process: serde_json::Value,
    ) -> Result<()> {
        if !is_valid_id(&id) {
            return Err(Error::invalid(format!("bad exec id {id:?}")));
        }
        task.running_process()?;
        serde_json::from_value::<ProcessSpec>(process.clone())
            .map_err(|error| Error::invalid(format!("exec {id}: process: {error}")))?;
        for name in [&streams.stdin, &streams.stdout, &streams.stderr] {
            if let Target::Log { .. } = Target::parse(name)? {
                return Err(Error::unimplemented(format!(
                    "exec {id}: cri-log: is for containers; use fifos"
                )));
            }
        }
        let reservation = task.execs.reserve(&id)?;
        let exec = Arc::new(Self::assemble(
            id,
            task.id().into(),
            streams,
            Lifecycle::Added { process },
            Kept::new(),
        ));
        exec.save(keeper, &exec.lock());
        let event = TaskExecAdded {
            container_id: exec.task.clone(),
            exec_id: exec.id.clone(),
            ..TaskExecAdded::default()
        };
        reservation.fill(exec);
        keeper.events.publish("/tasks/exec-added", &event);
        Ok(())
    }

    fn assemble(id: String, task: String, streams: Streams, state: Lifecycle, kept: Kept) -> Self {
        let ended = match &state {
            Lifecycle::Stopped { ended, .. } => Some(*ended),
            _ => None,
        };
        Self {
            id,
            task,
            streams,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::new(()),
            kept: Mutex::new(kept),
            copying: Mutex::default(),
            exit: watch::Sender::new(ended),
            abandoned: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
        }
    }

    /// Start: returns when the process has passed execve.
    pub(crate) async fn start(self: &Arc<Self>, keeper: &Arc<Keeper>, task: &Arc<Task>) -> Result<i32> {
        let (exec, keeper, task) = (Arc::clone(self), Arc::clone(keeper), Arc::clone(task));
        detached(async move {
            let _changing = exec.changing.lock().await;
            let Lifecycle::Added { process: spec } = exec.lock().clone() else {
                return Err(exec.wrong("start", "it is started already"));
            };
            let init = task.running_process()?;
            exec.go_to(&keeper, Lifecycle::Starting);
            if exec.is_doomed() {
                exec.never_ran(&keeper, KILLED);
                return Err(exec.wrong("start", "it was killed before it began"));
            }
            let (starter, starter_keeper, own) = (Arc::clone(&exec), Arc::clone(&keeper), Arc::clone(&task));
            let of_shim = task.shim().is_some();
            let launch = move || starter.launch(&starter_keeper, &task, &init, spec);
            let started = keeper.aside.run_if(of_shim, launch).await;
            let process = match started {
                Ok(process) => process,
                Err(error) => {
                    exec.never_ran(&keeper, 255);
                    return Err(error);
                }
            };
            if exec.is_doomed()
                && let Err(error) = exec.kill(&own, SIGKILL, true).await
            {
                tracing::warn!(id = exec.id, "end what was killed while it began: {error}");
            }
            exec.connect_terminal();
            let event = TaskExecStarted {
                container_id: exec.task.clone(),
                exec_id: exec.id.clone(),
                pid: process.pid.cast_unsigned(),
                ..TaskExecStarted::default()
            };
            keeper.events.publish("/tasks/exec-started", &event);
            exec.watch(&keeper, &own, None);
            Ok(process.pid)
        })
        .await
    }

    /// Blocks. On error nothing runs.
    fn launch(
        &self,
        keeper: &Keeper,
        task: &Task,
        init: &Process,
        spec: serde_json::Value,
    ) -> Result<Process> {
        let container = prepare::load_spec(task.bundle())?;
        let mut process: ProcessSpec = serde_json::from_value(spec)
            .map_err(|error| Error::invalid(format!("exec {}: process: {error}", self.id)))?;
        let oom_score = container.process().as_ref().and_then(ProcessSpec::oom_score_adj);
        prepare::process(&mut process, oom_score, keeper.nofile);
        process.set_terminal(Some(self.streams.terminal));
        if let Some(shim) = task.shim() {
            return self.launch_by_shim(keeper, task, shim, &process);
        }
        let owner = task.io_owner().unwrap_or_else(|| prepare::owner(&container, Some(&process)));
        let opened =
            stdio::open(&self.streams, owner, Logger { id: task.id(), namespace: &keeper.namespace })?;
        let cgroup = Cgroup::open(task.cgroup())?;
        let session = match task.foreign(&keeper.layout) {
            Some(foreign) => foreign.exec(&self.id, &process, &cgroup, opened.child)?,
            None => slipway_runtime::container::exec(ExecRequest {
                exec_id: Some(&self.id),
                pid: init.pid,
                pidfd: init.own_pidfd().map_err(|e| Error::io("execute in", task.id(), &e))?,
                subject: Subject { id: task.id(), bundle: task.bundle(), spec: &container },
                process: &process,
                cgroup: &cgroup,
                stdio: opened.child,
                preserved: Vec::new(),
                no_new_keyring: false,
            })?,
        };
        let started = Process::new(session.pid, session.pidfd);
        let mut kept = opened.kept;
        if let Some(pty) = session.pty {
            kept.insert(key::PTY, pty);
        }
        let more: Vec<_> = started.pidfd().map(|pidfd| ("pidfd", pidfd.as_fd())).into_iter().collect();
        let running =
            Lifecycle::Running { process: started.clone(), cgroup: session.cgroup.path().to_owned() };
        let held = stdio::keep_all(&keeper.guardian, &self.prefix(), &kept, &more)
            .map_err(|e| Error::io("keep the descriptors of exec", &self.id, &e));
        if let Err(error) = held {
            started.kill_and_reap();
            keeper.guardian.forget_all(&self.prefix());
            let _ = session.cgroup.remove(Duration::ZERO);
            return Err(error);
        }
        self.go_to(keeper, running);
        *self.kept() = kept;
        Ok(started)
    }

    fn watch(self: &Arc<Self>, keeper: &Arc<Keeper>, task: &Arc<Task>, adopted: Option<Awaited>) {
        let shim = task.shim().cloned();
        let Lifecycle::Running { process, cgroup } = self.lock().clone() else { return };
        let (exec, keeper) = (Arc::clone(self), Arc::clone(keeper));
        tokio::spawn(async move {
            let end = wait_end(&process, adopted).await;
            let changing = exec.changing.lock().await;
            let stopped = Lifecycle::Stopped { pid: process.pid, cgroup, ended: end.ended };
            exec.go_to(&keeper, stopped);
            process.reap();
            if let Some(report) = end.report {
                keeper.guardian.recorded(report);
            }
            if let Some(shim) = &shim
                && let Err(error) = shim.forget_session(&exec.id).await
            {
                tracing::warn!(id = exec.id, "{error}");
            }
            // What the client has not read yet stays in its fifos until Delete; their write ends must close, else it would
            // never see the end.
            let over: Vec<_> = exec.kept().extract_if(|key, _| !stdio::outlives_process(key)).collect();
            for (key, _) in over {
                keeper.guardian.forget(&format!("{}{key}", exec.prefix()));
            }
            exec.copying().stop_input();
            drop(changing);
            exec.exit.send_replace(Some(end.ended));
            let event = TaskExit {
                container_id: exec.task.clone(),
                id: exec.id.clone(),
                pid: process.pid.cast_unsigned(),
                exit_status: end.ended.status,
                exited_at: Some(timestamp(end.ended.at)).into(),
                ..TaskExit::default()
            };
            keeper.events.publish("/tasks/exit", &event);
        });
    }

    pub(crate) async fn wait(&self) -> Result<Ended> {
        let mut exit = self.exit.subscribe();
        let ended =
            exit.wait_for(Option::is_some).await.map_err(|_| Error::internal("the session is gone"))?;
        ended.ok_or_else(|| Error::internal("the session is gone"))
    }

    /// Returns at once if there is nothing to wait for.
    pub(crate) async fn wait_if_running(&self) {
        let running = matches!(&*self.lock(), Lifecycle::Running { .. });
        if running {
            let _ = self.wait().await;
        }
    }

    fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst)
    }

    /// Ends a session whose process there never was.
    fn never_ran(&self, keeper: &Keeper, status: u32) {
        let ended = Ended { status, at: now(), known: true, oom: None };
        self.go_to(keeper, Lifecycle::Stopped { pid: 0, cgroup: String::new(), ended });
        self.exit.send_replace(Some(ended));
    }

    /// KillAll: SIGKILL to all of the session. One that has not begun never will; a start under way is not waited for (it may
    /// hang in a frozen container): what it makes dies before its own first instruction, or at the end of the start.
    pub(crate) async fn end(&self, keeper: &Keeper, task: &Task) -> Result<()> {
        // Before the state is looked at, as the start looks at this after it has changed that.
        self.doomed.store(true, Ordering::SeqCst);
        let state = self.lock().clone();
        match state {
            Lifecycle::Added { .. } => {
                let _changing = self.changing.lock().await;
                if matches!(&*self.lock(), Lifecycle::Added { .. }) {
                    self.never_ran(keeper, KILLED);
                    return Ok(());
                }
            }
            Lifecycle::Starting => {
                let group = group_of(task, &self.id);
                return blocking(move || kill_group(&group)).await;
            }
            Lifecycle::Running { .. } | Lifecycle::Stopped { .. } => {}
        }
        self.kill(task, SIGKILL, true).await
    }

    /// A signal to the session's first process, or with `all` SIGKILL to all of them.
    pub(crate) async fn kill(&self, task: &Task, signal: i32, all: bool) -> Result<()> {
        let (process, cgroup) = match &*self.lock() {
            Lifecycle::Running { process, cgroup } => (Some(process.clone()), cgroup.clone()),
            // The first one may be gone and others of the session alive.
            Lifecycle::Stopped { cgroup, .. } if all && !cgroup.is_empty() => (None, cgroup.clone()),
            Lifecycle::Stopped { .. } => return Err(self.finished()),
            _ => return Err(self.wrong("kill", "it is not started")),
        };
        if let Some(shim) = task.shim() {
            return self.kill_by_shim(shim, process.is_some(), cgroup, signal, all).await;
        }
        let finished = self.finished();
        let id = self.id.clone();
        blocking(move || {
            let killed = all && signal == SIGKILL;
            if killed {
                kill_group(&cgroup)?;
            }
            match process.map_or(Ok(()), |process| process.signal(signal)) {
                // Dead of the first blow, and reaped since.
                Err(error) if error.raw_os_error() == Some(3) && killed => {}
                Err(error) if error.raw_os_error() == Some(3) => return Err(finished),
                Err(error) if error.raw_os_error() == Some(22) => {
                    return Err(Error::invalid(format!("{signal} is not a signal")));
                }
                result => result.map_err(|e| Error::io("signal exec", id, &e))?,
            }
            if killed {
                wait_until_gone(&cgroup);
            }
            Ok(())
        })
        .await
    }

    /// Delete: only what has ended, or never began.
    pub(crate) async fn delete(
        self: &Arc<Self>,
        keeper: &Arc<Keeper>,
        task: &Arc<Task>,
    ) -> Result<(i32, Ended)> {
        let _changing = self.changing.lock().await;
        let (pid, cgroup, ended) = match &*self.lock() {
            Lifecycle::Stopped { pid, cgroup, ended } => (*pid, cgroup.clone(), *ended),
            Lifecycle::Added { .. } => (0, String::new(), Ended { status: 0, at: 0, known: true, oom: None }),
            _ => return Err(self.wrong("delete", "it is running")),
        };
        let (sweeper, own) = (Arc::clone(task), self.id.clone());
        blocking(move || {
            // While processes of the session go on its group stays, until a later session's end or the container's.
            if !cgroup.is_empty()
                && let Ok(cgroup) = Cgroup::open(&cgroup)
                && cgroup.remove(Duration::ZERO).is_err()
            {
                sweeper.leaves_groups.store(true, Ordering::Relaxed);
            } else if sweeper.leaves_groups.load(Ordering::Relaxed) {
                sweep(&sweeper, &own);
            }
            Ok(())
        })
        .await?;
        let copying = std::mem::take(&mut *self.copying());
        copying.drained().await;
        let logger = self.kept().remove(key::LOGGER);
        logger::finish(logger).await;
        keeper.guardian.forget_all(&self.prefix());
        records::remove(&keeper.layout.execs(), &self.record(&self.lock()))
            .map_err(|e| Error::io("remove record of exec", &self.id, &e))?;
        task.execs.remove(&self.id);
        Ok((pid, ended))
    }

    pub(crate) async fn resize(&self, task: &Task, width: u32, height: u32) -> Result<()> {
        if let Some(shim) = task.shim().filter(|_| self.streams.terminal) {
            return shim.resize(&self.id, width, height).await;
        }
        terminal::resize(&self.kept(), width, height)
            .map_err(|e| Error::io("resize the terminal of", &self.id, &e))
    }

    pub(crate) fn close_stdin(&self, keeper: &Keeper, task: &Task) {
        self.kept().remove(key::IN);
        keeper.guardian.forget(&format!("{}{}", self.prefix(), key::IN));
        if let Some(shim) = task.shim() {
            shims::close_stdin(shim, &self.id);
        }
    }

    /// The client is gone: see keeper.proto. What the session still writes is thrown away (STR-STM-16).
    pub(crate) async fn abandon(self: &Arc<Self>, keeper: &Arc<Keeper>, task: &Arc<Task>) -> Result<()> {
        let (exec, keeper, task) = (Arc::clone(self), Arc::clone(keeper), Arc::clone(task));
        detached(async move {
            // A start under way ends first.
            let changing = exec.changing.lock().await;
            exec.abandoned.store(true, Ordering::Relaxed);
            let state = exec.lock().clone();
            exec.save(&keeper, &state);
            drop(changing);
            if matches!(state, Lifecycle::Running { .. }) && exec.streams.terminal {
                // As a terminal does whose line is cut; whoever it matters to ends by it.
                for signal in [SIGHUP, SIGCONT] {
                    let _ = exec.kill(&task, signal, false).await;
                }
            }
            exec.close_stdin(&keeper, &task);
            exec.finish_alone(&keeper, &task);
            Ok(())
        })
        .await
    }

    /// Reads what nobody else reads any more, until the session can be forgotten.
    fn finish_alone(self: &Arc<Self>, keeper: &Arc<Keeper>, task: &Arc<Task>) {
        let readers: Vec<_> = self
            .kept()
            .iter()
            .filter(|(key, _)| matches!(**key, key::OUT_READER | key::ERR_READER))
            .map(|(_, fd)| fd.try_clone())
            .collect();
        for reader in readers {
            let Ok(reader) = reader else { continue };
            tokio::spawn(async move {
                if let Err(error) = terminal::discard(reader).await {
                    tracing::debug!("output of an abandoned session: {error}");
                }
            });
        }
        let (exec, keeper, task) = (Arc::clone(self), Arc::clone(keeper), Arc::clone(task));
        tokio::spawn(async move {
            exec.wait_if_running().await;
            if let Err(error) = exec.delete(&keeper, &task).await {
                tracing::debug!(id = exec.id, "forget an abandoned session: {error}");
            }
        });
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let (pid, phase, ended) = match &*self.lock() {
            Lifecycle::Added { .. } | Lifecycle::Starting => (0, Phase::Created, None),
            Lifecycle::Running { process, .. } => (process.pid, Phase::Running, None),
            Lifecycle::Stopped { pid, ended, .. } => (*pid, Phase::Stopped, Some(*ended)),
        };
        Snapshot { streams: self.streams.clone(), pid, phase, ended }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A former keeper's session. One whose start was cut short is ended.
    pub(crate) fn recover(
        keeper: &Arc<Keeper>,
        task: &Arc<Task>,
        record: ExecRecord,
        held: &mut std::collections::HashMap<String, std::os::fd::OwnedFd>,
    ) {
        let lost = Ended { status: 255, at: now(), known: false, oom: None };
        let prefix = prefix(&record.task, &record.id);
        let kept = stdio::take_kept(held, &prefix);
        let by_shim =
            task.shim().map(|shim| ExecHold::Shim(shims::Process::new(Arc::clone(shim), &record.id)));
        let by = by_shim.or_else(|| held.remove(&format!("{prefix}pidfd")).map(ExecHold::Descriptor));
        let mut adopted = None;
        let state = match (record.phase, by) {
            (ExecPhase::Added, _) => Lifecycle::Added { process: record.process },
            (ExecPhase::Running { pid }, Some(held)) => {
                let process = match held {
                    ExecHold::Descriptor(pidfd) => {
                        adopted = Some(keeper.deaths.expect(pid));
                        Process::new(pid, pidfd)
                    }
                    ExecHold::Shim(process) => Process::of_shim(pid, process),
                };
                Lifecycle::Running { process, cgroup: record.cgroup }
            }
            (ExecPhase::Stopped { pid, ended }, _) => {
                Lifecycle::Stopped { pid, cgroup: record.cgroup, ended }
            }
            (ExecPhase::Starting | ExecPhase::Running { .. }, _) => {
                let cgroup = group_of(task, &record.id);
                if let Some(shim) = task.shim() {
                    shims::end_session(shim, &record.id);
                }
                if let Some(foreign) = task.foreign(&keeper.layout) {
                    foreign.clear_exec(&record.id, task.cgroup());
                }
                if let Ok(cgroup) = Cgroup::open(&cgroup) {
                    let _ = cgroup.kill_all();
                }
                Lifecycle::Stopped { pid: 0, cgroup, ended: lost }
            }
        };
        let exec = Arc::new(Self::assemble(record.id, record.task, record.streams, state, kept));
        exec.abandoned.store(record.abandoned, Ordering::Relaxed);
        exec.save(keeper, &exec.lock());
        exec.connect_terminal();
        task.execs.insert(&exec.id, Arc::clone(&exec));
        exec.watch(keeper, task, adopted);
        if record.abandoned {
            exec.finish_alone(keeper, task);
        }
    }

    fn go_to(&self, keeper: &Keeper, next: Lifecycle) {
        self.save(keeper, &next);
        *self.lock() = next;
    }

    /// On record as far as the disk lets us: a probe must work on a full one. Without a record the session is lost with
    /// this keeper; an older one would be taken for the truth, so it goes.
    fn save(&self, keeper: &Keeper, state: &Lifecycle) {
        let (dir, record) = (keeper.layout.execs(), self.record(state));
        if let Err(error) = records::save(&dir, &record) {
            tracing::warn!(id = self.id, task = self.task, "exec goes unrecorded: {error}");
            let _ = records::remove(&dir, &record);
        }
    }

    fn record(&self, state: &Lifecycle) -> ExecRecord {
        let (mut process, mut group) = (serde_json::Value::Null, String::new());
        let phase = match state {
            Lifecycle::Added { process: spec } => {
                process = spec.clone();
                ExecPhase::Added
            }
            Lifecycle::Starting => ExecPhase::Starting,
            Lifecycle::Running { process, cgroup } => {
                group.clone_from(cgroup);
                ExecPhase::Running { pid: process.pid }
            }
            Lifecycle::Stopped { pid, cgroup, ended } => {
                group.clone_from(cgroup);
                ExecPhase::Stopped { pid: *pid, ended: *ended }
            }
        };
        ExecRecord {
            version: VERSION,
            task: self.task.clone(),
            id: self.id.clone(),
            streams: self.streams.clone(),
            process,
            cgroup: group,
            abandoned: self.abandoned.load(Ordering::Relaxed),
            phase,
        }
    }

    fn prefix(&self) -> String {
        prefix(&self.task, &self.id)
    }

    fn wrong(&self, what: &str, why: &str) -> Error {
        Error::state(format!("cannot {what} exec {} of container {}: {why}", self.id, self.task))
    }

    fn finished(&self) -> Error {
        Error::not_found(format!("exec {}: process already finished", self.id))
    }

    fn lock(&self) -> MutexGuard<'_, Lifecycle> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect_terminal(&self) {
        match terminal::connect(&self.kept()) {
            Ok(copying) => *self.copying() = copying,
            Err(error) => tracing::error!(id = self.id, "terminal: {error}"),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copying(&self) -> MutexGuard<'_, Copying> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its group is a child of the container's, named by the session (runtime::cgroup::exec_group).
fn group_of(task: &Task, id: &str) -> String {
    format!("{}/exec-{id}", task.cgroup())
}

/// Removes the groups of former sessions that nothing is left in. `own`: of the session that is being forgotten. Blocks.
fn sweep(task: &Task, own: &str) {
    let is_live = |id: &str| id != own && task.execs.find(id).is_some();
    let left = Cgroup::open(task.cgroup()).and_then(|cgroup| cgroup.sweep_exec_groups(is_live));
    task.leaves_groups.store(left.unwrap_or(true), Ordering::Relaxed);
}

/// SIGKILL to a session's whole group; one that has gone is success.
fn kill_group(path: &str) -> Result<()> {
    match Cgroup::open(path).and_then(|cgroup| cgroup.kill_all()) {
        Err(error) if error.kind() != slipway_runtime::error::Kind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// A killed session is gone with its whole subtree when its killer hears of it (CRI-XS-04), unless the kernel holds a
/// process for longer than [`GONE_PATIENCE`]. Blocks.
fn wait_until_gone(path: &str) {
    let end = Instant::now() + GONE_PATIENCE;
    let mut pause = Duration::from_micros(200);
    let is_there = || Cgroup::open(path).and_then(|group| group.pids()).is_ok_and(|pids| !pids.is_empty());
    while Instant::now() < end && is_there() {
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn prefix(task: &str, id: &str) -> String {
    format!("x/{task}/{id}/")
}
