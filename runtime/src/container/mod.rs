//! One container: created (parked before execve), started, entered by exec.
//!
//! Every handle can be taken apart into descriptors and plain data and put together again, because the keeper must
//! survive its own death with them (DESIGN 1B). Nobody here waits for exits: that is the holder of the pidfd.

mod agent;
mod groups;
mod home;
mod laps;
mod life;
mod net_devices;
mod rdt;
mod resources;
mod root;
mod user;

pub use crate::hooks::Subject;
pub use laps::{Clocked, Lap};
pub use life::{Parked, StartRequest, Started, after_delete, during_restore, is_attended, start};
pub use resources::resources;

use self::laps::Stopwatch;
use self::net_devices::Lent;
use self::rdt::Assigned;
use crate::cgroup::Cgroup;
use crate::error::Kind;
use crate::hooks::Inside;
use crate::host::Host;
pub use crate::launch::Stdio;
use crate::launch::{self, Attend, Launch, Launched};
use crate::namespace::NamespaceKind;
use crate::plan::{self, Facts, Plan};
use crate::program::{Explanation, Joined, Parking, Program};
use crate::rootfs::{self, Rootfs};
use crate::seccomp::{self, Filter};
use crate::sys::clone::Born;
use crate::sys::{process, socket};
use crate::{Error, Result};
use oci_spec::runtime::{ContainerState, Process, Spec};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// How long an undo waits for a dead child to leave its group.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that `create` needs beside the host's facts.
#[derive(Debug)]
pub struct CreateRequest {
    pub id: String,
    /// Directory of config.json; relative paths of the spec start here.
    pub bundle: PathBuf,
    pub spec: Spec,
    pub rootfs: Rootfs,
    /// Namespaces held as descriptors; they win over what `spec.linux.namespaces` says of the same kind.
    pub join: Vec<(NamespaceKind, OwnedFd)>,
    /// Ignored when `spec.process.terminal` is true: then [`Created::pty`] is the master.
    pub stdio: Stdio,
    pub options: Options,
}

/// What only some callers of `create` ask for.
#[derive(Debug, Default)]
pub struct Options {
    /// A socket of `sys::socket::listen_at`: the parked child outlives its maker and is started by whoever connects
    /// ([`Parked::Listening`]). Its command is then looked up before it parks, as engines of the OCI command line expect.
    pub listener: Option<OwnedFd>,
    /// Descriptors that the container's process keeps, by number (LISTEN_FDS of sd_listen_fds(3) and the like); open and
    /// without close-on-exec.
    pub preserved: Vec<i32>,
    /// When control groups cannot be made: a spec that asks for none of them, nor for limits, does without.
    pub no_group: bool,
    /// Enter the root without pivot_root(2), for hosts whose root is an initramfs.
    pub no_pivot: bool,
    /// The container's table of mounts lists them in the order of its specification ([`Program::in_order_of_the_spec`]).
    pub in_order: bool,
    /// Keep the session keyring (session-keyring(7)) of this process instead of giving the container one of its own.
    pub no_new_keyring: bool,
    /// Say when each step began and ended ([`Created::clocked`]).
    pub clocked: bool,
}

impl Options {
    fn apply(&self, program: Program, id: &str) -> Program {
        let program = match self {
            Self { no_pivot: true, .. } => program.without_pivot(),
            Self { in_order: true, .. } => program.in_order_of_the_spec(),
            _ => program,
        };
        if self.no_new_keyring { program } else { program.with_keyring(id) }
    }
}

/// A child that has done everything but execve and waits for its byte.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: Cgroup,
    /// Master side of the terminal, when `process.terminal`.
    pub pty: Option<OwnedFd>,
    /// Where the start byte goes and the answer comes from: EOF is success, 8 bytes a failed step.
    pub start: StartPipe,
    /// Empty without [`Options::clocked`].
    pub clocked: Clocked,
}

/// The launcher's end of the start protocol.
#[derive(Debug)]
pub struct StartPipe {
    /// One socket (SOCK_SEQPACKET or a stream pair) for both directions, so that it is one descriptor to preserve.
    pub socket: OwnedFd,
    /// Sentences for the steps that run after the byte, by index, as `Program::explain` has them; kept in the record.
    pub steps: Vec<String>,
}

impl StartPipe {
    /// Sends the byte and waits for execve's fate. After an error the child is dead or dying: reap it as usual.
    ///
    /// # Errors
    /// The failed step with its errno; for execve itself `NotFound`/`Invalid` with the command named. `State` when
    /// nobody waits any more.
    ///
    /// For a container whose seccomp profile has an agent, and for hooks, there is [`start`].
    pub fn start(&self) -> Result<()> {
        self.start_with(&mut |_| {
            let what = "SCMP_ACT_NOTIFY: start it with its agent";
            Err(Error::new(Kind::Invalid, "start", what))
        })
        .map(drop)
    }

    fn start_with(&self, hand_over: &mut dyn FnMut(&OwnedFd) -> Result<()>) -> Result<Option<OwnedFd>> {
        launch::start(&self.socket, &self.steps, hand_over)
    }
}

/// Starts a child that parked on a listening socket at `path`; `steps` as in [`StartPipe::steps`].
fn start_at(
    path: &Path,
    steps: &[String],
    hand_over: &mut dyn FnMut(&OwnedFd) -> Result<()>,
) -> Result<Option<OwnedFd>> {
    let socket = socket::connect_to(path).map_err(|source| {
        Error::sys("start", path.display().to_string(), source)
            .with_kind(Kind::State)
            .hint("the container is not waiting: it was started before, or its process is gone")
    })?;
    launch::start(&socket, steps, hand_over)
}

/// Whether a child waits for its byte on the listening socket at `path`. It does not notice.
pub fn is_parked_at(path: &Path) -> bool {
    socket::connect_to(path).is_ok()
}

/// Makes a child that waits on the listening socket at `path` leave. Nobody there is success.
pub fn release_at(path: &Path) {
    if let Ok(socket) = socket::connect_to(path) {
        let _ = socket::send_leave(&socket);
    }
}

/// Creates the container up to its last step before execve.
///
/// Reads no config file; makes cgroup, detached mounts and namespaces; on error nothing is left: no process, mount,
/// namespace or cgroup.
pub fn create(request: CreateRequest) -> Result<Created> {
    let CreateRequest { id, bundle, spec, rootfs, join, stdio, options } = request;
    forbid_inspection()?;
    let mut watch = Stopwatch::new(options.clocked);
    let filter = filter(&spec)?;
    watch.lap("compile the seccomp profile");
    let host = Host::current();
    let kinds: Vec<NamespaceKind> = join.iter().map(|(kind, _)| *kind).collect();
    let user = user::prepare(&spec, &kinds, host)?;
    let root = rootfs::mount_root(&rootfs, user.for_layers(&rootfs, &join))?;
    watch.lap("mount the root filesystem");
    let home = spec.process().as_ref().and_then(|process| home::find(&root, process));
    let facts = Facts { host, bundle: &bundle, rootfs: &rootfs, given: &kinds, home: home.as_deref() };
    let plan = Plan::new(&id, &spec, &facts)?;
    let parking = if options.listener.is_some() { Parking::CommandFound } else { Parking::CommandOpen };
    let program = options.apply(Program::create(&plan, parking)?, &id);
    let Options { listener, preserved, no_group: options_groups, .. } = options;
    watch.lap("plan");
    watch.prepare(program.steps.len())?;
    let mut cgroup = groups::make(&plan, &spec, options_groups)?;
    watch.lap("make control groups");
    let subject = Subject { id: &id, bundle: &bundle, spec: &spec };
    let (mut met, mut lent, mut assigned) = (false, Lent::default(), Assigned::default());
    let given = plan.group_owner().map_or(Ok(()), |uid| cgroup.give_to(uid));
    let launched = given.and_then(|()| cgroup.join()).and_then(|group| {
        let given = join.into_iter().map(|(_, fd)| fd).collect();
        let (root, window) = (Some(root), plan.process.window);
        let launch = Launch {
            root,
            user: user.made,
            given,
            target: None,
            stdio,
            filter,
            join: Some(group),
            listener,
            preserved,
            window,
            clock: watch.for_child(),
        };
        let mut meet = |born: &Born| {
            met = true;
            lent.lend(&plan.net_devices, born.pid)?;
            plan.rdt.iter().try_for_each(|rdt| assigned.assign(rdt, born.pid))?;
            meet(&plan, &subject, Inside { pid: born.pid, pidfd: born.pidfd.as_fd() })
        };
        // The filter is loaded at the start.
        let mut listener = |_: &Born, _: &OwnedFd| Ok(());
        let attend = Attend { meet: &mut meet, listener: &mut listener };
        let launched = launch::launch_attended(&program, launch, attend)?;
        if !met {
            let lending = lent.lend(&plan.net_devices, launched.pid);
            let lending =
                lending.and_then(|()| plan.rdt.iter().try_for_each(|rdt| assigned.assign(rdt, launched.pid)));
            lending.inspect_err(|_| process::end(&launched.pidfd))?;
        }
        Ok(launched)
    });
    match launched {
        Ok(Launched { pid, pidfd, socket, pty }) => {
            cgroup.joined();
            let start = StartPipe { socket, steps: program.sentences() };
            let clocked = watch.stop(&start.steps);
            Ok(Created { pid, pidfd, cgroup, pty, start, clocked })
        }
        Err(error) => {
            lent.back();
            assigned.back();
            // The first error is the one to tell; what is left of the group the audit will find.
            let _ = cgroup.remove(PATIENCE);
            if met {
                // OCI "Lifecycle": from a failed hook on it goes on as if the container had been deleted.
                let _ = after_delete(&subject);
            }
            Err(error)
        }
    }
}

/// What is done from outside while the child waits for it, with its namespaces and mounts in place.
fn meet(plan: &Plan, subject: &Subject<'_>, inside: Inside<'_>) -> Result<()> {
    match &plan.root_place {
        Some(root) => life::during_creation(&plan.hooks, subject, inside, plan.user.as_ref(), root),
        None => Ok(()),
    }
}

/// What `exec` needs of a live container.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// Unique within the container; names the session's own control group. None: it joins the container's own.
    pub exec_id: Option<&'a str>,
    /// Of the container's init: source of all namespaces.
    pub pid: i32,
    pub pidfd: &'a OwnedFd,
    /// The container. Its spec is the one it was created from: seccomp, capabilities and no_new_privs when `process` has
    /// none.
    pub subject: Subject<'a>,
    pub process: &'a Process,
    pub cgroup: &'a Cgroup,
    pub stdio: Stdio,
    /// As [`Options::preserved`].
    pub preserved: Vec<i32>,
    /// As [`Options::no_new_keyring`]: what the container was made with.
    pub no_new_keyring: bool,
}

/// A process that runs inside a container beside its init. It has passed execve.
#[derive(Debug)]
pub struct Exec {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Its own child group: `kill_all` ends the whole session, `remove` when it is over. Without an exec id the group of
    /// the request.
    pub cgroup: Cgroup,
    pub pty: Option<OwnedFd>,
}

/// Starts a process in a running container: one clone3, no helper program. Returns after execve.
pub fn exec(request: ExecRequest<'_>) -> Result<Exec> {
    let ExecRequest { exec_id, pid, pidfd, subject, process, cgroup, stdio, preserved, no_new_keyring } =
        request;
    let spec = subject.spec;
    forbid_inspection()?;
    let filter = filter(spec)?;
    let home = home::find_in_process(pid, process);
    let host = Host::current();
    let inside = user::of_running(spec, host, pid)?;
    let plan = plan::exec(process, spec, host, home.as_deref(), inside.as_ref())?;
    let root = root::of_running(spec, pid, pidfd)?;
    let joined = Joined { user: inside.as_ref(), time: user::differs(pid, "time"), root: root.is_some() };
    let program = Program::exec(&plan, joined)?;
    let program = if no_new_keyring { program } else { program.with_keyring(subject.id) };
    let group = exec_id.map_or_else(|| Ok(cgroup.clone()), |id| cgroup.exec_group(id))?;
    let launched = group.join().and_then(|join| {
        let target = Some(pidfd.as_fd());
        let join = Some(join);
        let window = plan.window;
        let launch = Launch { target, root, stdio, filter, join, preserved, window, ..Launch::default() };
        let mut listener = |born: &Born, listener: &OwnedFd| {
            agent::hand_over(&subject, ContainerState::Running, pid, born.pid, listener)
        };
        let attend = Attend { meet: &mut |_| Ok(()), listener: &mut listener };
        launch::launch_attended(&program, launch, attend)
    });
    match launched {
        Ok(Launched { pid, pidfd, pty, .. }) => Ok(Exec { pid, pidfd, cgroup: group, pty }),
        Err(error) => {
            if exec_id.is_some() {
                let _ = group.remove(PATIENCE);
            }
            Err(error)
        }
    }
}

/// What a spec means for a container of a bundle's directory on this host.
pub fn decide(id: &str, bundle: &Path, rootfs: &Rootfs, spec: &Spec) -> Result<Plan> {
    let facts = Facts { host: Host::current(), bundle, rootfs, given: &[], home: None };
    Plan::new(id, spec, &facts)
}

/// Says what `create` would do, one line per kernel step, without doing it and without root.
pub fn explain(request: &CreateRequest, parking: Parking) -> Result<Explanation> {
    let kinds: Vec<NamespaceKind> = request.join.iter().map(|(kind, _)| *kind).collect();
    let (bundle, rootfs) = (&request.bundle, &request.rootfs);
    let facts = Facts { host: Host::current(), bundle, rootfs, given: &kinds, home: None };
    let plan = Plan::new(&request.id, &request.spec, &facts)?;
    let groups = Cgroup::explain(&plan.cgroup_path, resources(&request.spec).as_ref())?;
    let program = request.options.apply(Program::create(&plan, parking)?, &request.id);
    let mut explanation = Explanation { groups, ..program.explanation() };
    explanation.prepare.extend(plan.net_devices.iter().map(net_devices::sentence));
    explanation.prepare.extend(plan.rdt.iter().map(rdt::sentence));
    Ok(explanation)
}

fn filter(spec: &Spec) -> Result<Option<Filter>> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let Some(profile) = profile else { return Ok(None) };
    let filter = seccomp::compile(profile)?;
    agent::check(profile, filter.notify)?;
    Ok(Some(filter))
}

/// Once per process: a container that can see our children before execve must not read our memory through them.
fn forbid_inspection() -> Result<()> {
    static DONE: OnceLock<()> = OnceLock::new();
    if DONE.get().is_none() {
        process::forbid_inspection().map_err(|e| Error::sys("protect this process", "PR_SET_DUMPABLE", e))?;
        let _ = DONE.set(());
    }
    Ok(())
}
