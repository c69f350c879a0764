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
/// More than the keeper has threads for its own work (128).
const CROWD: usize = 150;

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

/// Two keepers in a row die over one pod, the second while it takes back what the first had begun: the third still knows.
#[test]
fn what_is_half_undone_is_undone_by_the_next_keeper() {
    on_a_node(Setup::default(), |node| Box::pin(cut_short_twice(node)));
}

async fn cut_short_twice(node: &mut Node) -> Result<()> {
    node.import("busybox").await?;
    // It says where it is in the making; its `delete` takes long.
    let text = format!(
        "case \" $* \" in *\" start \"*) touch \"$0.starts\"; {SHIM} \"$@\" || exit; touch \"$0.started\"; sleep 20;;
            *\" delete \"*) touch \"$0.deletes\"; sleep 3; exec {SHIM} \"$@\";; *) exec {SHIM} \"$@\";; esac"
    );
    let path = script(node, "slow", &text)?;
    handler(node, "slow", &path, "").await?;
    let config = pod(node, "twice");
    let node_ref = &*node;
    let begin = async {
        let made = node_ref.run_pod_under(&config, "slow").await;
        anyhow::Ok(made.is_ok())
    };
    let die = async {
        seen(&path, "started").await?;
        kill(Pid::from_raw(node_ref.daemon_pid()?), Signal::SIGKILL)?;
        kill(Pid::from_raw(keeper_of(node_ref)?), Signal::SIGKILL)?;
        // Started by the guardian; it finds the half-made pod.
        seen(&path, "deletes").await?;
        kill(Pid::from_raw(keeper_of(node_ref)?), Signal::SIGKILL)?;
        anyhow::Ok(())
    };
    let (made, died) = tokio::join!(begin, die);
    died?;
    ensure!(!made?, "nobody was there to make it");
    node.daemon_ended().await?;
    node.start_daemon().await?;
    let start = Instant::now();
    while let Some(left) = homes(node)?.first() {
        ensure!(start.elapsed() < PATIENCE, "{} is left", left.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let state = node.path("state/keeper");
    let left = e2e::leaks::processes_naming(&state);
    let left: Vec<_> =
        left.into_iter().filter(|process| format!("{process:?}").contains("/shims/")).collect();
    ensure!(left.is_empty(), "what the shim had started lives: {left:?}");
    Ok(())
}

/// The keeper that serves, asked of nobody.
fn keeper_of(node: &Node) -> Result<i32> {
    let all = e2e::leaks::processes_naming(&node.path("state/keeper"));
    let keeper = all
        .iter()
        .find(|(_, command)| command.contains("containerd-shim-slipway-v1") && command.contains("serve"));
    keeper.map(|(pid, _)| *pid).with_context(|| format!("no keeper among {all:?}"))
}

/// Directories of pods of shims.
fn homes(node: &Node) -> Result<Vec<std::path::PathBuf>> {
    let keepers = std::fs::read_dir(node.path("state/keeper"))?.flatten();
    let shims =
        keepers.flat_map(|keeper| std::fs::read_dir(keeper.path().join("shims")).into_iter().flatten());
    Ok(shims.flatten().map(|home| home.path()).filter(|home| home.is_dir()).collect())
}

/// Once the script has come so far.
async fn seen(script: &Path, word: &str) -> Result<()> {
    let start = Instant::now();
    while !Path::new(&format!("{}.{word}", script.display())).exists() {
        ensure!(start.elapsed() < PATIENCE, "no {word}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// A shim that speaks version 2 and starts a server for every container: refused by name, at each try, and nothing of any try
/// stays, while somebody who only looks at the pod's files is left alone.
#[test]
fn a_shim_that_does_not_group_leaves_no_servers() {
    on_a_node(Setup::default(), |node| Box::pin(ungrouped(node)));
}

async fn ungrouped(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let text = format!(
        "for a; do id=$last; last=$a; done
case \" $* \" in *\" start \"*) grep -q 'container-type\":\"container\"' config.json || exec {SHIM} \"$@\"
    s=\"$0.$$.sock\"
    perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5); sleep 4798' -- \"$s\" \"$@\" \
        >/dev/null 2>&1 &
    while [ ! -S \"$s\" ]; do sleep 0.02; done; echo \"unix://$s\";;
*) exec {SHIM} \"$@\";; esac"
    );
    let path = script(node, "lonely", &text)?;
    handler(node, "lonely", &path, "").await?;
    let config = pod(node, "lonely");
    let sandbox = node.run_pod_under(&config, "lonely").await?;
    let (pid, socket) = shim(node, &sandbox)?;
    let home = homes(node)?.into_iter().find(|home| home.ends_with(&sandbox)).context("its directory")?;
    let mut bystander = std::process::Command::new("tail")
        .arg("-f")
        .arg(home.join("shim.json"))
        .stdout(std::process::Stdio::null())
        .spawn()?;
    for _ in 0..2 {
        let error = node.create(&sandbox, &config, shell("one", &image, "true")).await;
        let error = format!("{:#}", error.err().context("it has a server of its own")?);
        ensure!(error.contains("lonely start") && error.contains("need one shim"), "{error}");
        let left = e2e::leaks::processes_naming(Path::new("4798"));
        ensure!(left.is_empty(), "its server lives: {left:?}");
        let sockets = std::fs::read_dir(path.parent().context("parent")?)?.flatten();
        let sockets: Vec<_> = sockets
            .map(|entry| entry.file_name())
            .filter(|name| {
                name.to_string_lossy().starts_with("lonely.") && name.to_string_lossy().ends_with(".sock")
            })
            .collect();
        ensure!(sockets.is_empty(), "left: {sockets:?}");
    }
    ensure!(node.pod_status(&sandbox).await?.state() == v1::PodSandboxState::SandboxReady, "the pod lives");
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    let lives = bystander.try_wait()?.is_none();
    let _ = bystander.kill();
    bystander.wait()?;
    ensure!(lives, "somebody who looked at a file of ours was killed");
    is_clean(node, &sandbox, pid, &socket)
}

/// More pods of a slow shim at once than the keeper has threads for its own short work: each comes to its end, and all others
/// are served meanwhile.
#[test]
fn many_pods_of_a_slow_shim_hold_up_nobody() {
    on_a_node(Setup::default(), |node| Box::pin(crowd(node)));
}

async fn crowd(node: &mut Node) -> Result<()> {
    let image = node.import("busybox").await?;
    let path = script(
        node,
        "crowd",
        "case \" $* \" in *\" start \"*) sleep 1; echo no such luck >&2; exit 1;; esac",
    )?;
    handler(node, "crowd", &path, "create_timeout = \"20s\"").await?;
    let mut all = tokio::task::JoinSet::new();
    for number in 0..CROWD {
        let mut config = pod(node, &format!("crowd-{number}"));
        e2e::requests::pod_modes(&mut config).network = v1::NamespaceMode::Node.into();
        let mut runtime = node.runtime().await?;
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: "crowd".into() };
        all.spawn(async move { runtime.run_pod_sandbox(request).await });
    }
    // Made, asked and ended while all of them are under way.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let start = Instant::now();
    let config = pod(node, "native");
    let sandbox = node.run_pod(&config).await?;
    let id = node.run(&sandbox, &config, shell("main", &image, "exec sleep 1000")).await?;
    ensure!(node.sh(&id, "echo in").await?.trim() == "in");
    node.stop_container(&id, 0).await?;
    ensure!(start.elapsed() < Duration::from_secs(40), "a native pod took {:?}", start.elapsed());
    let ends = tokio::time::timeout(Duration::from_secs(150), all.join_all()).await;
    for end in ends.context("they wait for each other")? {
        let error = end.err().context("it is no shim")?;
        ensure!(error.message().contains("crowd start"), "{error:?}");
    }
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await?;
    ensure!(homes(node)?.is_empty(), "left: {:?}", homes(node)?);
    Ok(())
}
