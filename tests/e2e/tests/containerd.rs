//! The containerd door: `io.containerd.slipway.v1` behind Debian's containerd (1.6) and the pinned 2.x, by ctr, crictl
//! and CRI calls. Every test ends with the leak check of a node.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::containerd::{Handler, OURS, Release, setup};
use e2e::requests::{bind, pod, shell};
use e2e::{Node, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const RUNTIME: &str = "io.containerd.slipway.v1";
const IMAGE: &str = "test.local/busybox:1";

/// A node of each kind that runs pods under our handler.
const CLASSIC_1: (Release, Handler) = (Release::Debian, Handler::SlipwayClassic);
const CLASSIC_2: (Release, Handler) = (Release::Two, Handler::SlipwayClassic);
const SANDBOX_2: (Release, Handler) = (Release::Two, Handler::Slipway);

// ---------------------------------------------------------------- ctr

/// SHIM-BIN-01, SHIM-BOOT-01, SHIM-OUT-03, SHIM-VER-01, SHIM-TSK-01, SHIM-TSK-16: one line switches over.
#[test]
fn ctr_runs_containers_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(by_ctr(node)));
}

/// SHIM-BOOT-02, SHIM-OUT-01, SHIM-VER-03, SHIM-VER-04: the same on 2.x with its bootstrap protocol.
#[test]
fn ctr_runs_containers_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(by_ctr(node)));
}

async fn import(node: &Node) -> Result<()> {
    let archive = e2e::registry::archive("busybox");
    node.ctr(&["images", "import", &archive.display().to_string()]).await?;
    Ok(())
}

/// `ctr run` under our runtime; `more` comes before the image.
async fn run(node: &Node, id: &str, more: &[&str], command: &[&str]) -> Result<(i32, String, String)> {
    let cgroup = format!("{}/{id}", node.cgroup_root());
    let args = [&["run", "--runtime", RUNTIME, "--cgroup", &cgroup], more, &[IMAGE, id], command].concat();
    let output = node.ctr_command(&args)?.stdin(std::process::Stdio::null()).output().await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

async fn by_ctr(node: &mut Node) -> Result<()> {
    import(node).await?;
    let ran = run(node, "brief", &["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    ensure!(ran == (7, "out\n".into(), "err\n".into()), "{ran:?}");
    for round in 0..10 {
        // SHIM-TST-02: what ends at once is seen to have begun.
        let id = format!("true-{round}");
        ensure!(run(node, &id, &["--rm"], &["true"]).await?.0 == 0, "true, round {round}");
    }
    run(node, "long", &["-d"], &["sleep", "1000"]).await?;
    let task = async |command: &str| node.ctr(&["task", command, "long"]).await;
    ensure!(node.ctr(&["task", "ls"]).await?.contains("RUNNING"), "task ls");
    let exec =
        node.ctr(&["task", "exec", "--exec-id", "e1", "long", "sh", "-c", "echo in; hostname"]).await?;
    ensure!(exec.starts_with("in\n"), "exec: {exec}");
    let failing = node.ctr(&["task", "exec", "--exec-id", "e2", "long", "sh", "-c", "exit 5"]).await;
    ensure!(failing.is_err(), "an exec's exit code is ctr's");
    task("pause").await?;
    ensure!(node.ctr(&["task", "ls"]).await?.contains("PAUSED"), "paused");
    task("resume").await?;
    // SHIM-TSK-28, SHIM-TST-09: ctr decodes them by the standard types.
    ensure!(task("metrics").await?.to_lowercase().contains("memory"), "metrics");
    ensure!(task("ps").await?.lines().count() >= 2, "ps");
    let refused = node.ctr(&["task", "checkpoint", "long"]).await;
    let text = refused.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(text.contains("checkpoints are not supported"), "checkpoint: {text}");
    node.ctr(&["task", "kill", "-s", "SIGKILL", "long"]).await?;
    gone(node, "long", 137).await?;
    node.ctr(&["task", "rm", "long"]).await.ok();
    node.ctr(&["containers", "rm", "long"]).await?;
    logs_by_uri(node).await
}

/// The task is STOPPED; `ctr task rm` then answers its status.
async fn gone(node: &Node, id: &str, _status: i32) -> Result<()> {
    until("the task's end", async || {
        Ok(node.ctr(&["task", "ls"]).await?.lines().any(|l| l.starts_with(id) && l.contains("STOPPED")))
    })
    .await
}

/// SHIM-IO-05, SHIM-IO-06, SHIM-IO-07, SHIM-IO-08.
async fn logs_by_uri(node: &Node) -> Result<()> {
    let file = node.path("logs/new/file.log");
    let uri = format!("file://{}", file.display());
    let script = "echo out; echo err >&2";
    run(node, "to-file", &["-d", "--log-uri", &uri], &["sh", "-c", script]).await?;
    until("both streams in the file", async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        Ok(text.contains("out\n") && text.contains("err\n"))
    })
    .await?;
    let program = node.path("logger.sh");
    std::fs::write(
        &program,
        "#!/bin/sh\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $1 $2\" > $2\nexec 5>&-\ncat <&3 >> $2\ncat <&4 >> $2\n",
    )?;
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let seen = node.path("logs/program.log");
    let uri = format!("binary://{}?to={}", program.display(), seen.display());
    run(node, "to-program", &["-d", "--log-uri", &uri], &["sh", "-c", script]).await?;
    let expected = format!("to-program default to {}\nout\nerr\n", seen.display());
    until(
        "the program's output",
        async || Ok(std::fs::read_to_string(&seen).unwrap_or_default() == expected),
    )
    .await?;
    for id in ["to-file", "to-program"] {
        gone(node, id, 0).await?;
        node.ctr(&["task", "rm", id]).await?;
        node.ctr(&["containers", "rm", id]).await?;
    }
    Ok(())
}

/// SHIM-EVT-01, SHIM-EVT-02, SHIM-EVT-03, SHIM-EVT-05, SHIM-EXIT-01, SHIM-EXIT-02: all events, once, in order.
#[test]
fn events_come_once_and_in_order() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(events(node)));
}

async fn events(node: &mut Node) -> Result<()> {
    import(node).await?;
    let file = node.path("logs/events");
    let mut watcher =
        node.ctr_command(&["events"])?.stdout(std::fs::File::create(&file)?).spawn().context("ctr events")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    run(node, "watched", &["-d"], &["sleep", "1000"]).await?;
    node.ctr(&["task", "exec", "--exec-id", "e1", "watched", "true"]).await?;
    node.ctr(&["task", "kill", "-s", "SIGKILL", "watched"]).await?;
    gone(node, "watched", 137).await?;
    node.ctr(&["task", "rm", "watched"]).await.ok();
    let topics = || -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&file)?;
        let topic =
            |line: &str| line.split_whitespace().find(|w| w.starts_with("/tasks/")).map(str::to_owned);
        Ok(text.lines().filter_map(topic).collect())
    };
    let expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"];
    let expected: Vec<_> = expected.iter().map(|topic| format!("/tasks/{topic}")).collect();
    until("all events", async || Ok(topics()?.len() >= expected.len())).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure!(topics()? == expected, "{:?}", topics()?);
    let exits = std::fs::read_to_string(&file)?;
    let exits: Vec<_> = exits.lines().filter(|line| line.contains("/tasks/exit")).collect();
    ensure!(exits[0].contains("\"id\":\"e1\"") && exits[1].contains("\"id\":\"watched\""), "{exits:?}");
    watcher.kill().await?;
    node.ctr(&["containers", "rm", "watched"]).await?;
    Ok(())
}

// ---------------------------------------------------------------- CRI

/// SHIM-VER-01, SHIM-GRP-01, SHIM-GRP-02, SHIM-TST-01.
#[test]
fn pods_in_the_classic_sandbox_of_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(pods(node)));
}

/// SHIM-GRP-03, SHIM-GRP-04.
#[test]
fn pods_in_the_classic_sandbox_of_containerd_2() {
    on_a_node(setup(CLASSIC_2.0, CLASSIC_2.1), |node| Box::pin(pods(node)));
}

/// SHIM-SBX-01, SHIM-SBX-03, SHIM-SBX-04, SHIM-SBX-06, SHIM-SBX-07, SHIM-SBX-13, SHIM-SBX-14.
#[test]
fn pods_without_a_pause_container_on_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(pods_without_pause(node)));
}

async fn pods_without_pause(node: &mut Node) -> Result<()> {
    pods(node).await?;
    let config = pod(node, "bare");
    let sandbox = node.run_pod(&config).await?;
    let listed = node.ctr(&["-n", "k8s.io", "task", "ls", "-q"]).await?;
    ensure!(listed.trim().is_empty(), "a pod without containers has no task: {listed}");
    let keepers = node.keepers();
    ensure!(keepers.len() == 1, "one keeper: {keepers:?}");
    let below = e2e::leaks::children(keepers[0]);
    ensure!(below.is_empty(), "a pod has no process of its own: {below:?}");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

async fn pods(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let volume = node.path("volume");
    std::fs::create_dir(&volume)?;
    let mut config = pod(node, "both");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.9.9.9".into()],
        searches: vec!["a.b".into()],
        options: vec![],
    });
    let sandbox = node.run_pod(&config).await?;
    let script = "echo page > /v/page; echo shm > /dev/shm/x; exec httpd -f -p 8080 -h /v";
    let mut server = shell("server", &image, script);
    server.mounts.push(bind(&volume, "/v"));
    let server = node.run(&sandbox, &config, server).await?;
    let client = node.run(&sandbox, &config, shell("client", &image, "sleep 1000")).await?;
    let fetch =
        "for i in $(seq 50); do wget -qO- http://127.0.0.1:8080/page && exit 0; sleep 0.1; done; exit 1";
    ensure!(node.sh(&client, fetch).await?.trim() == "page", "localhost is shared");
    ensure!(node.sh(&client, "cat /dev/shm/x").await?.trim() == "shm", "/dev/shm is shared");
    ensure!(node.sh(&client, "hostname; cat /etc/hostname").await? == "both\nboth\n", "hostname");
    let resolv = node.sh(&client, "cat /etc/resolv.conf").await?;
    ensure!(resolv.contains("nameserver 10.9.9.9") && resolv.contains("search a.b"), "resolv.conf: {resolv}");
    ensure!(node.sh(&client, "cat /proc/1/cmdline").await?.starts_with("sleep"), "a pid 1 of its own");
    let (code, out, err) = node.exec(&client, &["sh", "-c", "echo o; echo e >&2; exit 3"]).await?;
    ensure!((code, out.as_str(), err.as_str()) == (3, "o\n", "e\n"), "exec: {code} {out} {err}");
    ensure!(!node.pod_ip(&sandbox).await?.is_empty(), "an address");
    let brief = node.run(&sandbox, &config, shell("brief", &image, "echo last words; exit 42")).await?;
    let ended = node.ended(&brief).await?;
    ensure!(ended.exit_code == 42, "{ended:?}");
    node.log_shows(&brief, |line| line == "last words").await?;
    ensure!(node.keepers().len() == 1, "one keeper for all: {:?}", node.keepers());
    let shown = node.crictl(&["stats", "--output", "json"]).await?;
    ensure!(shown.contains(&client), "crictl stats: {shown}");
    let inside = node.crictl(&["exec", "-s", &client, "echo", "by crictl"]).await?;
    ensure!(inside.trim() == "by crictl", "{inside}");
    node.stop_container(&server, 1).await?;
    node.remove_container(&server).await?;
    node.stop_pod(&sandbox).await?;
    ensure!(node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxNotready, "stopped");
    node.remove_pod(&sandbox).await
}

/// A RuntimeClass beside runc on one node, on both releases.
#[test]
fn a_runtime_class_beside_runc_on_debians_containerd() {
    on_a_node(setup(Release::Debian, Handler::Runc), |node| Box::pin(beside_runc(node)));
}

#[test]
fn a_runtime_class_beside_runc_on_containerd_2() {
    on_a_node(setup(Release::Two, Handler::Runc), |node| Box::pin(beside_runc(node)));
}

async fn beside_runc(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let (theirs, ours) = (pod(node, "theirs"), pod(node, "ours"));
    let (pod_theirs, pod_ours) = (node.run_pod(&theirs).await?, node.run_pod_under(&ours, OURS).await?);
    let one = node.run(&pod_theirs, &theirs, shell("c", &image, "sleep 1000")).await?;
    let two = node.run(&pod_ours, &ours, shell("c", &image, "sleep 1000")).await?;
    for id in [&one, &two] {
        ensure!(node.sh(id, "echo in").await?.trim() == "in", "exec");
    }
    ensure!(node.keepers().len() == 1, "one is ours: {:?}", node.keepers());
    let reach = format!("ping -c 1 -W 2 {}", node.pod_ip(&pod_theirs).await?);
    node.sh(&two, &reach).await.context("pods of both reach each other")?;
    for id in [&pod_theirs, &pod_ours] {
        node.stop_pod(id).await?;
        node.remove_pod(id).await?;
    }
    Ok(())
}

/// SHIM-GRP-01, SHIM-OPT-03, SHIM-SBX-11: a crash domain per pod by one option; a keeper ends with its pod.
#[test]
fn each_pod_has_a_keeper_of_its_own_by_an_option() {
    on_a_node(setup(Release::Two, Handler::SlipwayPerPod), |node| Box::pin(keeper_per_pod(node)));
}

async fn keeper_per_pod(node: &mut Node) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let config = pod(node, name);
        let sandbox = node.run_pod(&config).await?;
        let main = node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
        node.run(&sandbox, &config, shell("side", &image, "sleep 1000")).await?;
        pods.push((sandbox, main));
    }
    ensure!(node.keepers().len() == 2, "{:?}", node.keepers());
    let (sandbox, _) = &pods[0];
    node.stop_pod(sandbox).await?;
    node.remove_pod(sandbox).await?;
    until("the first pod's keeper is gone", async || Ok(node.keepers().len() == 1)).await?;
    ensure!(node.sh(&pods[1].1, "echo in").await?.trim() == "in", "the other is not affected");
    Ok(())
}

/// hack/containerd sets a node up and back: afterwards its configuration is as it was, to the byte.
#[test]
fn the_script_turns_the_handler_on_and_off() {
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().to_str().expect("utf-8").to_owned();
    let bin = e2e::node::binary("slipway");
    let script = |action: &str| {
        let output = std::process::Command::new(e2e::node::repository().join("hack/containerd"))
            .args([action, "--root", &root])
            .env("SLIPWAY_BIN_DIR", bin.parent().expect("directory"))
            .output()
            .expect("hack/containerd");
        assert!(output.status.success(), "{action}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let config = dir.path().join("etc/containerd/config.toml");
    let read = || std::fs::read_to_string(&config).expect("configuration");
    script("on");
    assert_eq!(script("status"), "on");
    assert!(read().contains("io.containerd.slipway.v1"), "{}", read());
    script("off");
    assert!(!config.exists(), "there was none before");
    let text = "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"x\" # mine\n";
    std::fs::write(&config, text).expect("write");
    script("on");
    script("on");
    assert!(read().starts_with(text) && read().contains("runtimes.slipway]"), "{}", read());
    script("off");
    assert_eq!((read(), script("status")), (text.to_owned(), "off".to_owned()));
    assert_eq!(std::fs::read_dir(dir.path().join("usr/local/bin")).expect("bin").count(), 0);
}

// ---------------------------------------------------------------- deaths

/// SHIM-TST-04, SHIM-DEL-08, SHIM-DEL-10, SHIM-EVT-06, SHIM-EVT-09: kill -9 of containerd in the middle of 50 pods.
#[test]
fn debians_containerd_is_killed_in_the_middle_of_50_pods() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(restart(node, 50)));
}

#[test]
fn containerd_2_is_killed_in_the_middle_of_50_pods() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(restart(node, 50)));
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

/// DESIGN 1B and 4: the keeper dies, and containerd does not even notice.
#[test]
fn the_keeper_is_killed_behind_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(keeper_dies(node)));
}

#[test]
fn the_keeper_is_killed_behind_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(keeper_dies(node)));
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

// ---------------------------------------------------------------- churn

/// Pods come and go, eight at a time, and nothing of them stays (hack/soak does the same with 1,000).
#[test]
fn churn_leaves_nothing_on_debians_containerd() {
    on_a_node(setup(CLASSIC_1.0, CLASSIC_1.1), |node| Box::pin(churn(node, 24)));
}

#[test]
fn churn_leaves_nothing_on_containerd_2() {
    on_a_node(setup(SANDBOX_2.0, SANDBOX_2.1), |node| Box::pin(churn(node, 24)));
}

async fn churn(node: &mut Node, count: usize) -> Result<()> {
    let image = node.import_for_cri("busybox").await?;
    // One that stays, so that the same keeper is looked at.
    let config = pod(node, "stays");
    let sandbox = node.run_pod(&config).await?;
    node.run(&sandbox, &config, shell("main", &image, "sleep 1000")).await?;
    e2e::containerd::churn(node, &image, 4).await?;
    let before = e2e::containerd::census(node)?;
    e2e::containerd::churn(node, &image, count).await?;
    let mut after = BTreeMap::new();
    until("the same numbers as before", async || {
        after = e2e::containerd::census(node)?;
        Ok(after == before)
    })
    .await
    .with_context(|| format!("before {before:?}, after {after:?}"))
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done().await? {
        ensure!(start.elapsed() < Duration::from_secs(30), "{what}: not after 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
