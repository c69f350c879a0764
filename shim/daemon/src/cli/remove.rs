//! `slipway rm`: a pod with its containers and directories, gently unless told otherwise.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cri_proto::v1 as cri;
use tokio::task::JoinSet;

use super::client::{Client, pick_pod, pod_uid, said};
use super::output::{Output, eprintln_quietly, json, print};
use super::translate::{GRACE_PERIOD, LABEL_POD_UID};
use super::{facts, pod_dir};

/// Seconds, for pods that say nothing: Kubernetes' default.
const DEFAULT_GRACE: i64 = 30;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names, namespace/names or ids
    #[arg(value_name = "POD", required_unless_present = "all")]
    pods: Vec<String>,
    /// All pods
    #[arg(short, long, conflicts_with = "pods")]
    all: bool,
    /// Seconds between stop signal and SIGKILL (default: what the pod says, or 30)
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,
    /// Kill at once
    #[arg(short, long, conflicts_with = "time")]
    force: bool,
}

/// A pod that is gone, for programs.
#[derive(Debug, serde::Serialize)]
struct Removed<'a> {
    namespace: &'a str,
    name: &'a str,
    id: &'a str,
}

pub(crate) async fn run(client: &mut Client, args: &Args, output: Output) -> Result<()> {
    let sandboxes = client.sandboxes().await?;
    let mut failed = 0;
    let mut chosen = Vec::new();
    if args.all {
        chosen.extend(sandboxes.iter());
    }
    for text in &args.pods {
        match pick_pod(&sandboxes, text)
            .and_then(|found| found.with_context(|| format!("there is no pod {text:?}")))
        {
            Ok(found) => chosen.push(found),
            Err(error) => {
                failed += 1;
                eprintln_quietly(&format!("error: {error:#}"));
            }
        }
    }
    // Only a daemon of ours says it; pods of others have no directory to remove.
    let root = facts::root(client).await.ok();
    let mut removed = Vec::new();
    for sandbox in chosen {
        let metadata = sandbox.metadata.as_ref();
        let name = metadata.map_or(sandbox.id.as_str(), |meta| meta.name.as_str());
        let namespace = metadata.map_or("", |meta| meta.namespace.as_str());
        let grace = if args.force { Some(0) } else { args.time.map(i64::from) };
        match remove(client, root.as_deref(), sandbox, grace).await {
            Ok(()) if output == Output::Table => print(&format!("{name}\n"))?,
            Ok(()) => removed.push(Removed { namespace, name, id: &sandbox.id }),
            Err(error) => {
                failed += 1;
                eprintln_quietly(&format!("error: pod {name}: {error:#}"));
            }
        }
    }
    if output == Output::Json {
        json(&removed)?;
    }
    if failed > 0 {
        bail!("{failed} of the pods could not be removed");
    }
    Ok(())
}

/// All sandboxes of a pod and then its directory.
async fn remove(
    client: &mut Client,
    root: Option<&Path>,
    sandbox: &cri::PodSandbox,
    grace: Option<i64>,
) -> Result<()> {
    let said =
        || sandbox.annotations.get(GRACE_PERIOD).and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_GRACE);
    let grace = grace.unwrap_or_else(said);
    match (root, pod_uid(sandbox)) {
        (Some(root), Some(uid)) => {
            pod_dir::forget_requests(&pod_dir::of(root, uid))?;
            remove_sandbox(client, &sandbox.id, grace).await?;
            pod_by_uid(client, root, uid, grace).await
        }
        _ => remove_sandbox(client, &sandbox.id, grace).await,
    }
}

/// Sandboxes with this uid, then the directory of that name below `root`. Nothing there is fine.
pub(crate) async fn pod_by_uid(client: &mut Client, root: &Path, uid: &str, grace: i64) -> Result<()> {
    // First: what ends because it was told to must not be started again meanwhile.
    pod_dir::forget_requests(&pod_dir::of(root, uid))?;
    for sandbox in sandboxes_of(client, uid).await? {
        remove_sandbox(client, &sandbox.id, grace).await?;
    }
    pod_dir::remove(&pod_dir::of(root, uid))
}

pub(crate) async fn sandboxes_of(client: &mut Client, uid: &str) -> Result<Vec<cri::PodSandbox>> {
    let mut all = client.sandboxes().await?;
    all.retain(|sandbox| sandbox.labels.get(LABEL_POD_UID).is_some_and(|own| own == uid));
    Ok(all)
}

/// Containers get `grace` seconds, all at the same time; StopPodSandbox kills what is left.
async fn remove_sandbox(client: &mut Client, id: &str, grace: i64) -> Result<()> {
    if grace > 0 {
        let mut stops = JoinSet::new();
        for container in client.containers(Some(id)).await? {
            if container.state != i32::from(cri::ContainerState::ContainerRunning) {
                continue;
            }
            let mut runtime = client.runtime.clone();
            let request = cri::StopContainerRequest { container_id: container.id, timeout: grace };
            stops.spawn(async move { runtime.stop_container(request).await });
        }
        while let Some(stopped) = stops.join_next().await {
            stopped.context("a stop ended by itself")?.map_err(said("stop a container"))?;
        }
    }
    let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.stop_pod_sandbox(request).await.map_err(said("stop the pod"))?;
    let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.remove_pod_sandbox(request).await.map_err(said("remove the pod"))?;
    Ok(())
}
