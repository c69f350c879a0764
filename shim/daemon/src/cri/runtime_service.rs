//! RuntimeService.

use super::local_service::Receiving;
use super::{Streamed, answer, filters, status, stream};
use crate::checkpoints;
use crate::containers::{ContainerRecord, Stop};
use crate::daemon::{Container, Daemon};
use crate::error::{Error, Result};
use crate::events::{Ear, OBSERVER};
use crate::metrics;
use crate::names::Company;
use crate::pods::PodRecord;
use crate::streaming;
use crate::telemetry::spans;
use cri_proto::v1;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

/// Handler of RuntimeService.
#[derive(Debug)]
pub(crate) struct RuntimeApi(pub(crate) Arc<Daemon>, pub(crate) Arc<slipway_streaming::Server>);

impl RuntimeApi {
    fn pods(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let records = self.0.pods.list().into_iter().map(|p| p.record());
        records.filter(|r| filters::pod(filter, r)).map(|r| r.item()).collect()
    }

    fn containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
        let records = self.0.containers.list().into_iter().map(|c| c.record());
        records.filter(|r| filters::container(filter, r)).map(|r| r.item()).collect()
    }

    async fn stats(&self, filter: Option<&v1::ContainerStatsFilter>) -> Vec<v1::ContainerStats> {
        let mut all = Vec::new();
        let mut containers = self.0.containers.list();
        containers.retain(|c| filters::stats(filter, &c.record()));
        // All of them before any of them is read.
        self.0.ask_shims(containers.iter().map(|c| c.record()).collect::<Vec<_>>()).await;
        for container in containers {
            // One that goes away meanwhile does not fail the list (CRI-SS-13).
            all.extend(self.0.container_stats_as_told(&container).await.ok());
        }
        all
    }

    async fn pod_stats(
        &self,
        filter: Option<&v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>> {
        let records = self.0.pods.list().into_iter().map(|p| p.record());
        self.0.stats_of_pods(records.filter(|r| filters::pod_stats(filter, r)).collect()).await
    }

    fn about(&self, id: &str) {
        spans::about(&self.0, id);
    }

    fn running(&self, id: &str) -> Result<Arc<Container>> {
        self.0.containers.get(id)
    }
}

#[tonic::async_trait]
impl v1::runtime_service_server::RuntimeService for RuntimeApi {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Result<Response<v1::VersionResponse>, Status> {
        answer("Version", Ok(status::version()))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        answer("Status", Ok(status::status(&self.0, request.get_ref().verbose).await))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Result<Response<v1::RuntimeConfigResponse>, Status> {
        answer("RuntimeConfig", Ok(status::runtime_config(&self.0)))
    }

    /// Accepted and not needed: addresses come from CNI or the built-in pool (CRI-URC-01).
    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<v1::UpdateRuntimeConfigResponse>, Status> {
        answer("UpdateRuntimeConfig", Ok(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Result<Response<v1::RunPodSandboxResponse>, Status> {
        let request = request.into_inner();
        let outcome = match request.config {
            Some(config) => self.0.run_pod(config, request.runtime_handler, Company::Welcome).await,
            None => Err(Error::invalid("config is missing; config.metadata identifies the sandbox")),
        };
        answer("RunPodSandbox", outcome.map(|pod_sandbox_id| v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Result<Response<v1::StopPodSandboxResponse>, Status> {
        self.about(&request.get_ref().pod_sandbox_id);
        let outcome = self.0.stop_pod(&request.get_ref().pod_sandbox_id).await;
        answer("StopPodSandbox", outcome.map(|()| v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Result<Response<v1::RemovePodSandboxResponse>, Status> {
        self.about(&request.get_ref().pod_sandbox_id);
        let outcome = self.0.remove_pod(&request.get_ref().pod_sandbox_id).await;
        answer("RemovePodSandbox", outcome.map(|()| v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Result<Response<v1::PodSandboxStatusResponse>, Status> {
        let request = request.get_ref();
        let outcome = self.0.pods.get(&request.pod_sandbox_id).map(|pod| {
            let record = pod.record();
            v1::PodSandboxStatusResponse {
                status: Some(record.status()),
                info: if request.verbose { pod_info(&record) } else { HashMap::new() },
                containers_statuses: self
                    .0
                    .containers_of(&pod.id)
                    .iter()
                    .map(|c| c.record().status())
                    .collect(),
                timestamp: crate::clock::now(),
            }
        });
        answer("PodSandboxStatus", outcome)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Result<Response<v1::ListPodSandboxResponse>, Status> {
        let items = self.pods(request.get_ref().filter.as_ref());
        answer("ListPodSandbox", Ok(v1::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let items = self.pods(request.get_ref().filter.as_ref());
        Ok(Response::new(stream(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Result<Response<v1::CreateContainerResponse>, Status> {
        let request = request.into_inner();
        self.about(&request.pod_sandbox_id);
        let outcome = self.0.create_container(&request.pod_sandbox_id, request.config).await;
        answer("CreateContainer", outcome.map(|container_id| v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Result<Response<v1::StartContainerResponse>, Status> {
        self.about(&request.get_ref().container_id);
        let outcome = match self.0.containers.get(&request.get_ref().container_id) {
            Ok(container) => self.0.start_container(&container).await,
            Err(error) => Err(error),
        };
        answer("StartContainer", outcome.map(|()| v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Result<Response<v1::StopContainerResponse>, Status> {
        let request = request.get_ref();
        let how = match u64::try_from(request.timeout) {
            Ok(seconds) if seconds > 0 => Stop::After(Duration::from_secs(seconds)),
            _ => Stop::Now,
        };
        self.about(&request.container_id);
        let outcome = match self.0.containers.get_if_any(&request.container_id) {
            Ok(Some(container)) => self.0.stop_container(&container, how).await,
            // CRI-STOP-01.
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        answer("StopContainer", outcome.map(|()| v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Result<Response<v1::RemoveContainerResponse>, Status> {
        self.about(&request.get_ref().container_id);
        let outcome = match self.0.containers.get_if_any(&request.get_ref().container_id) {
            Ok(Some(container)) => self.0.remove_container(&container).await,
            // CRI-REM-01.
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        answer("RemoveContainer", outcome.map(|()| v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Result<Response<v1::ListContainersResponse>, Status> {
        let containers = self.containers(request.get_ref().filter.as_ref());
        answer("ListContainers", Ok(v1::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let items = self.containers(request.get_ref().filter.as_ref());
        Ok(Response::new(stream(items, |containers| v1::StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Result<Response<v1::ContainerStatusResponse>, Status> {
        let request = request.get_ref();
        let outcome = self.0.containers.get(&request.container_id).map(|container| {
            let record = container.record();
            v1::ContainerStatusResponse {
                status: Some(record.status()),
                info: if request.verbose { container_info(&record) } else { HashMap::new() },
            }
        });
        answer("ContainerStatus", outcome)
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Result<Response<v1::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        self.about(&request.container_id);
        let outcome = match self.0.containers.get(&request.container_id) {
            Ok(container) => self.0.update_container(&container, &request.linux.unwrap_or_default()).await,
            Err(error) => Err(error),
        };
        answer("UpdateContainerResources", outcome.map(|()| v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Result<Response<v1::ReopenContainerLogResponse>, Status> {
        self.about(&request.get_ref().container_id);
        let outcome = match self.running(&request.get_ref().container_id) {
            // No new file for one that does not run (CRI-LOG-13).
            Ok(container) if !container.record().is_running() => {
                let label = container.record().label();
                Err(Error::state(format!("reopen log of container {label}: it does not run")))
            }
            Ok(container) => self.0.keeper.reopen_log(&container.id).await,
            Err(error) => Err(error),
        };
        answer("ReopenContainerLog", outcome.map(|()| v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Result<Response<v1::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        let limit = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
        self.about(&request.container_id);
        let outcome = match self.running(&request.container_id) {
            Ok(container) => self.0.exec_sync(&container, request.cmd, limit).await,
            Err(error) => Err(error),
        };
        let encode = |o: crate::containers::Output| v1::ExecSyncResponse {
            stdout: o.stdout,
            stderr: o.stderr,
            exit_code: o.exit_code,
        };
        answer("ExecSync", outcome.map(encode))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Result<Response<v1::ExecResponse>, Status> {
        self.about(&request.get_ref().container_id);
        let url = streaming::exec_url(&self.0, &self.1, request.into_inner());
        answer("Exec", url.map(|url| v1::ExecResponse { url }))
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        self.about(&request.get_ref().container_id);
        let url = streaming::attach_url(&self.0, &self.1, request.get_ref());
        answer("Attach", url.map(|url| v1::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Result<Response<v1::PortForwardResponse>, Status> {
        self.about(&request.get_ref().pod_sandbox_id);
        let url = streaming::forward_url(&self.0, &self.1, request.get_ref());
        answer("PortForward", url.map(|url| v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Result<Response<v1::ContainerStatsResponse>, Status> {
        let outcome = match self.0.containers.get(&request.get_ref().container_id) {
            Ok(container) => self.0.container_stats(&container).await,
            Err(error) => Err(error),
        };
        answer("ContainerStats", outcome.map(|stats| v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Result<Response<v1::ListContainerStatsResponse>, Status> {
        let stats = self.stats(request.get_ref().filter.as_ref()).await;
        answer("ListContainerStats", Ok(v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let items = self.stats(request.get_ref().filter.as_ref()).await;
        Ok(Response::new(stream(items, |container_stats| v1::StreamContainerStatsResponse {
            container_stats,
        })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Result<Response<v1::PodSandboxStatsResponse>, Status> {
        let outcome = match self.0.pods.get(&request.get_ref().pod_sandbox_id) {
            Ok(pod) => self.0.pod_stats(&pod).await,
            Err(error) => Err(error),
        };
        answer("PodSandboxStats", outcome.map(|stats| v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Result<Response<v1::ListPodSandboxStatsResponse>, Status> {
        let stats = self.pod_stats(request.get_ref().filter.as_ref()).await;
        answer("ListPodSandboxStats", stats.map(|stats| v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let stats = self.pod_stats(request.get_ref().filter.as_ref()).await;
        let wrap = |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
        answer("StreamPodSandboxStats", stats.map(|stats| stream(stats, wrap)))
    }

    async fn checkpoint_container(
        &self,
        request: Request<v1::CheckpointContainerRequest>,
    ) -> Result<Response<v1::CheckpointContainerResponse>, Status> {
        self.about(&request.get_ref().container_id);
        let outcome = self.0.checkpoint_container(request.into_inner()).await;
        answer("CheckpointContainer", outcome.map(|()| v1::CheckpointContainerResponse {}))
    }

    async fn checkpoint_pod(
        &self,
        request: Request<v1::CheckpointPodRequest>,
    ) -> Result<Response<v1::CheckpointPodResponse>, Status> {
        self.about(&request.get_ref().pod_sandbox_id);
        let deadline = checkpoints::deadline(request.metadata());
        let outcome = self.0.checkpoint_pod(request.into_inner(), deadline).await;
        answer("CheckpointPod", outcome.map(|()| v1::CheckpointPodResponse {}))
    }

    async fn restore_pod(
        &self,
        request: Request<v1::RestorePodRequest>,
    ) -> Result<Response<v1::RestorePodResponse>, Status> {
        let deadline = checkpoints::deadline(request.metadata());
        answer("RestorePod", self.0.restore_pod(request.into_inner(), deadline).await)
    }

    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;

    async fn get_container_events(
        &self,
        request: Request<v1::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        let observes = request.metadata().contains_key(OBSERVER);
        let events = Receiving(self.0.events.listen(if observes { Ear::Observer } else { Ear::Client }));
        let events = tonic::codegen::tokio_stream::StreamExt::map(events, Ok);
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Result<Response<v1::ListMetricDescriptorsResponse>, Status> {
        let descriptors = metrics::descriptors();
        answer("ListMetricDescriptors", Ok(v1::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<v1::ListPodSandboxMetricsResponse>, Status> {
        let metrics = self.0.metrics().await;
        let encode = |pod_metrics| v1::ListPodSandboxMetricsResponse { pod_metrics };
        answer("ListPodSandboxMetrics", metrics.map(encode))
    }

    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let metrics = self.0.metrics().await;
        let wrap = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        answer("StreamPodSandboxMetrics", metrics.map(|metrics| stream(metrics, wrap)))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<v1::UpdatePodSandboxResourcesResponse>, Status> {
        let request = request.into_inner();
        let outcome = match self.0.pods.get(&request.pod_sandbox_id) {
            Ok(pod) => self.0.update_pod(&pod, request.overhead, request.resources).await,
            Err(error) => Err(error),
        };
        answer("UpdatePodSandboxResources", outcome.map(|()| v1::UpdatePodSandboxResourcesResponse {}))
    }
}

/// What `crictl inspectp` shows beyond the status (CRI-CSTAT-17).
fn pod_info(record: &PodRecord) -> HashMap<String, String> {
    let info = json!({
        "pid": record.sandbox_pid,
        "netNamespaceClosed": record.phase != crate::pods::PodPhase::Ready,
        "runtimeHandler": record.handler,
        "runtimeType": "io.containerd.slipway.v1",
        "netns": record.netns,
        "cgroupParent": record.cgroup_parent,
        "config": record.config,
        "cniResult": record.attachment.as_ref().map(|a| &a.result),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// What `crictl inspect` shows beyond the status (CRI-CSTAT-16).
fn container_info(record: &ContainerRecord) -> HashMap<String, String> {
    let spec = std::fs::read(record.bundle.join("config.json")).ok();
    let spec = spec.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let pid = match record.phase {
        crate::containers::Phase::Running { pid, .. } => pid,
        _ => 0,
    };
    let info = json!({
        "sandboxID": record.pod_id,
        "pid": pid,
        "removing": false,
        "snapshotter": "overlayfs",
        "snapshotKey": record.id,
        "runtimeType": "io.containerd.slipway.v1",
        "cgroup": record.cgroup,
        "config": record.config,
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
