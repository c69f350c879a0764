//! One plugin: its connection, its registration, and its calls, each with an end.
//!
//! ```text
//!  connected ─▶ registered ─▶ configured ─▶ Joining ── Synchronize ──▶ Ready
//!                                              └────── closed, or too late ──▶ Gone
//! ```
//! A plugin that does not answer in time, or whose connection breaks, is gone for good; it may come again.

use crate::error::{Error, Kind, Result};
use crate::link::Link;
use crate::options::Options;
use crate::tell;
use cri_proto::nri::nri_ttrpc::PluginClient;
use cri_proto::nri::{
    ConfigureRequest, Container, ContainerUpdate, CreateContainerRequest, CreateContainerResponse, Empty,
    Event, LinuxResources, PluginInstance, PodSandbox, StopContainerRequest, SynchronizeRequest,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest,
};
use protobuf::{Enum, Message};
use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::process::Child;
use tokio::sync::watch;
use ttrpc::context::{Context, with_duration};

/// The NRI release whose protocol this is.
const NRI_VERSION: &str = "v0.12.3";
/// What a Synchronize message may hold, bytes: ttrpc's limit less room for its own fields.
const SYNC_MAX: u64 = (crate::mux::MESSAGE_MAX - (64 << 10)) as u64;
/// All events there are.
const ALL: u32 = (1 << (Event::LAST as u32 - 1)) - 1;
/// How long a plugin gets to say farewell.
const FAREWELL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Joining,
    Ready,
    Gone,
}

/// What became of a call.
#[derive(Debug)]
pub(crate) enum Outcome<T> {
    Answered(T),
    /// It has not subscribed to this.
    NotAsked,
    /// It was dropped, now or before.
    Gone,
}

impl<T> Outcome<T> {
    pub(crate) fn answer(self) -> Option<T> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::NotAsked | Self::Gone => None,
        }
    }
}

/// See the module.
pub(crate) struct Plugin {
    pub(crate) index: String,
    pub(crate) name: String,
    client: PluginClient,
    link: Link,
    /// Bit (event - 1).
    events: u32,
    /// Events that it hears of by StateChange only: it is older than their calls.
    old_style: AtomicU32,
    state: watch::Sender<State>,
    limit: Duration,
    sync_limit: Duration,
    /// One that we have launched.
    child: Mutex<Option<Child>>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("label", &self.label())
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

fn bit(event: Event) -> u32 {
    1 << (event.value().unsigned_abs().max(1) - 1)
}

impl Plugin {
    /// Tells a registered plugin how it is set up, and learns which events it wants (NRI-12, NRI-13).
    ///
    /// # Errors
    /// Refused, with what the plugin said.
    pub(crate) async fn configure(
        link: Link,
        config: String,
        child: Option<Child>,
        options: &Options,
    ) -> Result<Self> {
        let client = link.client();
        let request = ConfigureRequest {
            config,
            runtime_name: options.runtime_name.clone(),
            runtime_version: options.runtime_version.clone(),
            registration_timeout: milliseconds(options.registration_timeout),
            request_timeout: milliseconds(options.request_timeout),
            NRI_version: NRI_VERSION.into(),
            ..Default::default()
        };
        let label = link.label();
        let refused =
            |why: String| Error::new(Kind::Refused, format!("NRI plugin {label}: Configure: {why}"));
        let answer = client.configure(with_duration(options.request_timeout), &request).await;
        let asked = answer.map_err(|e| refused(said(e)))?.events.cast_unsigned();
        if asked & !ALL != 0 {
            return Err(refused(format!("it subscribes to events {asked:#x}; there are {ALL:#x}")));
        }
        Ok(Self {
            index: link.index(),
            name: link.name(),
            client,
            events: if asked == 0 { ALL } else { asked },
            old_style: AtomicU32::new(0),
            state: watch::Sender::new(State::Joining),
            limit: options.request_timeout,
            sync_limit: options.sync_timeout(),
            child: Mutex::new(child),
            link,
        })
    }

    /// `NN-name`: also its name in conflicts.
    pub(crate) fn label(&self) -> String {
        format!("{}-{}", self.index, self.name)
    }

    pub(crate) fn instance(&self) -> PluginInstance {
        PluginInstance { name: self.name.clone(), index: self.index.clone(), ..Default::default() }
    }

    pub(crate) fn wants(&self, event: Event) -> bool {
        self.events & bit(event) != 0
    }

    pub(crate) async fn closed(&self) {
        self.link.closed().await;
    }

    /// Ends it: closes the connection, kills what we have launched.
    pub(crate) fn drop_out(&self, why: &str) {
        if self.state.send_replace(State::Gone) != State::Gone {
            tracing::warn!(plugin = self.label(), "NRI plugin is dropped: {why}");
        }
        self.link.close();
        // A poisoned lock only means that a thread panicked while it held a process.
        let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Its destructor kills it, and the runtime reaps it.
        child.take();
    }

    /// Tells it that the runtime ends, then ends it (NRI-37).
    pub(crate) async fn shut_down(&self) {
        let _ = self.client.shutdown(with_duration(FAREWELL), &Empty::new()).await;
        self.state.send_replace(State::Gone);
        self.drop_out("the runtime ends");
    }

    /// Brings it up to date; from then on it is asked (NRI-16). Answers the updates it wishes.
    ///
    /// # Errors
    /// Refused; it is gone then.
    pub(crate) async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>> {
        let parts = parts(pods, containers);
        let (last, mut update) = (parts.len() - 1, Vec::new());
        for (index, mut part) in parts.into_iter().enumerate() {
            part.more = index < last;
            match self.client.synchronize(with_duration(self.sync_limit), &part).await {
                Ok(answer) if part.more && (!answer.update.is_empty() || !answer.more) => {
                    return Err(self.failed("Synchronize: it does not handle split messages"));
                }
                Ok(answer) => update = answer.update,
                Err(error) => return Err(self.failed(&format!("Synchronize: {}", said(error)))),
            }
        }
        let ready = self.state.send_if_modified(|state| {
            let joining = *state == State::Joining;
            if joining {
                *state = State::Ready;
            }
            joining
        });
        if ready { Ok(update) } else { Err(self.failed("it has left meanwhile")) }
    }

    fn failed(&self, why: &str) -> Error {
        self.drop_out(why);
        Error::new(Kind::Refused, format!("NRI plugin {}: {why}", self.label()))
    }

    /// Makes one call, once the plugin is synchronized. One that is too late or breaks off is dropped, and the request
    /// goes on without it (NRI-19, NRI-20).
    ///
    /// # Errors
    /// Refused: the plugin answered with an error.
    async fn call<T, F, C>(&self, event: Event, call: F) -> Result<Outcome<T>>
    where
        F: FnOnce(PluginClient, Context) -> C,
        C: Future<Output = ttrpc::Result<T>>,
    {
        if !self.wants(event) {
            return Ok(Outcome::NotAsked);
        }
        let mut state = self.state.subscribe();
        // The sender lives in `self`.
        let state = state.wait_for(|s| *s != State::Joining).await.map_or(State::Gone, |s| *s);
        if state == State::Gone {
            return Ok(Outcome::Gone);
        }
        // ttrpc's own limit is told to the plugin; ours also counts a connection that takes nothing, and comes first.
        let theirs = with_duration(self.limit + FAREWELL);
        let answer = tokio::time::timeout(self.limit, call(self.client.clone(), theirs)).await;
        match answer {
            Ok(Ok(answer)) => Ok(Outcome::Answered(answer)),
            Ok(Err(ttrpc::Error::RpcStatus(status))) if status.code() != ttrpc::Code::DEADLINE_EXCEEDED => {
                let what = format!("NRI plugin {} refused {event:?}: {}", self.label(), status.message());
                Err(Error::new(Kind::Refused, what))
            }
            Ok(Err(error)) => {
                self.drop_out(&format!("{event:?}: {error}"));
                Ok(Outcome::Gone)
            }
            Err(_) => {
                self.drop_out(&format!("{event:?}: no answer within {:?}", self.limit));
                Ok(Outcome::Gone)
            }
        }
    }

    /// An event whose answer says nothing (NRI-15).
    pub(crate) async fn tell(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<Outcome<()>> {
        let told = self.call(event, |client, context| async move {
            if self.old_style.load(Ordering::Relaxed) & bit(event) == 0 {
                match tell::by_its_call(&client, context.clone(), event, pod, container).await {
                    Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::UNIMPLEMENTED => {
                        self.old_style.fetch_or(bit(event), Ordering::Relaxed);
                    }
                    told => return told,
                }
            }
            tell::by_state_change(&client, context, event, pod, container).await
        });
        told.await
    }

    pub(crate) async fn update_pod(&self, request: &UpdatePodSandboxRequest) -> Result<Outcome<()>> {
        let call = |client: PluginClient, context| async move {
            match client.update_pod_sandbox(context, request).await {
                // Nothing that an older plugin could be told instead.
                Err(ttrpc::Error::RpcStatus(s)) if s.code() == ttrpc::Code::UNIMPLEMENTED => Ok(()),
                answer => answer.map(drop),
            }
        };
        self.call(Event::UPDATE_POD_SANDBOX, call).await
    }

    pub(crate) async fn create_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Outcome<CreateContainerResponse>> {
        let request = CreateContainerRequest {
            pod: Some(pod.clone()).into(),
            container: Some(container.clone()).into(),
            ..Default::default()
        };
        let call =
            |client: PluginClient, context| async move { client.create_container(context, &request).await };
        self.call(Event::CREATE_CONTAINER, call).await
    }

    pub(crate) async fn update_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
        resources: &LinuxResources,
    ) -> Result<Outcome<UpdateContainerResponse>> {
        let request = UpdateContainerRequest {
            pod: Some(pod.clone()).into(),
            container: Some(container.clone()).into(),
            linux_resources: Some(resources.clone()).into(),
            ..Default::default()
        };
        let call =
            |client: PluginClient, context| async move { client.update_container(context, &request).await };
        self.call(Event::UPDATE_CONTAINER, call).await
    }

    /// Answers the updates of other containers that it wishes.
    pub(crate) async fn stop_container(
        &self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Outcome<Vec<ContainerUpdate>>> {
        let request = StopContainerRequest {
            pod: Some(pod.clone()).into(),
            container: Some(container.clone()).into(),
            ..Default::default()
        };
        let call = |client: PluginClient, context| async move {
            client.stop_container(context, &request).await.map(|answer| answer.update)
        };
        self.call(Event::STOP_CONTAINER, call).await
    }

    /// # Errors
    /// Rejected: it says no, or does not answer: an outcome that nobody has looked at is none (NRI-26).
    pub(crate) async fn validate(&self, request: &ValidateContainerAdjustmentRequest) -> Result<()> {
        let rejected = |why: &str| {
            Error::new(
                Kind::Rejected,
                format!("NRI validator {} rejects the adjustments: {why}", self.label()),
            )
        };
        let call = |client: PluginClient, context| async move {
            match client.validate_container_adjustment(context, request).await {
                // It has subscribed to everything without having this call.
                Err(ttrpc::Error::RpcStatus(s)) if s.code() == ttrpc::Code::UNIMPLEMENTED => Ok(None),
                answer => answer.map(Some),
            }
        };
        match self.call(Event::VALIDATE_CONTAINER_ADJUSTMENT, call).await {
            Ok(Outcome::Answered(Some(answer))) if answer.reject => Err(rejected(&answer.reason)),
            Ok(Outcome::Answered(_) | Outcome::NotAsked) => Ok(()),
            Ok(Outcome::Gone) => Err(rejected("it did not answer; it is dropped, try again")),
            Err(error) => Err(rejected(&error.to_string())),
        }
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The plugin's own words, where it has said some.
fn said(error: ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// Everything, in messages that ttrpc can carry; at least one.
fn parts(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut parts = vec![SynchronizeRequest::new()];
    let mut size = 0;
    // Key and length of a field take at most 10 bytes.
    let mut room = |parts: &mut Vec<SynchronizeRequest>, more: u64| {
        if size > 0 && size + more + 10 > SYNC_MAX {
            parts.push(SynchronizeRequest::new());
            size = 0;
        }
        size += more + 10;
    };
    for pod in pods {
        room(&mut parts, pod.compute_size());
        parts.last_mut().into_iter().for_each(|part| part.pods.push(pod.clone()));
    }
    for container in containers {
        room(&mut parts, container.compute_size());
        parts.last_mut().into_iter().for_each(|part| part.containers.push(container.clone()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NRI-14.
    #[test]
    fn bits_of_events() {
        assert_eq!((bit(Event::RUN_POD_SANDBOX), bit(Event::VALIDATE_CONTAINER_ADJUSTMENT)), (1, 1 << 13));
        assert_eq!(ALL, (1 << 14) - 1);
    }

    /// NRI-16.
    #[test]
    fn a_large_node_is_told_in_parts() {
        let big =
            |id: &str| Container { id: id.into(), env: vec!["x".repeat(1 << 20)], ..Default::default() };
        let pods = vec![PodSandbox { id: "p".into(), ..Default::default() }];
        let parts = parts(pods, ["a", "b", "c", "d", "e"].map(big).into());
        assert_eq!(parts.len(), 2);
        assert_eq!(parts[0].pods.len(), 1);
        let ids: Vec<_> = parts.iter().flat_map(|p| p.containers.iter().map(|c| c.id.as_str())).collect();
        assert_eq!(ids, ["a", "b", "c", "d", "e"]);
        assert!(parts.iter().all(|p| p.compute_size() <= SYNC_MAX));
        assert_eq!(super::parts(Vec::new(), Vec::new()).len(), 1, "an empty node is told, too");
    }
}
