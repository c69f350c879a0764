//! A container whose shim is a server in the test: what is made of its answers.

use super::answer::Endpoint;
use super::container::Container;
use super::pod::{Lost, Pod};
use async_trait::async_trait;
use containerd_shim_protos::api::{
    DeleteRequest, DeleteResponse, Empty, KillRequest, StateRequest, StateResponse, Status, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::shim_async::{Task, create_task};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use ttrpc::r#async::{Server, TtrpcContext};
use ttrpc::{Code, Error, get_status};

fn refused(code: Code) -> Error {
    Error::RpcStatus(get_status(code, "the agent does not answer"))
}

/// Refuses every Wait, Kill and Delete; tells these states one after another, and the last one for ever.
struct Fake {
    refusal: Code,
    states: Mutex<VecDeque<Result<Status, Code>>>,
}

#[async_trait]
impl Task for Fake {
    async fn wait(&self, _: &TtrpcContext, _: WaitRequest) -> ttrpc::Result<WaitResponse> {
        Err(refused(self.refusal))
    }

    async fn kill(&self, _: &TtrpcContext, _: KillRequest) -> ttrpc::Result<Empty> {
        Err(refused(self.refusal))
    }

    async fn delete(&self, _: &TtrpcContext, _: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        Err(refused(self.refusal))
    }

    async fn state(&self, _: &TtrpcContext, _: StateRequest) -> ttrpc::Result<StateResponse> {
        let mut states = self.states.lock().unwrap();
        let next = if states.len() > 1 { states.pop_front() } else { states.front().copied() };
        let status = next.unwrap().map_err(refused)?;
        Ok(StateResponse { status: status.into(), exit_status: 7, ..StateResponse::default() })
    }
}

/// A container of such a shim, with its bundle; the server serves as long as it is held.
async fn container(
    dir: &std::path::Path,
    refusal: Code,
    states: &[Result<Status, Code>],
) -> (Arc<Container>, Arc<Pod>, Server) {
    let address = format!("unix://{}/s", dir.display());
    let fake = Fake { refusal, states: Mutex::new(states.iter().copied().collect()) };
    let service = create_task(Arc::new(fake) as Arc<dyn Task + Send + Sync>);
    let mut server = Server::new().bind(&address).unwrap().register_service(service);
    server.start().await.unwrap();
    let pod = Pod::served_at(dir, Endpoint { address, version: 3 });
    let container = Container::new(Arc::clone(&pod), "c");
    std::fs::create_dir(dir.join("c")).unwrap();
    (container, pod, server)
}

#[tokio::test]
async fn a_wait_that_is_refused_buries_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let running = Ok(Status::RUNNING);
    let states = [running, Err(Code::UNKNOWN), running, Ok(Status::STOPPED)];
    let (container, pod, _server) = container(dir.path(), Code::UNKNOWN, &states).await;
    let ended = container.wait("").await.expect("it tells its end by its state");
    assert!(ended.status == 7 && ended.known, "{ended:?}");
    assert!(dir.path().join("c").exists(), "its bundle is there");
    assert_eq!(pod.lost("c"), None);
}

#[tokio::test]
async fn a_session_that_is_lost_takes_nothing_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (container, pod, server) = container(dir.path(), Code::NOT_FOUND, &[Ok(Status::RUNNING)]).await;
    assert!(container.wait("e").await.is_none());
    assert_eq!(pod.lost("c"), None);
    // Not even when there is no shim any more.
    drop(server);
    std::fs::remove_file(dir.path().join("s")).unwrap();
    pod.end_shim().await.unwrap();
    assert!(container.wait("e").await.is_none());
    assert!(dir.path().join("c").exists(), "its container's bundle is there");
    assert!(container.wait("").await.is_none(), "the container itself");
    assert_eq!(pod.lost("c"), Some(Lost::Gone));
    assert!(!dir.path().join("c").exists(), "that one is buried");
}

#[tokio::test]
async fn a_vague_no_is_not_found_if_its_state_is_not_known_either() {
    let dir = tempfile::tempdir().unwrap();
    let states = [Ok(Status::RUNNING), Err(Code::UNKNOWN)];
    let (container, _pod, _server) = container(dir.path(), Code::UNKNOWN, &states).await;
    assert!(container.kill().await.is_err(), "it runs");
    container.kill().await.unwrap();
    container.delete().await.unwrap();
    assert!(!dir.path().join("c").exists(), "forgotten");
}
