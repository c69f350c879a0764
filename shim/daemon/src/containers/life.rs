//! Start, stop, end, remove: the transitions of a container.

use super::create::remove_tree;
use super::{ContainerRecord, Phase};
use crate::checkpoints;
use crate::daemon::{Container, Daemon, blocking};
use crate::error::{Error, Result};
use crate::pods::PodPhase;
use crate::telemetry::{laps, spans};
use cri_proto::keeper::TaskInfo;
use cri_proto::nri::Event;
use cri_proto::v1::ContainerEventType;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::error::Kind as RuntimeKind;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use tracing::Instrument as _;

/// How a container is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGKILL to the whole control group.
    Now,
    /// The stop signal, then this long, then SIGKILL.
    After(Duration),
}

/// How long a killed container may take to be gone before the call answers with an error: uninterruptible calls exist.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// The same for what the keeper has lost, while nobody waits for an answer.
const LOST_PATIENCE: Duration = Duration::from_secs(5);

impl Daemon {
    /// Lets the parked process go (CRI-CST-*). Returns after execve.
    pub(crate) async fn start_container(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let (daemon, container) = (Arc::clone(self), Arc::clone(container));
        crate::pods::stop::finish(spans::spawn(async move { daemon.start_known(&container).await })).await
    }

    async fn start_known(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _gate = container.gate.lock().await;
        let record = container.record();
        let label = record.label();
        if record.phase != Phase::Created {
            let state = record.state().as_str_name();
            return Err(Error::state(format!(
                "start container {label}: it is {state}, only a created one can be started"
            )));
        }
        let pod = self.pods.get(&record.pod_id)?;
        if pod.record().phase != PodPhase::Ready {
            return Err(Error::state(format!("start container {label}: its pod is not ready")));
        }
        let started_at = crate::clock::now();
        if let Err(error) = self.ask_to_start(&record).await {
            self.start_failed(container, &record, started_at, &error).await;
            return Err(error.of(format_args!("start container {label} of pod {}", pod.record().label())));
        }
        let started = self.keeper.start_init(&record.id, record.restored);
        let started = laps::traced(&self.keeper, &record.id, started);
        match self.telemetry.phase("StartContainer", "keeper: start", started).await {
            Ok(pid) => {
                container.note(&self.records, |r| r.phase = Phase::Running { started_at, pid });
                self.announce(&record.id, &pod, ContainerEventType::ContainerStartedEvent);
                self.watch(Arc::clone(container));
                tracing::info!(pod = pod.record().label(), container = label, pid, "container runs");
                if record.restored {
                    self.forget_checkpoint(&record).await;
                }
                self.tell_plugins(Event::POST_START_CONTAINER, container).await;
                Ok(())
            }
            Err(error) => {
                self.start_failed(container, &record, started_at, &error).await;
                Err(error.of(format_args!("start container {label} of pod {}", pod.record().label())))
            }
        }
    }

    /// Frees what only the restore needed; memory's images are large.
    async fn forget_checkpoint(&self, record: &ContainerRecord) {
        let (root, id) = (self.config.root.clone(), record.id.clone());
        if let Err(error) = blocking(move || checkpoints::forget(&root, &id)).await {
            tracing::error!(container = record.label(), "after a restore: {error}");
        }
    }

    /// EXITED, 128, StartError (CRI-CST-03).
    async fn start_failed(&self, container: &Container, record: &ContainerRecord, at: i64, why: &Error) {
        let failed = Phase::Exited {
            started_at: at,
            finished_at: crate::clock::now(),
            exit_code: 128,
            reason: "StartError".into(),
            message: why.to_string(),
        };
        container.note(&self.records, |r| r.phase = failed);
        if let Err(error) = self.discard_task(&record.id).await {
            tracing::error!(container = record.label(), "discard after a failed start: {error}");
        }
        if let Ok(pod) = self.pods.get(&record.pod_id) {
            self.announce(&record.id, &pod, ContainerEventType::ContainerStoppedEvent);
        }
        // For plugins it would run for ever (CRI-CST-06).
        self.tell_stopped(container).await;
    }

    /// Follows a running container to its end.
    pub(crate) fn watch(self: &Arc<Self>, container: Arc<Container>) {
        let daemon = Arc::clone(self);
        let span = spans::of_container(self, &container.record());
        let watch = async move {
            let id = container.id.clone();
            let ended = loop {
                match daemon.keeper.wait_task(&id).await {
                    Ok(info) => break Some(info),
                    // The keeper does not know it: its status is lost (CRI-REC-02).
                    Err(error) if error.code() == Code::NotFound => break None,
                    Err(error) => {
                        tracing::warn!(container = container.record().label(), "wait: {error}; trying again");
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                }
            };
            daemon.ended(&container, ended.as_ref()).await;
        };
        tokio::spawn(watch.instrument(span));
    }

    /// The keeper does not know a container (its record was damaged): what still runs of it has lost its log, its limits' truth
    /// and its exit code, and nobody could stop it. It is killed, so that what is told of it is true, and a second one can begin.
    pub(crate) async fn end_lost(&self, record: &ContainerRecord) {
        let (path, label) = (record.cgroup.clone(), record.label());
        let ended = blocking(move || -> Result<bool> {
            match Cgroup::open(&path) {
                Err(error) if error.kind() == RuntimeKind::NotFound => Ok(false),
                group => {
                    let group = group?;
                    let lives = !group.pids()?.is_empty();
                    group.kill_all()?;
                    group.remove(LOST_PATIENCE)?;
                    Ok(lives)
                }
            }
        });
        match ended.await {
            Ok(true) => tracing::error!(container = label, "the keeper had lost it while it ran: killed"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(container = label, "the keeper has lost it, and it cannot be ended: {error}")
            }
        }
    }

    /// Records the end; then the keeper may forget the task.
    pub(crate) async fn ended(&self, container: &Container, info: Option<&TaskInfo>) {
        let record = container.record();
        let Phase::Running { started_at, .. } = record.phase else { return };
        if info.is_none() {
            self.end_lost(&record).await;
        }
        let saved = container.note(&self.records, |r| r.phase = exited(started_at, info));
        if let Ok(pod) = self.pods.get(&record.pod_id) {
            self.announce(&record.id, &pod, ContainerEventType::ContainerStoppedEvent);
        }
        // Not on disk: then the keeper's is the only lasting record of the exit code.
        if saved && let Err(error) = self.keeper.delete(&record.id, "").await {
            // Tried again when the container is removed.
            tracing::warn!(container = record.label(), "keeper: delete ended task: {error}");
        }
        tracing::info!(container = record.label(), phase = ?container.record().phase, "container ended");
        self.tell_stopped(container).await;
    }

    /// StopContainer (CRI-STOP-01 to 08). Cancelled by its caller it escalates nothing.
    pub(crate) async fn stop_container(
        self: &Arc<Self>,
        container: &Arc<Container>,
        how: Stop,
    ) -> Result<()> {
        let record = container.record();
        if !record.is_running() {
            if record.has_ended() {
                self.tell_stopped(container).await;
            }
            return Ok(());
        }
        self.end(container, &record, how).await?;
        self.tell_stopped(container).await;
        Ok(())
    }

    async fn end(&self, container: &Container, record: &ContainerRecord, how: Stop) -> Result<()> {
        if let Stop::After(patience) = how {
            if container.first_stop() {
                let sent = self.keeper.kill(&record.id, record.stop_signal).await;
                sent.inspect_err(|_| container.stop_failed())?;
            }
            if tokio::time::timeout(patience, container.wait_until(|r| r.has_ended())).await.is_ok() {
                return Ok(());
            }
        }
        let killed = self.keeper.kill_all(&record.id, "");
        self.telemetry.phase("StopContainer", "keeper: kill", killed).await?;
        let end = tokio::time::timeout(KILL_PATIENCE, container.wait_until(|r| r.has_ended()));
        match self.telemetry.phase("StopContainer", "end, its log complete", end).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                Code::DeadlineExceeded,
                format!(
                    "container {} was sent SIGKILL and has not ended for {KILL_PATIENCE:?}: a process of it is probably in an \
                     uninterruptible call (see /proc/<pid>/stack of the pids in cgroup {})",
                    record.label(),
                    record.cgroup
                ),
            )),
        }
    }

    /// RemoveContainer (CRI-REM-*): kills if need be; each step can be repeated.
    pub(crate) async fn remove_container(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let (daemon, container) = (Arc::clone(self), Arc::clone(container));
        crate::pods::stop::finish(spans::spawn(
            async move { daemon.remove_container_known(&container).await },
        ))
        .await
    }

    async fn remove_container_known(self: &Arc<Self>, container: &Arc<Container>) -> Result<()> {
        let _gate = container.gate.lock().await;
        if self.containers.get(&container.id).is_err() {
            return Ok(());
        }
        self.stop_container(container, Stop::Now).await?;
        let record = container.record();
        let (of_pod, message) = self.last_messages(&record).await;
        let discarded = self.discard_task(&record.id);
        self.telemetry.phase("RemoveContainer", "keeper: discard", discarded).await?;
        let erased = self.erase_container(&record);
        self.telemetry.phase("RemoveContainer", "layer, bundle, record", erased).await?;
        self.containers.remove(&container.id);
        self.nri.remove_container(&of_pod, &message).await;
        self.rates.forget(&container.id);
        self.told.forget(&container.id);
        if let Ok(pod) = self.pods.get(&record.pod_id) {
            self.announce(&record.id, &pod, ContainerEventType::ContainerDeletedEvent);
        }
        self.container_names.free(&record.name(), &record.id);
        Ok(())
    }

    /// Writable layer, bundle, record. The log is the kubelet's (CRI-REM-03).
    pub(crate) async fn erase_container(self: &Arc<Self>, record: &ContainerRecord) -> Result<()> {
        let (daemon, record) = (Arc::clone(self), record.clone());
        blocking(move || {
            daemon.images.release(&record.id)?;
            checkpoints::forget(&daemon.config.root, &record.id)?;
            remove_tree(&record.bundle)?;
            daemon.selinux.free(&record.id);
            daemon.records.delete::<ContainerRecord>(&record.id)
        })
        .await
    }
}

/// CRI-EXIT-01, CRI-EXIT-02, CRI-CSTAT-12, CRI-CSTAT-13, CRI-REC-02.
pub(crate) fn exited(started_at: i64, info: Option<&TaskInfo>) -> Phase {
    let Some(info) = info.filter(|i| i.status_known) else {
        let why = info.map(|info| info.lost_because.clone()).filter(|why| !why.is_empty());
        let why = why.unwrap_or_else(|| "the container ended while nobody could see its status".into());
        return Phase::Exited {
            started_at,
            finished_at: crate::clock::now(),
            exit_code: 255,
            reason: "Unknown".into(),
            message: why,
        };
    };
    let exit_code = i32::try_from(info.exit_status).unwrap_or(255);
    let reason = match (info.oom_killed, exit_code) {
        (true, code) if code != 0 => "OOMKilled",
        (_, 0) => "Completed",
        _ => "Error",
    };
    let message = if reason == "OOMKilled" { out_of_memory(&info.oom_level) } else { String::new() };
    let finished_at = info.exited_at.max(started_at);
    Phase::Exited { started_at, finished_at, exit_code, reason: reason.into(), message }
}

/// Which limit to look at, in words.
fn out_of_memory(level: &str) -> String {
    match level {
        "container" => "the container's memory limit ran out".into(),
        "pod" => "the pod's memory limit ran out: its containers together, and the files they keep in memory"
            .into(),
        "pods" => {
            "the memory limit above the pod ran out: that of all pods, or of this class of service".into()
        }
        "node" => "the node ran out of memory; no limit of the container or its pod was hit".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(status: u32, oom: bool, known: bool) -> TaskInfo {
        let mut info = TaskInfo::new();
        (info.exit_status, info.oom_killed, info.status_known, info.exited_at) = (status, oom, known, 9);
        info
    }

    /// CRI-CSTAT-12, CRI-CSTAT-13, CRI-EXIT-02.
    #[test]
    fn reasons() {
        let reason = |info: Option<TaskInfo>| match exited(5, info.as_ref()) {
            Phase::Exited { exit_code, reason, .. } => (exit_code, reason),
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(Some(info(0, false, true))), (0, "Completed".into()));
        assert_eq!(reason(Some(info(137, false, true))), (137, "Error".into()));
        assert_eq!(reason(Some(info(137, true, true))), (137, "OOMKilled".into()));
        assert_eq!(reason(Some(info(3, false, false))), (255, "Unknown".into()));
        let mut out = info(137, true, true);
        out.oom_level = "pod".into();
        assert!(
            matches!(exited(5, Some(&out)), Phase::Exited { message, .. } if message.contains("pod's memory"))
        );
        assert_eq!(reason(None), (255, "Unknown".into()));
        let mut lost = info(0, false, false);
        lost.lost_because = "its shim was gone".into();
        assert!(
            matches!(exited(5, Some(&lost)), Phase::Exited { message, .. } if message == "its shim was gone")
        );
    }
}
