//! Nodes of containerd, with our runtime or with runc: Debian's 1.6 and the pinned 2.x of hack/go-containerd.

use crate::node::{Program, binary, repository};
use crate::registry::archive;
use crate::{Node, Setup};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Which containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian's package.
    Debian,
    /// hack/tools containerd-2.
    Two,
}

/// What pods without a RuntimeClass run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    Runc,
    /// Ours, as `slipway config snippet containerd` has it: on 2.x without a pause container.
    Slipway,
    /// Ours in containerd's classic sandbox with its pause image.
    SlipwayClassic,
    /// As `Slipway` on 2.x, with a keeper for each pod.
    SlipwayPerPod,
}

/// The handler's name in all of them.
pub const OURS: &str = "slipway";
pub const PAUSE: &str = "test.local/pause:1";
/// What containerd calls our runtime.
pub const RUNTIME: &str = "io.containerd.slipway.v1";
/// What [`Node::ctr_run`] runs.
const IMAGE: &str = "test.local/busybox:1";

const CNI: &str = r#"{"cniVersion": "1.0.0", "name": "e2e", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

impl Release {
    /// One of its programs.
    pub fn binary(self, name: &str) -> PathBuf {
        match self {
            Self::Debian => PathBuf::from("/usr/bin").join(name),
            Self::Two => repository().join("hack/bin/containerd-2").join(name),
        }
    }

    fn cri_plugin(self) -> &'static str {
        match self {
            Self::Debian => "io.containerd.grpc.v1.cri",
            Self::Two => "io.containerd.cri.v1.runtime",
        }
    }

    fn major(self) -> &'static str {
        match self {
            Self::Debian => "1",
            Self::Two => "2",
        }
    }
}

impl Node {
    /// A containerd whose pods run under `handler` unless a request names another; both ours and runc are there.
    pub async fn containerd(release: Release, handler: Handler, conflist: Option<&str>) -> Result<Self> {
        let mut node = Self::directories(Program::Containerd(release))?;
        let data = node.path("ipam").display().to_string();
        let conflist = conflist.map_or_else(|| CNI.replace("DATA", &data), str::to_owned);
        std::fs::write(node.path("cni/10-test.conflist"), conflist)?;
        std::fs::write(node.path("config.toml"), node.containerd_config(release, handler)?)?;
        node.start_daemon().await?;
        Ok(node)
    }

    /// Another release, on the same directories; the next start of the daemon is of that one.
    pub fn become_containerd(&mut self, release: Release, handler: Handler) -> Result<()> {
        self.set_program(Program::Containerd(release));
        Ok(std::fs::write(self.path("config.toml"), self.containerd_config(release, handler)?)?)
    }

    fn containerd_config(&self, release: Release, handler: Handler) -> Result<String> {
        let cri = release.cri_plugin();
        let (root, state, socket, cni) =
            (self.path("root"), self.path("state"), self.socket(), self.path("cni"));
        let (version, extra, bin) = match release {
            Release::Debian => {
                (2, format!("[plugins.\"{cri}\"]\nsandbox_image = {PAUSE:?}\n"), "bin_dir = \"/usr/lib/cni\"")
            }
            // One NRI socket for the whole machine would be shared with every other test.
            Release::Two => (
                3,
                format!(
                    "[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n\
                     [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {PAUSE:?}\n[plugins.\"{cri}\"]\n"
                ),
                "bin_dirs = [\"/usr/lib/cni\"]",
            ),
        };
        let default = if handler == Handler::Runc { "runc" } else { OURS };
        Ok(format!(
            "version = {version}\nroot = {root:?}\nstate = {state:?}\n\
             disabled_plugins = [\"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {socket:?}\n\
             {extra}restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
             [plugins.\"{cri}\".cni]\n{bin}\nconf_dir = {cni:?}\n\
             [plugins.\"{cri}\".containerd]\ndefault_runtime_name = {default:?}\n\
             [plugins.\"{cri}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n{}",
            self.handler_config(release, handler)?
        ))
    }

    /// What `slipway config snippet` prints; for the classic sandbox without its two lines, for a keeper per pod with the
    /// options that it shows.
    fn handler_config(&self, release: Release, handler: Handler) -> Result<String> {
        let args = ["config", "snippet", "containerd", "--version", release.major()];
        let output =
            std::process::Command::new(binary("slipway")).args(args).output().context("run slipway")?;
        ensure!(output.status.success(), "slipway {args:?}: {output:?}");
        let text = String::from_utf8(output.stdout)?;
        let pause = |line: &&str| line.contains("sandboxer") || line.contains("disable_pause_image_pull");
        Ok(match handler {
            Handler::Runc | Handler::Slipway => text,
            Handler::SlipwayClassic => {
                text.lines().filter(|line| !pause(line)).fold(String::new(), |text, line| text + line + "\n")
            }
            Handler::SlipwayPerPod => {
                let options = self.path("options.toml");
                std::fs::write(&options, "Grouping = \"pod\"\n")?;
                let text = text.replace("# [plugins", "[plugins").replace("#   ", "");
                let text = text.replace("/etc/containerd/slipway.toml", &options.display().to_string());
                text.replace("Grouping = \"node\"", "Grouping = \"pod\"")
            }
        })
    }

    /// The daemon's command, with our shim and its own first in PATH.
    pub(crate) fn containerd_command(&self, release: Release) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(release.binary("containerd"));
        let own = |program: PathBuf| program.parent().map(PathBuf::from);
        let mut dirs: Vec<_> = [own(binary("containerd-shim-slipway-v1")), own(release.binary("containerd"))]
            .into_iter()
            .flatten()
            .collect();
        // A criu that knows this kernel, where PATH's does not.
        dirs.extend(std::env::var_os("SLIPWAY_TEST_CRIU").and_then(|criu| own(criu.into())));
        dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let path = std::env::join_paths(dirs);
        command.arg("--config").arg(self.path("config.toml")).env("PATH", path.unwrap_or_default());
        command.env("SLIPWAY_KEEPER_STATE", self.path("state/keeper"));
        command
    }

    /// ctr on this node.
    pub fn ctr_command(&self, args: &[&str]) -> Result<tokio::process::Command> {
        let Program::Containerd(release) = self.program() else { bail!("no containerd") };
        let mut command = tokio::process::Command::new(release.binary("ctr"));
        command.arg("--address").arg(self.socket()).args(args).kill_on_drop(true);
        // About this machine's control groups; it would be among the container's own output.
        command.env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "1");
        Ok(command)
    }

    /// Runs ctr and returns its standard output.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let output = self.ctr_command(args)?.stdin(std::process::Stdio::null()).output().await?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "ctr {}: {}\n{out}{err}", args.join(" "), output.status);
        Ok(out.into_owned())
    }

    /// Imports a test image for ctr's own namespace.
    pub async fn ctr_import(&self, name: &str) -> Result<()> {
        self.ctr(&["images", "import", &archive(name).display().to_string()]).await.map(drop)
    }

    /// The words of `ctr run` of busybox under our runtime; `more` comes before the image.
    pub fn ctr_run_words(&self, id: &str, more: &[&str], command: &[&str]) -> Vec<String> {
        let cgroup = format!("{}/{id}", self.cgroup_root());
        let words =
            [&["run", "--runtime", RUNTIME, "--cgroup", &cgroup], more, &[IMAGE, id], command].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Runs them: exit code, standard output, standard error.
    pub async fn ctr_run(&self, id: &str, more: &[&str], command: &[&str]) -> Result<(i32, String, String)> {
        let words = self.ctr_run_words(id, more, command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.ctr_command(&words)?.stdin(std::process::Stdio::null()).output().await?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
    }

    /// Waits until ctr says that the task is STOPPED.
    pub async fn ctr_stopped(&self, id: &str) -> Result<()> {
        until("the task's end", async || {
            let listed = self.ctr(&["task", "ls"]).await?;
            Ok(listed.lines().any(|line| line.starts_with(id) && line.contains("STOPPED")))
        })
        .await
    }

    /// Imports test images for the CRI, and the pause image with them; the first one's name.
    pub async fn import_for_cri(&self, name: &str) -> Result<String> {
        for name in [name, "pause"] {
            let path = archive(name);
            ensure!(path.exists(), "{} is missing: hack/images base builds it", path.display());
            self.ctr(&["-n", "k8s.io", "images", "import", &path.display().to_string()]).await?;
            let reference = format!("test.local/{name}:1");
            for attempt in 0.. {
                if self.has_image(&reference).await? {
                    break;
                }
                ensure!(attempt < 200, "the CRI does not see {reference}");
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        Ok(format!("test.local/{name}:1"))
    }

    async fn has_image(&self, reference: &str) -> Result<bool> {
        let image = Some(cri_proto::v1::ImageSpec { image: reference.into(), ..Default::default() });
        let request = cri_proto::v1::ImageStatusRequest { image, verbose: false };
        Ok(self.images().await?.image_status(request).await?.into_inner().image.is_some())
    }

    /// Pids of our keepers on this node: those that serve, not their guardians.
    pub fn keepers(&self) -> Vec<i32> {
        let all = crate::leaks::processes_with_environment("SLIPWAY_KEEPER_STATE", self.path("").as_path());
        all.into_iter().filter(|(_, command)| command.contains(" serve ")).map(|(pid, _)| pid).collect()
    }

    /// Every process of ours on this node.
    pub fn our_processes(&self) -> Vec<(i32, String)> {
        let all = crate::leaks::processes_with_environment("SLIPWAY_KEEPER_STATE", self.path("").as_path());
        all.into_iter().filter(|(_, command)| command.contains("containerd-shim-slipway-v1")).collect()
    }

    /// Removes the parents of this node's control groups, which are the client's; what is not empty stays and shows.
    pub(crate) fn remove_cgroup_parents(&self) {
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join(self.cgroup_root().trim_start_matches('/')));
        }
        let _ = std::fs::remove_dir(format!("/sys/fs/cgroup{}", self.cgroup_root()));
    }
}

/// The same for [`crate::on_a_node`].
pub fn setup(release: Release, handler: Handler) -> Setup {
    Setup { containerd: Some((release, handler)), ..Setup::default() }
}

/// Runs `count` pods with a container from first to last, eight at a time.
pub async fn churn(node: &Node, image: &str, count: usize) -> Result<()> {
    let mut numbers = (0..count).collect::<Vec<_>>();
    while !numbers.is_empty() {
        let batch = numbers.split_off(numbers.len().saturating_sub(8));
        let pods = batch.into_iter().map(|number| one_life(node, image, number));
        for outcome in join_all(pods).await {
            outcome?;
        }
    }
    Ok(())
}

async fn one_life(node: &Node, image: &str, number: usize) -> Result<()> {
    let config = crate::requests::pod(node, &format!("churn-{number}"));
    let sandbox = node.run_pod(&config).await?;
    let script = "echo hello; sleep 1000";
    let main = node.run(&sandbox, &config, crate::requests::shell("main", image, script)).await?;
    node.exec(&main, &["true"]).await?;
    node.stop_container(&main, 0).await?;
    node.remove_container(&main).await?;
    node.stop_pod(&sandbox).await?;
    node.remove_pod(&sandbox).await
}

/// All at once on this thread.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in all.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(context) {
                *output = Some(value);
            }
        }
        if all.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    all.into_iter().filter_map(|(_, output)| output).collect()
}

/// What a runtime could leak, counted: processes, mounts, namespaces, control groups, fifos, sockets, and what our keepers
/// hold.
pub fn census(node: &Node) -> Result<BTreeMap<&'static str, usize>> {
    let mut counts = BTreeMap::new();
    let ours = node.our_processes();
    counts.insert("processes", node.processes().len() + ours.len());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below = node.path("").display().to_string();
    counts.insert("mounts", mounts.lines().filter(|line| line.contains(&below)).count());
    let groups =
        std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|h| h.path().join(&node.cgroup_root()[1..]));
    counts.insert("cgroups", groups.map(|group| entries(&group)).sum());
    let pids: Vec<i32> = node.processes().into_iter().chain(ours.clone()).map(|(pid, _)| pid).collect();
    counts.insert("namespaces", namespaces(&pids).len());
    for keeper in ours {
        let fds = PathBuf::from(format!("/proc/{}/fd", keeper.0));
        *counts.entry("descriptors of keeper and guardian").or_default() += entries(&fds);
    }
    for (what, kind) in
        [("files below state", "f,d,l"), ("fifos below state", "p"), ("sockets below state", "s")]
    {
        let found = std::process::Command::new("find")
            .arg(node.path("state"))
            .args(["-xdev", "-type", kind])
            .output()?;
        counts.insert(what, found.stdout.iter().filter(|byte| **byte == b'\n').count());
    }
    Ok(counts)
}

/// All namespaces that these processes are in or hold a descriptor of, by the kernel's names (`net:[4026531840]`).
fn namespaces(pids: &[i32]) -> BTreeSet<PathBuf> {
    let links = |pid: &i32| {
        let below =
            |dir: &str| std::fs::read_dir(format!("/proc/{pid}/{dir}")).into_iter().flatten().flatten();
        below("ns")
            .chain(below("fd"))
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .collect::<Vec<_>>()
    };
    let named = |link: &PathBuf| link.to_str().is_some_and(is_namespace);
    pids.iter().flat_map(links).filter(named).collect()
}

/// Pipes and sockets have names of the same form.
fn is_namespace(link: &str) -> bool {
    let kind = link.split(':').next().unwrap_or_default();
    ["net", "ipc", "uts", "pid", "user", "mnt", "cgroup", "time"].contains(&kind) && link.contains(":[")
}

fn entries(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Asks again and again, for 30 seconds.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done().await? {
        ensure!(start.elapsed() < Duration::from_secs(30), "{what}: not after 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
