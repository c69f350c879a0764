//! One container: created (parked before execve), started, entered by exec.
//!
//! Every handle can be taken apart into descriptors and plain data and put together again, because the keeper must
//! survive its own death with them (DESIGN 1B). Nobody here waits for exits: that is the holder of the pidfd.

use crate::Result;
use crate::cgroup::Cgroup;
use crate::rootfs::Rootfs;
use crate::sandbox::NamespaceKind;
use oci_spec::runtime::{Process, Spec};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The three standard streams of a new process; absent means /dev/null.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

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
    /// The failed step with its errno; for execve itself `NotFound`/`Invalid` with the command named.
    pub fn start(&self) -> Result<()> {
        todo!()
    }
}

/// Creates the container up to its last step before execve.
///
/// Reads no config file; makes cgroup, detached mounts and namespaces; on error nothing is left: no process, mount,
/// namespace or cgroup.
pub fn create(request: CreateRequest) -> Result<Created> {
    drop(request);
    todo!()
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
    let _ = request;
    todo!()
}

/// Says what `create` would do, one line per kernel step, without doing it and without root.
pub fn explain(request: &CreateRequest) -> Result<Vec<String>> {
    let _ = request;
    todo!()
}
