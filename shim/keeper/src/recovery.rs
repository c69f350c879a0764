//! A new keeper's first act: from records, descriptors and deaths to the state its predecessor had, or could have had.
//!
//! Running containers go on; parked ones can still be started; what was half-made is undone; what nobody knows any more is
//! let go.

use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::guardian::Exit;
use crate::guardian::client::Inheritance;
use crate::keeper::{Keeper, blocking};
use crate::process::{Process, born, now};
use crate::records::{self, Ended, ExecRecord, SandboxRecord, TaskPhase, TaskRecord};
use crate::sandbox::Sandbox;
use crate::stdio;
use crate::task::{self, Restored, Task};
use rustix::fd::OwnedFd;
use slipway_runtime::container::StartPipe;
use std::collections::HashMap;
use std::sync::Arc;

/// Rebuilds everything. Damage is reported and skipped: one bad record must not keep the others from living.
pub(crate) async fn recover(keeper: &Arc<Keeper>, inheritance: Inheritance) -> Result<()> {
    let Inheritance { mut held, exits, .. } = inheritance;
    let fail = |e: std::io::Error| Error::io("read the records in", keeper.layout.root().display(), &e);
    for record in records::load_all::<SandboxRecord>(&keeper.layout.sandboxes()).map_err(fail)? {
        let id = record.id.clone();
        if let Some(sandbox) = Sandbox::recover(keeper, record, &mut held) {
            keeper.sandboxes.insert(&id, sandbox);
        }
    }
    let mut tasks = Vec::new();
    for record in records::load_all::<TaskRecord>(&keeper.layout.tasks()).map_err(fail)? {
        if let Some(task) = restore(keeper, record, &mut held).await {
            keeper.tasks.insert(task.0.id(), Arc::clone(&task.0));
            tasks.push(task);
        }
    }
    for record in records::load_all::<ExecRecord>(&keeper.layout.execs()).map_err(fail)? {
        match keeper.tasks.find(&record.task) {
            Some(task) => Exec::recover(keeper, &task, record, &mut held),
            None => drop(records::remove(&keeper.layout.execs(), &record)),
        }
    }
    // Those who wait are known now; a death that nobody waits for needs no more remembering.
    let awaited: Vec<_> = tasks
        .into_iter()
        .map(|(task, adopted)| (task, adopted.map(|pid| keeper.deaths.expect(pid))))
        .collect();
    for exit in exits {
        report(keeper, exit);
    }
    for (task, adopted) in awaited {
        task.resume(keeper, adopted).await;
    }
    keeper.engine.recovered();
    for key in held.into_keys().filter(|key| key.contains('/')) {
        keeper.guardian.forget(&key);
    }
    Ok(())
}

/// Passes a death on to whoever waits for it.
pub(crate) fn report(keeper: &Keeper, exit: Exit) {
    if !keeper.deaths.report(exit) {
        keeper.guardian.recorded(exit);
    }
}

/// The container of a record, and the pid to await if it lives. None: it was half-made and has been undone.
async fn restore(
    keeper: &Arc<Keeper>,
    record: TaskRecord,
    held: &mut HashMap<String, OwnedFd>,
) -> Option<(Arc<Task>, Option<i32>)> {
    let prefix = task::prefix(&record.id);
    let kept = stdio::take_kept(held, &prefix);
    let mut take = |name: &str| held.remove(&format!("{prefix}{name}"));
    let (pidfd, start) = (take("pidfd"), take("start"));
    let restored = match (&record.phase, pidfd, start) {
        (TaskPhase::Creating, pidfd, _) => {
            undo(keeper, &record, pidfd).await;
            return None;
        }
        (TaskPhase::Created { pid, steps }, Some(pidfd), Some(socket)) => Restored::Parked {
            process: Process::new(*pid, pidfd),
            start: StartPipe { socket, steps: steps.clone() },
            sent: false,
        },
        (TaskPhase::Starting { pid, steps }, Some(pidfd), Some(socket)) => Restored::Parked {
            process: Process::new(*pid, pidfd),
            start: StartPipe { socket, steps: steps.clone() },
            sent: true,
        },
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
        Restored::Parked { process, .. } | Restored::Running { process, .. } => Some(process.pid),
        Restored::Stopped { .. } => None,
    };
    let task = Task::restore(record, kept, restored);
    Some((task, adopted))
}

/// Takes back a container whose making was cut short.
async fn undo(keeper: &Arc<Keeper>, record: &TaskRecord, pidfd: Option<OwnedFd>) {
    tracing::warn!(id = record.id, "a container that was being made is undone");
    if let Some(pidfd) = pidfd {
        let _ = Process::new(0, pidfd).signal(task::SIGKILL);
    }
    let cgroup = record.cgroup.clone();
    if let Err(error) = blocking(move || task::remove_cgroup(&cgroup)).await {
        tracing::warn!(id = record.id, "control group of a half-made container: {error}");
    }
    keeper.guardian.forget_all(&task::prefix(&record.id));
    let _ = records::remove(&keeper.layout.tasks(), record);
}

/// The process by its number, if it is still the same one.
fn reopen(pid: i32, expected: u64) -> Option<OwnedFd> {
    let raw = rustix::process::Pid::from_raw(pid)?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok()?;
    // Asked after opening: had the pid been taken over in between, the answer would be the other's.
    (born(pid) == Some(expected)).then_some(pidfd)
}

fn lost() -> Ended {
    Ended { status: 255, at: now(), known: false, oom: false }
}
