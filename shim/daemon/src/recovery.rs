//! After a start: records, keeper, images, network and files are compared, and made to agree (CRI-REC-*).
//!
//! The socket is bound after this, so nobody ever sees an empty list (CRI-GEN-11).

use crate::containers::{ContainerRecord, Phase, life, pod_of_view};
use crate::daemon::{Container, Daemon, Pod};
use crate::pods::files::PodDir;
use crate::pods::{PodPhase, PodRecord};
use crate::telemetry::spans;
use cri_proto::keeper::{ListResponse, TaskInfo, TaskState};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tracing::Instrument as _;

/// Finds everything again. One object that cannot be recovered is named in the log and does not stop the others.
pub(crate) async fn recover(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    let kept = daemon.keeper.list().await?;
    let pods = daemon.records.load::<PodRecord>();
    let containers = daemon.records.load::<ContainerRecord>();
    for record in pods {
        let span = spans::of_pod(&record.label());
        recover_pod(daemon, record, &kept).instrument(span).await;
    }
    for record in containers {
        let span = spans::of_container(daemon, &record);
        recover_container(daemon, record, &kept).instrument(span).await;
    }
    drop_strangers(daemon, &kept).await;
    crate::checkpoints::recover(daemon);
    crate::streaming::abandon_all(daemon, &kept.execs).await;
    tracing::info!(pods = daemon.pods.list().len(), containers = daemon.containers.list().len(), "recovered");
    Ok(())
}

async fn recover_pod(daemon: &Arc<Daemon>, mut record: PodRecord, kept: &ListResponse) {
    let alive = kept.sandboxes.iter().find(|s| s.id == record.id && s.ready);
    let netns_there = record.netns.as_ref().is_none_or(|p| p.exists());
    let unfinished = record.phase == PodPhase::Creating;
    record.phase = match record.phase {
        // A request that did not finish: undone, as if it had failed. It is listed only if that fails too.
        PodPhase::Creating => PodPhase::NotReady { released: false },
        PodPhase::Ready if alive.is_some() && netns_there => PodPhase::Ready,
        // Dead yet listed as alive must never be (CRI-REC-06).
        PodPhase::Ready => PodPhase::NotReady { released: false },
        ended => ended,
    };
    if let Some(sandbox) = alive {
        record.sandbox_pid = sandbox.pid;
    }
    let label = record.label();
    let (id, name) = (record.id.clone(), record.name());
    daemon.pod_names.take(&name, &id);
    daemon.selinux.known(&id, record.selinux.as_ref());
    let pod = Arc::new(Pod::new(record.clone()));
    if let Err(error) = pod.set(&daemon.records, record) {
        tracing::error!(pod = label, "{error}");
    }
    daemon.pods.insert(Arc::clone(&pod));
    daemon.watch_pod(&pod);
    if unfinished {
        tracing::warn!(pod = label, id, "half-made pod of the time before the restart: removed");
        if let Err(error) = daemon.remove_pod(&id).await {
            tracing::error!(pod = label, "{error}");
        }
    }
}

async fn recover_container(daemon: &Arc<Daemon>, mut record: ContainerRecord, kept: &ListResponse) {
    let task = kept.tasks.iter().find(|t| t.id == record.id);
    let (id, label) = (record.id.clone(), record.label());
    if record.phase == Phase::Creating {
        tracing::warn!(container = label, "half-made container of the time before the restart: removed");
        let discarded = daemon.discard_task(&id).await;
        if let Err(error) = discarded.and(daemon.erase_container(&record).await) {
            tracing::error!(container = label, "{error}");
        }
        return;
    }
    if task.is_none() && matches!(record.phase, Phase::Running { .. } | Phase::Created) {
        daemon.end_lost(&record).await;
    }
    record.phase = phase(record.phase, task);
    daemon.container_names.take(&record.name(), &id);
    daemon.selinux.known(&id, record.selinux.as_ref());
    let container = Arc::new(Container::new(record.clone()));
    let running = record.is_running();
    if let Err(error) = container.set(&daemon.records, record) {
        tracing::error!(container = label, "{error}");
    }
    daemon.containers.insert(Arc::clone(&container));
    if running {
        // Also for one that ended meanwhile: the keeper answers at once, with the true code (CRI-REC-04).
        daemon.watch(container);
    } else if container.record().has_ended()
        && task.is_some()
        && let Err(error) = daemon.discard_task(&id).await
    {
        tracing::warn!(container = label, "forget ended task: {error}");
    }
}

/// What the record says, corrected by what the keeper knows (CRI-REC-02, CRI-REC-03).
fn phase(recorded: Phase, task: Option<&TaskInfo>) -> Phase {
    let started = |task: &TaskInfo| task.started_at;
    match (recorded, task) {
        (Phase::Running { started_at, .. }, None) => life::exited(started_at, None),
        (Phase::Created, None) => life::exited(0, None),
        // Started just before the daemon died; the start's answer was lost, the container runs (or ran).
        (Phase::Created, Some(task)) if task.state.enum_value() != Ok(TaskState::CREATED) => {
            Phase::Running { started_at: started(task), pid: task.pid.unsigned_abs() }
        }
        (recorded, _) => recorded,
    }
}

/// What exists without a record of ours is removed and named (CRI-REC-05).
async fn drop_strangers(daemon: &Arc<Daemon>, kept: &ListResponse) {
    // What a damaged record names is not ours to kill: an operator decides, the log names it.
    let mut pods: BTreeSet<_> = daemon.records.set_aside::<PodRecord>().into_iter().collect();
    pods.extend(daemon.pods.list().iter().map(|p| p.id.clone()));
    let mut containers: BTreeSet<_> = daemon.records.set_aside::<ContainerRecord>().into_iter().collect();
    containers.extend(daemon.containers.list().iter().map(|c| c.id.clone()));
    for task in kept.tasks.iter().filter(|t| !containers.contains(&t.id)) {
        report("task", &task.id, daemon.discard_task(&task.id).await);
    }
    for sandbox in kept.sandboxes.iter().filter(|s| !pods.contains(&s.id)) {
        report("sandbox", &sandbox.id, daemon.keeper.remove_sandbox(&sandbox.id).await);
    }
    let is_owner = |o: &str| pod_of_view(o).map_or(containers.contains(o), |pod| pods.contains(pod));
    for owner in daemon.images.owners().into_iter().filter(|o| !is_owner(o)) {
        report("writable layer", &owner, daemon.images.release(&owner).map_err(Into::into));
    }
    let live: Vec<_> = pods.iter().cloned().collect();
    if let Err(error) = daemon.network.collect(&live).await {
        tracing::error!("collect networks of pods that are gone: {error}");
    }
    let state = &daemon.config.state;
    for id in names(&state.join("netns")).into_iter().filter(|n| !pods.contains(n)) {
        let unpinned = slipway_runtime::sandbox::unpin_netns(&state.join("netns").join(&id));
        report("network namespace", &id, unpinned.map_err(Into::into));
    }
    // Of the boot before this one the second is left, as that is on the disk.
    let left: BTreeSet<_> = [state.join("pods"), PodDir::all_texts(&daemon.config.root)]
        .iter()
        .flat_map(|dir| names(dir))
        .collect();
    for id in left.into_iter().filter(|n| !pods.contains(n) && n.len() == 64) {
        report("pod directory", &id, PodDir::new(&daemon.config, &id).remove());
    }
    for id in names(&state.join("containers")).into_iter().filter(|n| !containers.contains(n)) {
        report("bundle", &id, remove(&state.join("containers").join(&id)));
    }
}

fn remove(dir: &Path) -> crate::error::Result<()> {
    std::fs::remove_dir_all(dir).map_err(|e| crate::error::Error::io("remove left-over", dir, &e))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn report(what: &str, id: &str, removed: crate::error::Result<()>) {
    match removed {
        Ok(()) => tracing::warn!(id, "{what} without a record: removed"),
        Err(error) => tracing::error!(id, "{what} without a record cannot be removed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(state: TaskState) -> TaskInfo {
        let mut info = TaskInfo::new();
        (info.state, info.pid, info.started_at) = (state.into(), 5, 7);
        info
    }

    /// CRI-REC-02, CRI-REC-03.
    #[test]
    fn records_are_corrected_by_the_keeper() {
        let lost = phase(Phase::Running { started_at: 1, pid: 2 }, None);
        assert!(matches!(lost, Phase::Exited { exit_code: 255, started_at: 1, .. }));
        assert_eq!(phase(Phase::Created, Some(&task(TaskState::CREATED))), Phase::Created);
        let started = Phase::Running { started_at: 7, pid: 5 };
        assert_eq!(phase(Phase::Created, Some(&task(TaskState::RUNNING))), started);
        assert_eq!(
            phase(Phase::Created, Some(&task(TaskState::STOPPED))),
            started,
            "its watcher learns the code"
        );
    }
}
