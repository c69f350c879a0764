//! The states of a container and the ways from one to the next: start, stop, remove.

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1;
use e2e::kernel::{Group, is_v2};
use e2e::requests::{in_pod, pod, pod_modes, shell};
use e2e::{Node, Setup, on_a_node};
use std::time::{Duration, Instant};
use tonic::Code;

/// How long to wait for what comes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

fn code<T: std::fmt::Debug>(outcome: Result<T>) -> Result<Code> {
    let error = outcome.err().context("it must be refused")?;
    Ok(error.downcast::<tonic::Status>()?.code())
}

/// CRI-FSM-01, CRI-FSM-04, CRI-CST-01, CRI-CST-02, CRI-CST-05, CRI-STOP-02, CRI-UPD-02, CRI-UPD-04, CRI-CSTAT-01,
/// CRI-CSTAT-05, CRI-CSTAT-10, CRI-REM-01, CRI-REM-04, CRI-GEN-15.
#[test]
fn a_container_goes_one_way() {
    on_a_node(Setup::default(), |node| Box::pin(one_way(node)));
}

async fn one_way(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "one-way");
    let sandbox = node.run_pod(&config).await?;
    let id = node.create(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    node.stop_container(&id, 10).await?;
    let created = node.container_status(&id).await?;
    ensure!(created.state() == v1::ContainerState::ContainerCreated, "a stop does nothing: {created:?}");
    ensure!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");
    update(node, &id, 300).await?;

    let start = || node.start_container(&id);
    let outcomes = tokio::join!(start(), start(), start(), start());
    let outcomes = [outcomes.0, outcomes.1, outcomes.2, outcomes.3];
    ensure!(outcomes.iter().filter(|o| o.is_ok()).count() == 1, "one of them: {outcomes:?}");
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        ensure!(code(outcome)? == Code::FailedPrecondition);
    }
    let running = node.container_status(&id).await?;
    ensure!(running.state() == v1::ContainerState::ContainerRunning, "{running:?}");
    ensure!(running.started_at >= created.created_at && running.finished_at == 0, "{running:?}");
    let group = Group::of(node, &id).await?;
    ensure!(is_v2() || group.number("cpu", "cpu.shares", "")? == 300, "updated before its start");
    update(node, &id, 400).await?;
    ensure!(is_v2() || group.number("cpu", "cpu.shares", "")? == 400, "and after");
    let shown = node.container_status(&id).await?.resources.and_then(|r| r.linux).context("resources")?;
    ensure!(shown.cpu_shares == 400, "{shown:?}");

    node.stop_container(&id, 0).await?;
    let ended = node.container_status(&id).await?;
    ensure!(ended.state() == v1::ContainerState::ContainerExited && ended.exit_code == 137, "{ended:?}");
    ensure!(ended.finished_at >= ended.started_at && ended.started_at == running.started_at, "{ended:?}");
    ensure!(code(node.start_container(&id).await)? == Code::FailedPrecondition, "it never starts again");
    ensure!(code(update(node, &id, 500).await)? == Code::FailedPrecondition, "nor is it changed");
    node.stop_container(&id, 10).await?;
    for _ in 0..2 {
        node.remove_container(&id).await?;
    }
    node.stop_container(&id, 10).await?;
    ensure!(code(node.container_status(&id).await)? == Code::NotFound);
    ensure!(code(update(node, &id, 500).await)? == Code::NotFound);

    // Its name is free; and an exit is never missed, however early it comes.
    for _ in 0..5 {
        let id = node.run(&sandbox, &config, shell("main", &image, "exit 7")).await?;
        let status = node.ended(&id).await?;
        ensure!(status.exit_code == 7 && status.reason == "Error", "{status:?}");
        node.remove_container(&id).await?;
    }
    Ok(())
}

async fn update(node: &Node, id: &str, cpu_shares: i64) -> Result<()> {
    let linux = Some(v1::LinuxContainerResources { cpu_shares, ..Default::default() });
    let request =
        v1::UpdateContainerResourcesRequest { container_id: id.into(), linux, ..Default::default() };
    node.runtime().await?.update_container_resources(request).await?;
    Ok(())
}

/// CRI-STOP-03, CRI-STOP-04, CRI-STOP-10, CRI-STOP-12, CRI-CC-18, CRI-EXIT-01.
#[test]
fn a_stop_is_the_signal_that_was_asked_for_or_none() {
    on_a_node(Setup::default(), |node| Box::pin(signals(node)));
}

async fn signals(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut config = pod(node, "signals");
    pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod(&config).await?;
    let in_pod = |name: &str, script: &str| in_pod(&config, shell(name, &image, script));

    let deaf = "trap 'echo TERM' TERM; setsid sh -c \"trap '' TERM; echo up; while :; do sleep 0.1; done\" & \
        while :; do sleep 0.1; done";
    let deaf = node.run(&sandbox, &config, in_pod("deaf", deaf)).await?;
    node.log_shows(&deaf, |line| line == "up").await?;
    let left = Group::of(node, &deaf).await?.pids()?;
    ensure!(left.len() >= 2, "{left:?}");
    node.stop_container(&deaf, 0).await?;
    let status = node.container_status(&deaf).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    ensure!(node.log(&deaf).await?.iter().all(|(_, _, line)| line != "TERM"), "no stop signal");
    // It was not pid 1 of its namespace: what it left went all the same.
    let start = Instant::now();
    while left.iter().any(|pid| alive(*pid, &deaf)) {
        ensure!(start.elapsed() < PATIENCE, "left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let script = "(trap 'echo child' USR1; echo child-up; while :; do sleep 0.1; done) & \
        trap 'echo init; exit 4' USR1; echo init-up; while :; do sleep 0.1; done";
    let mut polite = in_pod("polite", script);
    polite.stop_signal = v1::Signal::Sigusr1.into();
    let polite = node.run(&sandbox, &config, polite).await?;
    node.log_shows(&polite, |line| line == "init-up").await?;
    node.log_shows(&polite, |line| line == "child-up").await?;
    node.stop_container(&polite, 60).await?;
    let status = node.container_status(&polite).await?;
    ensure!(status.exit_code == 4 && status.stop_signal() == v1::Signal::Sigusr1, "{status:?}");
    let lines: Vec<_> = node.log(&polite).await?.into_iter().map(|(_, _, line)| line).collect();
    ensure!(lines.contains(&"init".into()) && !lines.contains(&"child".into()), "init alone: {lines:?}");
    Ok(())
}

/// A process of this container; the number may be somebody else's by now.
fn alive(pid: i64, container: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(container))
}

/// CRI-STOP-05, CRI-STOP-06, CRI-STOP-07, CRI-STOP-09: one signal however often it is asked, the shortest patience
/// counts, and a client that goes away escalates nothing.
#[test]
fn later_stops_shorten_the_wait_and_signal_no_second_time() {
    on_a_node(Setup::default(), |node| Box::pin(stops(node)));
}

async fn stops(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "stops");
    let sandbox = node.run_pod(&config).await?;
    let script = "trap 'echo TERM' TERM; echo up; while :; do sleep 0.1; done";
    let id = node.run(&sandbox, &config, shell("main", &image, script)).await?;
    node.log_shows(&id, |line| line == "up").await?;
    let node = &*node;
    let mut long = Box::pin(node.stop_container(&id, 1000));
    tokio::select! {
        outcome = &mut long => bail!("it cannot have ended: {outcome:?}"),
        seen = node.log_shows(&id, |line| line == "TERM") => seen?,
    }
    let given_up = tokio::time::timeout(Duration::from_secs(1), node.stop_container(&id, 1000)).await;
    ensure!(given_up.is_err(), "it cannot have ended: {given_up:?}");
    let running = node.container_status(&id).await?;
    ensure!(running.state() == v1::ContainerState::ContainerRunning, "{running:?}");
    tokio::time::timeout(PATIENCE, node.stop_container(&id, 1)).await.context("the shorter wait")??;
    tokio::time::timeout(PATIENCE, long).await.context("the longer wait ends with it")??;
    let status = node.container_status(&id).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    let signals = node.log(&id).await?.iter().filter(|(_, _, line)| line == "TERM").count();
    ensure!(signals == 1, "{signals} signals");
    Ok(())
}

/// CRI-REM-02, CRI-REM-05, CRI-CST-04, CRI-PREM-06, CRI-CSTAT-03, CRI-XS-11.
#[test]
fn removal_asks_neither_state_nor_image_and_leaves_the_logs() {
    on_a_node(Setup::default(), |node| Box::pin(removal(node)));
}

async fn removal(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "removal");
    let sandbox = node.run_pod(&config).await?;
    let running = node.run(&sandbox, &config, shell("running", &image, "echo up; exec sleep 1000")).await?;
    let created = node.create(&sandbox, &config, shell("created", &image, "true")).await?;
    node.log_shows(&running, |line| line == "up").await?;
    let before = node.container_status(&running).await?;
    let spec = v1::ImageSpec { image: image.clone(), ..Default::default() };
    let known = v1::ImageStatusRequest { image: Some(spec.clone()), verbose: false };
    let known = node.images().await?.image_status(known).await?.into_inner().image.context("image")?;
    node.images().await?.remove_image(v1::RemoveImageRequest { image: Some(spec) }).await?;
    let after = node.container_status(&running).await?;
    ensure!(after == before && after.image_id == known.id && !after.image_ref.is_empty(), "{after:?}");

    // Commands that are inside when it ends are answered, not left waiting.
    let inside = node.exec(&running, &["sleep", "1000"]);
    let remove = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        node.remove_container(&running).await
    };
    let both = async { tokio::join!(inside, remove) };
    let (inside, removed) = tokio::time::timeout(PATIENCE, both).await.context("an exec hangs")?;
    removed?;
    ensure!(!matches!(inside, Ok((0, ..))), "{inside:?}");
    ensure!(code(node.container_status(&running).await)? == Code::NotFound);

    node.stop_pod(&sandbox).await?;
    ensure!(code(node.start_container(&created).await)? == Code::FailedPrecondition, "its pod is not ready");
    node.remove_pod(&sandbox).await?;
    ensure!(code(node.container_status(&created).await)? == Code::NotFound);
    let log = std::fs::read_to_string(&before.log_path)?;
    ensure!(log.ends_with(" up\n"), "the log is the kubelet's: {log}");
    Ok(())
}

/// CRI-PREM-03: a network namespace that cannot be given back keeps the pod, and its removal can be tried again.
#[test]
fn a_pod_whose_namespace_cannot_go_stays_and_is_removed_later() {
    on_a_node(Setup::default(), |node| Box::pin(namespace_stays(node)));
}

async fn namespace_stays(node: &mut Node) -> Result<()> {
    let config = pod(node, "kept");
    let sandbox = node.run_pod(&config).await?;
    let dir = node.path("state/netns");
    ensure!(dir.join(&sandbox).exists(), "where its namespace is pinned");
    let run = |program: &str, args: &[&str]| -> Result<()> {
        let done = std::process::Command::new(program).args(args).arg(&dir).status()?;
        ensure!(done.success(), "{program} {args:?}");
        Ok(())
    };
    let source = dir.display().to_string();
    run("mount", &["--bind", &source])?;
    run("mount", &["-o", "remount,bind,ro"])?;
    let refused = node.remove_pod(&sandbox).await;
    run("umount", &[])?;
    ensure!(refused.is_err(), "its namespace is still there");
    let kept = node.pod_status(&sandbox).await?;
    ensure!(kept.state() == v1::PodSandboxState::SandboxNotready, "{kept:?}");
    ensure!(dir.join(&sandbox).exists(), "it is not leaked: the pod that has it is listed");
    node.remove_pod(&sandbox).await?;
    ensure!(!dir.join(&sandbox).exists() && node.pod_status(&sandbox).await.is_err(), "gone with the pod");
    Ok(())
}

/// CRI-FSM-03: of a start and a removal at once one comes first, and the other finds what it left.
#[test]
fn a_start_and_a_removal_exclude_each_other() {
    on_a_node(Setup::default(), |node| Box::pin(start_or_removal(node)));
}

async fn start_or_removal(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "race");
    let sandbox = node.run_pod(&config).await?;
    for round in 0..10u64 {
        let name = format!("c{round}");
        let id = node.create(&sandbox, &config, shell(&name, &image, "exec sleep 1000")).await?;
        let start = async {
            tokio::time::sleep(Duration::from_millis(round % 5)).await;
            node.start_container(&id).await
        };
        let (started, removed) = tokio::join!(start, node.remove_container(&id));
        removed.with_context(|| format!("round {round}"))?;
        if let Err(error) = started {
            let code = error.downcast_ref::<tonic::Status>().map(tonic::Status::code);
            ensure!(
                matches!(code, Some(Code::NotFound | Code::FailedPrecondition)),
                "round {round}: {error:#}"
            );
        }
        ensure!(node.container_status(&id).await.is_err(), "round {round}: removed is removed");
        // Its name is free, and nothing of it runs.
        let again = node.create(&sandbox, &config, shell(&name, &image, "exit 0")).await?;
        node.remove_container(&again).await?;
    }
    Ok(())
}
