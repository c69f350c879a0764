//! The `delete` action: ends and forgets one container, whoever is still alive (SHIM-DEL-01..03). Idempotent; touches
//! only that id.

use crate::events::timestamp;
use crate::keeper::blocking;
use crate::layout::{Layout, is_valid_id};
use crate::process::now;
use crate::records::{self, ExecRecord, Record as _, TaskPhase, TaskRecord};
use crate::{start, task};
use containerd_shim::Flags;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, WaitRequest};
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::Message as _;
use std::error::Error;
use std::time::Duration;

/// For each question to a living keeper; the client gives all of this action 5 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns the encoded DeleteResponse.
pub(crate) fn delete(flags: &Flags) -> Result<Vec<u8>, Box<dyn Error>> {
    if !is_valid_id(&flags.id) {
        return Err(format!("bad container id {:?}", flags.id).into());
    }
    let layout = start::layout(flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let response = runtime.block_on(async {
        match ask_keeper(&layout, &flags.id).await {
            Some(response) => Ok(response),
            None => without_keeper(layout, flags.id.clone()).await,
        }
    })?;
    Ok(response.write_to_bytes()?)
}

fn killed() -> DeleteResponse {
    DeleteResponse { exit_status: 137, exited_at: Some(timestamp(now())).into(), ..Default::default() }
}

/// None: no keeper answers.
async fn ask_keeper(layout: &Layout, id: &str) -> Option<DeleteResponse> {
    let address = format!("unix://{}", layout.socket().ok()?.display());
    let client = TaskClient::new(ttrpc::r#async::Client::connect(&address).await.ok()?);
    let context = || ttrpc::context::with_duration(PATIENCE);
    let kill = KillRequest { id: id.into(), signal: 9, all: true, ..Default::default() };
    if client.kill(context(), &kill).await.is_ok() {
        let wait = WaitRequest { id: id.into(), ..Default::default() };
        let _ = client.wait(context(), &wait).await;
    }
    let delete = DeleteRequest { id: id.into(), ..Default::default() };
    match client.delete(context(), &delete).await {
        Ok(response) => Some(response),
        // It is alive and does not know the id: nothing is left.
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => Some(killed()),
        Err(_) => None,
    }
}

/// By the record alone.
async fn without_keeper(layout: Layout, id: String) -> Result<DeleteResponse, crate::error::Error> {
    blocking(move || {
        let Ok(record) = records::load::<TaskRecord>(&layout.tasks().join(format!("{id}.json"))) else {
            return Ok(killed());
        };
        let (pid, ended) = match &record.phase {
            TaskPhase::Creating => (0, None),
            TaskPhase::Created { pid, .. }
            | TaskPhase::Starting { pid, .. }
            | TaskPhase::Running { pid, .. } => (*pid, None),
            TaskPhase::Stopped { pid, ended, .. } => (*pid, Some(*ended)),
        };
        task::remove_cgroup(&record.cgroup)?;
        for exec in records::load_all::<ExecRecord>(&layout.execs()).unwrap_or_default() {
            if exec.task == record.id {
                let _ = std::fs::remove_file(layout.execs().join(exec.file_name()));
            }
        }
        let _ = records::remove(&layout.tasks(), &record);
        let mut response = killed();
        response.pid = pid.cast_unsigned();
        if let Some(ended) = ended {
            response.exit_status = ended.status;
            response.exited_at = Some(timestamp(ended.at)).into();
        }
        Ok(response)
    })
    .await
}
