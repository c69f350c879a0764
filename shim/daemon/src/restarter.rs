//! Keeps the containers of `slipway run` pods running, by the pod's restart policy, and removes the directories of
//! such pods when another client than `slipway rm` has removed the pod.
//!
//! Runs inside the daemon, but as an ordinary CRI client on its own socket: a container that it makes again comes up
//! the same way as any other. Pods of a kubelet carry no such annotation and are never touched.
//!
//! ```text
//! event, or start of the daemon -> look at the lists -> ended? policy says again? -> due in 1, 2, 4 … 300 s
//!                                                       due: create attempt+1, start it, remove the older ones
//! ```
//!
//! Events are only a hint to look: what is true is in the lists. Nothing is polled while all containers run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cri_proto::v1 as cri;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cli::client::{Client, attempt, container_name, is_ready, pod_uid, said};
use crate::cli::pod_dir;
use crate::cli::translate::{GRACE_PERIOD, RESTART_POLICY, log_path};
use crate::events::OBSERVER;

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(300);
/// A container that ran this long begins again with the first delay.
const LONG_RUN: Duration = Duration::from_secs(600);
/// Pause before the daemon's own socket is tried again.
const RECONNECT: Duration = Duration::from_millis(500);

/// Works until it is dropped. `address`: the daemon's socket; `root`: its root directory, with `pods/` below it.
pub(crate) async fn run(address: PathBuf, root: PathBuf) {
    let mut restarter = Restarter { client: Client::connect_lazily(&address), root, watched: HashMap::new() };
    loop {
        if let Err(error) = restarter.watch().await {
            // Also every end of the daemon's own server: not worth more than a line for those who look.
            tracing::debug!("restarter: {error:#}");
        }
        sleep(RECONNECT).await;
    }
}

/// One container of a pod, over all its attempts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    sandbox: String,
    name: String,
}

#[derive(Debug)]
struct Watched {
    /// The delay before the latest restart; none yet: zero.
    delay: Duration,
    /// What ended, and when its successor is due.
    due: Option<(String, Instant)>,
}

struct Restarter {
    client: Client,
    root: PathBuf,
    watched: HashMap<Key, Watched>,
}

impl Restarter {
    /// Until the event stream ends.
    async fn watch(&mut self) -> Result<()> {
        // First the stream, then the lists: nothing falls in between.
        let mut request = tonic::Request::new(cri::GetEventsRequest {});
        // Not a client to whom events count as delivered (CRI-EVT-07).
        request.metadata_mut().insert(OBSERVER, tonic::metadata::MetadataValue::from_static("1"));
        let answer = self.client.runtime.get_container_events(request).await;
        let mut events = answer.map_err(said("watch container events"))?.into_inner();
        self.look().await?;
        loop {
            let next =
                self.watched.values().filter_map(|watched| watched.due.as_ref()).map(|(_, at)| *at).min();
            tokio::select! {
                event = events.message() => {
                    let event = event.map_err(said("watch container events"))?.context("the event stream ended")?;
                    if concerns_us(&event) {
                        self.look().await?;
                    }
                }
                () = until(next) => {
                    self.restart_due().await?;
                    self.look().await?;
                }
            }
        }
    }

    /// Compares the lists with what is watched: newly ended containers become due, pods that went are forgotten.
    async fn look(&mut self) -> Result<()> {
        let mut pods = self.client.sandboxes().await?;
        if let Err(error) = self.remove_orphans(&pods).await {
            tracing::warn!("cannot clean up after removed pods: {error:#}");
        }
        pods.retain(|pod| is_ready(pod) && pod.annotations.contains_key(RESTART_POLICY));
        self.watched.retain(|key, _| pods.iter().any(|pod| pod.id == key.sandbox));
        for pod in &pods {
            let containers = self.client.containers(Some(&pod.id)).await?;
            for container in newest_attempts(&containers) {
                let key = Key { sandbox: pod.id.clone(), name: container_name(container).to_owned() };
                if let Err(error) = self.consider(pod, key, container).await {
                    tracing::warn!(container = container.id, "not restarted: {error:#}");
                }
            }
        }
        Ok(())
    }

    /// Directories of pods that went without `slipway rm`.
    async fn remove_orphans(&mut self, pods: &[cri::PodSandbox]) -> Result<()> {
        let is_known = |pods: &[cri::PodSandbox], uid: &str| pods.iter().any(|pod| pod_uid(pod) == Some(uid));
        let orphans = pod_dir::orphans(&self.root, |uid| is_known(pods, uid))?;
        if orphans.is_empty() {
            return Ok(());
        }
        let pods = self.client.sandboxes().await?;
        for (uid, _claim) in orphans.iter().filter(|(uid, _)| !is_known(&pods, uid)) {
            let dir = pod_dir::of(&self.root, uid);
            tracing::info!("removing {}: its pod is gone", dir.display());
            pod_dir::remove(&dir)?;
        }
        Ok(())
    }

    async fn consider(&mut self, pod: &cri::PodSandbox, key: Key, container: &cri::Container) -> Result<()> {
        let known = self.watched.get(&key);
        let is_due_already =
            known.and_then(|known| known.due.as_ref()).is_some_and(|(id, _)| *id == container.id);
        if is_due_already || !may_have_ended(container) {
            return Ok(());
        }
        let Some(status) = self.client.container_status(&container.id).await? else { return Ok(()) };
        let policy = pod.annotations.get(RESTART_POLICY).map_or("", String::as_str);
        if !wants_restart(policy, &status) || self.request(pod, &key.name)?.is_none() {
            return Ok(());
        }
        let delay = next_delay(known.map_or(Duration::ZERO, |known| known.delay), ran(&status));
        tracing::info!(
            container = container.id,
            name = key.name,
            exit_code = status.exit_code,
            "container ended; restart in {} s",
            delay.as_secs()
        );
        self.watched
            .insert(key, Watched { delay, due: Some((container.id.clone(), Instant::now() + delay)) });
        Ok(())
    }

    /// The request that `slipway run` left in the pod's directory; None: not to be restarted (an init container).
    fn request(&self, pod: &cri::PodSandbox, name: &str) -> Result<Option<cri::CreateContainerRequest>> {
        match pod_uid(pod) {
            Some(uid) if is_file_name(name) => pod_dir::load_request(&pod_dir::of(&self.root, uid), name),
            _ => Ok(None),
        }
    }

    async fn restart_due(&mut self) -> Result<()> {
        let now = Instant::now();
        let is_due = |watched: &Watched| watched.due.as_ref().is_some_and(|(_, at)| *at <= now);
        let due: Vec<Key> =
            self.watched.iter().filter(|(_, w)| is_due(w)).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some(watched) = self.watched.get_mut(&key) else { continue };
            let delay = watched.delay;
            watched.due = None;
            match self.restart(&key).await {
                Ok(()) => {}
                // Seen again by the next look, which makes it due with a longer delay; that look needs a reason.
                Err(error) => {
                    tracing::warn!(sandbox = key.sandbox, name = key.name, "restart failed: {error:#}");
                    let delay = next_delay(delay, Duration::ZERO);
                    let ended = self.newest(&key).await?.map(|container| container.id);
                    let due = ended.map(|id| (id, Instant::now() + delay));
                    self.watched.insert(key, Watched { delay, due });
                }
            }
        }
        Ok(())
    }

    async fn newest(&mut self, key: &Key) -> Result<Option<cri::Container>> {
        let all = self.client.containers(Some(&key.sandbox)).await?;
        Ok(newest_attempts(&all).into_iter().find(|container| container_name(container) == key.name).cloned())
    }

    /// One more attempt. What came before it is removed once it runs.
    async fn restart(&mut self, key: &Key) -> Result<()> {
        let pods = self.client.sandboxes().await?;
        let Some(pod) = pods.iter().find(|pod| pod.id == key.sandbox && is_ready(pod)) else { return Ok(()) };
        let all = self.client.containers(Some(&key.sandbox)).await?;
        let older: Vec<_> = all.iter().filter(|container| container_name(container) == key.name).collect();
        let Some(last) = older.iter().max_by_key(|container| attempt(container)) else { return Ok(()) };
        let Some(request) = self.request(pod, &key.name)? else { return Ok(()) };
        let number = attempt(last) + 1;
        let request = next_request(request, &key.sandbox, &key.name, number)?;

        let answer =
            self.client.runtime.create_container(request).await.map_err(said("create the next attempt"))?;
        let id = answer.into_inner().container_id;
        // A container that does not start has ended, too, and is seen so by the next look.
        let start = cri::StartContainerRequest { container_id: id };
        let started = self.client.runtime.start_container(start).await;
        for container in older {
            let request = cri::RemoveContainerRequest { container_id: container.id.clone() };
            self.client.runtime.remove_container(request).await.map_err(said("remove an ended container"))?;
        }
        if let Some(uid) = pod_uid(pod) {
            remove_old_logs(&pod_dir::of(&self.root, uid).join("logs"), &key.name, number);
        }
        if let Err(status) = started {
            tracing::warn!(
                sandbox = key.sandbox,
                name = key.name,
                "attempt {number} did not start: {}",
                status.message()
            );
        }
        Ok(())
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Only the end of something in a pod of `slipway run` is worth a look.
fn concerns_us(event: &cri::ContainerEventResponse) -> bool {
    use cri::ContainerEventType::{ContainerDeletedEvent, ContainerStoppedEvent};
    let ends =
        [ContainerStoppedEvent, ContainerDeletedEvent].map(i32::from).contains(&event.container_event_type);
    // Every pod of `slipway run` says its grace period, whatever its policy.
    let ours = |pod: &cri::PodSandboxStatus| pod.annotations.contains_key(GRACE_PERIOD);
    ends && event.pod_sandbox_status.as_ref().is_none_or(ours)
}

fn newest_attempts(containers: &[cri::Container]) -> Vec<&cri::Container> {
    let mut newest: HashMap<&str, &cri::Container> = HashMap::new();
    for container in containers {
        let held = newest.entry(container_name(container)).or_insert(container);
        if attempt(container) > attempt(held) {
            *held = container;
        }
    }
    newest.into_values().collect()
}

/// Ended; or made by an earlier run of this restarter that died before the start (CRI-CST-07).
fn may_have_ended(container: &cri::Container) -> bool {
    let exited = container.state == i32::from(cri::ContainerState::ContainerExited);
    let forgotten =
        container.state == i32::from(cri::ContainerState::ContainerCreated) && attempt(container) > 0;
    exited || forgotten
}

fn wants_restart(policy: &str, status: &cri::ContainerStatus) -> bool {
    match policy {
        "Always" => true,
        "OnFailure" => {
            status.exit_code != 0 || status.state != i32::from(cri::ContainerState::ContainerExited)
        }
        _ => false,
    }
}

fn ran(status: &cri::ContainerStatus) -> Duration {
    let nanoseconds =
        if status.started_at == 0 { 0 } else { status.finished_at.saturating_sub(status.started_at) };
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

fn next_delay(last: Duration, ran: Duration) -> Duration {
    if last.is_zero() || ran >= LONG_RUN { FIRST_DELAY } else { (last * 2).min(LONGEST_DELAY) }
}

fn next_request(
    mut request: cri::CreateContainerRequest,
    sandbox: &str,
    name: &str,
    attempt: u32,
) -> Result<cri::CreateContainerRequest> {
    let config = request.config.as_mut().context("the saved request has no config")?;
    config.metadata = Some(cri::ContainerMetadata { name: name.to_owned(), attempt });
    config.log_path = log_path(name, attempt);
    sandbox.clone_into(&mut request.pod_sandbox_id);
    Ok(request)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".."
}

/// The last attempt's log stays readable beside the running one's; older ones go.
fn remove_old_logs(logs: &Path, name: &str, attempt: u32) {
    let Ok(entries) = std::fs::read_dir(logs.join(name)) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let number =
            file.to_str().and_then(|file| file.strip_suffix(".log")).and_then(|n| n.parse::<u32>().ok());
        if number.is_some_and(|number| number + 1 < attempt)
            && let Err(error) = std::fs::remove_file(entry.path())
        {
            tracing::warn!("remove {}: {error}", entry.path().display());
        }
    }
}

#[cfg(test)]
#[path = "restarter_tests.rs"]
mod socket_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_five_minutes_and_begin_anew() {
        let mut delay = Duration::ZERO;
        let mut seen = Vec::new();
        for _ in 0..11 {
            delay = next_delay(delay, Duration::from_secs(1));
            seen.push(delay.as_secs());
        }
        assert_eq!(seen, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(next_delay(delay, LONG_RUN), FIRST_DELAY);
    }

    fn container(name: &str, attempt: u32, state: cri::ContainerState) -> cri::Container {
        cri::Container {
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt }),
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_newest_attempt_decides() {
        use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
        let all = [
            container("a", 0, ContainerExited),
            container("a", 1, ContainerRunning),
            container("b", 3, ContainerExited),
        ];
        let mut found: Vec<_> = newest_attempts(&all)
            .iter()
            .map(|c| (container_name(c), attempt(c), may_have_ended(c)))
            .collect();
        found.sort_unstable();
        assert_eq!(found, [("a", 1, false), ("b", 3, true)]);
        assert!(!may_have_ended(&container("a", 0, ContainerCreated)), "slipway run is about to start it");
        assert!(may_have_ended(&container("a", 2, ContainerCreated)), "forgotten between create and start");
    }

    #[test]
    fn policies() {
        let exited = cri::ContainerState::ContainerExited.into();
        let status = |exit_code| cri::ContainerStatus { exit_code, state: exited, ..Default::default() };
        assert!(wants_restart("Always", &status(0)));
        assert!(wants_restart("OnFailure", &status(3)));
        assert!(!wants_restart("OnFailure", &status(0)));
        assert!(!wants_restart("Never", &status(1)));
        assert!(!wants_restart("", &status(1)));
        let timed = cri::ContainerStatus {
            started_at: 5_000_000_000,
            finished_at: 7_000_000_000,
            ..Default::default()
        };
        assert_eq!(ran(&timed), Duration::from_secs(2));
        assert_eq!(
            ran(&cri::ContainerStatus { finished_at: 7, ..Default::default() }),
            Duration::ZERO,
            "never started"
        );
    }

    #[test]
    fn the_next_request_has_its_own_attempt_and_log() {
        let config = cri::ContainerConfig { log_path: "main/0.log".into(), ..Default::default() };
        let request = cri::CreateContainerRequest { config: Some(config), ..Default::default() };
        let next = next_request(request, "s", "main", 7).unwrap();
        let config = next.config.unwrap();
        assert_eq!((config.log_path.as_str(), config.metadata.unwrap().attempt), ("main/7.log", 7));
        assert_eq!(next.pod_sandbox_id, "s");
        assert!(next_request(cri::CreateContainerRequest::default(), "s", "main", 1).is_err());
    }

    #[test]
    fn only_the_last_two_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("main")).unwrap();
        for file in ["0.log", "1.log", "2.log", "3.log", "other"] {
            std::fs::write(dir.path().join("main").join(file), "").unwrap();
        }
        remove_old_logs(dir.path(), "main", 3);
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path().join("main")).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["2.log", "3.log", "other"]);
    }
}
