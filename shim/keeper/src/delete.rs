//! The `delete` action: ends and forgets one container or sandbox, whoever is still alive (SHIM-DEL-01..03). Idempotent;
//! touches only that id.

use crate::events::timestamp;
use crate::keeper::blocking;
use crate::layout::{Layout, is_valid_id};
use crate::process::now;
use crate::records::{self, ExecRecord, Record as _, SandboxRecord, TaskPhase, TaskRecord};
use crate::{sandbox, start, task};
use containerd_shim::Flags;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::sandbox_api::ShutdownSandboxRequest;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::TaskClient;
use protobuf::Message as _;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

/// For each question to a living keeper; the client gives all of this action 5 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns the encoded DeleteResponse.
pub(crate) fn delete(flags: &Flags) -> Result<Vec<u8>, Box<dyn Error>> {
    if !is_valid_id(&flags.id) {
        return Err(format!("bad container id {:?}", flags.id).into());
    }
    if flags.namespace.is_empty() {
        return Err("-namespace must not be empty".into());
    }
    let layout = start::layout_of_bundle(flags)?;
    release_rootfs(&flags.id);
    // The record is there from before the first act to after the last one. In the usual case, after the client's own
    // Task.Delete, there is none and this is all.
    if !layout.knows(&flags.id) {
        return Ok(killed().write_to_bytes()?);
    }
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

/// We mount nothing there, but the client removes the bundle next and must find nothing mounted (SHIM-DEL-01).
fn release_rootfs(id: &str) {
    let rootfs = Path::new("..").join(id).join("rootfs");
    let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
    while rustix::mount::unmount(&rootfs, flags).is_ok() {}
}

/// None: no keeper answers.
async fn ask_keeper(layout: &Layout, id: &str) -> Option<DeleteResponse> {
    let address = format!("unix://{}", layout.socket().ok()?.display());
    let connection = ttrpc::r#async::Client::connect(&address).await.ok()?;
    let client = TaskClient::new(connection.clone());
    let context = || ttrpc::context::with_duration(PATIENCE);
    let kill = KillRequest { id: id.into(), signal: 9, all: true, ..Default::default() };
    if client.kill(context(), &kill).await.is_ok() {
        let wait = WaitRequest { id: id.into(), ..Default::default() };
        let _ = client.wait(context(), &wait).await;
    }
    let delete = DeleteRequest { id: id.into(), ..Default::default() };
    let response = match client.delete(context(), &delete).await {
        Ok(response) => Some(response),
        // It is alive and does not know the task: nothing is left of it.
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => Some(killed()),
        Err(_) => None,
    };
    if layout.knows(id) {
        let request = ShutdownSandboxRequest { sandbox_id: id.into(), ..Default::default() };
        SandboxClient::new(connection).shutdown_sandbox(context(), &request).await.ok()?;
    }
    // The client will not say so: to it this keeper is dead.
    let _ = client.shutdown(context(), &ShutdownRequest { id: id.into(), ..Default::default() }).await;
    response
}

/// By the records alone.
async fn without_keeper(layout: Layout, id: String) -> Result<DeleteResponse, crate::error::Error> {
    blocking(move || {
        let name = format!("{id}.json");
        if let Ok(record) = records::load::<SandboxRecord>(&layout.sandboxes().join(&name)) {
            sandbox::remove_leftover(&layout, &record)?;
        }
        let Ok(record) = records::load::<TaskRecord>(&layout.tasks().join(&name)) else {
            return Ok(killed());
        };
        task::remove_cgroup(&record.cgroup)?;
        if let Some(runtime) = &record.foreign {
            runtime.container(&layout, &record.id).clear();
            task::remove_cgroup(&record.cgroup)?;
        }
        for exec in records::load_all::<ExecRecord>(&layout.execs()).unwrap_or_default() {
            if exec.task == record.id {
                let _ = std::fs::remove_file(layout.execs().join(exec.file_name()));
            }
        }
        let _ = records::remove(&layout.tasks(), &record);
        Ok(response_of(&record.phase))
    })
    .await
}

fn response_of(phase: &TaskPhase) -> DeleteResponse {
    let (pid, ended) = match phase {
        TaskPhase::Creating | TaskPhase::Frozen { .. } => (0, None),
        TaskPhase::Created { pid, .. } | TaskPhase::Starting { pid, .. } | TaskPhase::Running { pid, .. } => {
            (*pid, None)
        }
        TaskPhase::Stopped { pid, ended, .. } => (*pid, Some(*ended)),
    };
    let mut response = killed();
    response.pid = pid.cast_unsigned();
    if let Some(ended) = ended {
        response.exit_status = ended.status;
        response.exited_at = Some(timestamp(ended.at)).into();
    }
    response
}
