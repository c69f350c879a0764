//! The restarter against a CRI server on a real socket. The server is a table of sandboxes and containers: it stands
//! for the daemon's answers, not for its work.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri_proto::v1 as cri;
use cri_proto::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use crate::cli::client::container_name;
use crate::cli::pod_dir;
use crate::cli::translate::{LABEL_CONTAINER_NAME, LABEL_POD_UID, RESTART_POLICY};

type Events = std::pin::Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

struct Table {
    pods: Vec<cri::PodSandbox>,
    containers: Vec<(cri::Container, cri::ContainerStatus)>,
    /// Start fails from now on.
    starts_fail: bool,
    events: broadcast::Sender<cri::ContainerEventResponse>,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Table>>);

impl Fake {
    fn pod(id: &str, uid: &str, policy: &str) -> cri::PodSandbox {
        cri::PodSandbox {
            id: id.into(),
            labels: [(LABEL_POD_UID.to_owned(), uid.to_owned())].into(),
            annotations: [(RESTART_POLICY.to_owned(), policy.to_owned())].into(),
            ..Default::default()
        }
    }

    fn add(&self, pod: &str, name: &str, attempt: u32, state: cri::ContainerState) -> String {
        let id = format!("{pod}-{name}-{attempt}");
        let metadata = Some(cri::ContainerMetadata { name: name.into(), attempt });
        let labels = [(LABEL_CONTAINER_NAME.to_owned(), name.to_owned())].into();
        let container = cri::Container {
            id: id.clone(),
            pod_sandbox_id: pod.into(),
            metadata,
            labels,
            state: state.into(),
            ..Default::default()
        };
        let status =
            cri::ContainerStatus { id: id.clone(), state: state.into(), started_at: 1, ..Default::default() };
        self.0.lock().unwrap().containers.push((container, status));
        id
    }

    fn end(&self, id: &str, exit_code: i32) {
        let mut table = self.0.lock().unwrap();
        let (container, status) = table.containers.iter_mut().find(|(c, _)| c.id == id).expect("it is there");
        container.state = cri::ContainerState::ContainerExited.into();
        status.state = container.state;
        status.exit_code = exit_code;
        status.finished_at = 2;
        let event = cri::ContainerEventResponse {
            container_id: id.into(),
            container_event_type: cri::ContainerEventType::ContainerStoppedEvent.into(),
            ..Default::default()
        };
        // Nobody may be listening: that is one of the cases.
        drop(table.events.send(event));
    }

    /// (id, state) of all containers of a name.
    fn attempts(&self, name: &str) -> Vec<(String, i32)> {
        let table = self.0.lock().unwrap();
        let named = table.containers.iter().filter(|(c, _)| container_name(c) == name);
        named.map(|(c, _)| (c.id.clone(), c.state)).collect()
    }

    async fn wait_for(&self, name: &str, wanted: &[(&str, cri::ContainerState)]) {
        let wanted: Vec<_> = wanted.iter().map(|(id, state)| ((*id).to_owned(), i32::from(*state))).collect();
        for _ in 0..120 {
            if self.attempts(name) == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name}: wanted {wanted:?}, is {:?}", self.attempts(name));
    }
}

macro_rules! runtime_service {
    (
        unary: [$($unary:ident $request:ident $response:ident,)*]
        streams: [$($stream:ident $stream_request:ident $kind:ident $item:ident,)*]
        own: { $($own:tt)* }
    ) => {
        #[tonic::async_trait]
        impl RuntimeService for Fake {
            $(async fn $unary(&self, _: Request<cri::$request>) -> Result<Response<cri::$response>, Status> {
                Err(Status::unimplemented(stringify!($unary)))
            })*
            $(
                type $kind = tokio_stream::Empty<Result<cri::$item, Status>>;
                async fn $stream(&self, _: Request<cri::$stream_request>) -> Result<Response<Self::$kind>, Status> {
                    Err(Status::unimplemented(stringify!($stream)))
                }
            )*
            $($own)*
        }
    };
}

runtime_service! {
    unary: [
        version VersionRequest VersionResponse,
        run_pod_sandbox RunPodSandboxRequest RunPodSandboxResponse,
        stop_pod_sandbox StopPodSandboxRequest StopPodSandboxResponse,
        remove_pod_sandbox RemovePodSandboxRequest RemovePodSandboxResponse,
        pod_sandbox_status PodSandboxStatusRequest PodSandboxStatusResponse,
        stop_container StopContainerRequest StopContainerResponse,
        update_container_resources UpdateContainerResourcesRequest UpdateContainerResourcesResponse,
        reopen_container_log ReopenContainerLogRequest ReopenContainerLogResponse,
        exec_sync ExecSyncRequest ExecSyncResponse,
        exec ExecRequest ExecResponse,
        attach AttachRequest AttachResponse,
        port_forward PortForwardRequest PortForwardResponse,
        container_stats ContainerStatsRequest ContainerStatsResponse,
        list_container_stats ListContainerStatsRequest ListContainerStatsResponse,
        pod_sandbox_stats PodSandboxStatsRequest PodSandboxStatsResponse,
        list_pod_sandbox_stats ListPodSandboxStatsRequest ListPodSandboxStatsResponse,
        update_runtime_config UpdateRuntimeConfigRequest UpdateRuntimeConfigResponse,
        status StatusRequest StatusResponse,
        checkpoint_container CheckpointContainerRequest CheckpointContainerResponse,
        checkpoint_pod CheckpointPodRequest CheckpointPodResponse,
        restore_pod RestorePodRequest RestorePodResponse,
        list_metric_descriptors ListMetricDescriptorsRequest ListMetricDescriptorsResponse,
        list_pod_sandbox_metrics ListPodSandboxMetricsRequest ListPodSandboxMetricsResponse,
        runtime_config RuntimeConfigRequest RuntimeConfigResponse,
        update_pod_sandbox_resources UpdatePodSandboxResourcesRequest UpdatePodSandboxResourcesResponse,
    ]
    streams: [
        stream_pod_sandboxes StreamPodSandboxesRequest StreamPodSandboxesStream StreamPodSandboxesResponse,
        stream_containers StreamContainersRequest StreamContainersStream StreamContainersResponse,
        stream_container_stats StreamContainerStatsRequest StreamContainerStatsStream StreamContainerStatsResponse,
        stream_pod_sandbox_stats StreamPodSandboxStatsRequest StreamPodSandboxStatsStream StreamPodSandboxStatsResponse,
        stream_pod_sandbox_metrics StreamPodSandboxMetricsRequest StreamPodSandboxMetricsStream StreamPodSandboxMetricsResponse,
    ]
    own: {
        type GetContainerEventsStream = Events;

        async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Result<Response<Events>, Status> {
            let events = BroadcastStream::new(self.0.lock().unwrap().events.subscribe());
            Ok(Response::new(Box::pin(events.map(|event| event.map_err(|e| Status::internal(e.to_string()))))))
        }

        async fn list_pod_sandbox(
            &self,
            _: Request<cri::ListPodSandboxRequest>,
        ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
            Ok(Response::new(cri::ListPodSandboxResponse { items: self.0.lock().unwrap().pods.clone() }))
        }

        async fn list_containers(
            &self,
            request: Request<cri::ListContainersRequest>,
        ) -> Result<Response<cri::ListContainersResponse>, Status> {
            let pod = request.into_inner().filter.unwrap_or_default().pod_sandbox_id;
            let table = self.0.lock().unwrap();
            let containers = table.containers.iter().map(|(c, _)| c.clone()).filter(|c| c.pod_sandbox_id == pod);
            Ok(Response::new(cri::ListContainersResponse { containers: containers.collect() }))
        }

        async fn container_status(
            &self,
            request: Request<cri::ContainerStatusRequest>,
        ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
            let id = request.into_inner().container_id;
            let table = self.0.lock().unwrap();
            let status = table.containers.iter().map(|(_, s)| s).find(|s| s.id == id).cloned();
            let status = Some(status.ok_or_else(|| Status::not_found("gone"))?);
            Ok(Response::new(cri::ContainerStatusResponse { status, ..Default::default() }))
        }

        async fn create_container(
            &self,
            request: Request<cri::CreateContainerRequest>,
        ) -> Result<Response<cri::CreateContainerResponse>, Status> {
            let request = request.into_inner();
            let config = request.config.unwrap();
            let meta = config.metadata.unwrap();
            assert_eq!(config.log_path, format!("{}/{}.log", meta.name, meta.attempt));
            let id = self.add(&request.pod_sandbox_id, &meta.name, meta.attempt, cri::ContainerState::ContainerCreated);
            Ok(Response::new(cri::CreateContainerResponse { container_id: id }))
        }

        async fn start_container(
            &self,
            request: Request<cri::StartContainerRequest>,
        ) -> Result<Response<cri::StartContainerResponse>, Status> {
            let id = request.into_inner().container_id;
            if self.0.lock().unwrap().starts_fail {
                // CRI-CST-03
                self.end(&id, 128);
                return Err(Status::internal("no such file"));
            }
            let mut table = self.0.lock().unwrap();
            let (container, status) = table.containers.iter_mut().find(|(c, _)| c.id == id).unwrap();
            container.state = cri::ContainerState::ContainerRunning.into();
            status.state = container.state;
            Ok(Response::new(cri::StartContainerResponse {}))
        }

        async fn remove_container(
            &self,
            request: Request<cri::RemoveContainerRequest>,
        ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
            let id = request.into_inner().container_id;
            self.0.lock().unwrap().containers.retain(|(c, _)| c.id != id);
            Ok(Response::new(cri::RemoveContainerResponse {}))
        }
    }
}

/// A pod `pod` with this policy, its directory with the saved request of `main`, a server, and the restarter on it.
struct Scene {
    dir: tempfile::TempDir,
    fake: Fake,
}

impl Scene {
    fn new(policy: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let of_pod = pod_dir::of(dir.path(), "u-1");
        pod_dir::create(&of_pod).unwrap();
        let config = Some(cri::ContainerConfig::default());
        let request = cri::CreateContainerRequest { config, ..Default::default() };
        pod_dir::save_request(&of_pod, "main", &request).unwrap();
        let table = Table {
            pods: vec![Fake::pod("pod", "u-1", policy)],
            containers: vec![],
            starts_fail: false,
            events: broadcast::channel(64).0,
        };
        Self { dir, fake: Fake(Arc::new(Mutex::new(table))) }
    }

    /// Serves and restarts until the returned guards are dropped.
    async fn run(&self) -> tokio::task::JoinSet<()> {
        let socket = self.dir.path().join("sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server =
            tonic::transport::Server::builder().add_service(RuntimeServiceServer::new(self.fake.clone()));
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(
            async move { server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap() },
        );
        tasks.spawn(super::run(socket, self.dir.path().to_owned()));
        let listens = || self.fake.0.lock().unwrap().events.receiver_count() > 0;
        while !listens() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tasks
    }
}

use cri::ContainerState::{ContainerExited as Exited, ContainerRunning as Running};

#[tokio::test]
async fn an_ended_container_comes_back_as_the_next_attempt_and_later_each_time() {
    let scene = Scene::new("Always");
    let fake = &scene.fake;
    let first = fake.add("pod", "main", 0, Running);
    let _tasks = scene.run().await;
    fake.end(&first, 0);
    let before = std::time::Instant::now();
    fake.wait_for("main", &[("pod-main-1", Running)]).await;
    assert!(before.elapsed() >= Duration::from_millis(900), "not before its second has passed");
    let before = std::time::Instant::now();
    fake.end("pod-main-1", 7);
    fake.wait_for("main", &[("pod-main-2", Running)]).await;
    assert!(before.elapsed() >= Duration::from_millis(1900), "the second time takes twice as long");
}

#[tokio::test]
async fn what_ended_before_the_daemon_came_up_or_while_events_were_lost_comes_back() {
    let scene = Scene::new("OnFailure");
    let fake = &scene.fake;
    fake.add("pod", "main", 0, Exited);
    fake.end("pod-main-0", 3);
    let _tasks = scene.run().await;
    fake.wait_for("main", &[("pod-main-1", Running)]).await;
    // All streams end; the container ends before there is a new one.
    fake.0.lock().unwrap().events = broadcast::channel(64).0;
    fake.end("pod-main-1", 3);
    fake.wait_for("main", &[("pod-main-2", Running)]).await;
}

#[tokio::test]
async fn a_start_that_fails_is_tried_again_and_old_attempts_do_not_pile_up() {
    let scene = Scene::new("Always");
    let fake = &scene.fake;
    let first = fake.add("pod", "main", 0, Running);
    fake.0.lock().unwrap().starts_fail = true;
    let _tasks = scene.run().await;
    fake.end(&first, 1);
    fake.wait_for("main", &[("pod-main-1", Exited)]).await;
    fake.0.lock().unwrap().starts_fail = false;
    fake.wait_for("main", &[("pod-main-2", Running)]).await;
}

#[tokio::test]
async fn the_directory_of_a_pod_that_somebody_removed_goes_too() {
    let scene = Scene::new("Always");
    let dir = pod_dir::of(scene.dir.path(), "u-1");
    let _tasks = scene.run().await;
    scene.fake.add("pod", "main", 0, Running);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(dir.exists(), "while there is a sandbox");
    let event = {
        let mut table = scene.fake.0.lock().unwrap();
        table.pods.clear();
        table.containers.clear();
        let container_event_type = cri::ContainerEventType::ContainerDeletedEvent.into();
        table.events.send(cri::ContainerEventResponse { container_event_type, ..Default::default() })
    };
    assert!(event.is_ok(), "the restarter listens");
    for _ in 0..60 {
        if !dir.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} is still there", dir.display());
}

#[tokio::test]
async fn what_policy_and_pod_do_not_ask_for_stays_ended() {
    let scene = Scene::new("OnFailure");
    let fake = &scene.fake;
    fake.0.lock().unwrap().pods.push(Fake::pod("stopping", "u-1", "Always"));
    fake.0
        .lock()
        .unwrap()
        .pods
        .push(cri::PodSandbox { annotations: Default::default(), ..Fake::pod("kubelets", "u-1", "") });
    let ended: Vec<_> = [("pod", "main"), ("pod", "init"), ("stopping", "main"), ("kubelets", "main")]
        .map(|(pod, name)| fake.add(pod, name, 0, Running))
        .into();
    let _tasks = scene.run().await;
    // A good end under OnFailure, a container whose request was not kept, a pod that is stopped before the time has
    // come, and a pod that is not ours.
    for (id, exit_code) in ended.iter().zip([0, 9, 9, 9]) {
        fake.end(id, exit_code);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    fake.0.lock().unwrap().pods[1].state = cri::PodSandboxState::SandboxNotready.into();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let table = fake.0.lock().unwrap();
    let left: Vec<_> = table.containers.iter().map(|(c, _)| (c.id.as_str(), c.state)).collect();
    let exited = i32::from(Exited);
    assert_eq!(
        left,
        [
            ("pod-main-0", exited),
            ("pod-init-0", exited),
            ("stopping-main-0", exited),
            ("kubelets-main-0", exited)
        ]
    );
}
