//! All containers of a pod at one moment.

use super::{COUNT, PATIENCE, clean, counting, counts_on, half_made, in_a_row, refused, run, with_criu};
use anyhow::{Context as _, Result, bail, ensure};
use cri_proto::v1;
use e2e::Node;
use e2e::requests::{pod, security, shell};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;
use tonic::{Code, Request, Status};

fn of_pod(pod: &str, output: &Path, ids: &[&str]) -> v1::CheckpointPodRequest {
    v1::CheckpointPodRequest {
        pod_sandbox_id: pod.into(),
        output_path: output.display().to_string(),
        container_ids: ids.iter().map(|id| (*id).into()).collect(),
        ..Default::default()
    }
}

async fn checkpoint_pod(node: &Node, request: v1::CheckpointPodRequest, timed: bool) -> Result<(), Status> {
    let mut request = Request::new(request);
    if timed {
        request.set_timeout(PATIENCE);
    }
    let mut runtime = node.runtime().await.map_err(|e| Status::internal(e.to_string()))?;
    runtime.checkpoint_pod(request).await.map(drop)
}

async fn restore_pod(
    node: &Node,
    request: v1::RestorePodRequest,
    timed: bool,
) -> Result<v1::RestorePodResponse, Status> {
    let mut request = Request::new(request);
    if timed {
        request.set_timeout(PATIENCE);
    }
    let mut runtime = node.runtime().await.map_err(|e| Status::internal(e.to_string()))?;
    Ok(runtime.restore_pod(request).await?.into_inner())
}

/// Names and checksums of all that is in a directory.
async fn contents(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let sum = run(dir, "sha256sum", &[&name]).await?;
        found.insert(name, sum);
    }
    Ok(found)
}

/// CRI-CHKP-01 to CRI-CHKP-08.
#[test]
fn a_pod_goes_on_where_it_was_frozen() {
    with_criu("", |node| Box::pin(whole_pod(node)));
}

async fn whole_pod(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "pod");
    let sandbox = node.run_pod(&config).await?;
    let shapes = ["one", "two"].map(|name| shell(name, &image, COUNT));
    let one = node.run(&sandbox, &config, shapes[0].clone()).await?;
    let two = node.run(&sandbox, &config, shapes[1].clone()).await?;
    let idle = node.create(&sandbox, &config, shell("idle", &image, "exec sleep 1000")).await?;
    counting(node, &one).await?;
    counting(node, &two).await?;
    // In the pod's IPC namespace, as both of them see it.
    for object in [&["-M", "4096"][..], &["-Q"], &["-S", "2"]] {
        in_ipc(node, &one, &[&["ipcmk"], object].concat()).await?;
    }
    let output = node.path("output");
    std::fs::create_dir(&output)?;
    let both = of_pod(&sandbox, &output, &[&two, &one]);
    for (code, word, asked, timed) in [
        (Code::InvalidArgument, "no deadline", both.clone(), false),
        (Code::NotFound, "nobody", of_pod("nobody", &output, &[&one, &two]), true),
        (Code::InvalidArgument, "empty", of_pod(&sandbox, &output, &[]), true),
        (Code::InvalidArgument, "twice", of_pod(&sandbox, &output, &[&one, &two, &one]), true),
        (Code::InvalidArgument, "two", of_pod(&sandbox, &output, &[&one]), true),
        (Code::FailedPrecondition, "does not run", of_pod(&sandbox, &output, &[&one, &two, &idle]), true),
        (Code::InvalidArgument, "not absolute", of_pod(&sandbox, Path::new("output"), &[&one, &two]), true),
        (Code::InvalidArgument, "must exist", of_pod(&sandbox, &output.join("x"), &[&one, &two]), true),
        (Code::InvalidArgument, "not empty", of_pod(&sandbox, &node.path(""), &[&one, &two]), true),
        (
            Code::InvalidArgument,
            "options",
            v1::CheckpointPodRequest { options: [("x".to_owned(), "y".to_owned())].into(), ..both.clone() },
            true,
        ),
    ] {
        refused(checkpoint_pod(node, asked, timed).await, code, word)?;
        ensure!(std::fs::read_dir(&output)?.next().is_none(), "{word}: something is left");
    }
    // One of the two cannot be packed: none is kept, and both go on.
    node.sh(&one, "touch /tmp/.wh.x").await?;
    refused(checkpoint_pod(node, both.clone(), true).await, Code::InvalidArgument, ".wh.")?;
    ensure!(std::fs::read_dir(&output)?.next().is_none(), "something is left");
    node.sh(&one, "rm /tmp/.wh.x").await?;
    for id in [&one, &two] {
        counts_on(node, id).await?;
    }
    let begun = SystemTime::now();
    checkpoint_pod(node, both, true).await?;
    let during = [begun, SystemTime::now()].map(second_of_day);
    clean(node, &output)?;
    for id in [&one, &two] {
        counts_on(node, id).await?;
        in_a_row(node, id).await?;
    }
    at_one_moment(node, [&one, &two], during).await?;
    let taken = contents(&output).await?;
    ensure!(taken.len() == 3, "{taken:?}");

    let again = pod(node, "again");
    let request = v1::RestorePodRequest {
        checkpoint_path: output.display().to_string(),
        config: Some(again.clone()),
        container_configs: shapes.to_vec(),
        ..Default::default()
    };
    for name in ["one", "two"] {
        std::fs::create_dir_all(Path::new(&again.log_directory).join(name))?;
    }
    wrong_restores(node, &request).await?;
    let restored = restore_pod(node, request.clone(), true).await?;
    let names: Vec<_> = restored.restored_containers.iter().map(|c| c.name.as_str()).collect();
    ensure!(names == ["one", "two"], "{restored:?}");
    for container in &restored.restored_containers {
        let status = node.container_status(&container.container_id).await?;
        ensure!(status.state() == v1::ContainerState::ContainerCreated, "{status:?}");
        ensure!(status.metadata.is_some_and(|m| m.name == container.name));
    }
    ensure!(contents(&output).await? == taken, "the checkpoint is untouched");
    for container in &restored.restored_containers {
        node.start_container(&container.container_id).await?;
        counts_on(node, &container.container_id).await?;
        ensure!(in_a_row(node, &container.container_id).await? > 10);
    }
    let objects = in_ipc(node, &restored.restored_containers[1].container_id, &["ipcs"]).await?;
    let found = objects.lines().filter(|line| line.starts_with("0x")).count();
    ensure!(found == 3, "the pod's System V objects, once: {objects}");
    refused(restore_pod(node, request, true).await, Code::AlreadyExists, "again")?;
    for container in &restored.restored_containers {
        counts_on(node, &container.container_id).await.context("after another try under its name")?;
    }
    node.remove_pod(&restored.pod_sandbox_id).await?;
    clean(node, &output)
}

/// Runs a program of the host's in the IPC namespace of a container.
async fn in_ipc(node: &Node, id: &str, command: &[&str]) -> Result<String> {
    let info: serde_json::Value = serde_json::from_str(&node.crictl(&["inspect", id]).await?)?;
    let namespace = format!("--ipc=/proc/{}/ns/ipc", info["info"]["pid"]);
    run(&node.path(""), "nsenter", &[&[namespace.as_str()], command].concat()).await
}

/// CRI-CHKP-06, CRI-CHKP-07, CRI-CHKP-08.
async fn wrong_restores(node: &Node, good: &v1::RestorePodRequest) -> Result<()> {
    let before =
        node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner();
    let configs = &good.container_configs;
    let with = |configs: Vec<v1::ContainerConfig>| v1::RestorePodRequest {
        container_configs: configs,
        ..good.clone()
    };
    let changed = |change: fn(&mut v1::ContainerConfig)| {
        let mut configs = configs.clone();
        change(&mut configs[1]);
        with(configs)
    };
    for (word, asked, timed) in [
        ("no deadline", good.clone(), false),
        ("container_configs", with(vec![]), true),
        ("container_configs", with(configs[..1].to_vec()), true),
        ("same metadata.name", with(vec![configs[0].clone(), configs[0].clone()]), true),
        ("container_configs", changed(|c| c.metadata = None), true),
        ("command", changed(|c| c.command.push("more".into())), true),
        ("envs", changed(|c| c.envs = vec![v1::KeyValue { key: "A".into(), value: "1".into() }]), true),
        ("user", changed(|c| security(c).run_as_user = Some(v1::Int64Value { value: 7 })), true),
        (
            "image",
            changed(|c| c.image = Some(v1::ImageSpec { image: "other".into(), ..Default::default() })),
            true,
        ),
        ("runtime_handler", v1::RestorePodRequest { runtime_handler: "nobody".into(), ..good.clone() }, true),
        ("config is missing", v1::RestorePodRequest { config: None, ..good.clone() }, true),
        ("pod.json", v1::RestorePodRequest { checkpoint_path: "/".into(), ..good.clone() }, true),
        (
            "options",
            v1::RestorePodRequest { options: [("x".to_owned(), "y".to_owned())].into(), ..good.clone() },
            true,
        ),
    ] {
        refused(restore_pod(node, asked, timed).await, Code::InvalidArgument, word)?;
        let after =
            node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner();
        ensure!(after.items.len() == before.items.len(), "{word}: a pod is left: {after:?}");
        ensure!(half_made(node, &node.path("")).is_empty(), "{word}: {:?}", half_made(node, &node.path("")));
    }
    Ok(())
}

/// CRI-CHKP-04: the pauses of both, as their logs' times tell them, are the same one: the longest between two lines while
/// the call was under way.
async fn at_one_moment(node: &Node, ids: [&str; 2], [begun, ended]: [f64; 2]) -> Result<()> {
    let mut pauses = Vec::new();
    for id in ids {
        let text = std::fs::read_to_string(node.container_status(id).await?.log_path)?;
        let times: Vec<f64> = text.lines().filter_map(seconds).collect();
        let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0], pair[1]));
        let pause =
            gaps.filter(|(_, from, to)| *to > begun && *from < ended).max_by(|a, b| a.0.total_cmp(&b.0));
        pauses.push(pause.with_context(|| format!("no line in that time: {text}"))?);
    }
    let [(length, begin, end), (other_length, other_begin, other_end)] = pauses[..] else {
        bail!("{pauses:?}")
    };
    let common = end.min(other_end) - begin.max(other_begin);
    ensure!(common > 0.5 * length.max(other_length), "not one moment: {pauses:?}");
    Ok(())
}

fn second_of_day(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() % 86400.0
}

/// Seconds of the day of a line `2026-01-01T10:11:12.123456789Z …`.
fn seconds(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once(['Z', '+'])?.0;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}
