//! Handlers whose containers another OCI runtime makes, beside our own on one node (CRI-RUN-04, CRI-STA-07, CRI-CAP-09).
//!
//! runc and crun are Debian's; the third one is our own command line, which is a foreign runtime to the keeper, too.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::kernel::{Group, is_v2};
use e2e::requests::{in_pod, pod, pod_modes, pod_security, security, shell};
use e2e::streams::{texts, type_into};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const RUNC: &str = "/usr/sbin/runc";
const CRUN: &str = "/usr/bin/crun";
const PATIENCE: Duration = Duration::from_secs(60);

/// An executable script below the node's directory.
fn script(node: &Node, name: &str, text: &str) -> Result<PathBuf> {
    let path = node.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Adds a handler and waits until the running daemon has it.
async fn handler(node: &Node, name: &str, program: &Path, more: &str) -> Result<()> {
    let text = format!("[handlers.{name}]\nruntime_path = {program:?}\n{more}\n");
    std::fs::write(node.path("config.d").join(format!("{name}.toml")), text)?;
    kill(Pid::from_raw(node.daemon_pid()?), Signal::SIGHUP)?;
    let start = Instant::now();
    while handlers(node).await?.iter().all(|h| h.name != name) {
        ensure!(start.elapsed() < PATIENCE, "no handler {name}:\n{}", node.log_tail(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn handlers(node: &Node) -> Result<Vec<v1::RuntimeHandler>> {
    let status = node.runtime().await?.status(v1::StatusRequest::default()).await?;
    Ok(status.into_inner().runtime_handlers)
}

/// Every runtime there is here as a handler; their names.
async fn all(node: &Node) -> Result<Vec<&'static str>> {
    handler(node, "runc", Path::new(RUNC), "").await?;
    // crun refuses hybrid hosts: it gets a mount namespace without the mount of version 2.
    let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists();
    let crun = if hybrid {
        let text = format!(
            "exec unshare --mount --propagation private sh -c 'umount /sys/fs/cgroup/unified; exec {CRUN} \"$@\"' crun \"$@\""
        );
        script(node, "crun", &text)?
    } else {
        CRUN.into()
    };
    handler(node, "crun", &crun, "").await?;
    handler(node, "oci", &e2e::node::binary("slipway-oci"), "").await?;
    Ok(vec!["runc", "crun", "oci"])
}

/// Where a handler's runtime has the state of a container.
fn state(node: &Node, handler: &str, id: &str) -> PathBuf {
    node.path("state/runtimes").join(handler).join(id)
}

#[test]
fn a_node_runs_containers_of_all_of_them() {
    on_a_node(Setup::default(), |node| Box::pin(mixed(node)));
}

async fn mixed(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let mut names = all(node).await?;
    names.push("");
    let told = handlers(node).await?;
    let of = |name: &str| told.iter().find(|h| h.name == name).and_then(|h| h.features).context("features");
    // Debian's crun has no command `features`; ours has everything.
    ensure!(!of("crun")?.recursive_read_only_mounts && !of("crun")?.user_namespaces, "{told:?}");
    ensure!(of("oci")? == of("")? && of("oci")? == of("slipway")?, "{told:?}");
    ensure!(node.run_pod_under(&pod(node, "other"), "kata").await.is_err(), "an unknown handler");

    for handler in names {
        let name = if handler.is_empty() { "own" } else { handler };
        let config = pod(node, name);
        let sandbox = node.run_pod_under(&config, handler).await?;
        one_life(node, &image, &config, &sandbox, handler).await.with_context(|| format!("with {name:?}"))?;
        node.stop_pod(&sandbox).await?;
        node.remove_pod(&sandbox).await?;
        let left = std::fs::read_dir(node.path("state/runtimes").join(handler)).into_iter().flatten();
        let left: Vec<_> = left.flatten().map(|entry| entry.path()).filter(|_| !handler.is_empty()).collect();
        ensure!(left.is_empty(), "{name} has left {left:?}");
    }
    Ok(())
}

async fn one_life(
    node: &Node,
    image: &str,
    config: &v1::PodSandboxConfig,
    sandbox: &str,
    handler: &str,
) -> Result<()> {
    let text = "echo out; echo err >&2; trap 'echo bye; exit 9' TERM; hostname; while :; do sleep 0.05; done";
    let mut main = shell("main", image, text);
    main.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        cpu_shares: 300,
        ..Default::default()
    });
    let id = node.create(sandbox, config, main).await?;
    let status = node.container_status(&id).await?;
    ensure!(status.state() == v1::ContainerState::ContainerCreated, "{status:?}");
    ensure!(handler.is_empty() || state(node, handler, &id).exists(), "it is made by its handler");
    node.start_container(&id).await?;
    node.log_shows(&id, |line| line == "out").await?;
    let name = config.hostname.clone();
    node.log_shows(&id, |line| line == name).await?;
    let log = node.log(&id).await?;
    ensure!(log.iter().any(|(stream, _, line)| stream == "stderr" && line == "err"), "{log:?}");
    let group = Group::of(node, &id).await?;
    ensure!(is_v2() || group.number("cpu", "cpu.shares", "")? == 300);

    // Commands inside.
    let (code, out, err) = node.exec(&id, &["sh", "-c", "echo o; echo e >&2; exit 7"]).await?;
    ensure!((code, out.as_str(), err.as_str()) == (7, "o\n", "e\n"), "{code} {out:?} {err:?}");
    let error = node.exec(&id, &["/no/such/program"]).await.err().context("no such program")?.to_string();
    ensure!(error.contains("/no/such/program"), "{error}");
    ensure!(
        node.sh(&id, "readlink /proc/1/ns/net").await? == node.sh(&id, "readlink /proc/self/ns/net").await?
    );
    let crictl = node.crictl_command(&["exec", "-i", &id, "cat"]);
    let output = type_into(crictl, b"there and back\n").await?;
    ensure!(output.stdout == b"there and back\n", "{output:?}");
    let script = "tty >/dev/null && echo a terminal; read line; echo \"read $line\"; exit 3";
    let ours = node.slipway_command(&["exec", "-it", &id, "--", "sh", "-c", script]);
    let output = type_into(node.in_a_terminal(&ours, 80, 24), b"typed\n").await?;
    let (said, _) = texts(&output);
    ensure!(said.contains("a terminal\r\n") && said.contains("read typed\r\n"), "{said:?}");
    ensure!(output.status.code() == Some(3), "{output:?}");
    timed_out(node, &id).await?;

    // What it uses, and what it may.
    let stats = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.runtime().await?.container_stats(stats).await?.into_inner().stats.context("stats")?;
    let used = stats.memory.and_then(|m| m.usage_bytes).map_or(0, |bytes| bytes.value);
    ensure!(used > 0 && used < 256 << 20, "{used} bytes of memory");
    let linux = v1::LinuxContainerResources {
        cpu_shares: 400,
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    node.runtime().await?.update_container_resources(update).await?;
    ensure!(is_v2() || group.number("cpu", "cpu.shares", "")? == 400, "updated");
    ensure!(group.number("memory", "memory.limit_in_bytes", "memory.max")? == 128 << 20, "updated");

    // Ends of all kinds.
    node.stop_container(&id, 30).await?;
    let status = node.container_status(&id).await?;
    ensure!(status.exit_code == 9 && status.finished_at >= status.started_at, "{status:?}");
    node.log_shows(&id, |line| line == "bye").await?;
    node.remove_container(&id).await?;
    ensure!(!state(node, handler, &id).exists() || handler.is_empty(), "its runtime has forgotten it");
    for _ in 0..3 {
        let id = node.run(sandbox, config, shell("short", image, "exit 42")).await?;
        let status = node.ended(&id).await?;
        ensure!(status.exit_code == 42 && status.reason == "Error", "{status:?}");
        node.remove_container(&id).await?;
    }
    let deaf =
        node.run(sandbox, config, shell("deaf", image, "trap '' TERM; while :; do sleep 1; done")).await?;
    node.stop_container(&deaf, 0).await?;
    ensure!(node.container_status(&deaf).await?.exit_code == 137);
    let mut eater = shell("eater", image, "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    eater.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let eater = node.run(sandbox, config, eater).await?;
    let eaten = node.ended(&eater).await?;
    ensure!(eaten.reason == "OOMKilled" && eaten.exit_code == 137, "{eaten:?}");
    let error = node
        .run(sandbox, config, shell("wrong", image, "").tap(|c| c.command = vec!["/no/such".into()]))
        .await;
    let error = format!("{:#}", error.err().context("a command that is not there")?);
    ensure!(error.contains("/no/such"), "{error}");

    // With a terminal; never started; and a file system that is the container's own.
    let mut tty = shell("tty", image, "tty && echo to the terminal; touch /x && rm /x && exit 5");
    (tty.tty, tty.stdin) = (true, true);
    let tty = node.run(sandbox, config, tty).await?;
    let status = node.ended(&tty).await?;
    let log = node.log(&tty).await?;
    ensure!(
        status.exit_code == 5 && log.iter().any(|(_, _, line)| line.starts_with("to the terminal")),
        "{log:?}"
    );
    let never = node.create(sandbox, config, shell("never", image, "true")).await?;
    node.remove_container(&never).await?;
    Ok(())
}

/// A session that takes too long is gone with all that it has started (CRI-XS-04).
async fn timed_out(node: &Node, id: &str) -> Result<()> {
    let request = v1::ExecSyncRequest {
        container_id: id.into(),
        cmd: ["sh", "-c", "sleep 4242 & sleep 4243"].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let error = node.runtime().await?.exec_sync(request).await.err().context("it takes too long")?;
    ensure!(error.code() == tonic::Code::DeadlineExceeded, "{error:?}");
    let left = node.sh(id, "ps | grep 'sleep 424[23]' | wc -l").await?;
    ensure!(left.trim() == "0", "{left} processes of the session live");
    Ok(())
}

trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}
impl Tap for v1::ContainerConfig {}

/// CRI-NS-02, CRI-EXIT-01: one PID namespace for the pod, which has its own first process.
#[test]
fn a_pod_shares_its_processes_whoever_runs_it() {
    on_a_node(Setup::default(), |node| Box::pin(shared(node)));
}

async fn shared(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    for handler in all(node).await? {
        let mut config = pod(node, handler);
        pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
        let sandbox = node.run_pod_under(&config, handler).await?;
        let one = in_pod(&config, shell("one", &image, "setsid sleep 4711 & exec sleep 4712"));
        let one = node.run(&sandbox, &config, one).await?;
        let two = in_pod(&config, shell("two", &image, "exec sleep 4713"));
        let two = node.run(&sandbox, &config, two).await?;
        let seen = node.sh(&two, "ps").await?;
        ensure!(seen.contains("sleep 4711") && seen.contains("sleep 4712"), "{handler}: {seen}");
        // It was not the first process of its namespace: what it left goes all the same.
        node.stop_container(&one, 0).await?;
        let start = Instant::now();
        loop {
            let seen = node.sh(&two, "ps").await?;
            if !seen.contains("sleep 4711") && !seen.contains("sleep 4712") {
                ensure!(seen.contains("sleep 4713"), "{handler}: its neighbour lives: {seen}");
                break;
            }
            ensure!(start.elapsed() < PATIENCE, "{handler}: left behind: {seen}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(node.container_status(&one).await?.exit_code == 137);
        node.stop_pod(&sandbox).await?;
        ensure!(node.container_status(&two).await?.exit_code == 137);
    }
    Ok(())
}

/// DESIGN 4: daemon, keeper and guardian die; nothing of the containers is lost.
#[test]
fn nothing_is_lost_when_we_are_killed() {
    on_a_node(Setup::default(), |node| Box::pin(killed(node)));
}

async fn killed(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    for handler in all(node).await? {
        let config = pod(node, handler);
        let sandbox = node.run_pod_under(&config, handler).await?;
        let stubborn = shell("steady", &image, "trap 'exit 9' TERM; while :; do sleep 0.05; done");
        let steady = node.run(&sandbox, &config, stubborn).await?;
        let lines = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; sleep 1; exit 5";
        let logger = node.run(&sandbox, &config, shell("logger", &image, lines)).await?;
        let parked = node.create(&sandbox, &config, shell("parked", &image, "echo late; exit 6")).await?;
        let brief = node.run(&sandbox, &config, shell("brief", &image, "sleep 2; exit 42")).await?;
        kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
        node.kill_daemon().await?;
        // `brief` ends while no daemon serves.
        tokio::time::sleep(Duration::from_secs(2)).await;
        node.start_daemon().await?;
        ensure!(node.ended(&brief).await?.exit_code == 42, "{handler}: the exit code of the time between");
        ensure!(node.ended(&logger).await?.exit_code == 5, "{handler}: the logger's exit code");
        let count = node.log(&logger).await?.iter().filter(|(_, _, line)| line.starts_with("line ")).count();
        ensure!(count == 20000, "{handler}: {count} lines");
        let running = node.container_status(&steady).await?;
        ensure!(running.state() == v1::ContainerState::ContainerRunning, "{handler}: {running:?}");
        ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "{handler}: exec");
        node.start_container(&parked).await?;
        ensure!(node.ended(&parked).await?.exit_code == 6, "{handler}: parked before, started after");
        kill(Pid::from_raw(node.guardian_pid().await?), Signal::SIGKILL)?;
        node.stop_container(&steady, 30).await?;
        ensure!(node.container_status(&steady).await?.exit_code == 9, "{handler}: without its guardian");
        node.stop_pod(&sandbox).await?;
        node.remove_pod(&sandbox).await?;
    }
    Ok(())
}

/// A keeper that dies in the middle of a call: the runtime's process goes on without it.
#[test]
fn calls_that_a_dead_keeper_began_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(cut_short(node)));
}

async fn cut_short(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let text = format!(
        "case \" $* \" in *\" create \"*|*\" exec \"*|*\" start \"*) sleep 1.5;; esac; exec {RUNC} \"$@\""
    );
    let slow = script(node, "slow", &text)?;
    handler(node, "slow", &slow, "").await?;
    let config = pod(node, "slow");
    let sandbox = node.run_pod_under(&config, "slow").await?;
    let node = &*node;
    let die = || async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
        anyhow::Ok(())
    };
    let text = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let (created, died) = tokio::join!(node.create(&sandbox, &config, shell("main", &image, text)), die());
    died?;
    let id = created.context("made by the next keeper")?;
    let (started, died) = tokio::join!(node.start_container(&id), die());
    died?;
    started.context("started by the next keeper")?;
    node.log_shows(&id, |line| line == "up").await?;
    let (_, died) = tokio::join!(node.exec(&id, &["sleep", "4711"]), die());
    died?;
    // The call that the former keeper began would have been done by now.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let left = node.sh(&id, "ps | grep 'sleep 471[1]' | wc -l").await?;
    ensure!(left.trim() == "0", "{left} sessions of a dead keeper run");
    let containers = node.runtime().await?.list_containers(v1::ListContainersRequest::default()).await?;
    ensure!(containers.into_inner().containers.len() == 1, "one container");
    let known = std::fs::read_dir(node.path("state/runtimes/slow"))?.count();
    ensure!(known == 1, "the runtime knows {known} containers");
    node.stop_container(&id, 30).await?;
    ensure!(node.container_status(&id).await?.exit_code == 9);
    Ok(())
}

/// A runtime that is not there, hangs, or is none: the request fails with what it did and said, and nothing is left.
#[test]
fn bad_runtimes_fail_by_name_and_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(bad(node)));
}

async fn bad(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let pid_file = "f=/dev/null; while [ $# -gt 0 ]; do [ \"$1\" = --pid-file ] && f=$2; shift; done";
    let logged = "log=; prev=; for a; do [ \"$prev\" = --log ] && log=$a; prev=$a; done; \
        echo '{\"level\":\"error\",\"msg\":\"the moon is in the way\"}' >> \"$log\"; exit 1";
    for (name, text, wanted) in [
        ("gone", "exit 0".to_owned(), "gone: No such file or directory (os error 2); hint: install it"),
        ("silent", "exit 0".to_owned(), "silent create: it says that all is well, and wrote no pid"),
        ("garbage", format!("{pid_file}; echo garbage > $f"), "where a pid should be"),
        (
            "init",
            format!("{pid_file}; echo 1 > $f"),
            "init create: the pid that it wrote, 1, is not of a process that it has made",
        ),
        (
            "hangs",
            "case \" $* \" in *\" create \"*) sleep 4711;; esac".to_owned(),
            "hangs create: no end within 2 s; it was killed",
        ),
        ("words", logged.to_owned(), "words create: exit status: 1: the moon is in the way"),
        (
            "stderr",
            "echo libseccomp.so.9 is missing >&2; exit 127".to_owned(),
            "stderr create: exit status: 127: libseccomp.so.9 is missing",
        ),
    ] {
        let path = script(node, name, &text)?;
        handler(node, name, &path, "create_timeout = \"2s\"").await?;
        let config = pod(node, name);
        let sandbox = node.run_pod_under(&config, name).await?;
        if name == "gone" {
            std::fs::remove_file(&path)?;
        }
        let outcome = node.create(&sandbox, &config, shell("main", &image, "true")).await;
        let error = format!("{:#}", outcome.err().with_context(|| format!("{name} is no runtime"))?);
        ensure!(error.contains(wanted), "{name}: {error}");
        // A configuration that names what is not there would be refused from now on.
        std::fs::remove_file(node.path("config.d").join(format!("{name}.toml")))?;
        let containers = node.runtime().await?.list_containers(v1::ListContainersRequest::default()).await?;
        ensure!(containers.into_inner().containers.is_empty(), "{name}: nothing is listed");
        node.stop_pod(&sandbox).await?;
        node.remove_pod(&sandbox).await?;
    }
    let left = e2e::leaks::processes_naming(Path::new("4711"));
    ensure!(left.is_empty(), "what it had started lives: {left:?}");

    // One that is taken away, or goes wrong, under a running container.
    let path = script(node, "works", &format!("exec {RUNC} \"$@\""))?;
    handler(node, "works", &path, "").await?;
    let config = pod(node, "works");
    let sandbox = node.run_pod_under(&config, "works").await?;
    let text = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done";
    let id = node.run(&sandbox, &config, shell("main", &image, text)).await?;
    node.log_shows(&id, |line| line == "up").await?;
    std::fs::remove_file(&path)?;
    let error = format!("{:#}", node.exec(&id, &["true"]).await.err().context("it is gone")?);
    ensure!(error.contains("works: No such file") && error.contains("hint"), "{error}");
    node.stop_container(&id, 30).await?;
    ensure!(node.container_status(&id).await?.exit_code == 9, "it got its signal all the same");
    node.remove_container(&id).await?;
    ensure!(!state(node, "works", &id).exists(), "what it knew of the container is gone");
    Ok(())
}

/// What handlers' options mean, and what a runtime cannot do is refused by its name.
#[test]
fn options_and_limits_of_handlers() {
    on_a_node(Setup::default(), |node| Box::pin(options(node)));
}

async fn options(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    handler(node, "few", Path::new(RUNC), "privileged_without_host_devices = true").await?;
    std::fs::write(
        node.path("config.d/own.toml"),
        "[handlers.plain]\nprivileged_without_host_devices = true\n",
    )?;
    handler(node, "many", Path::new(RUNC), "runtime_args = [\"--debug\"]").await?;
    let mut counts = Vec::new();
    for handler in ["few", "plain", "many", ""] {
        let mut config = pod(node, if handler.is_empty() { "own" } else { handler });
        pod_security(&mut config).privileged = true;
        let sandbox = node.run_pod_under(&config, handler).await?;
        let mut main = shell("main", &image, "exec sleep 1000");
        security(&mut main).privileged = true;
        let id = node.run(&sandbox, &config, main).await?;
        let count: usize =
            node.sh(&id, "find /dev -xdev -type b -o -xdev -type c | wc -l").await?.trim().parse()?;
        counts.push(count);
        node.stop_pod(&sandbox).await?;
    }
    ensure!(counts[0] < 12 && counts[1] < 12 && counts[2] > counts[0] && counts[3] > counts[1], "{counts:?}");

    // crun of Debian does not say that it has recursive read-only mounts.
    handler(node, "crun", Path::new(CRUN), "").await?;
    let config = pod(node, "crun");
    let sandbox = node.run_pod_under(&config, "crun").await?;
    let mut main = shell("main", &image, "true");
    let mut mount = e2e::requests::bind(&node.path("logs"), "/logs");
    (mount.readonly, mount.recursive_read_only) = (true, true);
    main.mounts.push(mount);
    let error = format!("{:#}", node.create(&sandbox, &config, main).await.err().context("refused")?);
    ensure!(error.contains(CRUN) && error.contains("recursive read-only mounts"), "{error}");
    let mut config = pod(node, "users");
    let map = vec![v1::IdMapping { container_id: 0, host_id: 70000, length: 65536 }];
    pod_modes(&mut config).userns_options =
        Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map });
    let error = format!("{:#}", node.run_pod_under(&config, "crun").await.err().context("refused")?);
    ensure!(error.contains(CRUN) && error.contains("user namespaces"), "{error}");
    Ok(())
}

/// CRI-UNS-01: a pod's user namespace, joined by path by a runtime that says it can.
#[test]
fn a_user_namespace_is_the_pods_whoever_runs_it() {
    on_a_node(Setup::default(), |node| Box::pin(users(node)));
}

async fn users(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    handler(node, "oci", &e2e::node::binary("slipway-oci"), "").await?;
    let told = handlers(node).await?;
    let able = |name: &str| {
        let handler = told.iter().find(|h| h.name == name);
        handler.and_then(|h| h.features).is_some_and(|features| features.user_namespaces)
    };
    // This machine and the test machines can (as in users.rs).
    ensure!(able("oci") && able(""), "{told:?}");
    // The test's own directory is nobody else's.
    std::fs::set_permissions(node.path(""), std::fs::Permissions::from_mode(0o711))?;
    let mut config = pod(node, "users");
    let map = vec![v1::IdMapping { container_id: 0, host_id: 70000, length: 65536 }];
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
    pod_modes(&mut config).userns_options = Some(user);
    let sandbox = node.run_pod_under(&config, "oci").await?;
    let text = "cat /proc/self/uid_map; touch /mine && stat -c 'mine is of %u' /mine; exec sleep 1000";
    let id = node.run(&sandbox, &config, in_pod(&config, shell("main", &image, text))).await?;
    node.log_shows(&id, |line| line.split_whitespace().eq(["0", "70000", "65536"])).await?;
    node.log_shows(&id, |line| line == "mine is of 0").await?;
    ensure!(
        node.sh(&id, "id -u; cat /proc/self/uid_map").await?.contains("70000"),
        "and so are commands inside"
    );
    let init = Group::of(node, &id).await?.init;
    let status = std::fs::read_to_string(format!("/proc/{init}/status"))?;
    ensure!(status.lines().any(|line| line.starts_with("Uid:\t70000\t")), "{status}");
    node.stop_container(&id, 0).await?;
    ensure!(node.container_status(&id).await?.exit_code == 137);
    Ok(())
}
