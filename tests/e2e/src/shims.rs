//! Other containerd shims as handlers: which there are, and what the keeper has of one.

use crate::Node;
use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Debian's, for runc.
pub const SHIM: &str = "/usr/bin/containerd-shim-runc-v2";
const PATIENCE: Duration = Duration::from_secs(60);

/// Every shim there is here, by the name of its handler.
pub fn all() -> [(&'static str, PathBuf); 3] {
    [
        ("debian", SHIM.into()),
        ("two", crate::node::tool("containerd-2/containerd-shim-runc-v2")),
        ("own", crate::node::binary("containerd-shim-slipway-v1")),
    ]
}

/// Adds a handler with this shim and waits until the running daemon has it.
pub async fn handler(node: &Node, name: &str, program: &Path, more: &str) -> Result<()> {
    let text = format!("[handlers.{name}]\nshim = {program:?}\n{more}\n");
    std::fs::write(node.path("config.d").join(format!("{name}.toml")), text)?;
    kill(Pid::from_raw(node.daemon_pid()?), Signal::SIGHUP)?;
    let start = Instant::now();
    while handlers(node).await?.iter().all(|h| h.name != name) {
        ensure!(start.elapsed() < PATIENCE, "no handler {name}:\n{}", node.log_tail(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

pub async fn handlers(node: &Node) -> Result<Vec<v1::RuntimeHandler>> {
    let status = node.runtime().await?.status(v1::StatusRequest::default()).await?;
    Ok(status.into_inner().runtime_handlers)
}

/// The directory that the keeper has for the pod's shim.
fn home(node: &Node, pod: &str) -> Result<PathBuf> {
    let keepers = std::fs::read_dir(node.path("state/keeper"))?.flatten();
    let mut homes = keepers.map(|keeper| keeper.path().join("shims").join(pod));
    homes.find(|home| home.exists()).context("the keeper has nothing of this pod's shim")
}

/// What the keeper knows of it: pid and socket.
pub fn shim(node: &Node, pod: &str) -> Result<(i32, PathBuf)> {
    let text = std::fs::read(home(node, pod)?.join("shim.json"))?;
    let record: serde_json::Value = serde_json::from_slice(&text)?;
    let address = record["endpoint"]["address"].as_str().context("no address")?;
    let pid = record["pid"].as_i64().context("no pid")?;
    Ok((i32::try_from(pid)?, address.trim_start_matches("unix://").into()))
}

/// It runs; one that waits to be reaped by this machine's init has no command line any more.
pub fn is_alive(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
}

/// Nothing of the pod's shim is left.
pub fn is_clean(node: &Node, pod: &str, pid: i32, socket: &Path) -> Result<()> {
    ensure!(!is_alive(pid), "the shim's process {pid} is left");
    ensure!(!socket.exists(), "its socket {} is left", socket.display());
    ensure!(home(node, pod).is_err(), "its directory is left");
    let known = std::fs::read_dir(node.path("state/runtimes")).into_iter().flatten().flatten();
    let known: Vec<_> =
        known.flat_map(|of| std::fs::read_dir(of.path()).into_iter().flatten().flatten()).collect();
    let inside =
        known.iter().flat_map(|entry| std::fs::read_dir(entry.path()).into_iter().flatten().flatten());
    let inside: Vec<_> = inside.map(|entry| entry.path()).collect();
    ensure!(inside.is_empty(), "its runtime knows {inside:?}");
    Ok(())
}

/// An executable script below the node's directory.
pub fn script(node: &Node, name: &str, text: &str) -> Result<PathBuf> {
    let path = node.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
