//! Handlers whose pods a containerd shim of somebody else runs (SHIM-CMD-*, SHIM-TSK-*, SHIM-DEL-04): Debian's for runc, which
//! speaks version 2 of the Task service; containerd 2's, which speaks version 3 and nothing else; and our own, which is a
//! stranger's to the keeper, too. Kata's and runsc's are the same to a client, but for what is behind them.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::kernel::{Group, is_v2};
use e2e::requests::{in_pod, pod, pod_modes, shell};
use e2e::shims::{SHIM, all, handler, handlers, is_alive, is_clean, script, shim};
use e2e::streams::{texts, type_into};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_pod_of_two_containers_runs_under_a_shim() {
    on_a_node(Setup::default(), |node| Box::pin(pair(node)));
}

async fn pair(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    for (name, program) in all() {
        handler(node, name, &program, "").await?;
        let told = handlers(node).await?;
        let features = told.iter().find(|h| h.name == name).and_then(|h| h.features).context("features")?;
        ensure!(!features.user_namespaces && !features.recursive_read_only_mounts, "{features:?}");
        pair_under(node, &image, name, &program).await.with_context(|| format!("with {name}"))?;
    }
    Ok(())
}

async fn pair_under(node: &Node, image: &str, handler: &str, program: &Path) -> Result<()> {
    let config = pod(node, handler);
    let sandbox = node.run_pod_under(&config, handler).await?;
    let (pid, socket) = shim(node, &sandbox)?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let name = program.file_name().context("name")?.to_string_lossy().into_owned();
    ensure!(command.split('\0').next().is_some_and(|first| first.ends_with(&name)), "{command:?}");
    one_life(node, image, &config, &sandbox, program).await?;

    // A second one, beside the first, in the same shim.
    let talk = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; exit 5";
    let one = node.run(&sandbox, &config, shell("one", image, talk)).await?;
    let two = node.run(&sandbox, &config, shell("two", image, "hostname; exec sleep 1000")).await?;
    let name = config.hostname.clone();
    node.log_shows(&two, |line| line == name).await?;
    ensure!(node.ended(&one).await?.exit_code == 5);
    let count = node.log(&one).await?.iter().filter(|(_, _, line)| line.starts_with("line ")).count();
    ensure!(count == 20000, "{count} lines are in the log when the end is told");
    ensure!(shim(node, &sandbox)?.0 == pid, "one shim for the pod");
    let three = node.run(&sandbox, &config, shell("three", image, "exec sleep 1000")).await?;
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc";
    ensure!(node.sh(&two, script).await? == node.sh(&three, script).await?, "the pod's own namespaces");
    node.remove_container(&three).await?;
    node.stop_pod(&sandbox).await?;
    ensure!(node.container_status(&two).await?.exit_code == 137);
    ensure!(!is_alive(pid), "a stopped pod has no shim");
    node.remove_pod(&sandbox).await?;
    is_clean(node, &sandbox, pid, &socket)
}

async fn one_life(
    node: &Node,
    image: &str,
    config: &v1::PodSandboxConfig,
    sandbox: &str,
    program: &Path,
) -> Result<()> {
    let text = "echo out; echo err >&2; trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; done";
    let mut main = shell("main", image, text);
    main.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        cpu_shares: 300,
        ..Default::default()
    });
    let id = node.create(sandbox, config, main).await?;
    let status = node.container_status(&id).await?;
    ensure!(status.state() == v1::ContainerState::ContainerCreated, "{status:?}");
    node.start_container(&id).await?;
    node.log_shows(&id, |line| line == "out").await?;
    node.log_shows(&id, |line| line == "err").await?;
    let log = node.log(&id).await?;
    ensure!(log.iter().any(|(stream, _, line)| stream == "stderr" && line == "err"), "{log:?}");
    let group = Group::of(node, &id).await?;
    ensure!(is_v2() || group.number("cpu", "cpu.shares", "")? == 300);

    commands_inside(node, &id).await?;

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

    // Its log is rotated as any.
    let path = node.container_status(&id).await?.log_path;
    std::fs::rename(&path, format!("{path}.1"))?;
    let reopen = v1::ReopenContainerLogRequest { container_id: id.clone() };
    node.runtime().await?.reopen_container_log(reopen).await?;

    // Ends of all kinds.
    node.stop_container(&id, 30).await?;
    let status = node.container_status(&id).await?;
    ensure!(status.exit_code == 9 && status.finished_at >= status.started_at, "{status:?}");
    node.log_shows(&id, |line| line == "bye").await?;
    node.remove_container(&id).await?;
    for _ in 0..3 {
        let id = node.run(sandbox, config, shell("short", image, "echo last; exit 42")).await?;
        let status = node.ended(&id).await?;
        ensure!(status.exit_code == 42 && status.reason == "Error", "{status:?}");
        ensure!(node.log(&id).await?.iter().any(|(_, _, line)| line == "last"), "its last word");
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
    let mut wrong = shell("wrong", image, "");
    wrong.command = vec!["/no/such".into()];
    let error = node.run(sandbox, config, wrong).await;
    let error = format!("{:#}", error.err().context("a command that is not there")?);
    ensure!(error.contains("/no/such") && error.contains(&*program.to_string_lossy()), "{error}");
    let never = node.create(sandbox, config, shell("never", image, "true")).await?;
    node.remove_container(&never).await?;
    Ok(())
}

/// Exec sync, streamed, with a terminal, and too long.
async fn commands_inside(node: &Node, id: &str) -> Result<()> {
    let (code, out, err) = node.exec(id, &["sh", "-c", "echo o; echo e >&2; exit 7"]).await?;
    ensure!((code, out.as_str(), err.as_str()) == (7, "o\n", "e\n"), "{code} {out:?} {err:?}");
    let much =
        node.exec(id, &["sh", "-c", "dd if=/dev/zero bs=1024 count=512 2>/dev/null | tr '\\0' x"]).await?;
    ensure!(much.1.len() == 512 << 10, "{} bytes of output", much.1.len());
    let error = node.exec(id, &["/no/such/program"]).await.err().context("no such program")?.to_string();
    ensure!(error.contains("/no/such/program"), "{error}");
    let output = type_into(node.crictl_command(&["exec", "-i", id, "cat"]), b"there and back\n").await?;
    ensure!(output.stdout == b"there and back\n", "{output:?}");
    let script = "tty >/dev/null && echo a terminal; stty size; read line; echo \"read $line\"; exit 3";
    let ours = node.slipway_command(&["exec", "-it", id, "--", "sh", "-c", script]);
    let output = type_into(node.in_a_terminal(&ours, 80, 24), b"typed\n").await?;
    let (said, _) = texts(&output);
    ensure!(said.contains("a terminal\r\n") && said.contains("read typed\r\n"), "{said:?}");
    ensure!(output.status.code() == Some(3), "{output:?}");
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

/// Attach to output and input, with and without a terminal.
#[test]
fn clients_attach_to_containers_of_a_shim() {
    on_a_node(Setup::default(), |node| Box::pin(attached(node)));
}

async fn attached(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    handler(node, "shim", Path::new(SHIM), "").await?;
    let config = pod(node, "attached");
    let sandbox = node.run_pod_under(&config, "shim").await?;
    let mut once = shell("once", &image, "echo ready; cat; echo ended; exit 4");
    (once.stdin, once.stdin_once) = (true, true);
    let once = node.run(&sandbox, &config, once).await?;
    node.log_shows(&once, |line| line == "ready").await?;
    let output = type_into(node.crictl_command(&["attach", "-i", &once]), b"hello\n").await?;
    ensure!(texts(&output).0.contains("hello\n"), "{output:?}");
    ensure!(node.ended(&once).await?.exit_code == 4, "its input has ended");
    node.log_shows(&once, |line| line == "ended").await?;

    let mut tty = shell("tty", &image, "tty; read line; echo \"got $line\"; exit 6");
    (tty.tty, tty.stdin) = (true, true);
    let tty = node.run(&sandbox, &config, tty).await?;
    node.log_shows(&tty, |line| line.starts_with("/dev/")).await?;
    let ours = node.slipway_command(&["attach", "-i", "attached", "-c", "tty"]);
    let output = type_into(node.in_a_terminal(&ours, 100, 40), b"typed\n").await?;
    ensure!(texts(&output).0.contains("got typed"), "{output:?}");
    ensure!(node.ended(&tty).await?.exit_code == 6);
    node.log_shows(&tty, |line| line.starts_with("got typed")).await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// CRI-NS-02: one PID namespace for the pod.
#[test]
fn a_pod_of_a_shim_shares_its_processes() {
    on_a_node(Setup::default(), |node| Box::pin(shared(node)));
}

async fn shared(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    handler(node, "shim", Path::new(SHIM), "").await?;
    let mut config = pod(node, "shared");
    pod_modes(&mut config).pid = v1::NamespaceMode::Pod.into();
    let sandbox = node.run_pod_under(&config, "shim").await?;
    let one = in_pod(&config, shell("one", &image, "setsid sleep 4711 & exec sleep 4712"));
    let one = node.run(&sandbox, &config, one).await?;
    let two = node.run(&sandbox, &config, in_pod(&config, shell("two", &image, "exec sleep 4713"))).await?;
    let seen = node.sh(&two, "ps").await?;
    ensure!(seen.contains("sleep 4711") && seen.contains("sleep 4712"), "{seen}");
    node.stop_container(&one, 0).await?;
    ensure!(node.container_status(&one).await?.exit_code == 137);
    let start = Instant::now();
    loop {
        let seen = node.sh(&two, "ps").await?;
        if !seen.contains("sleep 4711") && !seen.contains("sleep 4712") {
            ensure!(seen.contains("sleep 4713"), "its neighbour lives: {seen}");
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "left behind: {seen}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.stop_pod(&sandbox).await?;
    ensure!(node.container_status(&two).await?.exit_code == 137);
    node.remove_pod(&sandbox).await
}

/// What a shim's pods cannot be is refused by its name.
#[test]
fn what_a_shim_cannot_do_is_refused_by_name() {
    on_a_node(Setup::default(), |node| Box::pin(refused(node)));
}

async fn refused(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    handler(node, "shim", Path::new(SHIM), "").await?;
    let mut config = pod(node, "users");
    let map = vec![v1::IdMapping { container_id: 0, host_id: 70000, length: 65536 }];
    pod_modes(&mut config).userns_options =
        Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: map.clone(), gids: map });
    let error = format!("{:#}", node.run_pod_under(&config, "shim").await.err().context("refused")?);
    ensure!(error.contains(SHIM) && error.contains("user namespaces"), "{error}");
    let config = pod(node, "refused");
    let sandbox = node.run_pod_under(&config, "shim").await?;
    let mut main = shell("main", &image, "true");
    let mut mount = e2e::requests::bind(&node.path("logs"), "/logs");
    (mount.readonly, mount.recursive_read_only) = (true, true);
    main.mounts.push(mount);
    let error = format!("{:#}", node.create(&sandbox, &config, main).await.err().context("refused")?);
    ensure!(error.contains(SHIM) && error.contains("recursive read-only mounts"), "{error}");
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    let request = v1::CheckpointContainerRequest {
        container_id: id,
        location: node.path("checkpoint.tar").display().to_string(),
        timeout: 10,
    };
    let error = node.runtime().await?.checkpoint_container(request).await.err().context("refused")?;
    ensure!(error.code() == tonic::Code::Unimplemented && error.message().contains(SHIM), "{error:?}");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// A shim whose containers are in no control group that we know of, as those of a virtual machine are: all that is known of
/// them is what the shim says.
#[test]
fn what_only_the_shim_sees_is_what_it_says() {
    on_a_node(Setup::default(), |node| Box::pin(elsewhere(node)));
}

async fn elsewhere(node: &mut Node) -> Result<()> {
    if node.cgroup_root().ends_with(".slice") {
        eprintln!("skipped: systemd makes the control groups here, and would not have any elsewhere");
        return Ok(());
    }
    let image = node.import("busybox").await?;
    std::fs::create_dir(node.path("bin"))?;
    let place = format!("{}/elsewhere", node.cgroup_root());
    let text = format!(
        "prev=; create=; bundle=; for a; do [ \"$prev\" = --bundle ] && bundle=$a; [ \"$a\" = create ] && create=1; prev=$a; done
if [ -n \"$create\" ] && grep -q 'container-type\":\"container\"' \"$bundle/config.json\"; then
    sed -i 's|\"cgroupsPath\":\"[^\"]*/|\"cgroupsPath\":\"{place}/|' \"$bundle/config.json\"
fi
exec /usr/sbin/runc \"$@\""
    );
    script(node, "bin/runc", &text)?;
    let path = format!("PATH={}:$PATH; export PATH; exec {SHIM} \"$@\"", node.path("bin").display());
    handler(node, "vm", &script(node, "vm", &path)?, "").await?;
    let config = pod(node, "vm");
    let sandbox = node.run_pod_under(&config, "vm").await?;
    let main = shell(
        "main",
        &image,
        "trap 'exit 9' TERM; x=$(head -c 3000000 /dev/zero | tr '\\0' x); echo up; while :; do sleep 0.05; done",
    );
    let id = node.run(&sandbox, &config, main).await?;
    node.log_shows(&id, |line| line == "up").await?;
    let group = Group::of(node, &id).await?;
    ensure!(!group.dir("memory").exists(), "it is elsewhere");
    let stats = v1::ContainerStatsRequest { container_id: id.clone() };
    let stats = node.runtime().await?.container_stats(stats).await?.into_inner().stats.context("stats")?;
    let used = stats.memory.and_then(|m| m.usage_bytes).map_or(0, |bytes| bytes.value);
    ensure!(used > 1 << 20, "{used} bytes of memory");
    ensure!(stats.cpu.and_then(|c| c.usage_core_nano_seconds).is_some_and(|ns| ns.value > 0), "cpu time");
    let stats = v1::ListContainerStatsRequest::default();
    let stats = node.runtime().await?.list_container_stats(stats).await?.into_inner().stats;
    ensure!(stats.iter().any(|stats| stats.memory.is_some()), "{stats:?}");
    let (code, out, _) = node.exec(&id, &["sh", "-c", "echo o; exit 7"]).await?;
    ensure!((code, out.as_str()) == (7, "o\n"), "{code} {out:?}");
    node.stop_container(&id, 30).await?;
    ensure!(node.container_status(&id).await?.exit_code == 9);
    let deaf =
        node.run(&sandbox, &config, shell("deaf", &image, "trap '' TERM; while :; do sleep 1; done")).await?;
    node.stop_container(&deaf, 0).await?;
    ensure!(node.container_status(&deaf).await?.exit_code == 137);
    let mut eater = shell("eater", &image, "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    eater.linux.get_or_insert_default().resources =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() });
    let eater = node.run(&sandbox, &config, eater).await?;
    let eaten = node.ended(&eater).await?;
    ensure!(eaten.reason == "OOMKilled" && eaten.exit_code == 137, "{eaten:?}");
    ensure!(eaten.message.contains("container's memory limit"), "{eaten:?}");
    let (pid, socket) = shim(node, &sandbox)?;
    statistics_of_a_hung_shim(node, &image, &config, &sandbox, pid).await?;
    node.stop_pod(&sandbox).await?;
    // What the script above has made is its own to take away.
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(place.trim_start_matches('/')));
    }
    let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(place.trim_start_matches('/')));
    node.remove_pod(&sandbox).await?;
    is_clean(node, &sandbox, pid, &socket)
}

/// DESIGN 1.C: nobody's statistics wait for a shim that hangs, however many containers it has; its last word stands. Nor can a
/// container join the processes of one that is not here.
async fn statistics_of_a_hung_shim(
    node: &Node,
    image: &str,
    config: &v1::PodSandboxConfig,
    sandbox: &str,
    pid: i32,
) -> Result<()> {
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(node.run(sandbox, config, shell(name, image, "exec sleep 1000")).await?);
    }
    let mut debug = shell("debug", image, "true");
    let options = &mut debug.linux.get_or_insert_default().security_context.get_or_insert_default();
    options.namespace_options = Some(v1::NamespaceOption {
        pid: v1::NamespaceMode::Target.into(),
        target_id: ids[0].clone(),
        ..Default::default()
    });
    let error = node.create(sandbox, config, debug).await.err().context("there is nothing to join")?;
    ensure!(format!("{error:#}").contains("are not on this host"), "{error:#}");
    let told = list_stats(node).await?;
    ensure!(told.iter().filter(|stats| stats.memory.is_some()).count() == ids.len(), "{told:?}");
    kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    let start = Instant::now();
    for _ in 0..3 {
        let stats = list_stats(node).await?;
        ensure!(stats.iter().filter(|stats| stats.memory.is_some()).count() == ids.len(), "{stats:?}");
        let pods = v1::ListPodSandboxStatsRequest::default();
        let pods = node.runtime().await?.list_pod_sandbox_stats(pods).await?.into_inner().stats;
        ensure!(pods.len() == 1, "{pods:?}");
    }
    let took = start.elapsed();
    kill(Pid::from_raw(pid), Signal::SIGCONT)?;
    ensure!(took < Duration::from_secs(10), "six lists took {took:?}");
    Ok(())
}

async fn list_stats(node: &Node) -> Result<Vec<v1::ContainerStats>> {
    let request = v1::ListContainerStatsRequest::default();
    Ok(node.runtime().await?.list_container_stats(request).await?.into_inner().stats)
}
