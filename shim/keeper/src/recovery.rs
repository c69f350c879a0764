//! A new keeper's first act: from records, descriptors and deaths to the state its predecessor had, or could have had.
//!
//! Running containers go on; parked ones can still be started; what was half-made is undone; what nobody knows any more is
//! let go.

use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::guardian::Exit;
use crate::keeper::{Keeper, blocking};
use crate::mounts;
use crate::process::{Awaited, Process, now, reopen};
use crate::records::{self, Ended, ExecRecord, SandboxPhase, SandboxRecord, TaskPhase, TaskRecord};
use crate::sandbox::Sandbox;
use crate::shims;
use crate::stdio;
use crate::task::{self, Gate, Restored, Task};
use rustix::fd::OwnedFd;
use slipway_runtime::container::StartPipe;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// A container, and its death to come.
type Living = (Arc<Task>, Option<Awaited>);
/// The record of a container that was being made, and its process if there is one.
type HalfMade = (TaskRecord, Option<OwnedFd>);

/// What is left to do once deaths are listened to.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    tasks: Vec<Living>,
    half_made: Vec<HalfMade>,
    /// Pods that a shim was to run, with what is to go when they are undone; and what is left of some without a record.
    half_pods: Vec<(String, Option<SandboxRecord>)>,
}

/// Rebuilds everything in memory, without awaiting anything: when it returns, whoever waits for a death is known, so that
/// the guardian's reports can be listened to. Damage is reported and skipped: one bad record must not keep the others from
/// living.
pub(crate) fn rebuild(keeper: &Arc<Keeper>, mut held: HashMap<String, OwnedFd>) -> Result<Pending> {
    let fail = |e: std::io::Error| Error::io("read the records in", keeper.layout.root().display(), &e);
    let mut pending = Pending::default();
    let tasks = records::load_all::<TaskRecord>(&keeper.layout.tasks()).map_err(fail)?;
    let mut left_over = shims::left_over(&keeper.layout);
    left_over.retain(|id| tasks.iter().all(|task| task.sandbox != *id));
    for record in records::load_all::<SandboxRecord>(&keeper.layout.sandboxes()).map_err(fail)? {
        let id = record.id.clone();
        left_over.retain(|left| *left != id);
        if record.by_shim && record.phase == SandboxPhase::Creating {
            pending.half_pods.push((id.clone(), Some(record.clone())));
        }
        let inhabitant = tasks.iter().filter(|task| task.sandbox == id).find_map(living);
        if let Some(sandbox) = Sandbox::recover(keeper, record, inhabitant.as_ref(), &mut held) {
            keeper.sandboxes.insert(&id, sandbox);
        }
    }
    pending.half_pods.extend(left_over.into_iter().map(|id| (id, None)));
    for record in tasks {
        match restore(keeper, record, &mut held) {
            Ok((task, adopted)) => {
                task.take_clients(&mut held);
                keeper.tasks.insert(task.id(), Arc::clone(&task));
                pending.tasks.push((task, adopted));
            }
            Err(half_made) => pending.half_made.push(half_made),
        }
    }
    for record in records::load_all::<ExecRecord>(&keeper.layout.execs()).map_err(fail)? {
        match keeper.tasks.find(&record.task) {
            Some(task) => Exec::recover(keeper, &task, record, &mut held),
            None => drop(records::remove(&keeper.layout.execs(), &record)),
        }
    }
    for key in held.into_keys().filter(|key| key.contains('/')) {
        keeper.guardian.forget(&key);
    }
    task::forget_clients(keeper);
    Ok(pending)
}

/// The container's init, found by its number.
fn living(record: &TaskRecord) -> Option<Process> {
    let TaskPhase::Running { pid, .. } = record.phase else { return None };
    reopen(pid, record.born).map(|pidfd| Process::new(pid, pidfd))
}

/// How long starts that a former keeper began may keep clients waiting; a client that looks earlier finds the container
/// not started yet.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// Undoes what was half-made, and goes on with the rest: all at once, so that one that hangs holds up no other.
pub(crate) async fn resume(keeper: &Arc<Keeper>, pending: Pending) {
    let mut undone = JoinSet::new();
    for (record, pidfd) in pending.half_made {
        let keeper = Arc::clone(keeper);
        undone.spawn(async move { undo(&keeper, &record, pidfd).await });
    }
    for (id, record) in pending.half_pods {
        let keeper = Arc::clone(keeper);
        undone.spawn(async move {
            // Until it is done whoever comes after us must find it.
            match shims::undo(&keeper, &id).await {
                Ok(()) => drop(record.map(|record| records::remove(&keeper.layout.sandboxes(), &record))),
                Err(error) => tracing::warn!(id, "a pod that was being made: {error}"),
            }
        });
    }
    let mut connected = JoinSet::new();
    for (task, adopted) in pending.tasks {
        let keeper = Arc::clone(keeper);
        connected.spawn(async move {
            task.take_over(&keeper).await;
            (task, adopted)
        });
    }
    let mut resumed = Vec::new();
    while let Some(task) = connected.join_next().await {
        match task {
            Ok((task, adopted)) => {
                let keeper = Arc::clone(keeper);
                resumed.push(tokio::spawn(async move { task.resume(&keeper, adopted).await }));
            }
            Err(error) => tracing::error!("take over a container: {error}"),
        }
    }
    keeper.engine.recovered();
    let all = async {
        for one in resumed {
            let _ = one.await;
        }
    };
    let _ = tokio::time::timeout(START_PATIENCE, all).await;
    // Their ids are free, and their processes gone, before anybody asks.
    undone.join_all().await;
}

/// Passes a death on to whoever waits for it.
pub(crate) fn report(keeper: &Keeper, exit: Exit) {
    if !keeper.deaths.report(exit) {
        keeper.guardian.recorded(exit);
    }
}

/// The container of a record, and its death to come if it lives. The error is what was half-made.
#[allow(clippy::result_large_err, reason = "once per record, at start")]
fn restore(
    keeper: &Keeper,
    record: TaskRecord,
    held: &mut HashMap<String, OwnedFd>,
) -> Result<Living, HalfMade> {
    let prefix = task::prefix(&record.id);
    let kept = stdio::take_kept(held, &prefix);
    let mut take = |name: &str| held.remove(&format!("{prefix}{name}"));
    let (mut pidfd, socket) = (take("pidfd"), take("start"));
    if record.by_shim {
        return restore_of_shim(keeper, record, kept);
    }
    let gate = match (&record.foreign, &record.phase) {
        (Some(_), TaskPhase::Created { pid, .. } | TaskPhase::Starting { pid, .. }) => {
            // It waits for its runtime, whoever lives or dies of us.
            pidfd = pidfd.or_else(|| reopen(*pid, record.born));
            Some(Gate::Foreign)
        }
        (None, TaskPhase::Created { steps, .. } | TaskPhase::Starting { steps, .. }) => {
            socket.map(|socket| Gate::Pipe(StartPipe { socket, steps: steps.clone() }))
        }
        _ => None,
    };
    let restored = match (&record.phase, pidfd, gate) {
        (TaskPhase::Creating, pidfd, _) => return Err((record, pidfd)),
        (TaskPhase::Frozen { frozen, begun }, ..) => {
            if *begun {
                task::clear(&keeper.layout, &record.id, &record.cgroup);
                keeper.guardian.forget_all(&prefix);
            }
            let frozen = frozen.clone();
            return Ok((Task::restore(keeper, record, stdio::Kept::new(), Restored::Frozen(frozen)), None));
        }
        (TaskPhase::Created { pid, .. }, Some(pidfd), Some(start)) => {
            Restored::Parked { process: Process::new(*pid, pidfd), start, sent: false }
        }
        (TaskPhase::Starting { pid, .. }, Some(pidfd), Some(start)) => {
            Restored::Parked { process: Process::new(*pid, pidfd), start, sent: true }
        }
        (TaskPhase::Running { pid, started_at, paused }, pidfd, _) => {
            match pidfd.or_else(|| reopen(*pid, record.born)) {
                Some(pidfd) => Restored::Running {
                    process: Process::new(*pid, pidfd),
                    started_at: *started_at,
                    paused: *paused,
                },
                None => Restored::Stopped { pid: *pid, started_at: *started_at, ended: lost() },
            }
        }
        (TaskPhase::Stopped { pid, started_at, ended }, ..) => {
            Restored::Stopped { pid: *pid, started_at: *started_at, ended: *ended }
        }
        (TaskPhase::Created { pid, .. } | TaskPhase::Starting { pid, .. }, pidfd, _) => {
            // Without its socket it can never be started; without the guardian's copy it saw that socket close.
            if let Some(pidfd) = pidfd.or_else(|| reopen(*pid, record.born)) {
                let _ = Process::new(*pid, pidfd).signal(task::SIGKILL);
            }
            Restored::Stopped { pid: *pid, started_at: 0, ended: lost() }
        }
    };
    let adopted = match &restored {
        Restored::Parked { process, .. } | Restored::Running { process, .. } => {
            Some(keeper.deaths.expect(process.pid))
        }
        Restored::Frozen(_) | Restored::Stopped { .. } => None,
    };
    let task = Task::restore(keeper, record, kept, restored);
    Ok((task, adopted))
}

/// The same for one that a shim runs: that knows whatever happened meanwhile, and is asked by whoever waits for the end.
#[allow(clippy::result_large_err, reason = "once per record, at start")]
fn restore_of_shim(keeper: &Keeper, record: TaskRecord, mut kept: stdio::Kept) -> Result<Living, HalfMade> {
    let shim = Task::known_shim(keeper, &record.sandbox, &record.id);
    let is_over = matches!(record.phase, TaskPhase::Creating | TaskPhase::Stopped { .. });
    if let Some(shim) = shim.as_ref().filter(|_| !is_over && kept.is_empty()) {
        shim.reopen(&record.streams, &mut kept);
        let held = stdio::keep_all(&keeper.guardian, &task::prefix(&record.id), &kept, &[]);
        if let Err(error) = held {
            tracing::warn!(id = record.id, "keep its descriptors: {error}");
        }
    }
    let process = |pid| shim.map(|shim| Process::of_shim(pid, shims::Process::new(shim, "")));
    let restored = match record.phase.clone() {
        TaskPhase::Creating | TaskPhase::Frozen { .. } => return Err((record, None)),
        TaskPhase::Created { pid, .. } => process(pid)
            .map(|process| Restored::Parked { process, start: Gate::Foreign, sent: false })
            .unwrap_or(Restored::Stopped { pid, started_at: 0, ended: lost() }),
        TaskPhase::Starting { pid, .. } => process(pid)
            .map(|process| Restored::Parked { process, start: Gate::Foreign, sent: true })
            .unwrap_or(Restored::Stopped { pid, started_at: 0, ended: lost() }),
        TaskPhase::Running { pid, started_at, paused } => process(pid)
            .map(|process| Restored::Running { process, started_at, paused })
            .unwrap_or(Restored::Stopped { pid, started_at, ended: lost() }),
        TaskPhase::Stopped { pid, started_at, ended } => Restored::Stopped { pid, started_at, ended },
    };
    Ok((Task::restore(keeper, record, kept, restored), None))
}

/// Takes back a container whose making was cut short.
async fn undo(keeper: &Arc<Keeper>, record: &TaskRecord, pidfd: Option<OwnedFd>) {
    tracing::warn!(id = record.id, "a container that was being made is undone");
    if let Some(pidfd) = pidfd {
        let _ = Process::new(0, pidfd).signal(task::SIGKILL);
    }
    let (of, layout) = (record.clone(), keeper.layout.clone());
    if record.by_shim
        && let Some(shim) = Task::known_shim(keeper, &record.sandbox, &record.id)
    {
        shim.remove().await;
    }
    let removed = blocking(move || {
        if let Some(runtime) = &of.foreign {
            // Whoever is still making it must not go on; what it made is in the group, and killed with that.
            runtime.container(&layout, &of.id).end_calls();
            let _ = task::remove_cgroup(&of.cgroup);
            runtime.container(&layout, &of.id).remove();
        }
        task::remove_cgroup(&of.cgroup)
    });
    if let Err(error) = removed.await {
        tracing::warn!(id = record.id, "control group of a half-made container: {error}");
    }
    if record.mounted {
        mounts::unmount_all(&record.bundle);
    }
    keeper.guardian.forget_all(&task::prefix(&record.id));
    let _ = records::remove(&keeper.layout.tasks(), record);
}

fn lost() -> Ended {
    Ended { status: 255, at: now(), known: false, oom: None }
}
