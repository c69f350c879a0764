//! Checkpoints through CRI: containers and pods as files, and again from there (CRI-CHK-*, CRI-CHKP-*).
//!
//! SLIPWAY_TEST_CRIU names another criu than that of PATH: Debian 12's does not know the newest kernels. Where none works,
//! the tests say so, and pass.

mod container;
mod faults;
mod kinds;
mod pod;

use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::requests::container;
use e2e::{Node, Scenario, Setup, on_a_node};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tonic::{Code, Status};

/// Counts in memory, tells its log and a file in the writable layer.
const COUNT: &str = "i=0; echo kept > /etc/kept; rm -f /etc/group; \
                     while :; do i=$((i+1)); echo $i; echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.05; done";
/// As much as a slow machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

fn criu() -> String {
    std::env::var("SLIPWAY_TEST_CRIU").unwrap_or_else(|_| "criu".to_owned())
}

fn works() -> bool {
    let check =
        std::process::Command::new(criu()).arg("check").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let works = check.is_ok_and(|status| status.success());
    if !works {
        eprintln!("{}: not here, or too old for this kernel; SLIPWAY_TEST_CRIU names another one", criu());
    }
    works
}

/// Runs the scenario where criu works, on a node that knows it.
fn with_criu(more: &str, scenario: Scenario) {
    if works() {
        let config = format!("[checkpoints]\ncriu = {:?}\n{more}", criu());
        on_a_node(Setup { config: Box::leak(config.into_boxed_str()), ..Setup::default() }, scenario);
    }
}

fn request(id: &str, location: &Path) -> v1::CheckpointContainerRequest {
    let location = location.display().to_string();
    v1::CheckpointContainerRequest { container_id: id.into(), location, timeout: 0 }
}

async fn checkpoint(node: &Node, id: &str, location: &Path) -> Result<(), Status> {
    let mut runtime = node.runtime().await.map_err(|e| Status::internal(e.to_string()))?;
    runtime.checkpoint_container(request(id, location)).await.map(drop)
}

async fn counted(node: &Node, id: &str) -> Result<u64> {
    let text = node.sh(id, "cat /tmp/n").await?;
    text.trim().parse().with_context(|| format!("a number: {text:?}"))
}

async fn counts_on(node: &Node, id: &str) -> Result<()> {
    let (before, start) = (counted(node, id).await?, Instant::now());
    while counted(node, id).await? <= before + 2 {
        ensure!(start.elapsed() < PATIENCE, "it stands still at {before}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Once its log shows some numbers.
async fn counting(node: &Node, id: &str) -> Result<()> {
    node.log_shows(id, |line| line == "10").await
}

/// The numbers in a log, which must follow each other from 1 on: nothing lost, nothing twice, no new beginning.
async fn in_a_row(node: &Node, id: &str) -> Result<u64> {
    let lines = node.log(id).await?;
    for (place, (_, _, text)) in lines.iter().enumerate() {
        ensure!(*text == (place + 1).to_string(), "line {} of the log is {text:?}", place + 1);
    }
    Ok(lines.len() as u64)
}

/// What is half-made anywhere: beside the archives, and in the daemon's own directory.
fn half_made(node: &Node, beside: &Path) -> Vec<PathBuf> {
    let inside = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let partial = inside(beside).filter(|path| path.extension().is_some_and(|e| e == "partial"));
    partial.chain(inside(&node.path("root/checkpoints"))).collect()
}

fn clean(node: &Node, beside: &Path) -> Result<()> {
    let left = half_made(node, beside);
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// A container whose image field names this.
fn restored(name: &str, from: &Path) -> v1::ContainerConfig {
    container(name, &from.display().to_string(), &[])
}

async fn run(dir: &Path, program: &str, args: &[&str]) -> Result<String> {
    let output = tokio::process::Command::new(program).args(args).current_dir(dir).output().await;
    let output = output.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, word: &str) -> Result<()> {
    let error = outcome.err().with_context(|| format!("{word}: it must be refused"))?;
    ensure!(error.code() == code && error.message().contains(word), "{word}: {error:?}");
    Ok(())
}

fn status(error: anyhow::Error) -> Status {
    error.downcast().unwrap_or_else(|other| Status::unknown(format!("{other:#}")))
}
