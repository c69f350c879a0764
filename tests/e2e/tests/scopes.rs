//! Pods with the systemd driver, where systemd is pid 1 on version 2 (hack/test-v2 boots such a machine). On the host's
//! network: the small kernel there has no nftables.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::requests::{in_pod, pod, pod_modes, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn on_systemd() -> bool {
    let both = ["/run/systemd/system", "/sys/fs/cgroup/cgroup.controllers"];
    both.iter().all(|path| std::path::Path::new(path).exists())
}

fn host_pod(node: &Node, name: &str) -> v1::PodSandboxConfig {
    let mut config = pod(node, name);
    pod_modes(&mut config).network = v1::NamespaceMode::Node.into();
    config
}

fn limited(
    config: &v1::PodSandboxConfig,
    container: v1::ContainerConfig,
    memory: i64,
) -> v1::ContainerConfig {
    let mut container = in_pod(config, container);
    container.linux.get_or_insert_default().resources = Some(resources(memory));
    container
}

fn resources(memory: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        memory_swap_limit_in_bytes: memory,
        ..Default::default()
    }
}

/// What systemd says of a unit.
fn show(unit: &str, property: &str) -> Result<String> {
    let output =
        std::process::Command::new("systemctl").args(["show", "-p", property, "--value", unit]).output()?;
    ensure!(output.status.success(), "systemctl show {unit}: {output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// CRI-RCF-01, CRI-CG-01, CRI-CG-02, CRI-UPD-01, CRI-CSTAT-14.
#[test]
fn containers_are_scopes() {
    if on_systemd() {
        on_a_node(Setup::default(), |node| Box::pin(life(node)));
    }
}

async fn life(node: &mut Node) -> Result<()> {
    let mut runtime = node.runtime().await?;
    let answer = runtime.runtime_config(v1::RuntimeConfigRequest {}).await?.into_inner();
    let driver = answer.linux.context("linux")?.cgroup_driver();
    ensure!(driver == v1::CgroupDriver::Systemd, "{driver:?}");
    let image = node.import("busybox").await?;
    let config = host_pod(node, "scopes");
    let sandbox = node.run_pod(&config).await?;
    let main =
        limited(&config, shell("main", &image, "trap 'exit 9' TERM; while :; do sleep 0.1; done"), 64 << 20);
    let main = node.run(&sandbox, &config, main).await?;
    let unit = format!("slipway-{main}.scope");
    ensure!(show(&unit, "ActiveState")? == "active" && show(&unit, "MemoryMax")? == "67108864", "{unit}");
    let slice = show(&unit, "Slice")?;
    ensure!(show(&unit, "ControlGroup")?.ends_with(&format!("/{slice}/{unit}")), "in its slice {slice}");
    let request = v1::UpdateContainerResourcesRequest {
        container_id: main.clone(),
        linux: Some(resources(96 << 20)),
        ..Default::default()
    };
    runtime.update_container_resources(request).await?;
    ensure!(show(&unit, "MemoryMax")? == "100663296", "an update is systemd's, too");
    let stats = runtime.container_stats(v1::ContainerStatsRequest { container_id: main.clone() });
    let memory = stats.await?.into_inner().stats.and_then(|s| s.memory).context("memory")?;
    ensure!(memory.working_set_bytes.is_some_and(|b| b.value > 0), "{memory:?}");
    ensure!(node.sh(&main, "echo in").await? == "in\n", "exec");
    kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    ensure!(node.sh(&main, "echo again").await? == "again\n", "exec after the keeper's death");
    node.stop_container(&main, 10).await?;
    ensure!(node.container_status(&main).await?.exit_code == 9, "by its own handler");
    node.remove_container(&main).await?;
    ensure!(show(&unit, "LoadState")? == "not-found", "the scope has gone with it");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// CRI-CSTAT-14: a scope goes with its last process; what the OOM killer did is told all the same, every time.
#[test]
fn out_of_memory_is_told_every_time() {
    if on_systemd() {
        on_a_node(Setup::default(), |node| Box::pin(out_of_memory(node)));
    }
}

async fn out_of_memory(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let config = host_pod(node, "oom");
    let sandbox = node.run_pod(&config).await?;
    for round in 0..8 {
        let name = format!("eater{round}");
        let eater = limited(&config, shell(&name, &image, "exec tail -c 100m /dev/zero"), 24 << 20);
        let eater = node.run(&sandbox, &config, eater).await?;
        let end = node.ended(&eater).await?;
        ensure!((end.exit_code, &*end.reason) == (137, "OOMKilled"), "round {round}: {end:?}");
    }
    let innocent = limited(&config, shell("innocent", &image, "kill -9 $$; sleep 1; exit 3"), 24 << 20);
    let innocent = node.run(&sandbox, &config, innocent).await?;
    let end = node.ended(&innocent).await?;
    ensure!(end.reason != "OOMKilled", "{end:?}");
    Ok(())
}
