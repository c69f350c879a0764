//! `slipway run`: brings up the pods of a manifest over CRI, as a kubelet would, and takes them down again.
//!
//! Owns the order of calls and what is undone when one fails. What a field means is `translate`'s.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cri_proto::v1 as cri;
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::{Client, is_ready, said};
use super::interrupt::Interrupt;
use super::logs::{Log, follow};
use super::manifest::{Container, Pod, RestartPolicy};
use super::output::{Output, Progress, eprintln_quietly, json, print};
use super::translate::{self, ContainerPlan, Facts, ImageFacts};
use super::{facts, manifest, pod_dir, pull, remove, volumes};

/// How often the end of an init container is looked for.
const INIT_POLL: Duration = Duration::from_millis(50);
/// Log lines that a failed init container's error shows.
const LAST_LINES: usize = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Kubernetes v1 Pod manifest; `-` reads standard input
    #[arg(value_name = "POD.yaml")]
    file: PathBuf,
    /// Follow the logs of all containers until they have ended; Ctrl-C removes the pod
    #[arg(short, long)]
    follow: bool,
}

/// A pod that runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Running {
    id: String,
    name: String,
    namespace: String,
    uid: String,
    ip: String,
    containers: Vec<RunningContainer>,
}

#[derive(Debug, Serialize)]
struct RunningContainer {
    name: String,
    id: String,
    #[serde(skip)]
    log: PathBuf,
}

pub(crate) async fn run(client: &mut Client, args: &Args, output: Output) -> Result<ExitCode> {
    let parsed = manifest::parse(&read(&args.file)?).with_context(|| described(&args.file))?;
    parsed.warnings.iter().for_each(|warning| eprintln_quietly(&format!("warning: {warning}")));
    let interrupt = Interrupt::listen()?;
    let host = facts::gather(client, &args.file).await?;

    let progress = Progress::new();
    let mut tasks = Vec::new();
    let users = host.users(client, &parsed.pods).await?;
    for (pod, users) in parsed.pods.iter().zip(users) {
        tasks.push(Bringup { pod, facts: host.for_pod(users), progress: &progress, interrupt: &interrupt });
    }
    let result = all_up(client, &tasks, args.follow, output).await;
    progress.end();
    let ended = match result {
        Ok(ended) => ended,
        Err(error) => {
            take_down(client, &tasks, &host.root, 0).await.context("while undoing a failed run")?;
            return Err(error);
        }
    };
    match ended {
        Ended::Detached => Ok(ExitCode::SUCCESS),
        Ended::Containers => exit_code(client, &tasks).await,
        Ended::Interrupted => {
            eprintln_quietly("removing the pod (again Ctrl-C: at once)");
            let grace = tasks.iter().map(|task| translate::grace_period(task.pod)).max().unwrap_or(0);
            let mut gentle = client.clone();
            let gently = tokio::select! {
                done = take_down(&mut gentle, &tasks, &host.root, grace) => Some(done),
                () = interrupt.came(2) => None,
            };
            match gently {
                Some(done) => done?,
                None => take_down(client, &tasks, &host.root, 0).await?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(super) fn described(file: &Path) -> String {
    if file == Path::new("-") { "standard input".into() } else { file.display().to_string() }
}

pub(super) fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

/// Why `run` is at its end, all pods being up.
enum Ended {
    Detached,
    Containers,
    Interrupted,
}

/// One pod on its way up.
struct Bringup<'a> {
    pod: &'a Pod,
    facts: Facts,
    progress: &'a Progress,
    interrupt: &'a Interrupt,
}

async fn all_up(client: &mut Client, tasks: &[Bringup<'_>], follow: bool, output: Output) -> Result<Ended> {
    for task in tasks {
        let name = &task.pod.metadata.name;
        translate::check(task.pod, &task.facts).with_context(|| format!("pod {name}"))?;
    }
    let mut running = Vec::new();
    for task in tasks {
        let name = &task.pod.metadata.name;
        running.push(task.up(client).await.with_context(|| format!("pod {name}"))?);
    }
    if let Some(task) = tasks.first() {
        task.progress.end();
    }
    match output {
        Output::Json => json(&running)?,
        Output::Table => {
            for pod in &running {
                let at = if pod.ip.is_empty() { "the host's network".to_owned() } else { pod.ip.clone() };
                print(&format!("pod {} is running at {at}\n", pod.name))?;
            }
        }
    }
    if !follow {
        return Ok(Ended::Detached);
    }
    let Some(task) = tasks.first() else { return Ok(Ended::Detached) };
    tokio::select! {
        biased;
        () = task.interrupt.came(1) => Ok(Ended::Interrupted),
        done = follow_all(client, &running) => done.map(|()| Ended::Containers),
    }
}

/// Prints all containers' logs, each line with the container's name; returns when all have ended.
async fn follow_all(client: &Client, pods: &[Running]) -> Result<()> {
    let mut readers = JoinSet::new();
    for pod in pods {
        for own in &pod.containers {
            let name = &own.name;
            let prefix = if pods.len() == 1 { name.clone() } else { format!("{}/{name}", pod.name) };
            let container = cri::Container {
                id: own.id.clone(),
                pod_sandbox_id: pod.id.clone(),
                metadata: Some(cri::ContainerMetadata { name: name.clone(), attempt: 0 }),
                ..Default::default()
            };
            let log = Log { path: own.log.clone(), prefix: Some(prefix), tail: None };
            readers.spawn(follow(client.clone(), container, log));
        }
    }
    while let Some(ended) = readers.join_next().await {
        ended.context("a log reader ended by itself")??;
    }
    Ok(())
}

/// The first bad exit code, once all containers have ended.
async fn exit_code(client: &mut Client, tasks: &[Bringup<'_>]) -> Result<ExitCode> {
    for task in tasks {
        for sandbox in remove::sandboxes_of(client, &task.facts.uid).await? {
            for container in client.containers(Some(&sandbox.id)).await? {
                let Some(status) = client.container_status(&container.id).await? else { continue };
                if status.exit_code != 0 {
                    let name = super::client::container_name(&container);
                    eprintln_quietly(&format!(
                        "container {name} ended with exit code {} ({})",
                        status.exit_code, status.reason
                    ));
                    return Ok(ExitCode::from(u8::try_from(status.exit_code).unwrap_or(255)));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes whatever there is of these pods, all of them even if one resists.
async fn take_down(client: &mut Client, tasks: &[Bringup<'_>], root: &Path, grace: i64) -> Result<()> {
    let mut first = Ok(());
    for task in tasks {
        let done = remove::pod_by_uid(client, root, &task.facts.uid, grace).await;
        let done = done.with_context(|| format!("remove pod {}", task.pod.metadata.name));
        first = first.and(done);
    }
    first
}

impl Bringup<'_> {
    /// Everything from the images to the last started container. What it made is found again by the pod's uid.
    async fn up(&self, client: &mut Client) -> Result<Running> {
        let (pod, meta) = (self.pod, &self.pod.metadata);
        self.refuse_second(client).await?;
        let mut images = Vec::new();
        for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
            let found = pull::ensure(client, &container.image, container.image_pull_policy, self.progress);
            images.push(self.interrupt.or(found).await?);
        }
        let _claim = pod_dir::create(&self.facts.pod_dir)?;
        for (name, volume) in volumes::volumes(pod, &self.facts)? {
            pod_dir::prepare(&name, &volume)?;
        }
        self.interrupt.check()?;

        self.progress.step(&format!("pod {}: making the sandbox", meta.name));
        let config = translate::sandbox_config(pod, &self.facts)?;
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: pod.spec.runtime_class_name.clone(),
        };
        // Never dropped in the middle: an unfinished sandbox could not be found for its removal (CRI-GEN-12).
        let id = client
            .runtime
            .run_pod_sandbox(request)
            .await
            .map_err(said("run the pod's sandbox"))?
            .into_inner()
            .pod_sandbox_id;
        let ips = self.addresses(client, &id).await?;
        let ip = ips.first().cloned().unwrap_or_default();
        let facts = Facts { pod_ips: ips, ..self.facts.clone() };
        let sandbox = Sandbox { id: id.clone(), config, facts };

        let (inits, mains) = images.split_at(pod.spec.init_containers.len());
        for (container, image) in pod.spec.init_containers.iter().zip(inits) {
            self.init(client, &sandbox, container, image)
                .await
                .with_context(|| format!("init container {}", container.name))?;
        }
        let mut containers = Vec::new();
        for (container, image) in pod.spec.containers.iter().zip(mains) {
            let started = self.main(client, &sandbox, container, image).await;
            containers.push(started.with_context(|| format!("container {}", container.name))?);
        }
        let (name, namespace) = (meta.name.clone(), meta.namespace.clone());
        Ok(Running { id, name, namespace, uid: self.facts.uid.clone(), ip, containers })
    }

    async fn refuse_second(&self, client: &mut Client) -> Result<()> {
        let meta = &self.pod.metadata;
        let same = |other: &&cri::PodSandbox| {
            other.metadata.as_ref().is_some_and(|o| o.name == meta.name && o.namespace == meta.namespace)
        };
        if let Some(other) = client.sandboxes().await?.iter().find(same) {
            let state = if is_ready(other) { "runs" } else { "is there" };
            bail!(
                "it {state} already in namespace {}: `slipway rm {}/{}` removes it",
                meta.namespace,
                meta.namespace,
                meta.name
            );
        }
        Ok(())
    }

    async fn addresses(&self, client: &mut Client, sandbox: &str) -> Result<Vec<String>> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox.to_owned(), verbose: false };
        let answer =
            client.runtime.pod_sandbox_status(request).await.map_err(said("read the pod's status"))?;
        let network = answer.into_inner().status.and_then(|status| status.network).unwrap_or_default();
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        Ok(all.filter(|ip| !ip.is_empty()).collect())
    }

    /// Runs one init container to its end, which must be a good one.
    async fn init(
        &self,
        client: &mut Client,
        sandbox: &Sandbox,
        container: &Container,
        image: &ImageFacts,
    ) -> Result<()> {
        self.progress.step(&format!("init container {}: running", container.name));
        let (id, _) = self.create(client, sandbox, container, image, false).await?;
        self.start(client, &id).await?;
        let status = self.interrupt.or(wait_for_end(client, &id)).await?;
        let log = Path::new(&status.log_path);
        ensure!(
            status.exit_code == 0,
            "ended with exit code {} ({}){}",
            status.exit_code,
            status.reason,
            last_lines(log)
        );
        self.progress.done(&format!("init container {}: done", container.name));
        Ok(())
    }

    async fn main(
        &self,
        client: &mut Client,
        sandbox: &Sandbox,
        container: &Container,
        image: &ImageFacts,
    ) -> Result<RunningContainer> {
        self.progress.step(&format!("container {}: starting", container.name));
        let kept = self.pod.spec.restart_policy != RestartPolicy::Never;
        let (id, plan) = self.create(client, sandbox, container, image, kept).await?;
        self.start(client, &id).await?;
        self.progress.done(&format!("container {}: started", container.name));
        let log = translate::log_directory(&sandbox.facts).join(&plan.config.log_path);
        Ok(RunningContainer { name: container.name.clone(), id, log })
    }

    /// Creates a container; `kept` leaves its request for the restarter before it can end.
    async fn create(
        &self,
        client: &mut Client,
        sandbox: &Sandbox,
        container: &Container,
        image: &ImageFacts,
        kept: bool,
    ) -> Result<(String, ContainerPlan)> {
        self.interrupt.check()?;
        let plan = translate::container_config(self.pod, container, &sandbox.facts, Some(image))?;
        for (root, sub) in &plan.sub_paths {
            pod_dir::prepare_sub_path(root, sub)?;
        }
        pod_dir::create_log_dir(&self.facts.pod_dir, &container.name)?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(plan.config.clone()),
            sandbox_config: Some(sandbox.config.clone()),
        };
        if kept {
            pod_dir::save_request(&self.facts.pod_dir, &container.name, &request)?;
        }
        let answer = client.runtime.create_container(request).await.map_err(said("create it"))?;
        Ok((answer.into_inner().container_id, plan))
    }

    async fn start(&self, client: &mut Client, id: &str) -> Result<()> {
        self.interrupt.check()?;
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        client.runtime.start_container(request).await.map_err(said("start it"))?;
        Ok(())
    }
}

/// A pod's sandbox that runs.
struct Sandbox {
    id: String,
    config: cri::PodSandboxConfig,
    /// With the pod's addresses.
    facts: Facts,
}

async fn wait_for_end(client: &mut Client, id: &str) -> Result<cri::ContainerStatus> {
    loop {
        let status = client.container_status(id).await?.context("somebody removed it")?;
        if status.state == i32::from(cri::ContainerState::ContainerExited) {
            return Ok(status);
        }
        tokio::time::sleep(INIT_POLL).await;
    }
}

/// The end of a log, to be shown with an error; empty when there is none.
fn last_lines(log: &Path) -> String {
    let text = super::logs::last_lines(log, LAST_LINES).unwrap_or_default();
    if text.is_empty() { String::new() } else { format!("; its last lines:\n{}", text.trim_end()) }
}
