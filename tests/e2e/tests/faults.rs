//! kill -9 of daemon and keeper in the middle: no container, log line or exit code is lost (DESIGN section 4).

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// Writes numbered lines as fast as busybox can, `count` of them, and ends with 5.
fn counting(name: &str, image: &str, count: u32) -> v1::ContainerConfig {
    shell(name, image, &format!("i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo line $i; done; exit 5"))
}

/// Every line exactly once and in order.
fn complete(log: &[(String, String, String)], count: u32) -> Result<()> {
    let mut text = log.iter().map(|(_, _, text)| text.as_str());
    for i in 1..=count {
        let line = text.next().with_context(|| format!("the log ends before line {i} of {count}"))?;
        ensure!(line == format!("line {i}"), "expected line {i}, found {line:?}");
    }
    ensure!(text.next().is_none(), "lines after the last one");
    Ok(())
}

/// CRI-REC-01, CRI-REC-04.
#[test]
fn killing_the_daemon_loses_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(daemon_dies(node)));
}

async fn daemon_dies(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "daemon-dies");
    let sandbox = node.run_pod(&config).await?;
    let lines = 400_000;
    let logger = node.run(&sandbox, &config, counting("logger", &image, lines)).await?;
    let brief = node.run(&sandbox, &config, shell("brief", &image, "sleep 1; exit 42")).await?;
    let steady = node.run(&sandbox, &config, shell("steady", &image, "sleep 1000")).await?;
    let before = node.container_status(&steady).await?;

    node.kill_daemon().await?;
    // `brief` ends while nobody serves.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    node.start_daemon().await?;

    let after = node.container_status(&steady).await?;
    ensure!(after.state() == v1::ContainerState::ContainerRunning, "runs on: {after:?}");
    ensure!((after.created_at, after.started_at) == (before.created_at, before.started_at), "the same times");
    ensure!(after.metadata == before.metadata && after.labels == before.labels, "the same names");
    ensure!(node.ended(&brief).await?.exit_code == 42, "the exit code of the time between");
    ensure!(node.ended(&logger).await?.exit_code == 5, "the logger's exit code");
    complete(&node.log(&logger).await?, lines)?;
    ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "exec works again");
    ensure!(!node.pod_ip(&sandbox).await?.is_empty(), "the pod kept its address");
    Ok(())
}

/// DESIGN 1B: the guardian keeps descriptors and exits; log lines are written exactly once.
#[test]
fn killing_the_keeper_loses_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(keeper_dies(node)));
}

async fn keeper_dies(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "keeper-dies");
    let sandbox = node.run_pod(&config).await?;
    let lines = 400_000;
    let logger = node.run(&sandbox, &config, counting("logger", &image, lines)).await?;
    let steady = node
        .run(&sandbox, &config, shell("steady", &image, "trap 'exit 9' TERM; while :; do sleep 0.05; done"))
        .await?;
    let parked = node.create(&sandbox, &config, shell("parked", &image, "echo started late; exit 6")).await?;
    let brief = node.run(&sandbox, &config, shell("brief", &image, "sleep 0.7; exit 42")).await?;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    }
    ensure!(node.ended(&brief).await?.exit_code == 42, "an exit between two keepers");
    ensure!(node.ended(&logger).await?.exit_code == 5, "the logger's exit code");
    complete(&node.log(&logger).await?, lines)?;
    node.start_container(&parked).await?;
    ensure!(node.ended(&parked).await?.exit_code == 6, "a container created before can be started after");
    ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "exec works again");
    node.stop_container(&steady, 10).await?;
    ensure!(node.container_status(&steady).await?.exit_code == 9, "stopped by its own handler");
    // New containers still join the pod's namespaces.
    let late = node.run(&sandbox, &config, shell("late", &image, "hostname")).await?;
    node.ended(&late).await?;
    ensure!(node.log(&late).await?.iter().any(|(_, _, l)| l == "keeper-dies"), "the pod's hostname");
    Ok(())
}

/// Both at once.
#[test]
fn killing_daemon_and_keeper_together_loses_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(both_die(node)));
}

async fn both_die(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "both-die");
    let sandbox = node.run_pod(&config).await?;
    let lines = 400_000;
    let logger = node.run(&sandbox, &config, counting("logger", &image, lines)).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    node.kill_daemon().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.start_daemon().await?;
    ensure!(node.ended(&logger).await?.exit_code == 5, "the exit code");
    complete(&node.log(&logger).await?, lines)
}

/// CRI-LOG-12: rotation under way loses and tears no line.
#[test]
fn reopening_the_log_cuts_between_lines() {
    on_a_node(Setup::default(), |node| Box::pin(rotation(node)));
}

async fn rotation(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "rotation");
    let sandbox = node.run_pod(&config).await?;
    let lines = 400_000;
    let id = node.run(&sandbox, &config, counting("logger", &image, lines)).await?;
    let path = node.container_status(&id).await?.log_path;
    let mut rotated = Vec::new();
    for n in 0..5 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let old = format!("{path}.{n}");
        std::fs::rename(&path, &old)?;
        let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
        match node.runtime().await?.reopen_container_log(request).await {
            Ok(_) => ensure!(std::path::Path::new(&path).exists(), "the new file exists at once"),
            // It ended meanwhile (CRI-LOG-13): no new file then; put the old one back.
            Err(_) => {
                ensure!(!std::path::Path::new(&path).exists(), "no new file after an error");
                std::fs::rename(&old, &path)?;
                break;
            }
        }
        rotated.push(old);
    }
    ensure!(node.ended(&id).await?.exit_code == 5, "exit code");
    let mut all = String::new();
    for file in rotated.iter().chain([&path]) {
        all += &std::fs::read_to_string(file)?;
    }
    complete(&e2e::requests::parse_log(&all)?, lines)
}

/// DESIGN section 4: the guardian's death takes nothing along, and the keeper makes another one.
#[test]
fn killing_the_guardian_harms_nobody_and_another_takes_its_place() {
    on_a_node(Setup::default(), |node| Box::pin(guardian_dies(node)));
}

async fn guardian_dies(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "guardian-dies");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "sleep 1; exit 8")).await?;
    let (former, keeper) = (node.guardian_pid().await?, node.keeper_pid().await?);
    kill(Pid::from_raw(former), Signal::SIGKILL)?;
    ensure!(node.ended(&id).await?.exit_code == 8, "the exit code");
    let start = std::time::Instant::now();
    while [0, former].contains(&node.guardian_pid().await?) {
        ensure!(start.elapsed() < std::time::Duration::from_secs(30), "no new guardian");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    ensure!(node.keeper_pid().await? == keeper, "the keeper is the same");
    let status = node.runtime().await?.status(v1::StatusRequest::default()).await?.into_inner();
    let conditions = status.status.context("status")?.conditions;
    ensure!(conditions.iter().all(|c| c.r#type != "SlipwayGuardian"), "{conditions:?}");
    let late = node.run(&sandbox, &config, shell("late", &image, "exit 4")).await?;
    ensure!(node.ended(&late).await?.exit_code == 4, "new containers run");
    Ok(())
}

/// DESIGN section 4: what a keeper was too slow to answer is neither made twice nor taken for a failure.
#[test]
fn a_keeper_that_answers_late_has_made_one_container() {
    on_a_node(Setup::default(), |node| Box::pin(late_answer(node)));
}

async fn late_answer(node: &mut Node) -> Result<()> {
    /// The daemon gives a call 30 s.
    const LATE: Duration = Duration::from_secs(32);
    let image = node.import("busybox").await?;
    let config = pod(node, "late-answer");
    let sandbox = node.run_pod(&config).await?;
    let keeper = Pid::from_raw(node.keeper_pid().await?);
    kill(keeper, Signal::SIGSTOP)?;
    let wake = tokio::spawn(async move {
        tokio::time::sleep(LATE).await;
        kill(keeper, Signal::SIGCONT)
    });
    let made = node.run(&sandbox, &config, shell("main", &image, "exit 6")).await;
    wake.await??;
    ensure!(node.ended(&made?).await?.exit_code == 6, "the exit code");
    let list =
        node.runtime().await?.list_containers(v1::ListContainersRequest::default()).await?.into_inner();
    ensure!(list.containers.len() == 1, "{list:?}");
    Ok(())
}

/// CRI-FSM-02: whatever became of a container while nobody looked after it, it can be stopped and removed.
#[test]
fn a_container_that_everybody_lost_is_stopped_and_removed() {
    on_a_node(Setup::default(), |node| Box::pin(all_die(node)));
}

async fn all_die(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "lost");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let (guardian, keeper) = (node.guardian_pid().await?, node.keeper_pid().await?);
    node.kill_daemon().await?;
    for pid in [guardian, keeper] {
        // Each may take the other along.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    node.start_daemon().await?;
    let found = node.container_status(&id).await?;
    ensure!(found.state() != v1::ContainerState::ContainerCreated, "{found:?}");
    node.stop_container(&id, 1).await?;
    let ended = node.container_status(&id).await?;
    ensure!(ended.state() == v1::ContainerState::ContainerExited && ended.finished_at > 0, "{ended:?}");
    node.remove_container(&id).await?;
    ensure!(node.container_status(&id).await.is_err(), "removed is removed");
    // Its name is free.
    let again = node.run_pod(&pod(node, "found")).await?;
    node.run(&again, &pod(node, "found"), shell("main", &image, "exec sleep 1000")).await?;
    Ok(())
}

/// CRI-REC-02: what the keeper has forgotten is really over when it is said to be: no second one runs beside it.
#[test]
fn a_container_whose_record_is_damaged_is_ended() {
    on_a_node(Setup::default(), |node| Box::pin(damaged(node)));
}

async fn damaged(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "damaged");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let other = node.run(&sandbox, &config, shell("other", &image, "exec sleep 1000")).await?;
    let init = e2e::kernel::Group::of(node, &id).await?.init;
    let record = node.path("state/keeper");
    let mut found = Vec::new();
    for namespace in std::fs::read_dir(&record)?.flatten() {
        let file = namespace.path().join("tasks").join(format!("{id}.json"));
        found.extend(file.exists().then_some(file));
    }
    ensure!(found.len() == 1, "the record: {found:?}");
    std::fs::write(&found[0], "{")?;
    kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    ensure!(node.ended(&id).await?.exit_code == 255, "its status is lost");
    let gone = !std::path::Path::new(&format!("/proc/{init}/root")).exists()
        || std::fs::read_to_string(format!("/proc/{init}/stat")).is_ok_and(|stat| stat.contains(") Z "));
    ensure!(gone, "said to be over, and runs");
    ensure!(node.sh(&other, "echo in").await?.trim() == "in", "others are as they were");
    Ok(())
}
