//! One container: created (parked before execve), started, entered by exec.
//!
//! Every handle can be taken apart into descriptors and plain data and put together again, because the keeper must
//! survive its own death with them (DESIGN 1B). Nobody here waits for exits: that is the holder of the pidfd.

mod home;

use crate::cgroup::Cgroup;
use crate::host::Host;
pub use crate::launch::Stdio;
use crate::launch::{self, Launch, Launched};
use crate::namespace::NamespaceKind;
use crate::plan::{self, Facts, Plan};
use crate::program::Program;
use crate::rootfs::{self, Rootfs};
use crate::seccomp::{self, Filter};
use crate::sys::process;
use crate::{Error, Result};
use oci_spec::runtime::{Process, Spec};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
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
    pub fn start(&self) -> Result<()> {
        launch::start(&self.socket, &self.steps)
    }
}

/// Creates the container up to its last step before execve.
///
/// Reads no config file; makes cgroup, detached mounts and namespaces; on error nothing is left: no process, mount,
/// namespace or cgroup.
pub fn create(request: CreateRequest) -> Result<Created> {
    let CreateRequest { id, bundle, spec, rootfs, join, stdio } = request;
    forbid_inspection()?;
    let filter = filter(&spec)?;
    let root = rootfs::mount_root(&rootfs)?;
    let home = spec.process().as_ref().and_then(|process| home::find(&root, process));
    let kinds: Vec<NamespaceKind> = join.iter().map(|(kind, _)| *kind).collect();
    let facts = Facts {
        host: Host::current(),
        bundle: &bundle,
        rootfs: &rootfs,
        given: &kinds,
        home: home.as_deref(),
    };
    let plan = Plan::new(&id, &spec, &facts)?;
    let program = Program::create(&plan)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let mut cgroup = Cgroup::create(&plan.cgroup_path, resources)?;
    let launched = cgroup.join().and_then(|group| {
        let given = join.into_iter().map(|(_, fd)| fd).collect();
        let (root, window) = (Some(root), plan.process.window);
        launch::launch(
            &program,
            Launch { root, given, target: None, stdio, filter, join: Some(group), window },
        )
    });
    match launched {
        Ok(Launched { pid, pidfd, socket, pty }) => {
            cgroup.joined();
            let start = StartPipe { socket, steps: program.sentences() };
            Ok(Created { pid, pidfd, cgroup, pty, start })
        }
        Err(error) => {
            // The first error is the one to tell; what is left of the group the audit will find.
            let _ = cgroup.remove(PATIENCE);
            Err(error)
        }
    }
}

/// What `exec` needs of a live container.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// Unique within the container; names its control group.
    pub exec_id: &'a str,
    /// Of the container's init: source of all namespaces.
    pub pid: i32,
    pub pidfd: &'a OwnedFd,
    /// The spec the container was created from: seccomp, masks of capabilities and no_new_privs when `process` has none.
    pub spec: &'a Spec,
    pub process: &'a Process,
    pub cgroup: &'a Cgroup,
    pub stdio: Stdio,
}

/// A process that runs inside a container beside its init. It has passed execve.
#[derive(Debug)]
pub struct Exec {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Its own child group: `kill_all` ends the whole session, `remove` when it is over.
    pub cgroup: Cgroup,
    pub pty: Option<OwnedFd>,
}

/// Starts a process in a running container: one clone3, no helper program. Returns after execve.
pub fn exec(request: ExecRequest<'_>) -> Result<Exec> {
    let ExecRequest { exec_id, pid, pidfd, spec, process, cgroup, stdio } = request;
    forbid_inspection()?;
    let filter = filter(spec)?;
    let home = home::find_in_process(pid, process);
    let plan = plan::exec(process, spec, Host::current(), home.as_deref())?;
    let program = Program::exec(&plan)?;
    let group = cgroup.exec_group(exec_id)?;
    let launched = group.join().and_then(|join| {
        let target = Some(pidfd.as_fd());
        let join = Some(join);
        launch::launch(
            &program,
            Launch { target, stdio, filter, join, window: plan.window, ..Launch::default() },
        )
    });
    match launched {
        Ok(Launched { pid, pidfd, pty, .. }) => Ok(Exec { pid, pidfd, cgroup: group, pty }),
        Err(error) => {
            let _ = group.remove(PATIENCE);
            Err(error)
        }
    }
}

/// Says what `create` would do, one line per kernel step, without doing it and without root.
pub fn explain(request: &CreateRequest) -> Result<Vec<String>> {
    let kinds: Vec<NamespaceKind> = request.join.iter().map(|(kind, _)| *kind).collect();
    let (bundle, rootfs) = (&request.bundle, &request.rootfs);
    let facts = Facts { host: Host::current(), bundle, rootfs, given: &kinds, home: None };
    let plan = Plan::new(&request.id, &request.spec, &facts)?;
    Ok(Program::create(&plan)?.explain())
}

fn filter(spec: &Spec) -> Result<Option<Filter>> {
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    profile.map(seccomp::compile).transpose()
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
