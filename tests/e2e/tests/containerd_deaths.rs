//! The containerd door under pods that run on: containerd killed, started again, upgraded; the keeper killed, and its guardian
//! with it. Every test ends with the leak check of a node.

use anyhow::{Result, ensure};
use cri_proto::v1;
use e2e::containerd::{Handler, Release, setup, until};
use e2e::requests::{bind, pod, shell};
use e2e::{Node, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// A node of each kind that runs pods under our handler.
const CLASSIC_1: (Release, Handler) = (Release::Debian, Handler::SlipwayClassic);
const SANDBOX_2: (Release, Handler) = (Release::Two, Handler::Slipway);
const PER_POD_2: (Release, Handler) = (Release::Two, Handler::SlipwayPerPod);

/// SHIM-TST-04, SHIM-DEL-08, SHIM-DEL-10, SHIM-EVT-06, SHIM-EVT-09: kill -9 of containerd in the middle of 50 pods.
#[test]
fn debians_containerd_is_killed_in_the_middle_of_50_pods() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(restart(node, 50)));
}

#[test]
fn containerd_2_is_killed_in_the_middle_of_50_pods() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(restart(node, 50)));
}

/// The same where each pod has a keeper of its own: all of them live on, and are found again.
#[test]
fn containerd_2_is_killed_over_a_keeper_for_each_pod() {
    on_a_node(setup(PER_POD_2.0, PER_POD_2.1), |node| Box::pin(restart(node, 6)));
}

async fn restart(node: &mut Node, count: usize) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let mut containers = Vec::new();
    for number in 0..count {
        let config = pod(node, &format!("p{number}"));
        let sandbox = node.run_pod(&config).await?;
        // Every fifth ends while nobody serves.
        let script = if number % 5 == 0 {
            format!("while [ ! -e /v/go ]; do sleep 0.1; done; exit {}", 40 + number)
        } else {
            "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done".into()
        };
        let mut config_of = shell("c", &image, &script);
        config_of.mounts.push(bind(&node.path("logs"), "/v"));
        containers.push(node.run(&sandbox, &config, config_of).await?);
    }
    // One that is only created.
    let config = pod(node, "parked");
    let sandbox = node.run_pod(&config).await?;
    let parked = node.create(&sandbox, &config, shell("c", &image, "echo started late; exit 6")).await?;
    let keepers = node.keepers();
    node.kill_daemon().await?;
    std::fs::write(node.path("logs/go"), "")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.start_daemon().await?;
    ensure!(node.keepers() == keepers, "the keeper lived on: {keepers:?}, {:?}", node.keepers());
    for (number, id) in containers.iter().enumerate() {
        if number % 5 == 0 {
            let ended = node.ended(id).await?;
            ensure!(
                ended.exit_code == 40 + i32::try_from(number)?,
                "exit code of the time between: {ended:?}"
            );
        } else {
            let status = node.container_status(id).await?;
            ensure!(status.state() == v1::ContainerState::ContainerRunning, "runs on: {status:?}");
        }
    }
    let steady = &containers[1];
    let lines = node.log(steady).await?.len();
    until("the log goes on", async || Ok(node.log(steady).await?.len() > lines + 2)).await?;
    let texts: Vec<_> = node.log(steady).await?.into_iter().map(|(_, _, text)| text).collect();
    let expected: Vec<_> = (1..=texts.len()).map(|i| format!("line {i}")).collect();
    ensure!(texts == expected, "no line is lost: {texts:?}");
    node.start_container(&parked).await?;
    ensure!(node.ended(&parked).await?.exit_code == 6, "what was created can be started");
    node.sh(steady, "echo in").await?;
    Ok(())
}

/// containerd's upgrade: pods of Debian's 1.6 run on under 2.x, which finds the same directories, and go in its way.
#[test]
fn containerd_is_upgraded_under_running_pods() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(upgraded(node)));
}

async fn upgraded(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let config = pod(node, "old");
    let sandbox = node.run_pod(&config).await?;
    let script = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let steady = node.run(&sandbox, &config, shell("steady", &image, script)).await?;
    let mut brief = shell("brief", &image, "until [ -e /v/go ]; do sleep 0.05; done; exit 42");
    brief.mounts.push(bind(&node.path("logs"), "/v"));
    let brief = node.run(&sandbox, &config, brief).await?;
    let parked = node.create(&sandbox, &config, shell("parked", &image, "exit 6")).await?;
    let keepers = node.keepers();
    node.kill_daemon().await?;
    std::fs::write(node.path("logs/go"), "")?;
    node.become_containerd(SANDBOX_2.0, SANDBOX_2.1)?;
    node.start_daemon().await?;
    ensure!(node.ended(&brief).await?.exit_code == 42, "an exit between the releases");
    ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "exec under the new release");
    let lines = node.log(&steady).await?.len();
    until("the log goes on", async || Ok(node.log(&steady).await?.len() > lines + 2)).await?;
    node.start_container(&parked).await?;
    ensure!(node.ended(&parked).await?.exit_code == 6, "what was created before can be started");
    let status = node.pod_status(&sandbox).await?;
    ensure!(status.state() == v1::PodSandboxState::SandboxReady, "the pod is ready: {status:?}");
    let late = node.run(&sandbox, &config, shell("late", &image, "exit 4")).await?;
    ensure!(node.ended(&late).await?.exit_code == 4, "a new container in the old pod");
    // A pod of the new release has no pause container, and the same keeper.
    let config = pod(node, "new");
    let newer = node.run_pod(&config).await?;
    let main = node.run(&newer, &config, shell("main", &image, "exit 3")).await?;
    ensure!(node.ended(&main).await?.exit_code == 3, "a new pod");
    ensure!(node.keepers() == keepers, "one keeper through all: {keepers:?}, {:?}", node.keepers());
    node.stop_container(&steady, 10).await?;
    ensure!(node.ended(&steady).await?.exit_code == 9, "a signal reaches it");
    for id in [&sandbox, &newer] {
        node.stop_pod(id).await?;
        node.remove_pod(id).await?;
    }
    Ok(())
}

/// DESIGN 1B and 4: the keeper dies, and containerd does not even notice.
#[test]
fn the_keeper_is_killed_behind_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(keeper_dies(node)));
}

#[test]
fn the_keeper_is_killed_behind_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(keeper_dies(node)));
}

#[test]
fn a_pods_own_keeper_is_killed_behind_containerd_2() {
    on_a_node(setup(PER_POD_2.0, PER_POD_2.1), |node| Box::pin(keeper_dies(node)));
}

async fn keeper_dies(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let config = pod(node, "lasting");
    let sandbox = node.run_pod(&config).await?;
    let script = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let steady = node.run(&sandbox, &config, shell("steady", &image, script)).await?;
    let brief = node.run(&sandbox, &config, shell("brief", &image, "sleep 1.5; exit 42")).await?;
    for _ in 0..4 {
        let [keeper] = node.keepers()[..] else { anyhow::bail!("keepers: {:?}", node.keepers()) };
        kill(Pid::from_raw(keeper), Signal::SIGKILL)?;
        until("the next keeper", async || Ok(node.keepers().iter().any(|pid| *pid != keeper))).await?;
        ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "exec under the next keeper");
    }
    ensure!(node.ended(&brief).await?.exit_code == 42, "an exit between keepers");
    let status = node.container_status(&steady).await?;
    ensure!(status.state() == v1::ContainerState::ContainerRunning, "runs on: {status:?}");
    let late = node.run(&sandbox, &config, shell("late", &image, "exit 4")).await?;
    ensure!(node.ended(&late).await?.exit_code == 4, "new containers under the next keeper");
    node.stop_container(&steady, 10).await?;
    ensure!(node.ended(&steady).await?.exit_code == 9, "a signal reaches it");
    ensure!(
        node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxReady,
        "the pod is ready"
    );
    Ok(())
}

/// SHIM-TST-03, SHIM-DEL-01, SHIM-DEL-02, SHIM-DEL-04, SHIM-DEL-05, SHIM-DEL-07: keeper and guardian die together.
#[test]
fn keeper_and_guardian_are_killed_behind_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(all_die(node)));
}

#[test]
fn keeper_and_guardian_are_killed_behind_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(all_die(node)));
}

async fn all_die(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let config = pod(node, "doomed");
    let sandbox = node.run_pod(&config).await?;
    let main = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    let ours = node.our_processes();
    // Each would start the other anew: the guardian is held while the keeper dies.
    let (guardians, keepers): (Vec<_>, Vec<_>) = ours.iter().partition(|(_, c)| c.contains(" guardian "));
    for (those, signal) in
        [(&guardians, Signal::SIGSTOP), (&keepers, Signal::SIGKILL), (&guardians, Signal::SIGKILL)]
    {
        for (pid, _) in those {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }
    // As with any shim: nobody was there to see the status.
    let ended = node.ended(&main).await?;
    ensure!([137, 255].contains(&ended.exit_code), "{ended:?}");
    until("the pod's end", async || {
        Ok(node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxNotready)
    })
    .await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    // And the next pod finds a new keeper.
    let config = pod(node, "after");
    let sandbox = node.run_pod(&config).await?;
    let main = node.run(&sandbox, &config, shell("main", &image, "exit 3")).await?;
    ensure!(node.ended(&main).await?.exit_code == 3, "a new keeper");
    Ok(())
}

/// What a keeper for each pod is for: the death of one with its guardian is the end of one pod.
#[test]
fn a_pods_own_keeper_and_guardian_are_killed_and_its_neighbour_does_not_notice() {
    on_a_node(setup(PER_POD_2.0, PER_POD_2.1), |node| Box::pin(one_pod_dies(node)));
}

async fn one_pod_dies(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let config = pod(node, "doomed");
    let doomed = node.run_pod(&config).await?;
    let main = node.run(&doomed, &config, shell("main", &image, "sleep 1000")).await?;
    let its = node.our_processes();
    let config = pod(node, "neighbour");
    let sandbox = node.run_pod(&config).await?;
    let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let steady = node.run(&sandbox, &config, shell("steady", &image, script)).await?;
    let others: Vec<_> = node.our_processes().into_iter().filter(|one| !its.contains(one)).collect();
    ensure!(its.len() == 2 && others.len() == 2, "a guardian and a keeper each: {its:?}, {others:?}");
    let of = |role: &str| {
        its.iter().find(|(_, command)| command.contains(role)).map(|(pid, _)| Pid::from_raw(*pid))
    };
    let (Some(guardian), Some(keeper)) = (of(" guardian "), of(" serve ")) else { anyhow::bail!("{its:?}") };
    for (pid, signal) in [(guardian, Signal::SIGSTOP), (keeper, Signal::SIGKILL), (guardian, Signal::SIGKILL)]
    {
        kill(pid, signal)?;
    }
    let ended = node.ended(&main).await?;
    ensure!([137, 255].contains(&ended.exit_code), "{ended:?}");
    until("the pod's end", async || {
        Ok(node.pod_status(&doomed).await?.state() == v1::PodSandboxState::SandboxNotready)
    })
    .await?;
    node.stop_pod(&doomed).await?;
    node.remove_pod(&doomed).await?;
    ensure!(node.our_processes() == others, "the neighbour's own: {others:?}, {:?}", node.our_processes());
    ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "exec beside it");
    let lines = node.log(&steady).await?.len();
    until("the log goes on", async || Ok(node.log(&steady).await?.len() > lines + 2)).await?;
    let texts: Vec<_> = node.log(&steady).await?.into_iter().map(|(_, _, text)| text).collect();
    let expected: Vec<_> = (1..=texts.len()).map(|i| format!("line {i}")).collect();
    ensure!(texts == expected, "no line is lost: {texts:?}");
    Ok(())
}
