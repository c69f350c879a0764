//! Other containerd shims as handlers (see other_shims.rs) when somebody dies or lies: we, they, or what they say.

use anyhow::{Context, Result, ensure};
use cri_proto::v1;
use e2e::kernel::Group;
use e2e::requests::{pod, shell};
use e2e::shims::{SHIM, all, handler, is_clean, script, shim};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// DESIGN 4: daemon and keeper die; nothing of the containers is lost.
#[test]
fn nothing_of_a_shim_is_lost_when_we_are_killed() {
    on_a_node(Setup::default(), |node| Box::pin(killed(node)));
}

async fn killed(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    for (name, program) in all() {
        handler(node, name, &program, "").await?;
        killed_under(node, &image, name).await.with_context(|| format!("with {name}"))?;
    }
    Ok(())
}

async fn killed_under(node: &mut Node, image: &str, handler: &str) -> Result<()> {
    let config = pod(node, handler);
    let sandbox = node.run_pod_under(&config, handler).await?;
    let (pid, socket) = shim(node, &sandbox)?;
    let steady = shell("steady", image, "trap 'exit 9' TERM; while :; do sleep 0.05; done");
    let steady = node.run(&sandbox, &config, steady).await?;
    let lines = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; sleep 1; exit 5";
    let logger = node.run(&sandbox, &config, shell("logger", image, lines)).await?;
    let parked = node.create(&sandbox, &config, shell("parked", image, "echo late; exit 6")).await?;
    let brief = node.run(&sandbox, &config, shell("brief", image, "sleep 2; exit 42")).await?;
    kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
    node.kill_daemon().await?;
    // `brief` ends while no daemon serves.
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.start_daemon().await?;
    ensure!(node.ended(&brief).await?.exit_code == 42, "the exit code of the time between");
    ensure!(node.ended(&logger).await?.exit_code == 5, "the logger's exit code");
    let count = node.log(&logger).await?.iter().filter(|(_, _, line)| line.starts_with("line ")).count();
    ensure!(count == 20000, "{count} lines");
    let running = node.container_status(&steady).await?;
    ensure!(running.state() == v1::ContainerState::ContainerRunning, "{running:?}");
    ensure!(node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxReady);
    ensure!(node.sh(&steady, "echo in").await?.trim() == "in", "exec");
    node.start_container(&parked).await?;
    ensure!(node.ended(&parked).await?.exit_code == 6, "parked before, started after");
    node.log_shows(&parked, |line| line == "late").await?;
    kill(Pid::from_raw(node.guardian_pid().await?), Signal::SIGKILL)?;
    node.stop_container(&steady, 30).await?;
    ensure!(node.container_status(&steady).await?.exit_code == 9, "without its guardian");
    let more = node.run(&sandbox, &config, shell("more", image, "exit 8")).await?;
    ensure!(node.ended(&more).await?.exit_code == 8, "made by the last keeper");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    is_clean(node, &sandbox, pid, &socket)
}

/// SHIM-DEL-04, SHIM-DEL-05: a shim that dies takes its pod with it, and that is told.
#[test]
fn a_shim_that_is_killed_ends_its_pod_plainly() {
    on_a_node(Setup::default(), |node| Box::pin(dead_shim(node)));
}

async fn dead_shim(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    for (name, program) in all().into_iter().filter(|(name, _)| *name != "own") {
        handler(node, name, &program, "").await?;
        dead(node, &image, name, &program).await.with_context(|| format!("{name} dies"))?;
        hung(node, &image, name).await.with_context(|| format!("{name} hangs"))?;
    }
    Ok(())
}

async fn dead(node: &Node, image: &str, handler: &str, program: &Path) -> Result<()> {
    let config = pod(node, handler);
    let sandbox = node.run_pod_under(&config, handler).await?;
    let (pid, socket) = shim(node, &sandbox)?;
    let one = node.run(&sandbox, &config, shell("one", image, "echo said; exec sleep 4711")).await?;
    let two = node.create(&sandbox, &config, shell("two", image, "true")).await?;
    node.log_shows(&one, |line| line == "said").await?;
    let init = Group::of(node, &one).await?.init;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let status = node.ended(&one).await?;
    ensure!(status.exit_code == 255 && status.reason == "Unknown", "{status:?}");
    ensure!(
        status.message.contains(&*program.to_string_lossy()) && status.message.contains("gone"),
        "{status:?}"
    );
    let start = Instant::now();
    while node.pod_status(&sandbox).await?.state() != v1::PodSandboxState::SandboxNotready {
        ensure!(start.elapsed() < PATIENCE, "the pod is ready without its shim");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(!Path::new(&format!("/proc/{init}/root")).exists(), "what it ran is left");
    ensure!(node.start_container(&two).await.is_err(), "it cannot be started any more");
    let third = node.create(&sandbox, &config, shell("three", image, "true")).await;
    ensure!(third.is_err(), "the pod is over");
    node.remove_container(&one).await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    is_clean(node, &sandbox, pid, &socket)
}

/// One that hangs: asked in vain, ended, and the rest as before.
async fn hung(node: &Node, image: &str, handler: &str) -> Result<()> {
    let config = pod(node, "hung");
    let sandbox = node.run_pod_under(&config, handler).await?;
    let (pid, socket) = shim(node, &sandbox)?;
    let one = node.run(&sandbox, &config, shell("one", image, "exec sleep 4711")).await?;
    kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    let start = Instant::now();
    node.stop_container(&one, 0).await?;
    ensure!(start.elapsed() < Duration::from_secs(30), "stopped after {:?}", start.elapsed());
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    is_clean(node, &sandbox, pid, &socket)
}

/// A shim that is not there, hangs, or is none: the pod fails with what it did and said, and nothing is left.
#[test]
fn bad_shims_fail_by_name_and_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(bad(node)));
}

async fn bad(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    let starts = |text: &str| format!("case \" $* \" in *\" start \"*) {text};; esac");
    let deaf = "perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5); sleep 4799' \
        -- \"$0.sock\" -address \"$4\" >/dev/null 2>&1 & while [ ! -S \"$0.sock\" ]; do sleep 0.02; done; echo \"unix://$0.sock\"";
    for (name, text, wanted) in [
        ("gone", "exit 0".to_owned(), "gone: No such file or directory (os error 2); hint: install it"),
        ("silent", "exit 0".to_owned(), "silent start: it printed no address"),
        ("garbage", "echo garbage".to_owned(), "garbage start: its answer is no address:"),
        (
            "grpc",
            "echo '{\"version\":3,\"address\":\"unix:///x\",\"protocol\":\"grpc\"}'".to_owned(),
            "only ttrpc",
        ),
        ("hangs", starts("sleep 4799"), "hangs start: no end within 2 s; it was killed"),
        (
            "words",
            starts("echo the moon is in the way >&2; exit 1"),
            "words start: exit status: 1: the moon is in the way",
        ),
        ("nowhere", "echo unix:///no/such/socket".to_owned(), "the shim cannot be reached"),
        ("deaf", starts(deaf), "deaf Connect: no answer within 2 s"),
    ] {
        let path = script(node, name, &text)?;
        handler(node, name, &path, "create_timeout = \"2s\"").await?;
        if name == "gone" {
            std::fs::remove_file(&path)?;
        }
        let start = Instant::now();
        let outcome = node.run_pod_under(&pod(node, name), name).await;
        let error = format!("{:#}", outcome.err().with_context(|| format!("{name} is no shim"))?);
        ensure!(error.contains(wanted), "{name}: {error}");
        ensure!(start.elapsed() < Duration::from_secs(20), "{name}: after {:?}", start.elapsed());
        // A configuration that names what is not there would be refused from now on.
        std::fs::remove_file(node.path("config.d").join(format!("{name}.toml")))?;
        let pods = node.runtime().await?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
        ensure!(pods.into_inner().items.is_empty(), "{name}: nothing is listed");
        let left = e2e::leaks::processes_naming(&path);
        ensure!(left.is_empty(), "{name}: what it had started lives: {left:?}");
    }
    let left = e2e::leaks::processes_naming(Path::new("4799"));
    ensure!(left.is_empty(), "what they had started lives: {left:?}");
    Ok(())
}

/// A keeper that dies while it makes pod or container: the next one takes back what was half-made, or knows it.
#[test]
fn pods_that_a_dead_keeper_began_leave_nothing() {
    on_a_node(Setup::default(), |node| Box::pin(cut_short(node)));
}

async fn cut_short(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let slow = script(
        node,
        "slow",
        &format!("case \" $* \" in *\" start \"*) sleep 1.5;; esac; exec {SHIM} \"$@\""),
    )?;
    handler(node, "slow", &slow, "").await?;
    let config = pod(node, "slow");
    let node = &*node;
    let die = || async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGKILL)?;
        anyhow::Ok(())
    };
    let (made, died) = tokio::join!(node.run_pod_under(&config, "slow"), die());
    died?;
    let sandbox = made.context("made by the next keeper")?;
    let (created, died) = tokio::join!(
        node.create(
            &sandbox,
            &config,
            shell("main", &image, "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
        ),
        die()
    );
    died?;
    let id = created.context("made by the next keeper")?;
    node.start_container(&id).await?;
    node.log_shows(&id, |line| line == "up").await?;
    let (_, died) = tokio::join!(node.exec(&id, &["sleep", "4711"]), die());
    died?;
    node.stop_container(&id, 30).await?;
    ensure!(node.container_status(&id).await?.exit_code == 9);
    let (pid, socket) = shim(node, &sandbox)?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    is_clean(node, &sandbox, pid, &socket)
}
