//! slipway.keeper.v1.Keeper: what containerd keeps for itself.

use super::answer;
use crate::keeper::Keeper;
use crate::logs::End;
use crate::records::{OutOfMemory, SandboxPhase};
use crate::task::{Attached, Client, Phase, SIGKILL, Snapshot};
use crate::upgrade;
use async_trait::async_trait;
use cri_proto::keeper::{
    AbandonRequest, AbandonResponse, AttachEnd, AttachRequest, AttachResponse, ExecInfo, InfoRequest,
    InfoResponse, KillAllRequest, KillAllResponse, Lap, LapsRequest, LapsResponse, ListRequest, ListResponse,
    ReopenLogRequest, ReopenLogResponse, SandboxInfo, TaskInfo, TaskState, UpgradeRequest, UpgradeResponse,
    WaitTaskRequest, keeper_ttrpc,
};
use std::sync::Arc;
use ttrpc::r#async::TtrpcContext;

#[derive(Debug)]
pub(super) struct ExtensionService(pub(super) Arc<Keeper>);

#[async_trait]
impl keeper_ttrpc::Keeper for ExtensionService {
    async fn info(&self, _: &TtrpcContext, _: InfoRequest) -> ttrpc::Result<InfoResponse> {
        let counters = self.0.engine.counters();
        Ok(InfoResponse {
            keeper_pid: std::process::id().cast_signed(),
            guardian_pid: self.0.guardian.pid(),
            version: env!("CARGO_PKG_VERSION").into(),
            generation: self.0.generation,
            log_bytes: counters.bytes,
            log_lines: counters.lines,
            log_dropped: counters.dropped,
            ..Default::default()
        })
    }

    async fn list(&self, _: &TtrpcContext, _: ListRequest) -> ttrpc::Result<ListResponse> {
        let sandbox = |sandbox: &Arc<crate::sandbox::Sandbox>| {
            let record = sandbox.record();
            let ready = record.phase == SandboxPhase::Ready;
            SandboxInfo { id: record.id, pid: record.pid, ready, ..Default::default() }
        };
        let tasks = self.0.tasks.all();
        let execs = tasks.iter().flat_map(|task| {
            let of = task.id().to_owned();
            let info = move |id: &str| ExecInfo { task_id: of.clone(), id: id.into(), ..Default::default() };
            task.execs.all().into_iter().map(move |exec| info(exec.id()))
        });
        Ok(ListResponse {
            execs: execs.collect(),
            tasks: tasks.iter().map(|task| info(task.snapshot())).collect(),
            sandboxes: self.0.sandboxes.all().iter().map(sandbox).collect(),
            ..Default::default()
        })
    }

    async fn reopen_log(
        &self,
        _: &TtrpcContext,
        request: ReopenLogRequest,
    ) -> ttrpc::Result<ReopenLogResponse> {
        let task = answer(self.0.tasks.get(&request.id))?;
        answer(task.reopen_log(&self.0).await).map(|()| ReopenLogResponse::default())
    }

    async fn wait_task(&self, _: &TtrpcContext, request: WaitTaskRequest) -> ttrpc::Result<TaskInfo> {
        let task = answer(self.0.tasks.get(&request.id))?;
        answer(task.wait().await)?;
        let mut info = info(task.snapshot());
        if !info.status_known {
            info.lost_because = task.lost_because();
        }
        Ok(info)
    }

    async fn kill_all(&self, _: &TtrpcContext, request: KillAllRequest) -> ttrpc::Result<KillAllResponse> {
        let task = answer(self.0.tasks.get(&request.id))?;
        answer(if request.exec_id.is_empty() {
            task.kill(&self.0, SIGKILL, true).await
        } else {
            answer(task.execs.get(&request.exec_id))?.end(&self.0, &task).await
        })?;
        Ok(KillAllResponse::default())
    }

    async fn attach(&self, _: &TtrpcContext, request: AttachRequest) -> ttrpc::Result<AttachResponse> {
        let task = answer(self.0.tasks.get(&request.id))?;
        let client = Client { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr };
        let attached = if request.again {
            task.attach_again(&self.0, client).await
        } else {
            task.attach(&self.0, client).await
        };
        let end = match answer(attached)? {
            Attached::Ended(End::Over) => AttachEnd::OUTPUT_OVER,
            Attached::Ended(End::TooSlow) => AttachEnd::TOO_SLOW,
            Attached::Ended(End::Gone) => AttachEnd::CLIENT_GONE,
            Attached::HandedOver => AttachEnd::HANDED_OVER,
        };
        Ok(AttachResponse { end: end.into(), ..Default::default() })
    }

    async fn abandon(&self, _: &TtrpcContext, request: AbandonRequest) -> ttrpc::Result<AbandonResponse> {
        let task = answer(self.0.tasks.get(&request.id))?;
        let exec = answer(task.execs.get(&request.exec_id))?;
        answer(exec.abandon(&self.0, &task).await)?;
        Ok(AbandonResponse::default())
    }

    async fn upgrade(&self, _: &TtrpcContext, request: UpgradeRequest) -> ttrpc::Result<UpgradeResponse> {
        let path = (!request.path.is_empty()).then(|| request.path.into());
        answer(upgrade::ask(&self.0, path).await)?;
        Ok(UpgradeResponse::default())
    }

    async fn laps(&self, _: &TtrpcContext, request: LapsRequest) -> ttrpc::Result<LapsResponse> {
        let task = answer(self.0.tasks.get(&request.id))?;
        let laps = task.laps.take().into_iter();
        let laps =
            laps.map(|lap| Lap { step: lap.step, begun: lap.begun, ended: lap.ended, ..Default::default() });
        Ok(LapsResponse { laps: laps.collect(), ..Default::default() })
    }
}

fn info(task: Snapshot) -> TaskInfo {
    let state = match task.phase {
        Phase::Created => TaskState::CREATED,
        Phase::Running | Phase::Paused => TaskState::RUNNING,
        Phase::Stopped => TaskState::STOPPED,
    };
    TaskInfo {
        id: task.id,
        sandbox_id: task.sandbox,
        pid: task.pid,
        state: state.into(),
        exit_status: task.ended.map_or(0, |ended| ended.status),
        exited_at: task.ended.map_or(0, |ended| ended.at),
        oom_killed: task.ended.is_some_and(|ended| ended.oom.is_some()),
        oom_level: task.ended.and_then(|ended| ended.oom).map_or("", OutOfMemory::word).into(),
        started_at: task.started_at,
        log_dropped: task.dropped,
        status_known: task.ended.is_none_or(|ended| ended.known),
        ..Default::default()
    }
}
