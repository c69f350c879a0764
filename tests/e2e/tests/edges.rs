//! Where things go wrong beside the straight way: a pod that dies alone, commands that do not end, full disks, taken ports,
//! links planted by a container, a keeper that was just replaced, a kubelet that comes late.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::registry::Registry;
use e2e::requests::{bind, in_pod, pod, pod_modes, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// CRI-SS-14, CRI-SS-15, CRI-SS-16, CRI-SS-17, CRI-LSTR-01, CRI-LSTR-02.
#[test]
fn pods_have_statistics() {
    on_a_node(Setup::default(), |node| Box::pin(statistics(node)));
}

async fn statistics(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "measured");
    let sandbox = node.run_pod(&config).await?;
    let burn = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000";
    let id = node.run(&sandbox, &config, shell("main", &image, burn)).await?;
    node.sh(&id, "ping -c 1 -w 2 10.88.0.1 >/dev/null || true").await?;
    let mut host = pod(node, "on-the-host");
    pod_modes(&mut host).network = v1::NamespaceMode::Node.into();
    let host = node.run_pod(&host).await?;

    let of = |id: &str| v1::PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    let mut runtime = node.runtime().await?;
    let stats = runtime.pod_sandbox_stats(of(&sandbox)).await?.into_inner().stats.context("stats")?;
    ensure!(stats.attributes.as_ref().is_some_and(|a| a.id == sandbox && a.metadata == config.metadata));
    let linux = stats.linux.context("linux")?;
    let cpu = linux.cpu.context("cpu")?;
    ensure!(cpu.timestamp > 0 && cpu.usage_core_nano_seconds.is_some_and(|n| n.value > 0), "{cpu:?}");
    ensure!(linux.memory.context("memory")?.usage_bytes.is_some_and(|n| n.value > 0), "memory");
    ensure!(linux.process.context("process")?.process_count.is_some_and(|n| n.value > 0), "processes");
    ensure!(
        linux.containers.len() == 1 && linux.containers[0].attributes.as_ref().is_some_and(|a| a.id == id)
    );
    let network = linux.network.context("network")?;
    let eth0 = network.default_interface.context("default interface")?;
    ensure!(eth0.name == "eth0" && eth0.tx_bytes.is_some_and(|n| n.value > 0), "{eth0:?}");
    ensure!(
        network.interfaces.iter().any(|i| i.name == "eth0")
            && network.interfaces.iter().all(|i| i.name != "lo")
    );
    let on_host = runtime.pod_sandbox_stats(of(&host)).await?.into_inner().stats.context("stats")?;
    ensure!(on_host.linux.context("linux")?.network.is_none(), "the host's network is not the pod's");

    let filter = Some(v1::PodSandboxStatsFilter { id: sandbox.clone(), ..Default::default() });
    let request = v1::ListPodSandboxStatsRequest { filter: filter.clone() };
    ensure!(runtime.list_pod_sandbox_stats(request).await?.into_inner().stats.len() == 1, "filtered");
    let request = v1::StreamPodSandboxStatsRequest { filter };
    let mut stream = runtime.stream_pod_sandbox_stats(request).await?.into_inner();
    ensure!(stream.message().await?.context("one message")?.pod_sandbox_stats.len() == 1);
    ensure!(stream.message().await?.is_none(), "then the end");
    node.stop_pod(&sandbox).await?;
    let code = runtime.pod_sandbox_stats(of(&sandbox)).await.err().map(|e| e.code());
    ensure!(code == Some(tonic::Code::FailedPrecondition), "a stopped pod: {code:?}");
    let all = runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await?.into_inner();
    ensure!(all.stats.len() == 1, "left out of the list");
    Ok(())
}

/// CRI-PSTOP-09.
#[test]
fn a_pod_whose_first_process_dies_is_not_ready() {
    on_a_node(Setup::default(), |node| Box::pin(reaper_dies(node)));
}

async fn reaper_dies(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut config = pod(node, "shared");
    pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&config).await?;
    let main = in_pod(&config, shell("main", &image, "exec sleep 1000"));
    let id = node.run(&sandbox, &config, main).await?;
    let mut events = node.runtime().await?.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: true };
    let info = node.runtime().await?.pod_sandbox_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
    kill(Pid::from_raw(i32::try_from(info["pid"].as_i64().context("pid")?)?), Signal::SIGKILL)?;
    ensure!(node.ended(&id).await?.exit_code == 137, "its processes die with it");
    let start = Instant::now();
    while node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxReady {
        ensure!(start.elapsed() < Duration::from_secs(30), "the pod stays ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = async {
        loop {
            let event = events.message().await?.context("the stream ended")?;
            let kind = event.container_event_type();
            if event.container_id == sandbox && kind == v1::ContainerEventType::ContainerStoppedEvent {
                return Ok::<_, anyhow::Error>(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.context("an event tells it")??;
    let again = shell("late", &image, "true");
    ensure!(node.create(&sandbox, &config, again).await.is_err(), "nothing is made in a dead pod");
    Ok(())
}

/// CRI-XS-03, CRI-XS-04, CRI-XS-06, CRI-XS-07.
#[test]
fn a_command_that_timed_out_is_dead_with_its_children() {
    on_a_node(Setup::default(), |node| Box::pin(timeouts(node)));
}

async fn timeouts(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "timeouts");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let sleeping = "ps | grep -c '[s]leep 77' || true";
    for round in 0..5 {
        let script = "(setsid sleep 77 &) ; trap '' TERM INT; sleep 77 & sleep 77";
        let request = v1::ExecSyncRequest {
            container_id: id.clone(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 1,
        };
        let error = node.runtime().await?.exec_sync(request).await.err().context("it must time out")?;
        ensure!(error.code() == tonic::Code::DeadlineExceeded, "{error:?}");
        // The very next command sees none of them.
        let left = node.sh(&id, sleeping).await?;
        ensure!(left.trim() == "0", "round {round}: {left} left");
    }
    // What a command leaves behind by intent lives on.
    node.sh(&id, "sleep 77 >/dev/null 2>&1 &").await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(node.sh(&id, sleeping).await?.trim() == "1", "a background process outlives its command");
    Ok(())
}

/// Probes go on while the state directory has no room left: CRI-XS-10.
#[test]
fn commands_run_on_a_full_disk() {
    on_a_node(Setup { small_state: true, ..Default::default() }, |node| Box::pin(full_disk(node)));
}

async fn full_disk(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "full");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let filler = node.path("state/filler");
    let mut file = std::fs::File::create(&filler)?;
    let full = std::io::copy(&mut std::io::repeat(7), &mut file);
    ensure!(full.is_err_and(|e| e.raw_os_error() == Some(28)), "ENOSPC");
    while std::fs::write(node.path("state/more"), [7; 1]).is_ok() {
        std::io::Write::write_all(&mut file, &[7])?;
    }
    for n in 0..5 {
        let (code, out, err) = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"]).await?;
        ensure!((code, out.as_str(), err.as_str()) == (3, "out\n", "err\n"), "{n}: {code} {out} {err}");
    }
    // Ending needs no room either.
    node.stop_container(&id, 0).await?;
    node.remove_container(&id).await?;
    std::fs::remove_file(filler)?;
    Ok(())
}

/// CRI-NET-10.
#[test]
fn a_taken_host_port_names_its_owner() {
    on_a_node(Setup::default(), |node| Box::pin(taken_port(node)));
}

async fn taken_port(node: &mut Node) -> Result<()> {
    let mut one = pod(node, "owner");
    one.port_mappings.push(v1::PortMapping { container_port: 80, host_port: 12081, ..Default::default() });
    node.run_pod(&one).await?;
    let mut two = pod(node, "second");
    two.port_mappings.clone_from(&one.port_mappings);
    let request = v1::RunPodSandboxRequest { config: Some(two), ..Default::default() };
    let error = node.runtime().await?.run_pod_sandbox(request).await.err().context("it must be refused")?;
    ensure!(error.code() == tonic::Code::FailedPrecondition, "{error:?}");
    ensure!(error.message().contains("default/owner") && error.message().contains("12081"), "{error:?}");
    Ok(())
}

/// CRI-LOG-01, CRI-LOG-02: a container with the log directory mounted leads the log nowhere else.
#[test]
fn a_planted_link_is_not_followed_by_logs() {
    on_a_node(Setup::default(), |node| Box::pin(planted(node)));
}

async fn planted(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "planted");
    let sandbox = node.run_pod(&config).await?;
    let mut evil =
        shell("evil", &image, "mkdir -p /logs/next; ln -s /victim /logs/next/0.log; ln -s / /logs/root");
    evil.mounts.push(bind(std::path::Path::new(&config.log_directory), "/logs"));
    let evil = node.run(&sandbox, &config, evil).await?;
    ensure!(node.ended(&evil).await?.exit_code == 0, "planted");
    for path in ["next/0.log", "root/tmp/slipway-planted.log"] {
        let mut next = shell("next", &image, "echo gotcha");
        next.log_path = path.into();
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(next),
            sandbox_config: Some(config.clone()),
        };
        let error =
            node.runtime().await?.create_container(request).await.err().context("it must be refused")?;
        ensure!(error.code() == tonic::Code::InvalidArgument, "{path}: {error:?}");
        ensure!(error.message().contains("symbolic link"), "{path}: {error:?}");
    }
    ensure!(
        !std::path::Path::new("/victim").exists()
            && !std::path::Path::new("/tmp/slipway-planted.log").exists()
    );
    Ok(())
}

/// DESIGN section 4: requests just after a keeper's death do not notice it.
#[test]
fn no_request_meets_a_stale_connection() {
    on_a_node(Setup::default(), |node| Box::pin(stale(node)));
}

async fn stale(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "stale");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let trap = "trap 'exit 9' TERM; echo armed; while :; do sleep 0.05; done";
    for round in 0..8 {
        let stopped = node.run(&sandbox, &config, shell(&format!("s{round}"), &image, trap)).await?;
        node.log_shows(&stopped, |line| line == "armed").await?;
        let keeper = Pid::from_raw(node.keeper_pid().await?);
        kill(keeper, Signal::SIGKILL)?;
        tokio::time::sleep(Duration::from_millis(round)).await;
        if round % 2 == 0 {
            ensure!(
                node.sh(&id, "echo in").await.with_context(|| format!("exec, round {round}"))?.trim() == "in"
            );
            node.stop_container(&stopped, 10).await?;
        } else {
            node.stop_container(&stopped, 10).await.with_context(|| format!("stop, round {round}"))?;
            ensure!(node.sh(&id, "echo in").await?.trim() == "in");
        }
        let status = node.container_status(&stopped).await?;
        ensure!(status.exit_code == 9, "round {round}: its own handler ended it: {status:?}");
    }
    Ok(())
}

/// CRI-EVT-07.
#[test]
fn events_wait_for_a_kubelet_that_comes_late() {
    on_a_node(Setup::default(), |node| Box::pin(late_listener(node)));
}

async fn late_listener(node: &mut Node) -> Result<()> {
    let sandbox = node.run_pod(&pod(node, "early")).await?;
    let mut stream = node.runtime().await?.get_container_events(v1::GetEventsRequest {}).await?.into_inner();
    for expected in
        [v1::ContainerEventType::ContainerCreatedEvent, v1::ContainerEventType::ContainerStartedEvent]
    {
        let event =
            tokio::time::timeout(Duration::from_secs(30), stream.message()).await??.context("an event")?;
        ensure!(event.container_id == sandbox && event.container_event_type() == expected, "{event:?}");
    }
    Ok(())
}

/// CRI-PSTOP-03, CRI-PREM-02, CRI-CG-04: many containers stop at once, and groups below the pod's own go with it.
#[test]
fn a_pod_goes_with_all_that_is_in_it() {
    on_a_node(Setup::default(), |node| Box::pin(crowded(node)));
}

async fn crowded(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "crowded");
    let sandbox = node.run_pod(&config).await?;
    let mut first = String::new();
    for n in 0..8 {
        let one = shell(&format!("c{n}"), &image, "trap '' TERM; while :; do sleep 1; done");
        first = node.run(&sandbox, &config, one).await?;
    }
    let request = v1::ContainerStatusRequest { container_id: first, verbose: true };
    let info = node.runtime().await?.container_status(request).await?.into_inner().info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
    let cgroup = info["cgroup"].as_str().context("cgroup")?;
    let of_pod = std::path::Path::new(cgroup).parent().context("the pod's group")?;
    let below = of_pod.join("left/over");
    let below = below.strip_prefix("/")?;
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/freezer"] {
        let hierarchy = std::path::Path::new(hierarchy);
        if hierarchy.join(of_pod.strip_prefix("/")?).is_dir() {
            std::fs::create_dir_all(hierarchy.join(below))?;
        }
    }
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// An OCI artifact from a registry: a volume, as an image is; nothing that could be run.
#[test]
fn artifacts_are_mounted_and_not_run() {
    on_a_node(Setup::default(), |node| Box::pin(artifacts(node)));
}

async fn artifacts(node: &mut Node) -> Result<()> {
    let registry = Registry::start(node).await?;
    let artifact = registry.image("model:1");
    node.pull(&artifact).await?;
    registry.stop().await?;
    let image = node.import("busybox").await?;
    let config = pod(node, "artifacts");
    let sandbox = node.run_pod(&config).await?;
    let mut main = shell("main", &image, "exec sleep 1000");
    main.mounts = vec![v1::Mount {
        container_path: "/model".into(),
        readonly: true,
        image: Some(v1::ImageSpec { image: artifact.clone(), ..Default::default() }),
        ..Default::default()
    }];
    let id = node.run(&sandbox, &config, main).await?;
    let (code, out, err) = node.exec(&id, &["cat", "/model/card.md", "/model/weights/part-1"]).await?;
    ensure!(code == 0 && out == "# A model\n1 2 3\n", "{code} {out:?} {err}");
    let error = node.create(&sandbox, &config, shell("runs", &artifact, "true")).await.err();
    let error = error.context("an artifact runs")?.downcast::<tonic::Status>()?;
    ensure!(
        error.code() == tonic::Code::InvalidArgument && error.message().contains("artifact"),
        "{error:?}"
    );
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// CRI-MNT-10, CRI-MNT-11, CRI-MNT-12, CRI-MNT-13, CRI-CSTAT-08, CRI-IMG-16.
#[test]
fn images_are_mounted_as_volumes() {
    on_a_node(Setup::default(), |node| Box::pin(image_volumes(node)));
}

async fn image_volumes(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let data = node.import("redis").await?;
    let config = pod(node, "volumes");
    let sandbox = node.run_pod(&config).await?;
    let volume = |path: &str, sub: &str| v1::Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(v1::ImageSpec { image: data.clone(), ..Default::default() }),
        image_sub_path: sub.into(),
        ..Default::default()
    };
    let mut main = shell("main", &image, "exec sleep 1000");
    main.mounts = vec![volume("/whole", ""), volume("/part", "etc")];
    let id = node.run(&sandbox, &config, main).await?;
    node.sh(&id, "test -f /whole/etc/passwd && cmp /whole/etc/passwd /part/passwd").await?;
    let (code, _, err) = node.exec(&id, &["touch", "/whole/x"]).await?;
    ensure!(code != 0 && err.contains("Read-only"), "{code} {err}");
    let status = node.container_status(&id).await?;
    let shown: Vec<_> =
        status.mounts.iter().filter_map(|m| m.image.as_ref()).map(|i| i.image_ref.clone()).collect();
    let request = v1::ImageStatusRequest {
        image: Some(v1::ImageSpec { image: data.clone(), ..Default::default() }),
        ..Default::default()
    };
    let known = node.images().await?.image_status(request).await?.into_inner().image.context("image")?;
    ensure!(shown == [known.id.clone(), known.id.clone()], "{shown:?}");
    for (bad, word) in [
        (volume("/x", "no/such"), "ImageVolumeMountFailed"),
        (volume("/x", "etc/passwd"), "ImageVolumeMountFailed"),
    ] {
        let mut other = shell("other", &image, "true");
        other.mounts = vec![bad];
        let error = node.create(&sandbox, &config, other).await.err().context("it must be refused")?;
        let error = error.downcast::<tonic::Status>()?;
        ensure!(error.message().starts_with(word), "{error:?}");
    }
    // The image may go while it is mounted.
    let request = v1::RemoveImageRequest { image: Some(v1::ImageSpec { image: data, ..Default::default() }) };
    node.images().await?.remove_image(request).await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    node.sh(&id, "cat /whole/etc/passwd /part/passwd >/dev/null").await?;
    Ok(())
}
