//! One node: our daemon (and through it our keeper) with everything it owns below one temporary directory.

use crate::containerd::{Handler, Release};
use crate::{kernel, leaks};
use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1::image_service_client::ImageServiceClient;
use cri_proto::v1::runtime_service_client::RuntimeServiceClient;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tonic::transport::Channel;

/// What a scenario wants of its node beside the defaults.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// CNI configuration list to put into the configuration directory; none: the built-in bridge.
    pub cni: Option<&'static str>,
    /// The state directory is a file system of its own with little room.
    pub small_state: bool,
    /// Images and writable layers are on an ext4 with project quotas, if this kernel has them ([`Node::has_quotas`]).
    pub quotas: bool,
    /// Further lines of the configuration's `[nri]`.
    pub nri: &'static str,
    /// NRI plugins that are installed: `NN-name`, and their configuration, in which `{dir}` is the node's directory.
    pub plugins: &'static [(&'static str, &'static str)],
    /// containerd instead of our daemon.
    pub containerd: Option<(Release, Handler)>,
    /// More tables for the daemon's configuration file.
    pub config: &'static str,
    /// Drop-ins of the configuration: name and content.
    pub drop_ins: &'static [(&'static str, &'static str)],
    /// Further variables of the daemon's environment; `{dir}` is the node's directory.
    pub environment: &'static [(&'static str, &'static str)],
    /// Programs of its own, which [`Node::install`] replaces.
    pub own_programs: bool,
}

/// Which daemon a node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Slipway,
    Containerd(Release),
}

const DAEMON: &str = "slipway";
const KEEPER: &str = "containerd-shim-slipway-v1";
const PROGRAMS: [&str; 2] = [DAEMON, KEEPER];

const WITHOUT_NAT: &str = r#"{"cniVersion": "1.0.0", "name": "plain", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]]}}]}"#;

/// A running node. [`Node::stop`] must be called; dropping it only kills the daemon.
#[derive(Debug)]
pub struct Node {
    dir: tempfile::TempDir,
    cgroup_root: String,
    program: Program,
    environment: &'static [(&'static str, &'static str)],
    own_programs: bool,
    daemon: Option<tokio::process::Child>,
}

impl Node {
    /// Writes the configuration and starts the daemon; returns when it answers Version.
    pub async fn start(setup: Setup) -> Result<Self> {
        if let Some((release, handler)) = setup.containerd {
            return Self::containerd(release, handler, setup.cni).await;
        }
        let mut node = Self::directories(Program::Slipway)?;
        if setup.own_programs {
            node.own_programs = true;
            std::fs::create_dir(node.path("bin"))?;
            for name in PROGRAMS {
                copy(&binary(name), &node.program_path(name))?;
            }
        }
        // The built-in bridge needs nftables: without it (user-mode Linux) pods get addresses and no NAT.
        let without_nat = (!kernel::has_nat()).then_some(WITHOUT_NAT);
        if let Some(conflist) = setup.cni.or(without_nat) {
            std::fs::write(node.path("cni/10-test.conflist"), conflist)?;
        }
        let text = format!(
            "{}{}
{}",
            node.config(),
            setup.nri,
            setup.config
        );
        std::fs::write(node.path("config.toml"), text)?;
        std::fs::create_dir(node.path("config.d"))?;
        for (name, text) in setup.drop_ins {
            std::fs::write(node.path("config.d").join(name), text)?;
        }
        node.environment = setup.environment;
        node.install_plugins(setup.plugins)?;
        if setup.small_state {
            let state = node.path("state");
            nix::mount::mount(
                Some("state"),
                &state,
                Some("tmpfs"),
                nix::mount::MsFlags::empty(),
                Some("size=2m"),
            )
            .context("mount a small state directory")?;
        }
        if setup.quotas {
            node.mount_with_quotas()?;
        }
        node.start_daemon().await?;
        Ok(node)
    }

    fn mount_with_quotas(&self) -> Result<()> {
        let (disk, root) = (self.path("disk"), self.path("root"));
        std::fs::File::create(&disk)?.set_len(256 << 20)?;
        let features = ["-q", "-O", "quota,project", "-E", "quotatype=prjquota"];
        let made = std::process::Command::new("mkfs.ext4").args(features).arg(&disk).status()?;
        ensure!(made.success(), "mkfs.ext4 {features:?}: {made}");
        let mount = ["-t", "ext4", "-o", "loop,prjquota"];
        let mounted = std::process::Command::new("mount").args(mount).arg(&disk).arg(&root).output()?;
        if !mounted.status.success() {
            println!("no project quotas here: {}", String::from_utf8_lossy(&mounted.stderr).trim());
        }
        Ok(())
    }

    /// Whether [`Setup::quotas`] got what it asked for.
    pub fn has_quotas(&self) -> Result<bool> {
        use std::os::unix::fs::MetadataExt;
        Ok(self.path("root").metadata()?.dev() != self.dir.path().metadata()?.dev())
    }

    pub(crate) fn directories(program: Program) -> Result<Self> {
        // Its path must be short: sockets have theirs below it.
        let dir = tempfile::Builder::new().prefix("slipway-e2e-").tempdir()?;
        let tag = dir.path().file_name().and_then(|n| n.to_str()).context("temporary name")?.to_owned();
        let cgroup_root = cgroup_root(&tag);
        let node = Self { cgroup_root, dir, program, environment: &[], own_programs: false, daemon: None };
        for sub in ["root", "state", "cni", "logs"] {
            std::fs::create_dir(node.path(sub))?;
        }
        Ok(node)
    }

    fn install_plugins(&self, plugins: &[(&str, &str)]) -> Result<()> {
        for dir in ["nri/plugins", "nri/conf.d"] {
            std::fs::create_dir_all(self.path(dir))?;
        }
        for (name, config) in plugins {
            std::os::unix::fs::symlink(tool("nri-plugin"), self.path("nri/plugins").join(name))?;
            let config = config.replace("{dir}", &self.dir.path().display().to_string());
            std::fs::write(self.path("nri/conf.d").join(format!("{name}.conf")), config)?;
        }
        Ok(())
    }

    fn config(&self) -> String {
        format!(
            "cgroup_root = \"{}\"\n[keeper]\npath = \"{}\"\n[cni]\nconf_dir = \"{}\"\n[network]\nbridge = \"slipway0\"\npool = \"10.88.0.0/16\"\n[nri]\nplugin_path = \"{}\"\nplugin_config_path = \"{}\"\n",
            self.cgroup_root,
            self.program_path(KEEPER).display(),
            self.path("cni").display(),
            self.path("nri/plugins").display(),
            self.path("nri/conf.d").display(),
        )
    }

    /// The program that this node runs under this name.
    pub fn program_path(&self, name: &str) -> PathBuf {
        if self.own_programs { self.path("bin").join(name) } else { binary(name) }
    }

    /// Puts other files in the place of the node's own programs, by renaming, as packages do. `write` makes the keeper's.
    pub fn install(&self, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
        ensure!(self.own_programs, "this node has no programs of its own");
        let new = self.path("bin/new");
        copy(&binary(DAEMON), &new)?;
        std::fs::rename(&new, self.program_path(DAEMON))?;
        write(&new)?;
        Ok(std::fs::rename(&new, self.program_path(KEEPER))?)
    }

    /// The same with copies of the real ones.
    pub fn install_copies(&self) -> Result<()> {
        self.install(|new| copy(&binary(KEEPER), new))
    }

    /// A path below the node's own directory.
    pub fn path(&self, sub: &str) -> PathBuf {
        self.dir.path().join(sub)
    }

    pub(crate) fn program(&self) -> Program {
        self.program
    }

    /// Which daemon the next start is of.
    pub(crate) fn set_program(&mut self, program: Program) {
        self.program = program;
    }

    /// Everything of this node that makes control groups makes them below it.
    pub fn cgroup_root(&self) -> &str {
        &self.cgroup_root
    }

    /// Parent of a pod's groups as a kubelet would name it; our own daemon has one by itself.
    pub fn cgroup_parent(&self) -> String {
        if self.program == Program::Slipway { String::new() } else { self.cgroup_root.clone() }
    }

    pub fn socket(&self) -> PathBuf {
        self.path("slipway.sock")
    }

    /// Starts the daemon (again) on the same directories.
    pub async fn start_daemon(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log"))?;
        let child = self
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start the daemon {:?}: build or install it first", self.program))?;
        self.daemon = Some(child);
        self.wait_until_it_answers().await
    }

    fn command(&self) -> tokio::process::Command {
        let config = self.path("config.toml");
        if let Program::Containerd(release) = self.program {
            return self.containerd_command(release);
        }
        let mut command = tokio::process::Command::new(self.program_path(DAEMON));
        command.arg("serve").arg("--root").arg(self.path("root")).arg("--state").arg(self.path("state"));
        command.arg("--address").arg(self.socket()).arg("--config").arg(config);
        let dir = self.dir.path().display().to_string();
        command.envs(self.environment.iter().map(|(key, value)| (key, value.replace("{dir}", &dir))));
        command
    }

    async fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(mut client) = self.runtime().await {
                // Not Version alone: a network may need a moment, and containerd loads its CRI part late.
                let ready = client.status(cri_proto::v1::StatusRequest::default()).await;
                if ready.is_ok_and(|r| all_conditions_hold(&r.into_inner())) {
                    return Ok(());
                }
            }
            let daemon = self.daemon.as_mut().context("no daemon")?;
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon ended with {status}:\n{}", self.log_tail(40));
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the daemon is not ready:\n{}", self.log_tail(40));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn daemon_pid(&self) -> Result<i32> {
        let pid = self.daemon.as_ref().and_then(tokio::process::Child::id).context("no daemon")?;
        Ok(i32::try_from(pid)?)
    }

    /// kill -9 of the daemon; the keeper and the containers are not told.
    pub async fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon")?;
        daemon.kill().await.context("kill -9 of the daemon")
    }

    /// Waits for the end of a daemon that was told to end.
    pub async fn daemon_ended(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon")?;
        tokio::time::timeout(Duration::from_secs(30), daemon.wait())
            .await
            .context("the daemon goes on")??;
        Ok(())
    }

    async fn channel(&self) -> Result<Channel> {
        let socket = self.socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        Ok(tonic::transport::Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await?)
    }

    pub async fn runtime(&self) -> Result<RuntimeServiceClient<Channel>> {
        Ok(RuntimeServiceClient::new(self.channel().await?).max_decoding_message_size(16 << 20))
    }

    pub async fn images(&self) -> Result<ImageServiceClient<Channel>> {
        Ok(ImageServiceClient::new(self.channel().await?).max_decoding_message_size(16 << 20))
    }

    /// Runs the real crictl against this node and returns its standard output.
    pub async fn crictl(&self, args: &[&str]) -> Result<String> {
        let output = self.crictl_command(args).output().await;
        succeeded("crictl", args, &output.context("run hack/bin/crictl: hack/tools builds it")?)
    }

    /// The same, not yet started; standard input is empty.
    pub fn crictl_command(&self, args: &[&str]) -> tokio::process::Command {
        let endpoint = format!("unix://{}", self.socket().display());
        let mut command = tokio::process::Command::new(tool("crictl"));
        command.args(["--timeout", "60s", "-r", &endpoint, "-i", &endpoint]).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A command line in a terminal of its own (script(1) of util-linux), whose keyboard is standard input. First the
    /// terminal gets a size of `columns` and `rows`.
    pub fn in_a_terminal(
        &self,
        program: &tokio::process::Command,
        columns: u32,
        rows: u32,
    ) -> tokio::process::Command {
        let program = program.as_std();
        let words = std::iter::once(program.get_program()).chain(program.get_args());
        let quoted = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")));
        let line = quoted.collect::<Vec<_>>().join(" ");
        let mut command = tokio::process::Command::new("script");
        command.args([
            "-q",
            "-e",
            "-c",
            &format!("stty cols {columns} rows {rows}; exec {line}"),
            "/dev/null",
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs our own command line against this node.
    pub async fn slipway(&self, args: &[&str]) -> Result<String> {
        succeeded("slipway", args, &self.slipway_command(args).output().await?)
    }

    /// The same, not yet started.
    pub fn slipway_command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(binary("slipway"));
        command.arg("--address").arg(self.socket()).args(args).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// The end of the daemon's log, then of the keeper's.
    pub fn log_tail(&self, lines: usize) -> String {
        let keepers = std::fs::read_dir(self.path("state/keeper")).into_iter().flatten().flatten();
        let files = std::iter::once(self.path("daemon.log")).chain(keepers.map(|e| e.path().join("log")));
        let tail = |file: PathBuf| {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let all: Vec<&str> = text.lines().collect();
            format!("{}:\n{}", file.display(), all[all.len().saturating_sub(lines)..].join("\n"))
        };
        files.map(tail).collect::<Vec<_>>().join("\n")
    }

    /// Processes of this node: everything whose command line or working directory names its directory.
    pub fn processes(&self) -> Vec<(i32, String)> {
        leaks::processes_naming(self.dir.path())
    }

    /// Every process that is the runtime's own, for the memory table: daemon, keeper and guardian; for containerd the
    /// shims and the pause processes (their direct children named `sleep`) too. Workloads do not count.
    pub fn runtime_pids(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.processes().into_iter().map(|(pid, _)| pid).collect();
        pids.extend(
            leaks::processes_with_environment("SLIPWAY_KEEPER_STATE", self.dir.path()).iter().map(|p| p.0),
        );
        if self.program != Program::Slipway {
            pids.extend(pids.clone().into_iter().flat_map(leaks::pause_children));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// The keeper's pid, as the daemon tells it in verbose Status.
    ///
    /// Not by its command line: a parked container init is a clone of the keeper and looks the same until it is started.
    pub async fn keeper_pid(&self) -> Result<i32> {
        self.keeper_fact("keeperPid").await
    }

    /// The guardian's pid.
    pub async fn guardian_pid(&self) -> Result<i32> {
        self.keeper_fact("guardianPid").await
    }

    async fn keeper_fact(&self, key: &str) -> Result<i32> {
        Ok(i32::try_from(self.keeper_facts().await?[key].as_i64().context("a pid")?)?)
    }

    /// What verbose Status says of keeper and guardian.
    pub async fn keeper_facts(&self) -> Result<serde_json::Value> {
        let request = cri_proto::v1::StatusRequest { verbose: true };
        let info = self.runtime().await?.status(request).await?.into_inner().info;
        Ok(serde_json::from_str(info.get("keeper").context("no keeper in Status")?)?)
    }

    /// Removes all pods, ends daemon and keeper.
    pub async fn stop(&mut self) -> Result<()> {
        let removed = self.remove_everything().await;
        if let Some(mut daemon) = self.daemon.take() {
            if let Some(pid) = daemon.id() {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
            }
            if tokio::time::timeout(Duration::from_secs(20), daemon.wait()).await.is_err() {
                daemon.kill().await?;
                bail!("the daemon ignored SIGTERM for 20 s");
            }
        }
        if self.program != Program::Slipway {
            self.remove_cgroup_parents();
        }
        for own in ["state", "root"] {
            self.unmount(own).await;
        }
        removed
    }

    /// Takes the file system of [`Setup::small_state`] or [`Setup::quotas`] away once the keeper, which ends by itself, is
    /// gone from it.
    async fn unmount(&self, own: &str) {
        let target = self.path(own);
        for _ in 0..500 {
            // Anything but busy: it is done, or there was none.
            if nix::mount::umount2(&target, nix::mount::MntFlags::empty()) != Err(nix::Error::EBUSY) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn remove_everything(&mut self) -> Result<()> {
        if self.daemon.is_none() {
            self.start_daemon().await?;
        }
        let mut runtime = self.runtime().await?;
        let pods = runtime.list_pod_sandbox(cri_proto::v1::ListPodSandboxRequest::default()).await?;
        for pod in pods.into_inner().items {
            let id = pod.id;
            let request = cri_proto::v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
            runtime.stop_pod_sandbox(request).await?;
            runtime.remove_pod_sandbox(cri_proto::v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        }
        Ok(())
    }

    /// What is left of the node on this machine after [`Node::stop`], a line each; kills left processes by pid, so
    /// that one failing test does not spoil the machine.
    pub fn leaks(&self) -> Vec<String> {
        leaks::of(self.dir.path(), &self.cgroup_root)
    }
}

/// The parent of a node's groups: a directory, or a slice where the daemon chooses the systemd driver. (Dashes would nest
/// slices.)
fn cgroup_root(tag: &str) -> String {
    let both = ["/run/systemd/system", "/sys/fs/cgroup/cgroup.controllers"];
    if both.iter().all(|path| Path::new(path).exists()) {
        format!("{}.slice", tag.replace('-', ""))
    } else {
        format!("/{tag}")
    }
}

/// The two that a kubelet asks for; containerd 2 has more (deprecation warnings).
fn all_conditions_hold(answer: &cri_proto::v1::StatusResponse) -> bool {
    let needed = |c: &&cri_proto::v1::RuntimeCondition| matches!(&*c.r#type, "RuntimeReady" | "NetworkReady");
    answer.status.as_ref().is_some_and(|status| {
        let mut conditions = status.conditions.iter().filter(needed).peekable();
        conditions.peek().is_some() && conditions.all(|c| c.status)
    })
}

fn succeeded(program: &str, args: &[&str], output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}\n{stdout}{stderr}", args.join(" "), output.status);
    Ok(stdout)
}

/// A binary of this workspace, from the profile directory this test itself was built into.
pub fn binary(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("SLIPWAY_BIN_DIR") {
        return Path::new(&dir).join(name);
    }
    let me = std::env::current_exe().expect("own path");
    let profile = me.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    profile.join(name)
}

/// By another process: while this one has a program open for writing, a child that another thread is about to make has it too,
/// and nobody can execute it (ETXTBSY).
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let status = std::process::Command::new("cp").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("cp: {status}"))) }
}

/// A Go tool built by hack/tools.
pub fn tool(name: &str) -> PathBuf {
    repository().join("hack/bin").join(name)
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
