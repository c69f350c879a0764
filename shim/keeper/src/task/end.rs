//! The end of a container: its exit as the world is told of it, and its removal.

use super::{Lifecycle, Phase, SIGKILL, Task};
use crate::client_log;
use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::foreign;
use crate::keeper::{Keeper, blocking, detached};
use crate::logger;
use crate::mounts;
use crate::process::{Awaited, now, wait_end};
use crate::records::{self, Ended, OutOfMemory};
use crate::shims;
use crate::stdio::{self, key};
use containerd_shim_protos::events::task::{TaskDelete, TaskExit, TaskOOM};
use slipway_runtime::cgroup::{Cgroup, OomLevel};
use slipway_runtime::error::Kind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinSet;

/// Exit status of a process that SIGKILL ended, as the OOM killer does.
const KILLED: u32 = 137;
/// How long the last zombies may stay in a control group that is to be removed.
const CGROUP_PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed process is waited for.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long exec sessions are waited for at their container's end, as their exits come first (SHIM-EXIT-02).
const EXEC_PATIENCE: Duration = Duration::from_secs(2);

impl Task {
    /// Kills everything in it and returns when init is gone; nothing to do is success.
    pub(crate) async fn end_by_force(self: &Arc<Self>, keeper: &Keeper) -> Result<()> {
        if self.ended().is_none() {
            match self.kill(keeper, SIGKILL, true).await {
                Err(error) if self.ended().is_some() || error.is_not_found() => {}
                result => result?,
            }
            tokio::time::timeout(KILL_PATIENCE, self.wait())
                .await
                .map_err(|_| Error::internal(format!("container {} does not die", self.facts.id)))??;
        }
        Ok(())
    }

    /// Ends a container that has no process yet, as the signal would have; false if it has got one meanwhile.
    pub(super) async fn end_unborn(&self, keeper: &Keeper, signal: i32) -> Result<bool> {
        // A restore that is under way comes to its end first.
        let _changing = self.changing.lock().await;
        if self.frozen().is_none() {
            return Ok(false);
        }
        let status = u32::try_from(signal).ok().filter(|signal| (1..=64).contains(signal));
        let status = status.ok_or_else(|| Error::invalid(format!("{signal} is not a signal")))? + 128;
        let ended = Ended { status, at: now(), known: true, oom: None };
        self.go_to(keeper, Lifecycle::Stopped { pid: 0, started_at: 0, ended })?;
        self.exit.send_replace(Some(ended));
        self.publish_exit(keeper, 0, ended);
        Ok(true)
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
                Phase::Created => task.end_by_force(&keeper).await?,
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
            let copying = std::mem::take(&mut *task.copying());
            copying.drained().await;
            let logger = task.kept().remove(key::LOGGER);
            logger::finish(logger).await;
            let (remover, remover_keeper) = (Arc::clone(&task), Arc::clone(&keeper));
            let remove = move || remover.remove(&remover_keeper);
            keeper.aside.run_if(task.shim().is_some(), remove).await?;
            client_log::remove(&task.facts.bundle);
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
    pub(super) fn remove(&self, keeper: &Keeper) -> Result<()> {
        remove_cgroup(&self.facts.cgroup)?;
        if self.facts.mounted {
            mounts::unmount_all(&self.facts.bundle);
        }
        if let Some(shim) = self.shim() {
            shims::wait(shim.remove());
            // What its runtime made for itself in hierarchies that had nothing of ours.
            remove_cgroup(&self.facts.cgroup)?;
        }
        if let Some(foreign) = self.foreign(&keeper.layout) {
            foreign.remove();
            // What such a runtime made for itself in hierarchies that had nothing of ours.
            remove_cgroup(&self.facts.cgroup)?;
            foreign::sweep(keeper);
        }
        keeper.shims.forget(&self.facts.id);
        keeper.engine.remove(&self.facts.id);
        keeper.guardian.forget_all(&self.prefix());
        self.after_delete();
        records::remove(&keeper.layout.tasks(), &self.record())
            .map_err(|e| Error::io("remove record of", &self.facts.id, &e))
    }

    /// Follows the process to its end; called once for each container.
    pub(crate) fn watch(self: &Arc<Self>, keeper: &Arc<Keeper>, adopted: Option<Awaited>) {
        let Some(process) = self.process() else { return };
        if self.facts.shim.is_some() {
            keeper.shims.expect(&self.facts.id);
        }
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        tokio::spawn(async move {
            let end = wait_end(&process, adopted).await;
            if !end.ended.known {
                task.end_of_shim().await;
            }
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
            if ended.oom.is_some() {
                let container_id = task.facts.id.clone();
                keeper.events.publish("/tasks/oom", &TaskOOM { container_id, ..TaskOOM::default() });
            }
            task.forget_by_shim();
            task.exit.send_replace(Some(ended));
            task.publish_exit(&keeper, process.pid, ended);
        });
    }

    /// What must be done between the death of init and the moment anybody hears of it.
    async fn settle(self: &Arc<Self>, keeper: &Arc<Keeper>, ended: Ended) -> Ended {
        // First of all: a group that systemd made goes with its last process.
        let early = self.out_of_memory(ended).await;
        if self.facts.foreign_pids {
            let cgroup = self.facts.cgroup.clone();
            if let Err(error) = blocking(move || Ok(Cgroup::open(&cgroup)?.kill_all()?)).await {
                tracing::warn!(id = self.facts.id, "kill what is left in the container: {error}");
            }
        }
        let mut sessions = JoinSet::new();
        for exec in self.execs.all() {
            sessions.spawn(async move { exec.wait_if_running().await });
        }
        let _ = tokio::time::timeout(EXEC_PATIENCE, sessions.join_all()).await;
        if self.facts.shim.is_some() {
            self.output_of_shim(keeper).await;
        }
        let drained = keeper.engine.drain(&self.facts.id).await.unwrap_or_default();
        if drained.dropped > 0 {
            self.dropped.store(drained.dropped, Ordering::Relaxed);
        }
        if drained.orphaned
            && let Err(error) = self.put_log(keeper).await
        {
            tracing::warn!(id = self.facts.id, "the end of the log has no file: {error}");
        }
        keeper.engine.remove(&self.facts.id);
        let known = self.out_of_memory(ended).await.or(early);
        // Where its memory is not this host's.
        let told = known.is_none() && ended.status == KILLED && self.told_out_of_memory(keeper).await;
        Ended { oom: known.or(told.then_some(OutOfMemory::Container)), ..ended }
    }

    /// Whether the OOM killer was in the container's group, and why.
    async fn out_of_memory(&self, ended: Ended) -> Option<OutOfMemory> {
        let cgroup = self.facts.cgroup.clone();
        // What the group above counted since may have been a neighbour; who was killed by us needs no other reason.
        let killed_by_us = self.killed.load(Ordering::Relaxed);
        let before = self.facts.oom_before.filter(|_| ended.status == KILLED && !killed_by_us);
        blocking(move || {
            let group = Cgroup::named(&cgroup)?;
            let oom = match (group.oom(), before) {
                // systemd was faster.
                (Err(error), Some(before)) if error.kind() == Kind::NotFound => group.oom_since(&before)?,
                (oom, _) => oom?,
            };
            let level = oom.map(|oom| oom.level);
            Ok(level.map(|level| match level {
                OomLevel::Own => OutOfMemory::Container,
                OomLevel::Above(above) if group.is_directly_below(&above) => OutOfMemory::Pod,
                OomLevel::Above(_) => OutOfMemory::Pods,
                OomLevel::Host => OutOfMemory::Node,
            }))
        })
        .await
        .unwrap_or_default()
    }

    /// After the end only the client's fifos matter, until Delete: what it has not read yet must stay (SHIM-IO-04).
    pub(super) fn let_go(&self, keeper: &Keeper) {
        let over: Vec<_> = self.kept().extract_if(|key, _| !stdio::outlives_process(key)).collect();
        // By name: a copy of a terminal's output fifo that stayed would keep the client from seeing its end.
        for key in over.iter().map(|(key, _)| *key).chain(["pidfd", "start"]) {
            keeper.guardian.forget(&format!("{}{key}", self.prefix()));
        }
        self.copying().stop_input();
    }

    fn publish_exit(&self, keeper: &Keeper, pid: i32, ended: Ended) {
        let id = self.facts.id.clone();
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
}

/// Kills what is left in a control group and removes it; missing is success. Blocks.
pub(crate) fn remove_cgroup(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    match Cgroup::open(path).and_then(|cgroup| cgroup.kill_all()) {
        Err(error) if error.kind() != Kind::NotFound => {
            tracing::debug!(path, "kill the control group: {error}")
        }
        _ => {}
    }
    Ok(Cgroup::remove_at(path, CGROUP_PATIENCE)?)
}
