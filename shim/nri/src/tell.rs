//! Events whose answer says nothing, by their own call or, for plugins older than those calls, by StateChange.

use cri_proto::nri::nri_ttrpc::PluginClient;
use cri_proto::nri::{
    Container, Event, PodSandbox, PostCreateContainerRequest, PostStartContainerRequest,
    PostUpdateContainerRequest, PostUpdatePodSandboxRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StateChangeEvent, StopPodSandboxRequest,
};
use ttrpc::context::Context;

macro_rules! of_pod {
    ($client:ident, $method:ident, $request:ident, $context:ident, $pod:ident) => {{
        let request = $request { pod: Some($pod.clone()).into(), ..Default::default() };
        $client.$method($context, &request).await.map(drop)
    }};
}

macro_rules! of_container {
    ($client:ident, $method:ident, $request:ident, $context:ident, $pod:ident, $container:ident) => {{
        let request = $request {
            pod: Some($pod.clone()).into(),
            container: $container.cloned().into(),
            ..Default::default()
        };
        $client.$method($context, &request).await.map(drop)
    }};
}

pub(crate) async fn by_its_call(
    client: &PluginClient,
    context: Context,
    event: Event,
    pod: &PodSandbox,
    container: Option<&Container>,
) -> ttrpc::Result<()> {
    match event {
        Event::RUN_POD_SANDBOX => of_pod!(client, run_pod_sandbox, RunPodSandboxRequest, context, pod),
        Event::STOP_POD_SANDBOX => of_pod!(client, stop_pod_sandbox, StopPodSandboxRequest, context, pod),
        Event::REMOVE_POD_SANDBOX => {
            of_pod!(client, remove_pod_sandbox, RemovePodSandboxRequest, context, pod)
        }
        Event::POST_UPDATE_POD_SANDBOX => {
            of_pod!(client, post_update_pod_sandbox, PostUpdatePodSandboxRequest, context, pod)
        }
        Event::POST_CREATE_CONTAINER => {
            of_container!(client, post_create_container, PostCreateContainerRequest, context, pod, container)
        }
        Event::START_CONTAINER => {
            of_container!(client, start_container, StartContainerRequest, context, pod, container)
        }
        Event::POST_START_CONTAINER => {
            of_container!(client, post_start_container, PostStartContainerRequest, context, pod, container)
        }
        Event::POST_UPDATE_CONTAINER => {
            of_container!(client, post_update_container, PostUpdateContainerRequest, context, pod, container)
        }
        Event::REMOVE_CONTAINER => {
            of_container!(client, remove_container, RemoveContainerRequest, context, pod, container)
        }
        // Those with an answer have functions of their own.
        _ => by_state_change(client, context, event, pod, container).await,
    }
}

pub(crate) async fn by_state_change(
    client: &PluginClient,
    context: Context,
    event: Event,
    pod: &PodSandbox,
    container: Option<&Container>,
) -> ttrpc::Result<()> {
    let change = StateChangeEvent {
        event: event.into(),
        pod: Some(pod.clone()).into(),
        container: container.cloned().into(),
        ..Default::default()
    };
    client.state_change(context, &change).await.map(drop)
}
