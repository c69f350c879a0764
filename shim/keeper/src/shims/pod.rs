//! A pod's shim: from its start to its end, and again after a keeper's.

use super::answer::Endpoint;
use super::aside::wait;
use super::container::Container;
use super::deadline::Deadline;
use super::link::{Fault, Link};
use super::{QUICK, SIGNAL, Shim, bundle, log, program};
use crate::error::{Error, Result};
use crate::foreign::{self, end_calls};
use crate::keeper::{Keeper, blocking};
use crate::layout::Layout;
use crate::process::born;
use crate::records::Ended;
use containerd_shim_protos::api::{ConnectRequest, ConnectResponse, Empty, ShutdownRequest};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};
use slipway_runtime::sandbox::NamespaceKind;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Version of `shim.json`.
const VERSION: u32 = 1;
const FILE: &str = "shim.json";
/// How long a shim may take to end by itself (SHIM-DEL-06), and how often that is looked at.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long a shim may take to take back what it could not make; then it is ended. Below what clients add to the time of a
/// making.
pub(super) const TAKING_BACK: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);

/// What a sandbox container is made of.
#[derive(Debug)]
pub(crate) struct Pause<'a> {
    pub(crate) hostname: &'a str,
    /// Path of the pod's network namespace; empty: the host's.
    pub(crate) netns: &'a str,
    /// Where the client has the pod's own files.
    pub(crate) files: &'a Path,
    pub(crate) namespaces: &'a [(NamespaceKind, OwnedFd)],
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

/// A pod that a shim runs, and what is known of that shim: where it is, how it is asked, whether it lives.
#[derive(Debug)]
pub(crate) struct Pod {
    id: String,
    dir: PathBuf,
    events: PathBuf,
    namespace: String,
    shim: Shim,
    state: tokio::sync::Mutex<State>,
    log: Mutex<Option<AbortHandle>>,
    /// Of what nobody knows how it ended, by the container's id.
    lost: Mutex<HashMap<String, Lost>>,
    /// Of the keeper, for calls of programs.
    calls: Arc<Semaphore>,
    /// It is to end, or has: nobody is to wonder.
    closing: AtomicBool,
}

/// Why nobody knows how a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The shim was gone.
    Gone,
    /// It does not know the container, or not any more.
    Unknown,
}

/// What is known of its server.
#[derive(Debug, Default)]
struct State {
    endpoint: Option<Endpoint>,
    /// 0: it does not say, or what it says cannot be.
    pid: i32,
    born: u64,
    link: Option<Link>,
}

/// What the next keeper needs.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    shim: Shim,
    endpoint: Option<Endpoint>,
    /// Of its server; 0: it does not say.
    pid: i32,
    /// When that was born, by which it is told from others of its number; 0: written by a keeper that did not note it.
    #[serde(default)]
    born: u64,
}

impl Pod {
    /// Starts the shim with its sandbox container, which runs when this returns. On error all is taken back; what cannot be is
    /// told in the log, and taken away by the next keeper. [`wait`]s.
    pub(crate) fn make(keeper: &Keeper, id: &str, shim: Shim, pause: &Pause<'_>) -> Result<Arc<Self>> {
        let pod = Self::assemble(keeper, id, shim, State::default());
        let made = wait(keeper.shims.open(&keeper.layout)).and_then(|()| pod.try_make(keeper, pause));
        match made {
            Ok(()) => Ok(pod),
            Err(error) => {
                pod.give_up();
                keeper.guardian.forget(&pod.log_key());
                Err(error)
            }
        }
    }

    fn try_make(self: &Arc<Self>, keeper: &Keeper, pause: &Pause<'_>) -> Result<()> {
        let fail = |e: io::Error| Error::io("make", self.dir.display(), &e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(fail)?;
        self.save(&State::default())?;
        let log = self.sandbox_container().create_sandbox(pause)?;
        let kept = keeper.guardian.keep(&[(&self.log_key(), log.as_fd())]);
        kept.map_err(|e| Error::io("keep the log of", self.id.as_str(), &e))?;
        self.read_log(log);
        Ok(())
    }

    /// One of a former keeper; none if there is nothing that could be used.
    pub(crate) fn find(keeper: &Keeper, id: &str, log: Option<OwnedFd>) -> Option<Arc<Self>> {
        let path = keeper.layout.shims().join(id).join(FILE);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?));
        let record = read.inspect_err(|e| tracing::error!("{}: {e}", path.display())).ok()?;
        if record.version != VERSION {
            tracing::error!("{}: version {} is not known", path.display(), record.version);
            return None;
        }
        let mut state = State { endpoint: record.endpoint, pid: record.pid, born: record.born, link: None };
        if state.born == 0 {
            let known = foreign::names(state.pid, &keeper.layout.shims().join(id));
            state.born = born(state.pid).filter(|_| known).unwrap_or_default();
        }
        let pod = Self::assemble(keeper, id, record.shim, state);
        if let Some(log) = log {
            pod.read_log(log);
        }
        Some(pod)
    }

    fn assemble(keeper: &Keeper, id: &str, shim: Shim, state: State) -> Arc<Self> {
        Arc::new(Self {
            id: id.into(),
            dir: keeper.layout.shims().join(id),
            events: keeper.layout.shim_events(),
            namespace: keeper.namespace.clone(),
            shim,
            state: tokio::sync::Mutex::new(state),
            log: Mutex::new(None),
            lost: Mutex::default(),
            calls: keeper.aside.calls(),
            closing: AtomicBool::new(false),
        })
    }

    /// One whose server is known, without a keeper.
    #[cfg(test)]
    pub(super) fn served_at(dir: &Path, endpoint: Endpoint) -> Arc<Self> {
        Arc::new(Self {
            id: "p".into(),
            dir: dir.into(),
            events: dir.join("events"),
            namespace: "test".into(),
            shim: Shim::parse("Path = \"/no/such/shim\"").unwrap(),
            state: tokio::sync::Mutex::new(State { endpoint: Some(endpoint), ..State::default() }),
            log: Mutex::new(None),
            lost: Mutex::default(),
            calls: super::Aside::default().calls(),
            closing: AtomicBool::new(false),
        })
    }

    fn read_log(&self, fifo: OwnedFd) {
        match log::copy(fifo, &self.id) {
            Ok(task) => *self.log.lock().unwrap_or_else(PoisonError::into_inner) = Some(task),
            Err(error) => tracing::warn!(pod = self.id, "the shim's log: {error}"),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn shim(&self) -> &Shim {
        &self.shim
    }

    /// Where everything of it is, and the name by which its processes are known.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    pub(super) fn events(&self) -> &Path {
        &self.events
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Of the log's fifo with the guardian.
    pub(crate) fn log_key(&self) -> String {
        format!("s/{}/shim-log", self.id)
    }

    fn sandbox_container(self: &Arc<Self>) -> Arc<Container> {
        Container::new(Arc::clone(self), &self.id)
    }

    /// Returns when the sandbox container, and so the pod, has ended; none: nobody can say how.
    pub(crate) async fn ended(self: &Arc<Self>) -> Option<Ended> {
        self.sandbox_container().wait("").await
    }

    /// It was ended by request.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// The shim's server for a container whose bundle is there: started, or found (SHIM-GRP-03).
    pub(super) async fn reach(
        self: &Arc<Self>,
        id: &str,
        options: Option<&Any>,
        deadline: Deadline,
    ) -> Result<()> {
        if self.state.lock().await.endpoint.as_ref().is_some_and(|endpoint| endpoint.version >= 3) {
            return Ok(());
        }
        let (pod, container, options) = (Arc::clone(self), id.to_owned(), options.cloned());
        let start = move || program::start(&pod, &container, options.as_ref(), deadline);
        let endpoint = self.outside(start).await?;
        let mut state = self.state.lock().await;
        match &state.endpoint {
            Some(known) if known.address == endpoint.address => return Ok(()),
            Some(known) => {
                let why = format!(
                    "it answers {} for a container of a pod that it serves at {}: pods of several containers need one shim",
                    endpoint.address, known.address
                );
                drop(state);
                self.end_stray(id, &endpoint).await;
                return Err(program::failed(self, "start", &why));
            }
            None => state.endpoint = Some(endpoint),
        }
        // Written down before it is used: whoever undoes this must find it.
        self.save(&state)?;
        drop(state);
        let limit = QUICK.min(self.shim.patience());
        let request = ConnectRequest { id: id.into(), ..ConnectRequest::default() };
        match self.call_by::<ConnectResponse>("Connect", &request, limit, deadline).await {
            Ok(answer) => {
                let mut state = self.state.lock().await;
                (state.pid, state.born) = self.believed(answer.shim_pid.cast_signed()).unwrap_or_default();
                self.save(&state)
            }
            // One that knows no container yet may say so.
            Err(Fault::Refused(..)) => Ok(()),
            Err(fault) => {
                // Nothing was made by it yet, and it would hold up whatever is asked of it.
                self.end_shim().await?;
                Err(fault.within(&format!("{} Connect", self.shim.path.display())))
            }
        }
    }

    /// A server that a shim started for one container of a pod that has one: it goes with its socket.
    async fn end_stray(self: &Arc<Self>, id: &str, endpoint: &Endpoint) {
        let request = ConnectRequest { id: id.into(), ..ConnectRequest::default() };
        let said = match Link::connect(endpoint, &self.namespace).await {
            Ok(link) => link.call::<ConnectResponse>("Connect", &request, Some(SIGNAL)).await,
            Err(fault) => Err(fault),
        };
        let told = said.ok().and_then(|answer| self.believed(answer.shim_pid.cast_signed()));
        let (pod, container) = (Arc::clone(self), id.to_owned());
        if let Err(error) = self.outside(move || program::delete(&pod, &container)).await {
            tracing::debug!(pod = self.id, "{error}");
        }
        let (dir, container, socket) = (self.dir.clone(), id.to_owned(), endpoint.clone());
        let ended = blocking(move || {
            if let Some((pid, born)) = told {
                foreign::end(pid, born);
            }
            foreign::end_calls_for(&dir, &container);
            take_socket(socket.path());
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::warn!(pod = self.id, "{error}");
        }
    }

    /// A pid that a shim tells, with its birth, if it can be of what was started here: one in a namespace of its own tells
    /// somebody else's.
    fn believed(&self, pid: i32) -> Option<(i32, u64)> {
        let is_its = pid > 1 && (foreign::names(pid, &self.dir) || foreign::is_ours(pid));
        Some((pid, born(pid).filter(|_| is_its)?))
    }

    /// A call of the shim's program, off the event loop: as many at once as the keeper allows.
    pub(super) async fn outside<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.calls).acquire_owned().await;
        let permit = permit.map_err(|_| Error::internal("the keeper is ending"))?;
        blocking(move || {
            let _permit = permit;
            call()
        })
        .await
    }

    /// Nobody knows how this container ended.
    pub(super) fn lose(&self, id: &str, why: Lost) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(id.into(), why);
    }

    /// Why nobody knows it; none: a former keeper knew.
    pub(crate) fn lost(&self, id: &str) -> Option<Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    fn save(&self, state: &State) -> Result<()> {
        let path = self.dir.join(FILE);
        let record = Record {
            version: VERSION,
            shim: self.shim.clone(),
            endpoint: state.endpoint.clone(),
            pid: state.pid,
            born: state.born,
        };
        let temporary = self.dir.join(format!(".{FILE}"));
        let text = serde_json::to_vec(&record).map_err(|e| Error::io("write", path.display(), &e.into()))?;
        let saved = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        saved.map_err(|e| Error::io("write", path.display(), &e))
    }

    /// One call of the Task service.
    pub(super) async fn call<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<A, Fault> {
        let answer = self.link().await?.call(method, request, limit).await;
        if matches!(answer, Err(Fault::Lost(_))) {
            self.state.lock().await.link = None;
        }
        answer
    }

    /// One call that is part of a making.
    pub(super) async fn call_by<A: Message>(
        &self,
        method: &str,
        request: &impl Message,
        most: Duration,
        deadline: Deadline,
    ) -> Result<A, Fault> {
        let answer = self.call(method, request, Some(deadline.left(most))).await;
        answer.map_err(|fault| deadline.explain(fault, most))
    }

    async fn link(&self) -> Result<Link, Fault> {
        let mut state = self.state.lock().await;
        if let Some(link) = &state.link {
            return Ok(link.clone());
        }
        let endpoint = state.endpoint.as_ref().ok_or_else(|| Fault::Lost("it was not started".into()))?;
        let link = Link::connect(endpoint, &self.namespace).await?;
        state.link = Some(link.clone());
        Ok(link)
    }

    /// It can be connected to, as far as can be told: one that takes nobody in at the moment is there.
    async fn is_alive(&self) -> bool {
        !matches!(self.link().await, Err(Fault::Lost(_)))
    }

    /// SIGKILL to its server, and to calls of its program under way.
    pub(super) async fn end_shim(&self) -> Result<()> {
        let dir = self.dir.clone();
        let (pid, born) = {
            let mut state = self.state.lock().await;
            state.link = None;
            (state.pid, state.born)
        };
        let end = move || {
            // Whatever it calls itself by now.
            foreign::end(pid, born);
            end_calls(&dir);
            reap(pid);
            Ok(())
        };
        blocking(end).await
    }

    /// Ends the sandbox container and the shim. The pod's containers have been deleted. Repeatable.
    pub(crate) async fn close(self: &Arc<Self>) -> Result<()> {
        self.closing.store(true, Ordering::Relaxed);
        self.sandbox_container().remove().await;
        self.farewell().await
    }

    /// Ends the shim, which has no containers any more.
    async fn farewell(&self) -> Result<()> {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        if let Err(fault @ Fault::Refused(..)) = self.call::<Empty>("Shutdown", &request, Some(SIGNAL)).await
        {
            tracing::warn!(pod = self.id, "Shutdown: {fault}");
        }
        let end = Instant::now() + FAREWELL;
        while self.is_running().await && Instant::now() < end {
            tokio::time::sleep(LOOK).await;
        }
        self.end_shim().await?;
        if let Some(log) = self.log.lock().unwrap_or_else(PoisonError::into_inner).take() {
            log.abort();
        }
        if let Some(endpoint) = self.state.lock().await.endpoint.clone() {
            take_socket(endpoint.path());
        }
        Ok(())
    }

    /// Its server is there. One that does not tell its pid is seen by its socket.
    pub(super) async fn is_running(&self) -> bool {
        let (pid, its_birth) = {
            let state = self.state.lock().await;
            (state.pid, state.born)
        };
        reap(pid);
        match its_birth {
            0 => {
                self.state.lock().await.link = None;
                self.is_alive().await
            }
            // One that waits to be reaped by somebody else has no command line any more.
            its_birth => {
                born(pid) == Some(its_birth)
                    && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
            }
        }
    }

    /// [`Self::close`], and its directory with all that is in it; for one that is no more. [`wait`]s.
    ///
    /// # Errors
    /// What is left, and why; it is to be tried again.
    pub(crate) fn clear(self: &Arc<Self>) -> Result<()> {
        let closed = wait(self.close());
        closed.and(self.remove_dir())
    }

    /// The same for one whose making failed: its shim has not long to take back what it began.
    pub(crate) fn give_up(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Relaxed);
        let given_up = wait(async {
            self.sandbox_container().give_up().await;
            self.farewell().await
        });
        if let Err(error) = given_up.and(self.remove_dir()) {
            tracing::warn!(
                pod = self.id,
                "a pod that could not be made: {error}; the next keeper tries again"
            );
        }
    }

    fn remove_dir(&self) -> Result<()> {
        remove(&self.dir).map_err(|e| Error::io("remove", self.dir.display(), &e))
    }
}

/// The socket of one that was killed (SHIM-SOCK-05). Whoever listens there, however busy, keeps it.
fn take_socket(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
        && knock(path) == Err(Errno::CONNREFUSED)
    {
        let _ = fs::remove_file(path);
    }
}

/// Connects without waiting.
fn knock(path: &Path) -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

/// A directory of a pod, with bundles that nobody needs any more. Missing is success.
fn remove(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            bundle::remove(&entry.path())?;
        }
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// For a shim that became our own child, as happens while an OCI runtime is called; else nothing.
fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// What a former keeper left, with no record that could be used. Blocks.
pub(crate) fn clear_left_over(dir: &Path) -> Result<()> {
    end_calls(dir);
    remove(dir).map_err(|e| Error::io("remove", dir.display(), &e))
}

/// Undoes a pod that a former keeper was making. Repeatable.
pub(crate) async fn undo(keeper: &Keeper, id: &str) -> Result<()> {
    let (dir, found) = (keeper.layout.shims().join(id), Pod::find(keeper, id, None));
    let clear = move || match found {
        Some(pod) => pod.clear(),
        None => clear_left_over(&dir),
    };
    keeper.aside.run(clear).await
}

/// Ids of which there is a directory.
pub(crate) fn left_over(layout: &Layout) -> Vec<String> {
    let entries = fs::read_dir(layout.shims()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
