//! The configuration of a running daemon: drop-ins, reload, what the service manager is told, who may use the socket.

use anyhow::{Context as _, Result, ensure};
use cri_proto::v1;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::UnixDatagram;

const DROP_INS: &[(&str, &str)] = &[
    ("10-first.toml", "log_level = \"warn\"\nlog_format = \"json\"\nruntime_handlers = [\"runc\"]\n"),
    (
        "20-second.toml",
        "log_level = \"debug\"\n[containers]\ndefault_ulimits = [\"nofile=77:78\"]\n\
         [pods]\ndefault_sysctls = [\"net.ipv4.ip_unprivileged_port_start=81\"]\n",
    ),
];

fn write(node: &Node, name: &str, text: &str) -> Result<PathBuf> {
    let path = node.path("config.d").join(name);
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn hang_up(node: &Node) -> Result<()> {
    Ok(kill(Pid::from_raw(node.daemon_pid()?), Signal::SIGHUP)?)
}

fn log(node: &Node) -> String {
    std::fs::read_to_string(node.path("daemon.log")).unwrap_or_default()
}

/// Waits until the log after its first `from` bytes satisfies `probe`, and returns that part.
async fn logged(node: &Node, from: usize, probe: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let text = log(node).split_off(from);
        if probe(&text) {
            return Ok(text);
        }
        ensure!(tokio::time::Instant::now() < deadline, "not logged within 30 s; the log since then: {text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// CRI-RUN-05.
#[test]
fn drop_ins_and_reload() {
    on_a_node(Setup { drop_ins: DROP_INS, ..Setup::default() }, |node| Box::pin(reload(node)));
}

async fn reload(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = pod(node, "configured");
    let sandbox =
        node.run_pod_under(&config, "runc").await.context("a handler that the configuration adds")?;
    let look = r#"echo "$(ulimit -n) $(ulimit -Hn) $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)"; exec sleep 1000"#;
    let first = node.run(&sandbox, &config, shell("first", &image, look)).await?;
    node.log_shows(&first, |line| line == "77 78 81").await?;
    ensure!(node.run_pod_under(&pod(node, "other"), "crun").await.is_err(), "an unknown handler");
    every_line_is_json(node)?;
    pods_are_named(&log(node))?;

    // A fault: what was in force still is, and the line is told.
    let before = log(node).len();
    let bad = write(node, "30-bad.toml", "[containers]\ndefault_ulimit = []\n")?;
    hang_up(node)?;
    let told = logged(node, before, |log| log.contains("not reloaded")).await?;
    let wanted = format!("{}:2: unknown key", bad.display());
    ensure!(told.contains(&wanted) && told.contains("containers.default_ulimits"), "{told}");
    let second = node.run(&sandbox, &config, shell("second", &image, look)).await?;
    node.log_shows(&second, |line| line == "77 78 81").await?;

    // What may change does; the rest is told.
    std::fs::remove_file(bad)?;
    write(
        node,
        "40-good.toml",
        "runtime_handlers = [\"crun\"]\n[containers]\ndefault_ulimits = [\"nofile=55\"]\n[network]\nbridge = \"br7\"\n",
    )?;
    let before = log(node).len();
    hang_up(node)?;
    let told = logged(node, before, |log| log.contains("configuration reloaded")).await?;
    ensure!(told.contains("applied: runtime_handlers, containers.default_ulimits;"), "{told}");
    ensure!(told.contains("needs a restart: network.bridge"), "{told}");
    let third = node.run(&sandbox, &config, shell("third", &image, look)).await?;
    node.log_shows(&third, |line| line == "55 55 81").await?;
    let crun = node.run_pod_under(&pod(node, "other"), "crun").await.context("a handler that came later")?;
    let runs = node.container_status(&first).await?;
    ensure!(runs.state() == v1::ContainerState::ContainerRunning, "what ran runs on");
    for pod in [crun, sandbox] {
        node.stop_pod(&pod).await?;
        node.remove_pod(&pod).await?;
    }
    every_line_is_json(node)
}

fn every_line_is_json(node: &Node) -> Result<()> {
    for line in log(node).lines() {
        let object: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(object["time"].is_string() && object["level"].is_string(), "{line}");
    }
    Ok(())
}

/// Every line about a pod or one of its containers has the pod's name, whoever wrote it.
fn pods_are_named(log: &str) -> Result<()> {
    let mut about = 0;
    for line in log.lines() {
        let object: serde_json::Value = serde_json::from_str(line)?;
        let rpc = object["rpc"].as_str().unwrap_or_default();
        let of_pods =
            ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer", "StartContainer"];
        if of_pods.contains(&rpc) || object.get("container").is_some() {
            about += 1;
            let pod = object["pod"].as_str().unwrap_or_default();
            ensure!(pod.ends_with("/configured") || pod.ends_with("/other"), "no pod in {line}");
        }
    }
    ensure!(about >= 2, "hardly a line about pods:\n{log}");
    Ok(())
}

#[test]
fn the_service_manager_is_told() {
    let environment = &[("NOTIFY_SOCKET", "{dir}/notify"), ("WATCHDOG_USEC", "400000")];
    on_a_node(Setup { environment, ..Setup::default() }, |node| Box::pin(notified(node)));
}

/// Receives until a message has a line `wanted`; returns that message.
async fn message(socket: &UnixDatagram, wanted: &str) -> Result<String> {
    let receive = async {
        loop {
            let mut buffer = vec![0; 4096];
            let length = socket.recv(&mut buffer).await?;
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return anyhow::Ok(text);
            }
        }
    };
    let received = tokio::time::timeout(Duration::from_secs(30), receive).await;
    received.with_context(|| format!("no {wanted} within 30 s"))?
}

async fn notified(node: &mut Node) -> Result<()> {
    // The first start had nobody to tell, and served all the same.
    node.kill_daemon().await?;
    let socket = UnixDatagram::bind(node.path("notify"))?;
    node.start_daemon().await?;
    let ready = message(&socket, "READY=1").await?;
    ensure!(ready.contains("STATUS=serving CRI v1, pods: 0"), "{ready}");
    for _ in 0..3 {
        message(&socket, "WATCHDOG=1").await?;
    }
    hang_up(node)?;
    let reloading = message(&socket, "RELOADING=1").await?;
    ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    message(&socket, "READY=1").await?;

    write(node, "bad.toml", "nonsense\n")?;
    hang_up(node)?;
    message(&socket, "RELOADING=1").await?;
    let ready = message(&socket, "READY=1").await?;
    ensure!(ready.contains("STATUS=configuration not reloaded:") && ready.contains("bad.toml:1"), "{ready}");
    std::fs::remove_file(node.path("config.d/bad.toml"))?;

    let keeper = node.keeper_pid().await?;
    let environment = std::fs::read(format!("/proc/{keeper}/environ"))?;
    ensure!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"), "the keeper must not notify");
    kill(Pid::from_raw(node.daemon_pid()?), Signal::SIGTERM)?;
    message(&socket, "STOPPING=1").await?;
    node.daemon_ended().await?;
    node.start_daemon().await
}

const GROUP: &[(&str, &str)] = &[("socket.toml", "[socket]\nmode = \"0660\"\ngroup = \"4242\"\n")];

#[test]
fn who_may_use_the_socket() {
    on_a_node(Setup::default(), |node| Box::pin(roots(node)));
    on_a_node(Setup { drop_ins: GROUP, ..Setup::default() }, |node| Box::pin(of_a_group(node)));
}

/// What `slipway pods` of this user and group says, and whether it worked.
async fn pods_as(node: &Node, uid: u32, gid: u32) -> Result<(bool, String)> {
    let mut command = tokio::process::Command::new("setpriv");
    let ids = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()];
    // The program by its descriptor: the way to it may be root's.
    command.args(ids).arg("/proc/self/fd/0").arg("--address").arg(node.socket()).arg("pods");
    let program = std::fs::File::open(e2e::node::binary("slipway"))?;
    let output = command.stdin(Stdio::from(program)).output().await.context("setpriv: install util-linux")?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// The way to the socket is anybody's: only the socket itself decides.
fn open_the_way(node: &Node) -> Result<()> {
    let dir = node.socket();
    let dir = dir.parent().context("a directory")?;
    Ok(std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?)
}

fn owner_and_mode(socket: &Path) -> Result<(u32, u32, u32)> {
    let meta = std::fs::metadata(socket)?;
    Ok((meta.uid(), meta.gid(), meta.mode() & 0o7777))
}

async fn roots(node: &mut Node) -> Result<()> {
    open_the_way(node)?;
    ensure!(owner_and_mode(&node.socket())? == (0, 0, 0o600), "{:?}", owner_and_mode(&node.socket())?);
    ensure!(!pods_as(node, 4242, 4242).await?.0, "a stranger");
    // Somebody opens it: the peer is looked at, too.
    std::fs::set_permissions(node.socket(), std::fs::Permissions::from_mode(0o666))?;
    let (worked, said) = pods_as(node, 4242, 4242).await?;
    ensure!(!worked, "a stranger came in: {said}");
    logged(node, 0, |log| log.contains("refused a client that is not root")).await?;
    ensure!(pods_as(node, 0, 0).await?.0, "root");
    Ok(())
}

async fn of_a_group(node: &mut Node) -> Result<()> {
    open_the_way(node)?;
    ensure!(owner_and_mode(&node.socket())? == (0, 4242, 0o660), "{:?}", owner_and_mode(&node.socket())?);
    let (member, said) = pods_as(node, 4242, 4242).await?;
    ensure!(member, "a member of the group: {said}");
    ensure!(!pods_as(node, 4242, 4243).await?.0, "a stranger");
    Ok(())
}
