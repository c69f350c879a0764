//! New programs in the place of the old ones: daemon, keeper and guardian become them, containers notice nothing (DESIGN 1B, 4).

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1;
use e2e::requests::{pod, shell};
use e2e::{Node, Setup, on_a_node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const KEEPER: &str = "containerd-shim-slipway-v1";
const LINES: u32 = 400_000;
/// Of those that begin when they are told to ([`Inhabitants::begin`]).
const WAIT: &str = "until [ -e /go ]; do sleep 0.05; done;";

const OWN: Setup = Setup {
    cni: None,
    small_state: false,
    quotas: false,
    nri: "",
    plugins: &[],
    containerd: None,
    config: "",
    drop_ins: &[],
    environment: &[],
    own_programs: true,
};

fn identity(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    path.as_ref().metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

/// A client of a stream that echoes lines.
struct Echo {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Echo {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        Ok(Self { child, stdin, lines })
    }

    /// Types a word and waits for a line that ends with it.
    async fn says(&mut self, word: &str) -> Result<()> {
        self.stdin.write_all(format!("{word}\n").as_bytes()).await?;
        let heard = async {
            while let Some(line) = self.lines.next_line().await? {
                if line.trim_end().ends_with(word) {
                    return Ok(());
                }
            }
            bail!("the stream is over: {:?}", self.child.try_wait())
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.with_context(|| format!("no {word}"))?
    }
}

/// Containers in every state, and clients of theirs.
struct Inhabitants {
    sandbox: String,
    config: v1::PodSandboxConfig,
    image: String,
    logger: String,
    steady: String,
    parked: String,
    brief: String,
    talker: String,
    exec: Echo,
    terminal: Echo,
    attached: Echo,
    inits: Vec<i64>,
}

impl Inhabitants {
    async fn move_in(node: &Node) -> Result<Self> {
        let image = node.import("busybox").await?;
        let config = pod(node, "upgraded");
        let sandbox = node.run_pod(&config).await?;
        let steady = node.run(&sandbox, &config, shell("steady", &image, "sleep 1000")).await?;
        let parked = node.create(&sandbox, &config, shell("parked", &image, "echo late; exit 6")).await?;
        let mut talker = shell("talker", &image, "while read line; do echo \"got $line\"; done");
        talker.stdin = true;
        let talker = node.run(&sandbox, &config, talker).await?;
        let exec = Echo::start(node.crictl_command(&["exec", "-i", &steady, "cat"]))?;
        let in_terminal = node.crictl_command(&["exec", "-it", &steady, "sh", "-c", "stty -echo; exec cat"]);
        let terminal = Echo::start(node.in_a_terminal(&in_terminal, 80, 24))?;
        let attached = Echo::start(node.crictl_command(&["attach", "-i", &talker]))?;
        let mut inits = Vec::new();
        for id in [&steady, &talker] {
            inits.push(e2e::kernel::Group::of(node, id).await?.init);
        }
        let count =
            format!("{WAIT} i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; done; exit 5");
        let logger = node.run(&sandbox, &config, shell("logger", &image, &count)).await?;
        let brief = node
            .run(&sandbox, &config, shell("brief", &image, &format!("{WAIT} sleep 0.5; exit 42")))
            .await?;
        let mut all = Self {
            sandbox,
            config,
            image,
            logger,
            steady,
            parked,
            brief,
            talker,
            exec,
            terminal,
            attached,
            inits,
        };
        all.talk("first").await?;
        Ok(all)
    }

    /// Those that are to write and to end in the middle of it begin now.
    async fn begin(&self, node: &Node) -> Result<()> {
        for id in [&self.logger, &self.brief] {
            node.sh(id, ": > /go").await?;
        }
        Ok(())
    }

    async fn talk(&mut self, word: &str) -> Result<()> {
        self.exec.says(word).await.context("exec")?;
        self.terminal.says(word).await.context("exec with a terminal")?;
        self.attached.says(word).await.context("attach")
    }

    /// `daemon_too`: it was restarted, and with it went the streams, which it serves.
    async fn are_well(&mut self, node: &Node, daemon_too: bool) -> Result<()> {
        if !daemon_too {
            self.talk("afterwards").await?;
        }
        let mut inits = Vec::new();
        for id in [&self.steady, &self.talker] {
            inits.push(e2e::kernel::Group::of(node, id).await?.init);
        }
        ensure!(inits == self.inits, "the processes are others: {inits:?}, {:?}", self.inits);
        ensure!(node.ended(&self.brief).await?.exit_code == 42, "an exit in the middle of it");
        ensure!(node.ended(&self.logger).await?.exit_code == 5, "the logger's exit code");
        let log = node.log(&self.logger).await?;
        let wrong = log.iter().zip(1..).find(|((_, _, line), i)| *line != format!("line {i}"));
        ensure!(
            wrong.is_none() && log.len() == LINES as usize,
            "{} lines, first wrong: {wrong:?}",
            log.len()
        );
        node.start_container(&self.parked).await?;
        ensure!(node.ended(&self.parked).await?.exit_code == 6, "a parked container starts");
        ensure!(node.sh(&self.steady, "echo in").await?.trim() == "in", "exec works");
        let late = node.run(&self.sandbox, &self.config, shell("late", &self.image, "hostname")).await?;
        node.ended(&late).await?;
        ensure!(node.log(&late).await?.iter().any(|(_, _, l)| l == "upgraded"), "the pod's namespaces");
        Ok(())
    }
}

/// Both run what is installed.
async fn is_current(node: &Node) -> Result<bool> {
    let facts = node.keeper_facts().await?;
    let runs = |key: &str| facts[key].as_i64().and_then(|pid| identity(format!("/proc/{pid}/exe")));
    let installed = identity(node.program_path(KEEPER));
    let current = [runs("keeperPid"), runs("guardianPid")] == [installed; 2];
    let told = facts["keeperIsOld"] == false && facts["guardianIsOld"] == false;
    ensure!(installed.is_some() && current == told, "Status says otherwise: {facts}");
    Ok(current)
}

async fn upgraded(node: &Node) -> Result<()> {
    let start = Instant::now();
    // In the middle of it the two questions may be of different keepers.
    while !is_current(node).await.unwrap_or(false) {
        ensure!(start.elapsed() < Duration::from_secs(30), "not upgraded: {}", node.keeper_facts().await?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Calls of every kind, one after the other, until told to stop; the first failure is what it answers.
struct Hammer {
    over: Arc<AtomicBool>,
    rounds: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Hammer {
    fn start(
        mut runtime: v1::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>,
        of: &Inhabitants,
    ) -> Self {
        let (over, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stop, count) = (Arc::clone(&over), Arc::clone(&rounds));
        let (sandbox, config, image, steady) =
            (of.sandbox.clone(), of.config.clone(), of.image.clone(), of.steady.clone());
        let task = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let round = count.fetch_add(1, Ordering::Relaxed);
                runtime.status(v1::StatusRequest { verbose: true }).await.context("Status")?;
                let exec = v1::ExecSyncRequest {
                    container_id: steady.clone(),
                    cmd: ["sh", "-c", "echo out; exit 3"].map(Into::into).into(),
                    timeout: 20,
                };
                let answer = runtime.exec_sync(exec).await.context("ExecSync")?.into_inner();
                ensure!(answer.exit_code == 3 && answer.stdout == b"out\n", "ExecSync: {answer:?}");
                std::fs::create_dir_all(Path::new(&config.log_directory).join(format!("hammered-{round}")))?;
                let create = v1::CreateContainerRequest {
                    pod_sandbox_id: sandbox.clone(),
                    config: Some(shell(&format!("hammered-{round}"), &image, "sleep 1000")),
                    sandbox_config: Some(config.clone()),
                };
                let made = runtime.create_container(create).await.context("CreateContainer")?.into_inner();
                let container_id = made.container_id;
                let start = v1::StartContainerRequest { container_id: container_id.clone() };
                runtime.start_container(start).await.context("StartContainer")?;
                let stats = v1::ContainerStatsRequest { container_id: container_id.clone() };
                runtime.container_stats(stats).await.context("ContainerStats")?;
                let stop = v1::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
                runtime.stop_container(stop).await.context("StopContainer")?;
                let remove = v1::RemoveContainerRequest { container_id };
                runtime.remove_container(remove).await.context("RemoveContainer")?;
            }
            Ok(())
        });
        Self { over, rounds, task }
    }

    async fn stop(self) -> Result<u32> {
        self.over.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.rounds.load(Ordering::Relaxed))
    }
}

#[test]
fn a_hangup_upgrades_keeper_and_guardian() {
    on_a_node(OWN, |node| Box::pin(by_hangup(node)));
}

async fn by_hangup(node: &mut Node) -> Result<()> {
    let mut inhabitants = Inhabitants::move_in(node).await?;
    let hammer = Hammer::start(node.runtime().await?, &inhabitants);
    let (keeper, guardian) = (node.keeper_pid().await?, node.guardian_pid().await?);
    for round in 0..4 {
        // In the end longer than a daemon looks for a keeper that has died.
        let pause = if round == 3 { Duration::from_secs(17) } else { Duration::from_millis(150) };
        tokio::time::sleep(pause).await;
        node.install_copies()?;
        ensure!(!is_current(node).await?, "nobody was asked yet");
        if round == 0 {
            inhabitants.begin(node).await?;
        }
        kill(Pid::from_raw(node.keeper_pid().await?), Signal::SIGHUP)?;
        inhabitants.talk(&format!("round-{round}")).await?;
        upgraded(node).await?;
    }
    let rounds = hammer.stop().await?;
    ensure!(rounds > 4, "only {rounds} rounds of calls");
    ensure!(node.guardian_pid().await? == guardian, "the guardian is another process");
    ensure!(node.keeper_pid().await? != keeper, "the keeper is the same process");
    inhabitants.are_well(node, false).await
}

#[test]
fn a_restart_of_the_daemon_upgrades_keeper_and_guardian() {
    on_a_node(OWN, |node| Box::pin(by_restart(node)));
}

async fn by_restart(node: &mut Node) -> Result<()> {
    let mut inhabitants = Inhabitants::move_in(node).await?;
    let guardian = node.guardian_pid().await?;
    node.install_copies()?;
    inhabitants.begin(node).await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(is_current(node).await?, "the daemon answers before keeper and guardian are new");
    ensure!(node.guardian_pid().await? == guardian, "the guardian is another process");
    let log = node.log_tail(10_000);
    ensure!(log.contains("keeper and guardian are upgraded to"), "it is not said");
    // A second one has nothing to do.
    let keeper = node.keeper_pid().await?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(node.keeper_pid().await? == keeper, "upgraded without need");
    inhabitants.are_well(node, true).await
}

#[test]
fn a_broken_program_leaves_the_former_one() {
    on_a_node(OWN, |node| Box::pin(broken(node)));
}

async fn broken(node: &mut Node) -> Result<()> {
    let mut inhabitants = Inhabitants::move_in(node).await?;
    let (keeper, guardian) = (node.keeper_pid().await?, node.guardian_pid().await?);
    inhabitants.begin(node).await?;
    for (mode, text, said) in [
        (0o755, "#!/bin/sh\necho built for another machine >&2; exit 1\n", "built for another machine"),
        (0o644, "#!/bin/sh\n", "Permission denied"),
    ] {
        node.install(|new| {
            std::fs::write(new, text)?;
            std::fs::set_permissions(new, std::fs::Permissions::from_mode(mode))
        })?;
        kill(Pid::from_raw(keeper), Signal::SIGHUP)?;
        inhabitants.talk("still-there").await?;
        node.kill_daemon().await?;
        node.start_daemon().await?;
        ensure!((node.keeper_pid().await?, node.guardian_pid().await?) == (keeper, guardian), "others");
        let facts = node.keeper_facts().await?;
        ensure!(facts["keeperIsOld"] == true && facts["guardianIsOld"] == true, "{facts}");
        let log = node.log_tail(10_000);
        let warned = log.lines().any(|l| l.contains("the keeper is not upgraded") && l.contains(said));
        ensure!(warned, "nothing says {said}");
        let hung_up = log.lines().any(|l| l.contains("SIGHUP: upgrade:") && l.contains(said));
        ensure!(hung_up, "the keeper does not say {said}");
        // The daemon took the streams along.
        let in_terminal =
            node.crictl_command(&["exec", "-it", &inhabitants.steady, "sh", "-c", "stty -echo; exec cat"]);
        inhabitants.exec = Echo::start(node.crictl_command(&["exec", "-i", &inhabitants.steady, "cat"]))?;
        inhabitants.terminal = Echo::start(node.in_a_terminal(&in_terminal, 80, 24))?;
        inhabitants.attached = Echo::start(node.crictl_command(&["attach", "-i", &inhabitants.talker]))?;
        inhabitants.talk("again").await?;
    }
    node.install_copies()?;
    node.kill_daemon().await?;
    node.start_daemon().await?;
    ensure!(is_current(node).await?, "a good one is taken");
    inhabitants.are_well(node, true).await
}
