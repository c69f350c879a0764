//! containerd.task.v3.Task (and v2).

use super::{answer, metrics};
use crate::checkpoint::Checkpoint;
use crate::connections::is_repeated;
use crate::error::Error;
use crate::events::timestamp;
use crate::exec::Exec;
use crate::keeper::Keeper;
use crate::records::{Ended, Streams};
use crate::task::laps::WANTED;
use crate::task::{NewTask, Phase, SIGKILL, Task};
use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;
use std::path::Path;
use std::sync::Arc;
use ttrpc::r#async::TtrpcContext;

#[derive(Debug)]
pub(super) struct TaskService(pub(super) Arc<Keeper>);

impl TaskService {
    fn task(&self, id: &str) -> Result<Arc<Task>, Error> {
        self.0.tasks.get(id)
    }

    /// It was made from this bundle and waits for its start.
    fn is_created(&self, id: &str, bundle: &Path) -> bool {
        let task = self.0.tasks.find(id).map(|task| task.snapshot());
        task.is_some_and(|task| task.bundle == bundle && task.phase == Phase::Created)
    }

    /// The task, and its exec session if one is named.
    fn find(&self, id: &str, exec_id: &str) -> Result<(Arc<Task>, Option<Arc<Exec>>), Error> {
        let task = self.task(id)?;
        let exec = if exec_id.is_empty() { None } else { Some(task.execs.get(exec_id)?) };
        Ok((task, exec))
    }
}

#[async_trait]
impl shim_async::Task for TaskService {
    async fn create(
        &self,
        context: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let new = NewTask {
            id: request.id,
            bundle: request.bundle.into(),
            mounts: request.rootfs,
            streams: Streams {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: request.checkpoint,
            options: request.options.into_option(),
            clocked: context.metadata.contains_key(WANTED),
        };
        let (id, bundle) = (new.id.clone(), new.bundle.clone());
        let task = match Task::create(&self.0, new).await {
            // The former keeper made it and could not say so any more.
            Err(_) if is_repeated(context) && self.is_created(&id, &bundle) => answer(self.task(&id))?,
            result => answer(result)?,
        };
        Ok(CreateTaskResponse { pid: task.snapshot().pid.cast_unsigned(), ..Default::default() })
    }

    async fn start(&self, context: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        let pid = match exec {
            Some(exec) => exec.start(&self.0, &task).await,
            None => match task.start(&self.0).await {
                Err(_) if is_repeated(context) && task.has_started() => Ok(task.snapshot().pid),
                result => result,
            },
        };
        Ok(StartResponse { pid: answer(pid)?.cast_unsigned(), ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        let deleted = match exec {
            Some(exec) => exec.delete(&self.0, &task).await,
            None => task.delete(&self.0).await,
        };
        let (pid, ended) = answer(deleted)?;
        Ok(DeleteResponse {
            pid: pid.cast_unsigned(),
            exit_status: ended.status,
            exited_at: Some(timestamp(ended.at)).into(),
            ..Default::default()
        })
    }

    async fn exec(&self, context: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let task = answer(self.task(&request.id))?;
        if is_repeated(context) && task.execs.find(&request.exec_id).is_some() {
            return Ok(Empty::default());
        }
        let process = serde_json::from_slice(&request.spec.value)
            .map_err(|error| Error::invalid(format!("exec {}: process: {error}", request.exec_id)));
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        answer(process.and_then(|process| Exec::add(&self.0, &task, request.exec_id, streams, process)))?;
        Ok(Empty::default())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        let snapshot = task.snapshot();
        let (streams, pid, phase, ended) = match exec.map(|exec| exec.snapshot()) {
            Some(exec) => (exec.streams, exec.pid, exec.phase, exec.ended),
            None => (snapshot.streams, snapshot.pid, snapshot.phase, snapshot.ended),
        };
        Ok(StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: snapshot.bundle.to_string_lossy().into_owned(),
            pid: pid.cast_unsigned(),
            status: status(phase).into(),
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            exit_status: ended.map_or(0, |ended| ended.status),
            exited_at: ended.map(|ended| timestamp(ended.at)).into(),
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        let ended: Result<Ended, Error> = match exec {
            Some(exec) => exec.wait().await,
            None => task.wait().await,
        };
        let ended = answer(ended)?;
        Ok(WaitResponse {
            exit_status: ended.status,
            exited_at: Some(timestamp(ended.at)).into(),
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
        answer(match exec {
            Some(exec) => exec.kill(&task, signal, request.all && signal == SIGKILL).await,
            None => task.kill(&self.0, signal, request.all).await,
        })?;
        Ok(Empty::default())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let pids = answer(answer(self.task(&request.id))?.pids().await)?;
        let info = |(pid, exec_id): (i32, Option<String>)| ProcessInfo {
            pid: pid.cast_unsigned(),
            info: exec_id.and_then(details).into(),
            ..Default::default()
        };
        Ok(PidsResponse { processes: pids.into_iter().map(info).collect(), ..Default::default() })
    }

    async fn pause(&self, context: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let task = answer(self.task(&request.id))?;
        if is_repeated(context) && task.snapshot().phase == Phase::Paused {
            return Ok(Empty::default());
        }
        answer(task.freeze(&self.0, true).await).map(|()| Empty::default())
    }

    async fn resume(&self, context: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let task = answer(self.task(&request.id))?;
        if is_repeated(context) && task.snapshot().phase == Phase::Running {
            return Ok(Empty::default());
        }
        answer(task.freeze(&self.0, false).await).map(|()| Empty::default())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let task = answer(self.task(&request.id))?;
        let resources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| Error::invalid(format!("update {}: resources: {error}", request.id)));
        answer(task.update(&self.0, answer(resources)?).await).map(|()| Empty::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let task = answer(self.task(&request.id))?;
        if let Some(stats) = task.shim_stats().await {
            return Ok(StatsResponse { stats: Some(answer(stats)?).into(), ..Default::default() });
        }
        let stats = answer(task.stats().await)?;
        Ok(StatsResponse { stats: Some(answer(metrics::encode(&stats))?).into(), ..Default::default() })
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        answer(match exec {
            Some(exec) => exec.resize(&task, request.width, request.height).await,
            None => task.resize(request.width, request.height).await,
        })?;
        Ok(Empty::default())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (task, exec) = answer(self.find(&request.id, &request.exec_id))?;
        match exec {
            _ if !request.stdin => {}
            Some(exec) => exec.close_stdin(&self.0, &task),
            None => task.close_stdin(&self.0),
        }
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let task = answer(self.task(&request.id))?;
        let asked = answer(Checkpoint::parse(&request.path, request.options.as_ref()))?;
        answer(task.checkpoint(&self.0, asked).await).map(|()| Empty::default())
    }

    /// An unknown id is no error: who asks wants to know the server (SHIM-TSK-31).
    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task = self.0.tasks.find(&request.id);
        if task.is_none() {
            answer(self.0.must_stay())?;
            self.0.greet();
        }
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task.map_or(0, |task| task.snapshot().pid.cast_unsigned()),
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.0.ask_to_end(false);
        Ok(Empty::default())
    }
}

fn status(phase: Phase) -> Status {
    match phase {
        Phase::Created => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped => Status::STOPPED,
    }
}

/// SHIM-TSK-27.
fn details(exec_id: String) -> Option<Any> {
    let details = ProcessDetails { exec_id, ..Default::default() };
    let value = details.write_to_bytes().ok()?;
    Some(Any { type_url: "containerd.runc.v1.ProcessDetails".into(), value, ..Any::default() })
}
