//! The keeper's client: starts it, talks to it, finds it again when it was replaced.
//!
//! The daemon reaches containers only through here, with the same messages that containerd sends.

mod connection;
mod foreign;
mod measured;
mod options;
mod upgrade;

pub(crate) use foreign::{Runtime, Shim, patience};

use crate::config::Config;
use crate::error::{Error, Result};
use connection::{CONNECT, Retry, Slot};
use containerd_shim_protos::api;
use containerd_shim_protos::sandbox_api as sandbox;
use containerd_shim_protos::shim::oci::CheckpointOptions;
use cri_proto::keeper as ext;
use cri_proto::v1;
use protobuf::well_known_types::any::Any;
use slipway_runtime::cgroup::Stats;
use slipway_runtime::idmap::IdMap;
use slipway_runtime::rootfs::Overlay;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tonic::Code;
use ttrpc::context::{Context, with_duration};

/// A call that the keeper should answer quickly.
const QUICK: Duration = Duration::from_secs(30);
/// One whose length is the size of a container's memory.
const LONG: Duration = Duration::from_secs(3600);
/// WaitTask has no end of its own.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);

/// See the module.
pub(crate) struct Keeper {
    binary: PathBuf,
    state: PathBuf,
    client_address: PathBuf,
    clients: Mutex<Slot>,
    /// Held by whoever makes a connection.
    connecting: tokio::sync::Mutex<()>,
    /// How long that may take.
    patience: Duration,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper")
            .field("binary", &self.binary)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// The most that a pod's configuration may take: ttrpc's messages end at 4 MiB, the rest of ours needs little.
const CONFIG_MAX: usize = (4 << 20) - (64 << 10);
/// How often a creation is tried that no keeper remembers.
const CREATIONS: usize = 3;
/// How long a creation may go on at a keeper that has not answered in time, beyond what it was given, and how often we look.
const MAKING: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(50);
/// Metadata that asks for [`Keeper::laps`] (keeper.proto).
const CLOCKED: &str = "slipway-clocked";

impl Keeper {
    pub(crate) fn new(config: &Config) -> Self {
        Self::at(config.keeper.clone(), config.state.join("keeper"), config.address.clone())
    }

    fn at(binary: PathBuf, state: PathBuf, client_address: PathBuf) -> Self {
        Self {
            binary,
            state,
            client_address,
            clients: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            patience: CONNECT,
        }
    }

    pub(crate) async fn info(&self) -> Result<ext::InfoResponse> {
        self.call(Retry::Safe, |c| async move { c.ext.info(quick(), &ext::InfoRequest::new()).await }).await
    }

    /// Every task and sandbox the keeper knows.
    pub(crate) async fn list(&self) -> Result<ext::ListResponse> {
        self.call(Retry::Safe, |c| async move { c.ext.list(quick(), &ext::ListRequest::new()).await }).await
    }

    /// Makes the pod's namespaces, and starts its shim where it has one; answers the pid that namespace paths of its containers
    /// name.
    pub(crate) async fn run_sandbox(
        &self,
        id: &str,
        bundle: &Path,
        config: &v1::PodSandboxConfig,
        netns: Option<&Path>,
        shim: Option<&Shim>,
    ) -> Result<i32> {
        let options = options::of_pod(config, shim)?;
        if options.value.len() > CONFIG_MAX {
            let size = options.value.len();
            return Err(Error::invalid(format!(
                "the pod's configuration is {size} bytes: at most {CONFIG_MAX}"
            )));
        }
        let mut request = sandbox::CreateSandboxRequest::new();
        request.sandbox_id = id.into();
        request.bundle_path = bundle.display().to_string();
        request.netns_path = netns.map(|p| p.display().to_string()).unwrap_or_default();
        request.options = Some(options).into();
        let patience = shim.map_or(QUICK, Shim::patience);
        let create = || async {
            let created = self.call(Retry::Never, |c| {
                let request = request.clone();
                async move { c.sandbox.create_sandbox(with_duration(patience), &request).await }
            });
            created.await.map(drop)
        };
        self.make(patience, create, || self.knows_sandbox(id)).await?;
        let mut request = sandbox::StartSandboxRequest::new();
        request.sandbox_id = id.into();
        let started = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.sandbox.start_sandbox(quick(), &request).await }
        });
        i32::try_from(started.await?.pid)
            .map_err(|e| Error::internal(format!("keeper answered a strange pid: {e}")))
    }

    async fn knows_sandbox(&self, id: &str) -> Result<bool> {
        Ok(self.list().await?.sandboxes.iter().any(|s| s.id == id))
    }

    /// Blocks until the sandbox has ended: stopped, or its reaper has died.
    ///
    /// # Errors
    /// NotFound when the keeper does not know it (any more).
    pub(crate) async fn wait_sandbox(&self, id: &str) -> Result<()> {
        let mut request = sandbox::WaitSandboxRequest::new();
        request.sandbox_id = id.into();
        let ended = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.sandbox.wait_sandbox(with_duration(ENDLESS), &request).await }
        });
        ended.await.map(drop)
    }

    /// [`Keeper::remove_sandbox`] for one whose making may still be under way at a slow keeper, which may take `patience` for it.
    pub(crate) async fn remove_made_sandbox(&self, id: &str, patience: Option<Duration>) -> Result<()> {
        let deadline = tokio::time::Instant::now() + patience.unwrap_or_default() + MAKING;
        loop {
            match self.remove_sandbox(id).await {
                Err(error)
                    if error.code() == Code::FailedPrecondition && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                other => return other,
            }
        }
    }

    /// Unknown is success.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut stop = sandbox::StopSandboxRequest::new();
        stop.sandbox_id = id.into();
        let stopped = self.call(Retry::Safe, |c| {
            let stop = stop.clone();
            async move { c.sandbox.stop_sandbox(quick(), &stop).await }
        });
        unless_unknown(stopped.await)?;
        let mut shutdown = sandbox::ShutdownSandboxRequest::new();
        shutdown.sandbox_id = id.into();
        let gone = self.call(Retry::Safe, |c| {
            let shutdown = shutdown.clone();
            async move { c.sandbox.shutdown_sandbox(quick(), &shutdown).await }
        });
        unless_unknown(gone.await)
    }

    /// Creates a container up to its parked init process.
    pub(crate) async fn create_task(&self, task: &NewTask<'_>) -> Result<()> {
        let mut request = api::CreateTaskRequest::new();
        request.id = task.id.into();
        request.bundle = task.bundle.display().to_string();
        request.rootfs = vec![overlay_mount(task.rootfs)];
        request.terminal = task.terminal;
        request.stdout = task.log.clone();
        request.checkpoint = task.checkpoint.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        request.options = options::encode(task.runtime, task.criu)?.into();
        let mut context = with_duration(task.patience.unwrap_or(QUICK));
        if crate::telemetry::is_sampled() {
            context.add(CLOCKED.into(), "1".into());
        }
        let create = || async {
            let created = self.call(Retry::Never, |c| {
                let (context, request) = (context.clone(), request.clone());
                async move { c.task.create(context, &request).await }
            });
            created.await.map(drop)
        };
        let patience = task.patience.unwrap_or(QUICK);
        self.make(patience, create, || async { Ok(self.task(task.id).await?.is_some()) }).await
    }

    /// A creation whose answer may get lost: the keeper may have died after making it, then its successor knows it, or
    /// has undone it; or the keeper was only slow, and is still at it.
    async fn make<C, K>(
        &self,
        patience: Duration,
        create: impl Fn() -> C,
        knows: impl Fn() -> K,
    ) -> Result<()>
    where
        C: Future<Output = Result<()>>,
        K: Future<Output = Result<bool>>,
    {
        let deadline = tokio::time::Instant::now() + patience + MAKING;
        let mut lost = 0;
        loop {
            let error = match create().await {
                Err(error) if error.code() == Code::Unavailable => {
                    lost += 1;
                    error
                }
                Err(error) if error.code() == Code::AlreadyExists && lost > 0 => {
                    tokio::time::sleep(LOOK).await;
                    error
                }
                done => return done,
            };
            if knows().await? {
                return Ok(());
            }
            if lost == CREATIONS || tokio::time::Instant::now() > deadline {
                return Err(error);
            }
        }
    }

    /// The steps of a task's creation and start that nobody has asked for yet; none unless the creation was clocked.
    pub(crate) async fn laps(&self, id: &str) -> Result<Vec<ext::Lap>> {
        let mut request = ext::LapsRequest::new();
        request.id = id.into();
        let laps = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.ext.laps(quick(), &request).await }
        });
        Ok(laps.await?.laps)
    }

    /// What the keeper knows of one task.
    pub(crate) async fn task(&self, id: &str) -> Result<Option<ext::TaskInfo>> {
        Ok(self.list().await?.tasks.into_iter().find(|t| t.id == id))
    }

    /// Lets a container's parked init go, or restores what was frozen, which takes as long as its memory is large.
    pub(crate) async fn start_init(&self, id: &str, frozen: bool) -> Result<u32> {
        self.start_within(id, "", if frozen { LONG } else { QUICK }).await
    }

    /// Lets the parked process of an exec session go; returns after execve.
    pub(crate) async fn start(&self, id: &str, exec_id: &str) -> Result<u32> {
        self.start_within(id, exec_id, QUICK).await
    }

    async fn start_within(&self, id: &str, exec_id: &str, patience: Duration) -> Result<u32> {
        let mut request = api::StartRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        let mut tries = 0;
        loop {
            tries += 1;
            let started = self.call(Retry::Never, |c| {
                let request = request.clone();
                async move { c.task.start(with_duration(patience), &request).await }
            });
            let error = match started.await {
                Ok(answer) => return Ok(answer.pid),
                Err(error) => error,
            };
            // The byte may have been sent before the keeper died; its successor knows, or finds out while it is asked.
            let lost = error.code() == Code::Unavailable;
            if !(lost || tries > 1 && error.code() == Code::FailedPrecondition) {
                return Err(error);
            }
            match self.started(id, exec_id).await? {
                Some(pid) => return Ok(pid),
                None if lost && tries < CREATIONS => {}
                None => return Err(error),
            }
        }
    }

    /// The pid, if the process was started.
    async fn started(&self, id: &str, exec_id: &str) -> Result<Option<u32>> {
        let mut request = api::StateRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        let state = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.state(quick(), &request).await }
        });
        let state = state.await?;
        let is_created = state.status.enum_value() == Ok(api::Status::CREATED);
        Ok((!is_created && state.pid != 0).then_some(state.pid))
    }

    /// Blocks until the task has ended and its log is complete; survives the keeper's restart.
    pub(crate) async fn wait_task(&self, id: &str) -> Result<ext::TaskInfo> {
        let mut request = ext::WaitTaskRequest::new();
        request.id = id.into();
        self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.ext.wait_task(with_duration(ENDLESS), &request).await }
        })
        .await
    }

    /// One signal to one process. Sent again when the keeper died in the middle: a stop that is not heard of costs the whole
    /// grace period, a second signal at such a moment nearly nothing.
    pub(crate) async fn kill(&self, id: &str, signal: u32) -> Result<()> {
        let mut request = api::KillRequest::new();
        request.id = id.into();
        request.signal = signal;
        let killed = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.kill(quick(), &request).await }
        });
        unless_unknown(killed.await)
    }

    /// [`Keeper::kill_all`] for a task whose creation may still be under way at a slow keeper.
    pub(crate) async fn kill_made(&self, id: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + MAKING;
        loop {
            match self.kill_all(id, "").await {
                Err(error)
                    if error.code() == Code::FailedPrecondition && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOOK).await;
                }
                other => return other,
            }
        }
    }

    /// SIGKILL to the whole control group of a task or an exec session.
    pub(crate) async fn kill_all(&self, id: &str, exec_id: &str) -> Result<()> {
        let mut request = ext::KillAllRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        let killed = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.ext.kill_all(quick(), &request).await }
        });
        unless_unknown(killed.await)
    }

    /// Forgets an ended task (or exec) and removes its control group. Unknown is success.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<()> {
        let mut request = api::DeleteRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        let deleted = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.delete(quick(), &request).await }
        });
        unless_unknown(deleted.await)
    }

    /// Prepares a process in a running container; its streams are pipes that the caller holds open (keeper.proto).
    pub(crate) async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: Vec<u8>,
        streams: &ExecStreams,
    ) -> Result<()> {
        let mut spec = Any::new();
        spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".into();
        spec.value = process;
        let mut request = api::ExecProcessRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        request.spec = Some(spec).into();
        request.stdin.clone_from(&streams.stdin);
        request.stdout.clone_from(&streams.stdout);
        request.stderr.clone_from(&streams.stderr);
        request.terminal = streams.terminal;
        let mut tries = 0;
        loop {
            tries += 1;
            let made = self.call(Retry::Never, |c| {
                let request = request.clone();
                async move { c.task.exec(quick(), &request).await }
            });
            match made.await {
                // A keeper that died meanwhile may have known the session already: nothing of it has run.
                Err(error) if error.code() == Code::AlreadyExists && tries > 1 => return Ok(()),
                Err(error) if error.code() == Code::Unavailable && tries < CREATIONS => {}
                other => return other.map(drop),
            }
        }
    }

    /// Ends the standard input of a container, or of an exec session, once our end of its pipe is closed too.
    pub(crate) async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<()> {
        let mut request = api::CloseIORequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        request.stdin = true;
        let closed = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.close_io(quick(), &request).await }
        });
        closed.await.map(drop)
    }

    /// Size of a terminal in characters. `exec_id` empty: the container's own.
    pub(crate) async fn resize(&self, id: &str, exec_id: &str, width: u16, height: u16) -> Result<()> {
        let mut request = api::ResizePtyRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        (request.width, request.height) = (width.into(), height.into());
        let resized = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.resize_pty(quick(), &request).await }
        });
        resized.await.map(drop)
    }

    /// Connects our pipes to a running container until that is over, whichever keeper it ends with.
    ///
    /// # Errors
    /// Unavailable when the keeper died in the middle: nobody can tell what the client missed.
    pub(crate) async fn attach(&self, id: &str, streams: &ExecStreams) -> Result<ext::AttachEnd> {
        let mut request = ext::AttachRequest::new();
        request.id = id.into();
        request.stdin.clone_from(&streams.stdin);
        request.stdout.clone_from(&streams.stdout);
        request.stderr.clone_from(&streams.stderr);
        loop {
            let attached = self.call(Retry::Never, |c| {
                let request = request.clone();
                async move { c.ext.attach(with_duration(ENDLESS), &request).await }
            });
            let end = attached.await?.end;
            match end.enum_value().map_err(|n| Error::internal(format!("keeper answered attach with {n}")))? {
                ext::AttachEnd::HANDED_OVER => request.again = true,
                end => return Ok(end),
            }
        }
    }

    /// Leaves an exec session to itself: its client is gone. Unknown is success.
    pub(crate) async fn abandon(&self, id: &str, exec_id: &str) -> Result<()> {
        let mut request = ext::AbandonRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        let abandoned = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.ext.abandon(quick(), &request).await }
        });
        unless_unknown(abandoned.await)
    }

    /// Exit code of an exec session.
    pub(crate) async fn wait_exec(&self, id: &str, exec_id: &str) -> Result<u32> {
        let mut request = api::WaitRequest::new();
        request.id = id.into();
        request.exec_id = exec_id.into();
        let ended = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.wait(with_duration(ENDLESS), &request).await }
        });
        Ok(ended.await?.exit_status)
    }

    /// Pauses or resumes a container; one that is so already, or resumed one that has ended, is success.
    pub(crate) async fn pause(&self, id: &str, pause: bool) -> Result<()> {
        // A dump may be under way: that is waited for.
        let done = self.call(Retry::Safe, |c| async move {
            if pause {
                let request = api::PauseRequest { id: id.into(), ..Default::default() };
                c.task.pause(with_duration(LONG), &request).await
            } else {
                let request = api::ResumeRequest { id: id.into(), ..Default::default() };
                c.task.resume(with_duration(LONG), &request).await
            }
        });
        let error = match done.await {
            Err(error) if error.code() == Code::NotFound && !pause => return Ok(()),
            Err(error) if error.code() == Code::FailedPrecondition => error,
            other => return other.map(drop),
        };
        let request = api::StateRequest { id: id.into(), ..Default::default() };
        let state = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.state(quick(), &request).await }
        });
        let paused = state.await?.status.enum_value() == Ok(api::Status::PAUSED);
        if paused == pause { Ok(()) } else { Err(error) }
    }

    /// Writes CRIU's images of a running container, which stays as it is, into `images`, and CRIU's log into `work`.
    ///
    /// # Errors
    /// FailedPrecondition for what cannot be frozen, in words; Internal for what CRIU refuses, with the end of its log.
    pub(crate) async fn checkpoint(&self, id: &str, images: &Path, work: &Path) -> Result<()> {
        let options = CheckpointOptions { work_path: work.display().to_string(), ..Default::default() };
        let mut any = Any::new();
        any.type_url = "containerd.runc.v1.CheckpointOptions".into();
        any.value = protobuf::Message::write_to_bytes(&options)
            .map_err(|e| Error::internal(format!("encode options: {e}")))?;
        let mut request = api::CheckpointTaskRequest::new();
        request.id = id.into();
        request.path = images.display().to_string();
        request.options = Some(any).into();
        let taken = self.call(Retry::Never, |c| {
            let request = request.clone();
            async move { c.task.checkpoint(with_duration(LONG), &request).await }
        });
        taken.await.map(drop)
    }

    /// Changes limits of a live container.
    pub(crate) async fn update(&self, id: &str, resources: Vec<u8>) -> Result<()> {
        let mut any = Any::new();
        any.type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into();
        any.value = resources;
        let mut request = api::UpdateTaskRequest::new();
        request.id = id.into();
        request.resources = Some(any).into();
        let updated = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.task.update(quick(), &request).await }
        });
        updated.await.map(drop)
    }

    /// What a container's shim measures; none if it does not say it in words that are known.
    pub(crate) async fn stats(&self, id: &str, patience: Duration) -> Result<Option<Stats>> {
        let mut request = api::StatsRequest::new();
        request.id = id.into();
        let stats = self.call(Retry::Never, |c| {
            let request = request.clone();
            async move { c.task.stats(with_duration(patience), &request).await }
        });
        Ok(stats.await?.stats.as_ref().and_then(measured::decode))
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<()> {
        let mut request = ext::ReopenLogRequest::new();
        request.id = id.into();
        let reopened = self.call(Retry::Safe, |c| {
            let request = request.clone();
            async move { c.ext.reopen_log(quick(), &request).await }
        });
        reopened.await.map(drop)
    }

    /// Asks an idle keeper to end, with its guardian; one that still has something to keep stays.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let Some(clients) = self.take_clients() else { return Ok(()) };
        let mut request = api::ShutdownRequest::new();
        request.id = "node".into();
        match clients.task.shutdown(quick(), &request).await {
            // It may be gone before its answer is written.
            Err(ttrpc::Error::RpcStatus(status)) => Err(ttrpc::Error::RpcStatus(status).into()),
            _ => Ok(()),
        }
    }
}

/// Names of an exec session's or an attached client's streams (keeper.proto); "" is not wanted.
#[derive(Debug, Default)]
pub(crate) struct ExecStreams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// What [`Keeper::create_task`] needs.
#[derive(Debug)]
pub(crate) struct NewTask<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: &'a Overlay,
    pub(crate) terminal: bool,
    /// `cri-log:` URI.
    pub(crate) log: String,
    /// Directory of images that its start restores.
    pub(crate) checkpoint: Option<PathBuf>,
    /// CRIU's program, where it is not the one in PATH.
    pub(crate) criu: Option<&'a Path>,
    /// Who makes it, if not Slipway itself or its pod's shim.
    pub(crate) runtime: Option<&'a Runtime>,
    /// How long that may take, where it is not Slipway itself.
    pub(crate) patience: Option<Duration>,
}

fn quick() -> Context {
    with_duration(QUICK)
}

fn unless_unknown<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.code() != Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn overlay_mount(overlay: &Overlay) -> api::Mount {
    let lower: Vec<_> = overlay.lower.iter().map(|p| escaped(p)).collect();
    let mut mount = api::Mount::new();
    mount.type_ = "overlay".into();
    mount.source = "overlay".into();
    mount.options = vec![format!("lowerdir={}", lower.join(":"))];
    let dirs = [("upperdir", &overlay.upper), ("workdir", &overlay.work)];
    mount
        .options
        .extend(dirs.iter().filter_map(|(key, dir)| Some(format!("{key}={}", dir.as_ref()?.display()))));
    if overlay.volatile {
        mount.options.push("volatile".into());
    }
    if let Some(label) = &overlay.label {
        mount.options.push(format!("context=\"{label}\""));
    }
    if let Some(user) = &overlay.idmap {
        let list = |maps: &[IdMap]| {
            let line = |m: &IdMap| format!("{}:{}:{}", m.container, m.host, m.size);
            maps.iter().map(line).collect::<Vec<_>>().join(",")
        };
        // As containerd's snapshotters say it.
        mount.options.push(format!("uidmap={}", list(&user.uids)));
        mount.options.push(format!("gidmap={}", list(&user.gids)));
    }
    mount
}

/// A layer's path between `:` of its like (Documentation/filesystems/overlayfs.rst).
fn escaped(layer: &Path) -> String {
    layer.display().to_string().replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_layers_may_hold_what_separates_them() {
        let overlay = Overlay {
            lower: vec!["/var/a:b".into(), r"/var/c\d".into()],
            upper: Some("/up:per".into()),
            work: Some("/work".into()),
            volatile: true,
            idmap: Some(crate::spec::tests::maps()),
            label: Some("u:r:t:s0:c1,c2".into()),
        };
        let expected = [
            r"lowerdir=/var/a\:b:/var/c\\d",
            "upperdir=/up:per",
            "workdir=/work",
            "volatile",
            "context=\"u:r:t:s0:c1,c2\"",
            "uidmap=0:65536:65536",
            "gidmap=0:65536:65536",
        ];
        assert_eq!(overlay_mount(&overlay).options, expected);
    }
}
