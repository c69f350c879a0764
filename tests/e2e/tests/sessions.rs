//! Exec sessions whose client goes away, whose start hangs, or that leave something behind.

use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::kernel::Group;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tonic::Code;

async fn sleeping(node: &mut Node) -> Result<String> {
    let image = node.import("busybox").await?;
    let config = pod(node, "sessions");
    let sandbox = node.run_pod(&config).await?;
    node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await
}

fn request(id: &str, script: &str, timeout: i64) -> v1::ExecSyncRequest {
    v1::ExecSyncRequest {
        container_id: id.into(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout,
    }
}

/// Once it answers `wanted`, or a bound later.
async fn until(node: &Node, id: &str, script: &str, wanted: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let said = node.sh(id, script).await?;
        if said.trim() == wanted {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{script}: {said:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const SLEEPERS: &str = "ps | grep -c '[s]leep 77' || true";

/// CRI-XS-07: at whatever moment the client goes.
#[test]
fn a_command_whose_client_goes_away_is_dead() {
    on_a_node(Setup::default(), |node| Box::pin(cancelled(node)));
}

async fn cancelled(node: &mut Node) -> Result<()> {
    let id = sleeping(node).await?;
    let mut begun = 0;
    for round in 0..60 {
        let mut runtime = node.runtime().await?;
        let request = request(&id, "sleep 77", 0);
        let call = tokio::spawn(async move { runtime.exec_sync(request).await.map(drop) });
        tokio::time::sleep(Duration::from_micros(500 * round)).await;
        call.abort();
    }
    // However slow the machine is: some are given up on when their command runs.
    for _ in 0..5 {
        let mut runtime = node.runtime().await?;
        let request = request(&id, "echo >>/begun; exec sleep 77", 0);
        let call = tokio::spawn(async move { runtime.exec_sync(request).await.map(drop) });
        begun += 1;
        until(node, &id, "wc -l </begun 2>/dev/null || true", &begun.to_string()).await?;
        call.abort();
    }
    until(node, &id, SLEEPERS, "0").await?;
    // Nor does the keeper remember any of them.
    let end = Instant::now() + Duration::from_secs(20);
    while !groups(node, &id).await?.is_empty() {
        ensure!(Instant::now() < end, "left: {:?}", groups(node, &id).await?);
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.sh(&id, "true").await?;
    }
    Ok(())
}

/// CRI-XS-04: the time that a start takes counts, and what was given up on never runs.
#[test]
fn a_command_that_cannot_begin_in_time_never_does() {
    on_a_node(Setup::default(), |node| Box::pin(frozen(node)));
}

async fn frozen(node: &mut Node) -> Result<()> {
    let id = sleeping(node).await?;
    let group = Group::of(node, &id).await?;
    group.freeze(true)?;
    let start = Instant::now();
    let error = node.runtime().await?.exec_sync(request(&id, "touch /ran", 2)).await;
    let took = start.elapsed();
    group.freeze(false)?;
    let error = error.err().context("a frozen container runs nothing")?;
    ensure!(error.code() == Code::DeadlineExceeded, "{error:?}");
    ensure!(took < Duration::from_secs(10), "answered after {took:?}");
    until(node, &id, "ls /ran 2>/dev/null || echo none", "none").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(node.sh(&id, "ls /ran 2>/dev/null || echo none").await?.trim() == "none", "it ran later");
    Ok(())
}

/// What a command leaves running holds its group only as long as it runs.
#[test]
fn groups_of_ended_sessions_go() {
    on_a_node(Setup::default(), |node| Box::pin(left_running(node)));
}

async fn left_running(node: &mut Node) -> Result<()> {
    let id = sleeping(node).await?;
    for _ in 0..5 {
        node.sh(&id, "sleep 1 >/dev/null 2>&1 &").await?;
    }
    ensure!(!groups(node, &id).await?.is_empty(), "what runs on is in its session's group");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    node.sh(&id, "true").await?;
    let end = Instant::now() + Duration::from_secs(10);
    while !groups(node, &id).await?.is_empty() {
        ensure!(Instant::now() < end, "left: {:?}", groups(node, &id).await?);
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.sh(&id, "true").await?;
    }
    Ok(())
}

/// Groups of sessions below the container's.
async fn groups(node: &Node, id: &str) -> Result<Vec<PathBuf>> {
    let dir = Group::of(node, id).await?.dir("freezer");
    let below = std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let below = below.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(below
        .filter(|path| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"exec-")))
        .collect())
}
