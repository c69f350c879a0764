//! Pods: their namespaces as descriptors, and where processes are shared, the reaper.
//!
//! ```text
//!  Creating ──▶ Created ──start──▶ Ready ──stop, or the reaper's death──▶ Stopped ──shutdown──▶ gone
//! ```
//!
//! Knows no network beyond the path of the pinned namespace, which is the client's. For containerd, which leaves them to
//! a sandbox of this kind, it also keeps the pod's files: hostname, hosts, resolv.conf, /dev/shm.

use crate::error::{Error, Result};
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::{Layout, is_valid_id};
use crate::process::{Awaited, Process, born, now, reopen, wait_end};
use crate::records::{self, SandboxPhase, SandboxRecord, VERSION};
use crate::rollback::Rollback;
use crate::shims::{self, Shim};
use cri_proto::keeper::SandboxOptions;
use cri_proto::v1::{IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace};
use prost::Message as _;
use rustix::fd::{AsFd, OwnedFd};
use slipway_runtime::idmap::{IdMap, IdMappings};
use slipway_runtime::sandbox::files::{self, Dns, PodFiles};
use slipway_runtime::sandbox::{NamespaceKind, Sandbox as Namespaces, SandboxRequest};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// SIGKILL, by its number on every architecture.
const SIGKILL: i32 = 9;
/// Status of a pod whose end nobody saw (CRI-EXIT-02).
const LOST: u32 = 255;
/// Type of the options for a pod that another shim is to run (keeper.proto).
const OF_SHIM: &str = "slipway.keeper.v1.SandboxOptions";
/// Name of the reaper's pidfd among the kept descriptors.
const REAPER: &str = "reaper";

/// A pod.
#[derive(Debug)]
pub(crate) struct Sandbox {
    record: Mutex<SandboxRecord>,
    /// Held, on threads that may block, by whoever changes the phase and writes it down.
    changing: Mutex<()>,
    namespaces: Mutex<Vec<(NamespaceKind, OwnedFd)>>,
    reaper: Option<Process>,
    /// Who runs it, if that is not us.
    shim: Option<Arc<shims::Pod>>,
    stopped: watch::Sender<Option<(i64, u32)>>,
}

impl Sandbox {
    /// CreateSandbox: makes the namespaces.
    pub(crate) async fn create(
        keeper: &Arc<Keeper>,
        id: String,
        bundle: PathBuf,
        netns: String,
        config: Option<(String, Vec<u8>)>,
    ) -> Result<Arc<Self>> {
        let keeper = Arc::clone(keeper);
        detached(async move {
            if !is_valid_id(&id) {
                return Err(Error::invalid(format!("bad sandbox id {id:?}")));
            }
            let (config, shim) = decode(config)?;
            let request = request(netns, config.as_ref())?;
            if let Some(shim) = shim.as_ref().filter(|_| request.user.is_some()) {
                let path = shim.path.display();
                return Err(Error::unimplemented(format!(
                    "pods with user namespaces cannot be run by {path}"
                )));
            }
            keeper.must_serve()?;
            let reservation = keeper.sandboxes.reserve(&id)?;
            let maker = Arc::clone(&keeper);
            let is_of_shim = shim.is_some();
            let make = move || {
                let of_shim = shim.map(|shim| OfShim { shim, files: bundle });
                Self::make(&maker, id, &request, config, of_shim.as_ref())
            };
            let sandbox = keeper.aside.run_if(is_of_shim, make).await?;
            sandbox.watch_reaper(&keeper, None);
            sandbox.watch_shim(&keeper);
            reservation.fill(Arc::clone(&sandbox));
            Ok(sandbox)
        })
        .await
    }

    fn make(
        keeper: &Keeper,
        id: String,
        request: &SandboxRequest,
        config: Option<PodSandboxConfig>,
        of_shim: Option<&OfShim>,
    ) -> Result<Arc<Self>> {
        let owner = request.user.as_ref().map_or((0, 0), IdMappings::host_root);
        let files = config.as_ref().filter(|_| keeper.events.is_wanted());
        let files = files.map(|config| PodFiles { owner, ..pod_files(config) });
        let host_pids =
            config.as_ref().is_some_and(|config| namespace_modes(config).pid() == NamespaceMode::Node);
        let cgroup = config.and_then(|config| config.linux).map(|linux| linux.cgroup_parent);
        let mut record = SandboxRecord {
            version: VERSION,
            id,
            netns: request.netns.clone().unwrap_or_default(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            reaper: false,
            born: 0,
            cgroup: cgroup.unwrap_or_default(),
            host_pids,
            namespaces: Vec::new(),
            by_shim: of_shim.is_some(),
            created_at: now(),
            phase: SandboxPhase::Creating,
        };
        let prefix = prefix(&record.id);
        let dir = keeper.layout.sandboxes();
        let mut rollback = Rollback::default();
        let undo = record.clone();
        rollback.push("record", move || drop(records::remove(&dir, &undo)));
        save(keeper, &record)?;
        if let Some(files) = files {
            let dir = keeper.layout.sandbox_files(&record.id);
            let undo = dir.clone();
            rollback.push("pod files", move || drop(PodFiles::remove(&undo)));
            files.make_apart(&dir)?;
        }
        let Namespaces { namespaces, reaper } = Namespaces::create(request)?;
        let reaper = reaper.map(|(pid, pidfd)| Process::new(pid, pidfd));
        if let Some(reaper) = &reaper {
            (record.pid, record.reaper) = (reaper.pid, true);
            record.born = born(reaper.pid).unwrap_or_default();
            let undo = reaper.clone();
            rollback.push("reaper", move || {
                let _ = undo.signal(SIGKILL);
            });
            // Named before anything else can fail: whoever undoes this finds it, whether or not its descriptor was kept.
            save(keeper, &record)?;
        }
        let keys: Vec<_> =
            namespaces.iter().map(|(kind, fd)| (format!("{prefix}{}", name(*kind)), fd.as_fd())).collect();
        let mut items: Vec<_> = keys.iter().map(|(key, fd)| (key.as_str(), *fd)).collect();
        let reaper_key = format!("{prefix}{REAPER}");
        let pidfd = reaper.as_ref().and_then(Process::pidfd);
        items.extend(pidfd.map(|pidfd| (reaper_key.as_str(), pidfd.as_fd())));
        rollback.push("kept descriptors", || keeper.guardian.forget_all(&prefix));
        keeper.guardian.keep(&items).map_err(|e| Error::io("keep descriptors of sandbox", &record.id, &e))?;
        record.namespaces = namespaces.iter().map(|(kind, _)| name(*kind).to_owned()).collect();
        let shim = match of_shim {
            None => None,
            Some(OfShim { shim, files }) => {
                let netns = request.netns.as_ref().map(|path| path.to_string_lossy()).unwrap_or_default();
                let pause = shims::Pause {
                    hostname: request.hostname.as_deref().unwrap_or_default(),
                    netns: &netns,
                    files,
                    namespaces: &namespaces,
                    annotations: &shim.annotations,
                };
                let pod = shims::Pod::make(keeper, &record.id, shim.clone(), &pause)?;
                let undo = Arc::clone(&pod);
                rollback.push("shim", move || undo.give_up());
                Some(pod)
            }
        };
        record.phase = SandboxPhase::Created;
        save(keeper, &record)?;
        rollback.commit();
        Ok(Arc::new(Self::assemble(record, namespaces, reaper, shim)))
    }

    fn assemble(
        record: SandboxRecord,
        namespaces: Vec<(NamespaceKind, OwnedFd)>,
        reaper: Option<Process>,
        shim: Option<Arc<shims::Pod>>,
    ) -> Self {
        let stopped = match record.phase {
            SandboxPhase::Stopped { at, status } => Some((at, status)),
            _ => None,
        };
        Self {
            record: Mutex::new(record),
            changing: Mutex::new(()),
            namespaces: Mutex::new(namespaces),
            reaper,
            shim,
            stopped: watch::Sender::new(stopped),
        }
    }

    /// Puts a former keeper's sandbox together again. A half-made one is undone and gives nothing; the record of a shim's stays
    /// until that is undone, too. `inhabitant` is a
    /// process of one of its containers, if any lives.
    pub(crate) fn recover(
        keeper: &Arc<Keeper>,
        record: SandboxRecord,
        inhabitant: Option<&Process>,
        held: &mut HashMap<String, OwnedFd>,
    ) -> Option<Arc<Self>> {
        let prefix = prefix(&record.id);
        let mut take = |name: &str| held.remove(&format!("{prefix}{name}"));
        let mut namespaces: Vec<_> =
            KINDS.iter().filter_map(|kind| Some((*kind, take(name(*kind))?))).collect();
        let reaper = match take(REAPER) {
            Some(pidfd) => Some(Process::new(record.pid, pidfd)),
            None => find_reaper(&record),
        };
        // The guardian that kept the descriptors died too: who lives in the namespaces still has them.
        for process in reaper.as_ref().into_iter().chain(inhabitant) {
            let is_held = |kind: &str| namespaces.iter().any(|(held, _)| name(*held) == kind);
            let lost: Vec<_> = record.namespaces.iter().filter(|kind| !is_held(kind)).cloned().collect();
            namespaces_of(process, &lost, &mut namespaces);
        }
        let log = take("shim-log");
        let shim = record.by_shim.then(|| shims::Pod::find(keeper, &record.id, log)).flatten();
        if record.phase == SandboxPhase::Creating {
            if let Some(reaper) = reaper {
                let _ = reaper.signal(SIGKILL);
            }
            keeper.guardian.forget_all(&prefix);
            let _ = PodFiles::remove(&keeper.layout.sandbox_files(&record.id));
            if !record.by_shim {
                let _ = records::remove(&keeper.layout.sandboxes(), &record);
            }
            return None;
        }
        let adopted = reaper.as_ref().map(|reaper| keeper.deaths.expect(reaper.pid));
        // A pod whose first process or one of whose namespaces is gone is over, whatever else lives.
        let is_held = |kind: &String| namespaces.iter().any(|(held, _)| name(*held) == kind);
        let shim_lost = record.by_shim && shim.is_none();
        let died_unseen =
            shim_lost || record.reaper && reaper.is_none() || !record.namespaces.iter().all(is_held);
        let sandbox = Arc::new(Self::assemble(record, namespaces, reaper, shim));
        sandbox.watch_reaper(keeper, adopted);
        sandbox.watch_shim(keeper);
        if died_unseen {
            sandbox.set_stopped(keeper, now(), LOST);
        }
        Some(sandbox)
    }

    /// A reaper that dies ends the pod: its processes are gone with it.
    fn watch_reaper(self: &Arc<Self>, keeper: &Arc<Keeper>, adopted: Option<Awaited>) {
        let Some(reaper) = self.reaper.clone() else { return };
        let (sandbox, keeper) = (Arc::clone(self), Arc::clone(keeper));
        tokio::spawn(async move {
            let end = wait_end(&reaper, adopted).await;
            sandbox.end(&keeper, end.ended.at, end.ended.status).await;
            reaper.reap();
            if let Some(report) = end.report {
                keeper.guardian.recorded(report);
            }
        });
    }

    /// The same for its sandbox container, and the shim with that.
    fn watch_shim(self: &Arc<Self>, keeper: &Arc<Keeper>) {
        let Some(shim) = self.shim.clone() else { return };
        if matches!(self.record().phase, SandboxPhase::Stopped { .. }) {
            return;
        }
        let (sandbox, keeper) = (Arc::clone(self), Arc::clone(keeper));
        tokio::spawn(async move {
            // Of the former keeper's socket nothing is left.
            if let Err(error) = keeper.shims.open(&keeper.layout).await {
                tracing::warn!("{error}");
            }
            let ended = shim.ended().await;
            if ended.is_none() && !shim.is_closing() {
                let path = shim.shim().path.display();
                let why = match shim.lost(&sandbox.id()) {
                    Some(shims::Lost::Unknown) => "does not know it any more",
                    _ => "is gone",
                };
                tracing::error!(id = sandbox.id(), "the pod's shim, {path}, {why}: the pod is over");
            }
            let (at, status) = ended.map_or_else(|| (now(), LOST), |ended| (ended.at, ended.status));
            sandbox.end(&keeper, at, status).await;
        });
    }

    /// Who runs it, if that is not us.
    pub(crate) fn shim(&self) -> Option<&Arc<shims::Pod>> {
        self.shim.as_ref()
    }

    /// StartSandbox: the pid that stands for the pod in namespace paths, and when it was made.
    pub(crate) async fn start(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<(i32, i64)> {
        let (sandbox, keeper) = (Arc::clone(self), Arc::clone(keeper));
        blocking(move || {
            let _changing = sandbox.changing();
            let record = sandbox.record();
            match record.phase {
                SandboxPhase::Created => {
                    save(&keeper, &SandboxRecord { phase: SandboxPhase::Ready, ..record.clone() })?;
                    sandbox.lock().phase = SandboxPhase::Ready;
                }
                SandboxPhase::Ready => {}
                _ => return Err(Error::state(format!("sandbox {} is stopped", record.id))),
            }
            Ok((record.pid, record.created_at))
        })
        .await
    }

    /// StopSandbox: ends what runs in it and lets its namespaces go. Stopping twice is fine.
    pub(crate) async fn stop(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<()> {
        let (sandbox, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let id = sandbox.id();
            // All at once, so that one that cannot die holds no other up.
            let mut ends = JoinSet::new();
            for task in keeper.tasks.all().into_iter().filter(|task| task.sandbox() == id) {
                let keeper = Arc::clone(&keeper);
                ends.spawn(async move {
                    task.end_by_force(&keeper).await?;
                    match task.shim() {
                        Some(shim) => shim.delete().await,
                        None => Ok(()),
                    }
                });
            }
            let ends = ends.join_all().await;
            let closed = match &sandbox.shim {
                Some(shim) => shim.close().await,
                None => Ok(()),
            };
            if let Some(reaper) = &sandbox.reaper {
                let _ = reaper.signal(SIGKILL);
            }
            ends.into_iter().chain([closed]).collect::<Result<()>>()?;
            sandbox.end(&keeper, now(), 0).await;
            Ok(())
        })
        .await
    }

    /// [`Self::set_stopped`] off the event loop.
    async fn end(self: &Arc<Self>, keeper: &Arc<Keeper>, at: i64, status: u32) {
        let (sandbox, keeper, id) = (Arc::clone(self), Arc::clone(keeper), self.id());
        let ended = blocking(move || {
            sandbox.set_stopped(&keeper, at, status);
            Ok(())
        });
        if let Err(error) = ended.await {
            tracing::error!(id, "end of the sandbox: {error}");
        }
    }

    /// In memory first, whatever the disk says: a sandbox known to be dead is never told as alive, and it must go on a
    /// full disk, too. Blocks.
    fn set_stopped(&self, keeper: &Keeper, at: i64, status: u32) {
        let _changing = self.changing();
        let record = {
            let mut record = self.lock();
            if matches!(record.phase, SandboxPhase::Stopped { .. }) {
                return;
            }
            record.phase = SandboxPhase::Stopped { at, status };
            record.clone()
        };
        if let Err(error) = save(keeper, &record) {
            tracing::error!(id = record.id, "record the sandbox's end: {error}");
        }
        for kind in KINDS {
            keeper.guardian.forget(&format!("{}{}", prefix(&record.id), name(kind)));
        }
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(error) = PodFiles::release(&keeper.layout.sandbox_files(&record.id)) {
            tracing::warn!("{error}");
        }
        self.stopped.send_replace(Some((at, status)));
    }

    /// WaitSandbox: time and status of the end.
    pub(crate) async fn wait(&self) -> Result<(i64, u32)> {
        let mut stopped = self.stopped.subscribe();
        let end =
            stopped.wait_for(Option::is_some).await.map_err(|_| Error::internal("the sandbox is gone"))?;
        Ok(end.unwrap_or_default())
    }

    /// ShutdownSandbox: stops it if need be and forgets it.
    pub(crate) async fn shut_down(self: &Arc<Self>, keeper: &Arc<Keeper>) -> Result<()> {
        self.stop(keeper).await?;
        let (record, keeper, shim) = (self.record(), Arc::clone(keeper), self.shim.clone());
        let by_shim = record.by_shim;
        let own = Arc::clone(&keeper);
        let shut_down = move || {
            // Its record is what the next keeper finds it by: it goes when nothing else is left.
            if let Some(shim) = shim {
                shim.clear()?;
            } else if record.by_shim {
                shims::clear_left_over(&keeper.layout.shims().join(&record.id))?;
            }
            keeper.guardian.forget_all(&prefix(&record.id));
            PodFiles::remove(&keeper.layout.sandbox_files(&record.id))?;
            records::remove(&keeper.layout.sandboxes(), &record)
                .map_err(|e| Error::io("remove record of sandbox", &record.id, &e))?;
            keeper.sandboxes.remove(&record.id);
            Ok(())
        };
        own.aside.run_if(by_shim, shut_down).await
    }

    pub(crate) fn record(&self) -> SandboxRecord {
        self.lock().clone()
    }

    fn id(&self) -> String {
        self.lock().id.clone()
    }

    /// True if `path` is `/proc/<pid of this sandbox>/ns/…`.
    pub(crate) fn owns(&self, path: &Path) -> bool {
        path.starts_with(format!("/proc/{}/ns", self.lock().pid))
    }

    /// Its containers may be among the host's processes.
    pub(crate) fn uses_host_pids(&self) -> bool {
        self.lock().host_pids
    }

    /// The pod's own namespace of a kind; none where it uses the host's.
    pub(crate) fn namespace(&self, kind: NamespaceKind) -> Result<Option<OwnedFd>> {
        let record = self.record();
        if !matches!(record.phase, SandboxPhase::Created | SandboxPhase::Ready) {
            return Err(Error::state(format!("sandbox {} is stopped", record.id)));
        }
        if kind == NamespaceKind::Network && !record.netns.as_os_str().is_empty() {
            return File::open(&record.netns)
                .map(|file| Some(file.into()))
                .map_err(|e| Error::io("open network namespace", record.netns.display(), &e));
        }
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let found = namespaces.iter().find(|(own, _)| *own == kind).map(|(_, fd)| fd.try_clone()).transpose();
        found.map_err(|e| Error::io("copy namespace of sandbox", &record.id, &e))
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, SandboxRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a keeper that is gone, guardian included: what its sandbox still has. Missing is success. Blocks.
pub(crate) fn remove_leftover(layout: &Layout, record: &SandboxRecord) -> Result<()> {
    if let Some(reaper) = find_reaper(record) {
        let _ = reaper.signal(SIGKILL);
    }
    PodFiles::remove(&layout.sandbox_files(&record.id))?;
    records::remove(&layout.sandboxes(), record)
        .map_err(|e| Error::io("remove record of sandbox", &record.id, &e))
}

/// The sandbox's reaper by its number.
fn find_reaper(record: &SandboxRecord) -> Option<Process> {
    let pidfd = record.reaper.then(|| reopen(record.pid, record.born)).flatten()?;
    Some(Process::new(record.pid, pidfd))
}

/// Adds the `lost` ones of the pod's own namespaces, as one that lives in all of them has them; what it shares with us is
/// the host's.
fn namespaces_of(process: &Process, lost: &[String], namespaces: &mut Vec<(NamespaceKind, OwnedFd)>) {
    let open = |kind: NamespaceKind| -> io::Result<Option<OwnedFd>> {
        let file = File::open(format!("/proc/{}/ns/{}", process.pid, name(kind)))?;
        let (its, ours) = (file.metadata()?, fs::metadata(format!("/proc/self/ns/{}", name(kind)))?);
        Ok(((its.dev(), its.ino()) != (ours.dev(), ours.ino())).then(|| file.into()))
    };
    let missing = SHARED.iter().filter(|kind| lost.iter().any(|lost| lost == name(**kind)));
    let found: Vec<_> = missing.filter_map(|kind| Some((*kind, open(*kind).ok()??))).collect();
    // Asked after opening: alive still, so its number was nobody else's.
    if process.signal(0).is_ok() {
        namespaces.extend(found);
    }
}

/// A pod that another shim is to run.
#[derive(Debug)]
struct OfShim {
    shim: Shim,
    /// Where the client has the pod's files.
    files: PathBuf,
}

/// SHIM-SBX-04: options are CRI's own configuration; or ours around that, which no pod of containerd's can bring.
fn decode(options: Option<(String, Vec<u8>)>) -> Result<(Option<PodSandboxConfig>, Option<Shim>)> {
    let damaged = |error: &dyn std::fmt::Display| Error::invalid(format!("sandbox options: {error}"));
    match options {
        None => Ok((None, None)),
        Some((url, value)) if url.ends_with("PodSandboxConfig") => {
            let config = PodSandboxConfig::decode(value.as_slice());
            config.map(|config| (Some(config), None)).map_err(|e| damaged(&e))
        }
        Some((url, value)) if url == OF_SHIM => {
            let options =
                <SandboxOptions as protobuf::Message>::parse_from_bytes(&value).map_err(|e| damaged(&e))?;
            let config = PodSandboxConfig::decode(options.config.as_slice()).map_err(|e| damaged(&e))?;
            Ok((Some(config), Some(Shim::parse(&options.shim)?)))
        }
        Some((url, _)) => Err(Error::invalid(format!("sandbox options of type {url:?} are not known"))),
    }
}

fn pod_files(config: &PodSandboxConfig) -> PodFiles {
    let modes = namespace_modes(config);
    let host_network = modes.network() == NamespaceMode::Node;
    let dns = config.dns_config.as_ref();
    let dns = dns.map(|dns| Dns { servers: &dns.servers, searches: &dns.searches, options: &dns.options });
    PodFiles {
        hostname: files::hostname(&config.hostname, host_network),
        // As containerd does for its own sandboxes; the kubelet brings a file of its own.
        hosts: std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
        resolv_conf: files::resolv_conf(dns),
        shm: modes.ipc() != NamespaceMode::Node,
        owner: (0, 0),
    }
}

fn namespace_modes(config: &PodSandboxConfig) -> NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

/// CRI's own configuration to what the runtime makes (keeper.proto).
fn request(netns: String, config: Option<&PodSandboxConfig>) -> Result<SandboxRequest> {
    let given = config.is_some();
    let config = config.cloned().unwrap_or_default();
    let modes = namespace_modes(&config);
    let linux = config.linux.unwrap_or_default();
    let is = |mode: i32, expected: NamespaceMode| mode == expected as i32;
    let user = modes.userns_options.as_ref().map(user_namespace).transpose()?.flatten();
    // A pod on the host's network has the host's name, which only its own UTS namespace could change.
    let host_network = is(modes.network, NamespaceMode::Node);
    // containerd takes the network namespace of such a pod from its first process: that must be one of the pod's own.
    let new_network = user.is_some() && netns.is_empty() && !host_network;
    Ok(SandboxRequest {
        user,
        new_network,
        ipc: !is(modes.ipc, NamespaceMode::Node),
        hostname: (!host_network).then_some(config.hostname),
        sysctls: linux.sysctls.into_iter().collect(),
        netns: (!netns.is_empty()).then(|| netns.into()),
        shared_pid: new_network || given && is(modes.pid, NamespaceMode::Pod),
    })
}

/// CRI-UNS-01: mode NODE is none.
fn user_namespace(asked: &UserNamespace) -> Result<Option<IdMappings>> {
    let list = |maps: &[IdMapping]| -> Vec<IdMap> {
        let line = |m: &IdMapping| IdMap { container: m.container_id, host: m.host_id, size: m.length };
        maps.iter().map(line).collect()
    };
    match asked.mode() {
        NamespaceMode::Node => Ok(None),
        NamespaceMode::Pod => {
            let mappings = IdMappings { uids: list(&asked.uids), gids: list(&asked.gids) };
            mappings.check("userns_options", "uids", "gids")?;
            Ok(Some(mappings))
        }
        mode => Err(Error::invalid(format!("userns_options.mode = {} is not possible", mode.as_str_name()))),
    }
}

const KINDS: [NamespaceKind; 8] = [
    NamespaceKind::Network,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Pid,
    NamespaceKind::User,
    NamespaceKind::Mount,
    NamespaceKind::Cgroup,
    NamespaceKind::Time,
];

/// What processes of a pod share. Their mount namespaces are for themselves alone.
const SHARED: [NamespaceKind; 5] =
    [NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Pid, NamespaceKind::User];

/// The kernel's name of a kind, as in /proc/<pid>/ns.
pub(crate) fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Network => "net",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Pid => "pid",
        NamespaceKind::User => "user",
        NamespaceKind::Mount => "mnt",
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::Time => "time",
    }
}

fn prefix(id: &str) -> String {
    format!("s/{id}/")
}

fn save(keeper: &Keeper, record: &SandboxRecord) -> Result<()> {
    records::save(&keeper.layout.sandboxes(), record).map_err(|e| Error::io("record sandbox", &record.id, &e))
}
