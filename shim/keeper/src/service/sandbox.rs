//! containerd.runtime.sandbox.v1.Sandbox.

use super::{answer, metrics};
use crate::connections::is_repeated;
use crate::error::{Error, Result};
use crate::events::timestamp;
use crate::keeper::{Keeper, blocking};
use crate::options::Grouping;
use crate::process::now;
use crate::records::SandboxPhase;
use crate::sandbox::Sandbox;
use crate::start;
use async_trait::async_trait;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async;
use containerd_shim_protos::types::platform::Platform;
use slipway_runtime::cgroup::{Cgroup, Stats};
use std::sync::Arc;
use ttrpc::r#async::TtrpcContext;

#[derive(Debug)]
pub(super) struct SandboxService(pub(super) Arc<Keeper>);

#[async_trait]
impl sandbox_async::Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        context: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        if is_repeated(context) && self.0.sandboxes.find(&request.sandbox_id).is_some() {
            return Ok(CreateSandboxResponse::default());
        }
        let options = request.options.into_option().map(|any| (any.type_url, any.value));
        let options = options.filter(|(url, _)| !url.is_empty());
        let bundle = request.bundle_path.into();
        answer(Sandbox::create(&self.0, request.sandbox_id, bundle, request.netns_path, options).await)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = answer(self.0.sandboxes.get(&request.sandbox_id))?;
        let (pid, created_at) = answer(sandbox.start(&self.0).await)?;
        Ok(StartSandboxResponse {
            pid: pid.cast_unsigned(),
            created_at: Some(timestamp(created_at)).into(),
            ..Default::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let platform =
            Platform { os: "linux".into(), architecture: architecture.into(), ..Default::default() };
        Ok(PlatformResponse { platform: Some(platform).into(), ..Default::default() })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let sandbox = answer(self.0.sandboxes.get(&request.sandbox_id))?;
        answer(sandbox.stop(&self.0).await)?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let sandbox = answer(self.0.sandboxes.get(&request.sandbox_id))?;
        let (at, status) = answer(sandbox.wait().await)?;
        Ok(WaitSandboxResponse {
            exit_status: status,
            exited_at: Some(timestamp(at)).into(),
            ..Default::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let record = answer(self.0.sandboxes.get(&request.sandbox_id))?.record();
        let (state, exited_at) = match record.phase {
            SandboxPhase::Ready => ("SANDBOX_READY", None),
            SandboxPhase::Stopped { at, .. } => ("SANDBOX_NOTREADY", Some(timestamp(at))),
            _ => ("SANDBOX_NOTREADY", None),
        };
        Ok(SandboxStatusResponse {
            sandbox_id: record.id,
            pid: record.pid.cast_unsigned(),
            state: state.into(),
            created_at: Some(timestamp(record.created_at)).into(),
            exited_at: exited_at.into(),
            ..Default::default()
        })
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        answer(self.0.sandboxes.get(&request.sandbox_id)).map(|_| PingResponse::default())
    }

    /// Unknown is success: it is called after failures too (SHIM-SBX-05, 11).
    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        if let Some(sandbox) = self.0.sandboxes.find(&request.sandbox_id) {
            answer(sandbox.shut_down(&self.0).await)?;
        }
        // Nobody else tells us: containerd shuts tasks down only where it knows no sandbox.
        if self.0.events.is_wanted() || start::grouping() == Grouping::Pod {
            self.0.ask_to_end(false);
        }
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let record = answer(self.0.sandboxes.get(&request.sandbox_id))?.record();
        let stats = answer(pod_stats(record.cgroup).await.and_then(|stats| metrics::encode(&stats)))?;
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = Some(timestamp(now())).into();
        metric.id = request.sandbox_id;
        metric.data = Some(stats).into();
        Ok(response)
    }
}

/// SHIM-SBX-12.
async fn pod_stats(cgroup: String) -> Result<Stats> {
    if cgroup.is_empty() {
        return Err(Error::unimplemented(
            "sandbox metrics: the pod has no control group of its own; ask its tasks",
        ));
    }
    blocking(move || Ok(Cgroup::open(&cgroup)?.stats()?)).await
}
