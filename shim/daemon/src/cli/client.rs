//! The way to the daemon: gRPC over its unix socket, and finding pods and containers by what people type.
//!
//! Owns connection, message limits and the words of errors. Never interprets what the daemon answers.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use cri_proto::slipway::local_client::LocalClient;
use cri_proto::v1 as cri;
use cri_proto::v1::image_service_client::ImageServiceClient;
use cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::translate::{LABEL_CONTAINER_NAME, LABEL_POD_UID};

/// CRI-GEN-03: the limit of every CRI client.
const MAX_MESSAGE: usize = 16 << 20;
/// Shortest id prefix that is taken for one.
const SHORTEST_PREFIX: usize = 4;

/// Cheap to clone; reconnects by itself when the daemon was restarted.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) local: LocalClient<Channel>,
}

impl Client {
    /// Connects now, so that a missing daemon is said at once. `address`: a path, or unix:///path.
    pub(crate) async fn connect(address: &Path) -> Result<Self> {
        let path = socket_path(address);
        let channel = endpoint().connect_with_connector(connector(path.clone())).await.map_err(|error| {
            let cause = innermost(&error);
            anyhow!(
                "cannot reach the daemon at {}: {cause}; is `slipway serve` running with this --address?",
                path.display()
            )
        })?;
        Ok(Self::over(channel))
    }

    /// Connects at the first call.
    pub(crate) fn connect_lazily(address: &Path) -> Self {
        Self::over(endpoint().connect_with_connector_lazy(connector(socket_path(address))))
    }

    fn over(channel: Channel) -> Self {
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            local: LocalClient::new(channel),
        }
    }

    /// All sandboxes, the newest first.
    pub(crate) async fn sandboxes(&mut self) -> Result<Vec<cri::PodSandbox>> {
        let answer = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await;
        let mut items = answer.map_err(said("list pods"))?.into_inner().items;
        items.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        Ok(items)
    }

    /// Containers of one sandbox, or of all; the oldest first.
    pub(crate) async fn containers(&mut self, sandbox: Option<&str>) -> Result<Vec<cri::Container>> {
        let filter =
            sandbox.map(|id| cri::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() });
        let answer = self.runtime.list_containers(cri::ListContainersRequest { filter }).await;
        let mut containers = answer.map_err(said("list containers"))?.into_inner().containers;
        containers.sort_by_key(|container| container.created_at);
        Ok(containers)
    }

    /// None: it does not exist any more.
    pub(crate) async fn container_status(&mut self, id: &str) -> Result<Option<cri::ContainerStatus>> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.runtime.container_status(request).await {
            Ok(answer) => Ok(answer.into_inner().status),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(said("read the container's status")(status)),
        }
    }

    /// The containers that `text` (a pod, or a container's id or name) and `name` mean, the oldest first.
    pub(crate) async fn find_containers(
        &mut self,
        text: &str,
        name: Option<&str>,
    ) -> Result<Vec<cri::Container>> {
        let sandboxes = self.sandboxes().await?;
        if let Some(sandbox) = pick_pod(&sandboxes, text)? {
            let all = self.containers(Some(&sandbox.id)).await?;
            let found: Vec<_> =
                all.iter().filter(|c| name.is_none_or(|n| container_name(c) == n)).cloned().collect();
            if found.is_empty() {
                let names: Vec<_> = all.iter().map(container_name).collect();
                match name {
                    Some(name) => bail!("pod {text} has no container {name:?}; it has: {}", names.join(", ")),
                    None => bail!("pod {text} has no containers"),
                }
            }
            return Ok(found);
        }
        let all = self.containers(None).await?;
        let by_id = matching_ids(all.iter().map(|c| c.id.as_str()), text);
        let found: Vec<_> =
            all.iter().filter(|c| by_id.contains(&c.id.as_str()) || container_name(c) == text).collect();
        match found.as_slice() {
            [] => {
                bail!("there is no pod or container {text:?}; `slipway pods` and `slipway ps -a` list them")
            }
            [one] => Ok(vec![(*one).clone()]),
            several
                if several
                    .iter()
                    .all(|c| c.pod_sandbox_id == several[0].pod_sandbox_id && container_name(c) == text) =>
            {
                Ok(several.iter().map(|c| (*c).clone()).collect())
            }
            several => bail!("{text:?} means {} containers: say POD -c CONTAINER", several.len()),
        }
    }
}

/// The authority is fixed: servers built on h2 refuse a socket path there (CRI-GEN-02).
fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

type Dialed = std::pin::Pin<Box<dyn Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send>>;

fn connector(
    path: PathBuf,
) -> impl tower::Service<
    tonic::transport::Uri,
    Response = TokioIo<UnixStream>,
    Future = Dialed,
    Error = std::io::Error,
> + Send
+ 'static {
    tower::service_fn(move |_: tonic::transport::Uri| -> Dialed {
        let path = path.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    })
}

fn socket_path(address: &Path) -> PathBuf {
    let stripped = address.to_str().and_then(|text| text.strip_prefix("unix://"));
    stripped.map_or_else(|| address.to_owned(), PathBuf::from)
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Makes a sentence of a failed call: what we wanted, what the daemon said.
pub(crate) fn said(step: &str) -> impl FnOnce(Status) -> anyhow::Error {
    let step = step.to_owned();
    // Only a status that this side made has a cause; one with the same code may come from the daemon.
    move |status| {
        if std::error::Error::source(&status).is_some() {
            anyhow!("cannot {step}: the daemon went away ({})", status.message())
        } else {
            anyhow!("cannot {step}: {} ({:?})", status.message(), status.code())
        }
    }
}

/// The pod that `text` names: a name, namespace/name, an id or the unique beginning of one. Of several pods with one
/// name the newest ready one, else the newest. `sandboxes`: newest first.
pub(crate) fn pick_pod<'a>(
    sandboxes: &'a [cri::PodSandbox],
    text: &str,
) -> Result<Option<&'a cri::PodSandbox>> {
    let named = |sandbox: &&cri::PodSandbox| {
        let Some(meta) = &sandbox.metadata else { return false };
        match text.split_once('/') {
            Some((namespace, name)) => meta.namespace == namespace && meta.name == name,
            None => meta.name == text,
        }
    };
    let by_name: Vec<_> = sandboxes.iter().filter(named).collect();
    let namespace = |sandbox: &cri::PodSandbox| sandbox.metadata.as_ref().map(|meta| meta.namespace.clone());
    if by_name.iter().any(|sandbox| namespace(sandbox) != namespace(by_name[0])) {
        bail!("pods named {text:?} are in several namespaces: say NAMESPACE/{text}");
    }
    if let Some(newest) = by_name.iter().find(|sandbox| is_ready(sandbox)).or(by_name.first()) {
        return Ok(Some(newest));
    }
    match matching_ids(sandboxes.iter().map(|sandbox| sandbox.id.as_str()), text).as_slice() {
        [] => Ok(None),
        [id] => Ok(sandboxes.iter().find(|sandbox| sandbox.id == *id)),
        several => bail!("{text:?} is the beginning of {} pod ids: write more of it", several.len()),
    }
}

fn matching_ids<'a>(ids: impl Iterator<Item = &'a str>, text: &str) -> Vec<&'a str> {
    ids.filter(|id| *id == text || (text.len() >= SHORTEST_PREFIX && id.starts_with(text))).collect()
}

pub(crate) fn is_ready(sandbox: &cri::PodSandbox) -> bool {
    sandbox.state == i32::from(cri::PodSandboxState::SandboxReady)
}

/// The manifest's name of a container.
pub(crate) fn container_name(container: &cri::Container) -> &str {
    let label = container.labels.get(LABEL_CONTAINER_NAME).map(String::as_str);
    label.or(container.metadata.as_ref().map(|meta| meta.name.as_str())).unwrap_or_default()
}

pub(crate) fn attempt(container: &cri::Container) -> u32 {
    container.metadata.as_ref().map_or(0, |meta| meta.attempt)
}

/// The pod's uid, if it is safe as the name of a directory.
pub(crate) fn pod_uid(sandbox: &cri::PodSandbox) -> Option<&str> {
    let label = sandbox.labels.get(LABEL_POD_UID).map(String::as_str);
    let uid = label.or(sandbox.metadata.as_ref().map(|meta| meta.uid.as_str()))?;
    let plain =
        !uid.is_empty() && uid.len() <= 64 && uid.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    plain.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::{matching_ids, pick_pod, pod_uid, socket_path};
    use cri_proto::v1 as cri;
    use std::path::Path;

    fn sandbox(id: &str, namespace: &str, name: &str, ready: bool) -> cri::PodSandbox {
        cri::PodSandbox {
            id: id.into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                namespace: namespace.into(),
                uid: "u-1".into(),
                attempt: 0,
            }),
            state: i32::from(!ready),
            ..Default::default()
        }
    }

    #[test]
    fn pods_are_found_by_name_namespace_and_prefix() {
        let all = [
            sandbox("aaaa1111", "default", "web", false),
            sandbox("aaaa2222", "default", "web", true),
            sandbox("bbbb3333", "default", "db", true),
            sandbox("bbbb4444", "other", "db", true),
        ];
        let id = |text: &str| pick_pod(&all, text).map(|found| found.map(|sandbox| sandbox.id.as_str()));
        assert_eq!(id("web").unwrap(), Some("aaaa2222"), "the ready one");
        assert_eq!(id("other/db").unwrap(), Some("bbbb4444"));
        assert!(id("db").unwrap_err().to_string().contains("NAMESPACE/db"));
        assert_eq!(id("aaaa1").unwrap(), Some("aaaa1111"));
        assert!(id("aaaa").unwrap_err().to_string().contains("2 pod ids"));
        assert_eq!(id("zzz").unwrap(), None);
        assert_eq!(id("").unwrap(), None);
        assert!(matching_ids(["abc1"].into_iter(), "abc").is_empty(), "too short to be a prefix");
    }

    #[test]
    fn a_uid_that_climbs_is_no_directory() {
        let mut pod = sandbox("a", "n", "p", true);
        assert_eq!(pod_uid(&pod), Some("u-1"));
        for uid in ["", "../x", "a/b", ".", ".."] {
            pod.labels.insert(super::LABEL_POD_UID.into(), uid.into());
            assert_eq!(pod_uid(&pod), None, "{uid}");
        }
    }

    #[test]
    fn an_address_may_be_a_path_or_a_url() {
        assert_eq!(socket_path(Path::new("/run/a.sock")), Path::new("/run/a.sock"));
        assert_eq!(socket_path(Path::new("unix:///run/a.sock")), Path::new("/run/a.sock"));
    }
}
