//! What the runtime tells of itself, its pods and its containers: version, status, lists, filters, verbose answers.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{pod, pod_modes, security, shell};
use e2e::{Node, Setup, on_a_node};
use serde_json::Value;
use std::collections::HashMap;
use tonic::Code;

/// CRI-GEN-01, CRI-GEN-02, CRI-GEN-04, CRI-VER-02, CRI-STA-02, CRI-STA-05, CRI-STA-06, CRI-STA-07, CRI-STA-08, CRI-STA-10, CRI-STA-11,
/// CRI-STA-12, CRI-RCF-02, CRI-RCF-03, CRI-URC-01, CRI-IMG-28.
#[test]
fn the_runtime_tells_of_itself() {
    on_a_node(Setup::default(), |node| Box::pin(of_itself(node)));
}

async fn of_itself(node: &mut Node) -> Result<()> {
    // The image endpoint's probe, on a connection of its own.
    let disks = node.images().await?.image_fs_info(v1::ImageFsInfoRequest {}).await?.into_inner();
    let disk = disks.image_filesystems.first().context("a file system")?;
    let at = &disk.fs_id.as_ref().context("its mount point")?.mountpoint;
    nix::sys::statvfs::statvfs(at.as_str()).with_context(|| format!("statvfs {at}"))?;
    ensure!(disk.timestamp > 0 && disk.used_bytes.is_some() && disk.inodes_used.is_some(), "{disk:?}");

    let mut runtime = node.runtime().await?;
    let version = runtime.version(v1::VersionRequest::default()).await?.into_inner();
    let numbers = version.runtime_version.split('.').filter(|n| n.parse::<u32>().is_ok()).count();
    ensure!(numbers == 3, "kubelet wants a semantic version: {version:?}");

    let status = |verbose| {
        let mut runtime = runtime.clone();
        async move { Ok::<_, tonic::Status>(runtime.status(v1::StatusRequest { verbose }).await?.into_inner()) }
    };
    let brief = status(false).await?;
    ensure!(brief.info.is_empty(), "{:?}", brief.info);
    let conditions = brief.status.clone().context("conditions")?.conditions;
    for needed in ["RuntimeReady", "NetworkReady"] {
        ensure!(conditions.iter().filter(|c| c.r#type == needed && c.status).count() == 1, "{conditions:?}");
    }
    let handlers: Vec<_> = brief.runtime_handlers.iter().map(|h| h.name.clone()).collect();
    ensure!(handlers.is_sorted() && handlers.iter().filter(|n| n.is_empty()).count() == 1, "{handlers:?}");
    ensure!(brief.runtime_handlers.iter().all(|h| h.features.is_some_and(|f| f.recursive_read_only_mounts)));
    let features = brief.features.context("features")?;
    ensure!(features.supplemental_groups_policy && features.mount_options, "{features:?}");
    let verbose = status(true).await?;
    ensure!(verbose.runtime_handlers == brief.runtime_handlers, "stable between calls");
    for (key, value) in &verbose.info {
        serde_json::from_str::<Value>(value).with_context(|| format!("{key} is no JSON: {value}"))?;
    }
    let config: Value = serde_json::from_str(verbose.info.get("config").context("config")?)?;
    ensure!(config["stateDir"] == node.path("state").display().to_string(), "{config}");

    let driver = runtime.runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
    let driver = driver.linux.context("linux")?.cgroup_driver();
    let slice = node.cgroup_root().ends_with(".slice");
    ensure!((driver == v1::CgroupDriver::Systemd) == slice, "{driver:?} {}", node.cgroup_root());
    let network = v1::NetworkConfig { pod_cidr: "10.1.0.0/24,fd00::/64".into() };
    let network = v1::RuntimeConfig { network_config: Some(network) };
    runtime.update_runtime_config(v1::UpdateRuntimeConfigRequest { runtime_config: Some(network) }).await?;
    Ok(())
}

/// CRI-GEN-09, CRI-GEN-10, CRI-RUN-05, CRI-RUN-14, CRI-NET-13, CRI-PST-01, CRI-PST-02, CRI-PST-03, CRI-PST-05,
/// CRI-PLS-01, CRI-PLS-02, CRI-LSTR-05, CRI-CSTAT-17, CRI-KUB-08.
#[test]
fn pods_are_told_as_they_were_asked_for() {
    on_a_node(Setup::default(), |node| Box::pin(of_pods(node)));
}

fn odd_words() -> HashMap<String, String> {
    HashMap::from([
        ("io.kubernetes.pod.uid".into(), "uid-odd".into()),
        ("odd.example/Ключ-ü".into(), "line\nbreak \"quoted\" \\ \u{1f980}".into()),
        ("empty".into(), String::new()),
        ("long".into(), "x".repeat(200_000)),
    ])
}

async fn of_pods(node: &mut Node) -> Result<()> {
    let mut first = pod(node, "odd");
    first.labels.extend(odd_words());
    first.annotations = odd_words();
    let mut second = pod(node, "odd");
    second.metadata.get_or_insert_default().attempt = 1;
    pod_modes(&mut second).network = v1::NamespaceMode::Node.into();
    let ids = [node.run_pod(&first).await?, node.run_pod_under(&second, "slipway").await?];

    let mut created = Vec::new();
    for (id, config, handler) in [(&ids[0], &first, ""), (&ids[1], &second, "slipway")] {
        ensure!(id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{id}");
        let status = node.pod_status(id).await?;
        ensure!(status.id == *id && status.metadata == config.metadata, "{:?}", status.metadata);
        ensure!(status.state() == v1::PodSandboxState::SandboxReady);
        ensure!(
            status.labels == config.labels && status.annotations == config.annotations,
            "labels are lost"
        );
        let asked =
            config.linux.as_ref().and_then(|l| l.security_context.as_ref()?.namespace_options.clone());
        ensure!(status.linux.and_then(|l| l.namespaces?.options) == asked, "the modes of {id}");
        ensure!(status.runtime_handler == handler, "{}", status.runtime_handler);
        let ip = status.network.map(|n| n.ip).unwrap_or_default();
        ensure!(ip.is_empty() == (id == &ids[1]), "the host's network has no address of the pod: {ip}");
        ensure!(ip.is_empty() || ip.parse::<std::net::IpAddr>().is_ok(), "{ip}");
        created.push(status.created_at);
        let item = listed(node, Some(v1::PodSandboxFilter { id: id.clone(), ..Default::default() })).await?;
        let item = item.first().context("the list")?;
        ensure!(item.metadata == config.metadata && item.runtime_handler == handler, "{item:?}");
        ensure!(item.labels == config.labels && item.annotations == config.annotations);
        ensure!(item.created_at == status.created_at && item.state() == v1::PodSandboxState::SandboxReady);
    }
    ensure!(created[0] > 0 && created[0] != created[1], "two attempts of a pod are told apart: {created:?}");

    node.stop_pod(&ids[1]).await?;
    let ready = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    let label = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let both = [("io.kubernetes.pod.name", "odd"), ("io.kubernetes.pod.uid", "uid-odd")];
    for (filter, expected) in [
        (v1::PodSandboxFilter::default(), 2),
        (v1::PodSandboxFilter { label_selector: label(&both[..1]), ..Default::default() }, 2),
        (v1::PodSandboxFilter { label_selector: label(&both), ..Default::default() }, 1),
        (
            v1::PodSandboxFilter {
                label_selector: label(&both),
                state: ready(v1::PodSandboxState::SandboxNotready),
                ..Default::default()
            },
            0,
        ),
        (
            v1::PodSandboxFilter { state: ready(v1::PodSandboxState::SandboxNotready), ..Default::default() },
            1,
        ),
        (v1::PodSandboxFilter { id: "no-such-pod".into(), ..Default::default() }, 0),
    ] {
        let found = listed(node, Some(filter.clone())).await?;
        ensure!(found.len() == expected, "{filter:?}: {} of {expected}", found.len());
    }
    ensure!(listed(node, None).await?.len() == 2);
    Ok(())
}

/// The list, once the stream has told the same.
async fn listed(node: &Node, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>> {
    let mut runtime = node.runtime().await?;
    let request = v1::ListPodSandboxRequest { filter: filter.clone() };
    let items = runtime.list_pod_sandbox(request).await?.into_inner().items;
    let mut stream =
        runtime.stream_pod_sandboxes(v1::StreamPodSandboxesRequest { filter }).await?.into_inner();
    let mut streamed = Vec::new();
    while let Some(message) = stream.message().await? {
        ensure!(!message.pod_sandboxes.is_empty(), "an empty message");
        streamed.extend(message.pod_sandboxes);
    }
    ensure!(streamed == items, "the stream differs: {streamed:?}");
    Ok(items)
}

/// CRI-GEN-08, CRI-GEN-09, CRI-GEN-10, CRI-LIST-01, CRI-LSTR-05, CRI-CC-05, CRI-CSTAT-03, CRI-CSTAT-11, CRI-CSTAT-16, CRI-USR-10,
/// CRI-SS-01, CRI-SS-02, CRI-SS-03, CRI-SS-10, CRI-SS-12.
#[test]
fn containers_are_told_as_they_were_asked_for() {
    on_a_node(Setup::default(), |node| Box::pin(of_containers(node)));
}

async fn of_containers(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "told");
    let sandbox = node.run_pod(&config).await?;
    let mut one = shell("one", &image, "id; head -c 300000 /dev/zero > /tmp/blob; echo up; exec sleep 1000");
    one.labels = odd_words();
    one.annotations = odd_words();
    let security = security(&mut one);
    security.run_as_user = Some(v1::Int64Value { value: 1234 });
    security.run_as_group = Some(v1::Int64Value { value: 77 });
    security.supplemental_groups = vec![88, 99];
    let asked = one.clone();
    let id = node.run(&sandbox, &config, one).await?;
    let other = node.create(&sandbox, &config, shell("other", &image, "true")).await?;
    node.log_shows(&id, |line| line == "up").await?;

    let spec = v1::ImageSpec { image: image.clone(), ..Default::default() };
    let known = v1::ImageStatusRequest { image: Some(spec), verbose: false };
    let known = node.images().await?.image_status(known).await?.into_inner().image.context("image")?;
    let status = node.container_status(&id).await?;
    ensure!(status.labels == asked.labels && status.annotations == asked.annotations, "labels are lost");
    ensure!(
        status.image_id == known.id && status.image.as_ref().is_some_and(|i| i.image == image),
        "{status:?}"
    );
    ensure!(!status.image_ref.is_empty());

    // Status, first process and commands agree on who it is.
    let user = status.user.and_then(|u| u.linux).context("user")?;
    let mut groups = user.supplemental_groups.clone();
    groups.sort_unstable();
    ensure!((user.uid, user.gid, groups) == (1234, 77, vec![77, 88, 99]), "{user:?}");
    let identity = "uid=1234 gid=77 groups=77,88,99";
    let bare = |text: &str| text.trim().replace("(root)", "");
    node.log_shows(&id, |line| bare(line) == identity).await?;
    ensure!(bare(&node.sh(&id, "id").await?) == identity);

    for (filter, expected) in [
        (v1::ContainerFilter::default(), vec![&id, &other]),
        (v1::ContainerFilter { id: id.clone(), ..Default::default() }, vec![&id]),
        (v1::ContainerFilter { id: id[..13].into(), ..Default::default() }, vec![&id]),
        (v1::ContainerFilter { pod_sandbox_id: sandbox.clone(), ..Default::default() }, vec![&id, &other]),
        (v1::ContainerFilter { pod_sandbox_id: id.clone(), ..Default::default() }, vec![]),
        (
            v1::ContainerFilter {
                pod_sandbox_id: sandbox.clone(),
                label_selector: HashMap::from([("empty".into(), String::new())]),
                ..Default::default()
            },
            vec![&id],
        ),
        (
            v1::ContainerFilter {
                state: Some(v1::ContainerStateValue { state: v1::ContainerState::ContainerCreated.into() }),
                ..Default::default()
            },
            vec![&other],
        ),
    ] {
        same_in_all_lists(node, filter, &expected).await?;
    }
    let item = v1::ListContainersRequest {
        filter: Some(v1::ContainerFilter { id: id.clone(), ..Default::default() }),
    };
    let item = node.runtime().await?.list_containers(item).await?.into_inner().containers;
    let item = item.first().context("listed")?;
    ensure!(
        item.pod_sandbox_id == sandbox && item.metadata == asked.metadata && item.image == asked.image,
        "{item:?}"
    );
    ensure!(
        item.image_id == known.id
            && item.image_ref == status.image_ref
            && item.created_at == status.created_at
    );
    ensure!(item.labels == asked.labels && item.annotations == asked.annotations);

    // By a unique prefix, as crictl shows ids.
    ensure!(
        node.container_status(&id[..20]).await?.id == id
            && node.pod_status(&sandbox[..20]).await?.id == sandbox
    );
    let nobody =
        node.container_status("").await.err().context("nobody has it")?.downcast::<tonic::Status>()?;
    ensure!(nobody.code() == Code::NotFound, "{nobody:?}");
    verbose(node, &id, &sandbox).await?;
    measured(node, &id, &asked).await
}

async fn same_in_all_lists(node: &Node, filter: v1::ContainerFilter, expected: &[&String]) -> Result<()> {
    let mut runtime = node.runtime().await?;
    let mut expected: Vec<_> = expected.iter().map(|id| (*id).clone()).collect();
    expected.sort();
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let request = v1::ListContainersRequest { filter: Some(filter.clone()) };
    let items = runtime.list_containers(request).await?.into_inner().containers;
    ensure!(sorted(items.iter().map(|c| c.id.clone()).collect()) == expected, "{filter:?}: {items:?}");
    let request = v1::StreamContainersRequest { filter: Some(filter.clone()) };
    let mut stream = runtime.stream_containers(request).await?.into_inner();
    let mut streamed = Vec::new();
    while let Some(message) = stream.message().await? {
        streamed.extend(message.containers);
    }
    ensure!(streamed == items, "{filter:?}: the stream differs: {streamed:?}");
    if filter.state.is_some() {
        return Ok(());
    }
    let filter = v1::ContainerStatsFilter {
        id: filter.id,
        pod_sandbox_id: filter.pod_sandbox_id,
        label_selector: filter.label_selector,
    };
    let request = v1::ListContainerStatsRequest { filter: Some(filter.clone()) };
    let stats = runtime.list_container_stats(request).await?.into_inner().stats;
    let ids = stats.into_iter().filter_map(|s| Some(s.attributes?.id)).collect();
    ensure!(sorted(ids) == expected, "statistics by {filter:?}");
    Ok(())
}

/// What crictl inspect and inspectp print beyond the status.
async fn verbose(node: &Node, id: &str, sandbox: &str) -> Result<()> {
    let mut runtime = node.runtime().await?;
    let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let info = runtime.container_status(request).await?.into_inner().info;
    let info: Value = serde_json::from_str(info.get("info").context("info")?)?;
    for key in
        ["sandboxID", "pid", "removing", "snapshotKey", "snapshotter", "runtimeType", "config", "runtimeSpec"]
    {
        ensure!(!info[key].is_null(), "no {key} in {info}");
    }
    ensure!(info["sandboxID"] == sandbox && info["runtimeSpec"]["process"]["user"]["uid"] == 1234, "{info}");
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.into(), verbose: true };
    let info = runtime.pod_sandbox_status(request).await?.into_inner().info;
    let info: Value = serde_json::from_str(info.get("info").context("info")?)?;
    for key in ["pid", "netNamespaceClosed", "runtimeHandler", "runtimeType", "config", "cniResult"] {
        ensure!(!info[key].is_null(), "no {key} in {info}");
    }
    let request = v1::ContainerStatusRequest { container_id: id.into(), verbose: false };
    ensure!(runtime.container_status(request).await?.into_inner().info.is_empty(), "not asked for");
    Ok(())
}

async fn measured(node: &Node, id: &str, asked: &v1::ContainerConfig) -> Result<()> {
    let request = v1::ContainerStatsRequest { container_id: id.into() };
    let stats = node.runtime().await?.container_stats(request).await?.into_inner().stats.context("stats")?;
    let attributes = stats.attributes.context("attributes")?;
    ensure!(attributes.id == id && attributes.metadata == asked.metadata, "{:?}", attributes.metadata);
    ensure!(attributes.labels == asked.labels && attributes.annotations == asked.annotations);
    let (cpu, memory) = (stats.cpu.context("cpu")?, stats.memory.context("memory")?);
    ensure!(cpu.timestamp > 0 && memory.timestamp > 0 && cpu.usage_core_nano_seconds.is_some());
    ensure!(
        memory.usage_bytes.is_some_and(|b| b.value > 0) && memory.working_set_bytes.is_some(),
        "{memory:?}"
    );
    ensure!(stats.swap.is_some_and(|s| s.timestamp > 0));
    let layer = stats.writable_layer.context("writable layer")?;
    let at = layer.fs_id.context("its mount point")?.mountpoint;
    nix::sys::statvfs::statvfs(at.as_str()).with_context(|| format!("statvfs {at}"))?;
    ensure!(
        layer.timestamp > 0 && layer.used_bytes.is_some_and(|b| b.value >= 300_000),
        "{:?}",
        layer.used_bytes
    );
    ensure!(layer.inodes_used.is_some_and(|n| n.value >= 2), "{:?}", layer.inodes_used);
    Ok(())
}
