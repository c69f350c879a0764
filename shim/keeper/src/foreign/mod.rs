//! Containers that another OCI runtime makes (runc, crun, youki, runsc): its binary is called where the native way calls
//! slipway_runtime; everything else (streams, logs, exits, records, survival) is the keeper's own and the same.
//!
//! ```text
//!  task, exec ──▶ Container ──▶ call: BIN --root R --log F create|start|exec|kill|update|delete ──▶ kernel
//!                    │            (a process group of its own, a time limit, the last line of its log)
//!                    ├── bundle: <keeper>/foreign/<id>/{config.json,rootfs,pid}
//!                    ├── console: the terminal, by --console-socket
//!                    ├── caller: what a call leaves behind beside the process that it was made for
//!                    └── orphans: its init becomes our own child; calls of a former keeper are ended
//! ```
//!
//! Absent on purpose: checkpoints, and sandboxes as such runtimes know them (there is no pause container: a pod's
//! namespaces are joined by path).

mod bundle;
mod call;
mod caller;
mod console;
mod orphans;

pub(crate) use bundle::{is_scope, prepared, within_reach, write_json};
pub(crate) use call::{shown, watch};
pub(crate) use caller::{ACTION, become_caller};
pub(crate) use orphans::{MARK, end, end_calls, end_calls_for, is_ours, names, set_apart, sweep};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::prepare::Namespaces;
use crate::process::Process;
use crate::task::remove_cgroup;
use call::Call;
use console::Console;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec, Spec};
use orphans::Window;
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{Exec, Stdio};
use slipway_runtime::rootfs::Rootfs;
use std::ffi::OsString;
use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the making of a container may take where nothing else is said, in seconds.
const CREATE: u64 = 60;
/// How long any other call may take. Below what clients wait for an answer.
const QUICK: Duration = Duration::from_secs(20);
/// The same for a signal, which has another way to its process.
const SIGNAL: Duration = Duration::from_secs(5);

/// An OCI runtime, as a client's options and our records name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Runtime {
    /// Its program.
    pub(crate) path: PathBuf,
    /// Where it keeps its state; a directory below the keeper's own unless said.
    #[serde(default)]
    pub(crate) root: PathBuf,
    /// Arguments before each of its commands, such as `--debug`.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Seconds.
    #[serde(default = "create")]
    pub(crate) create_timeout: u64,
    /// It has sandboxes of its own kind (runsc): each container is announced to it as one.
    #[serde(default)]
    pub(crate) standalone: bool,
}

fn create() -> u64 {
    CREATE
}

impl Runtime {
    /// # Errors
    /// `InvalidArgument` for what cannot be meant.
    pub(crate) fn check(&self) -> Result<()> {
        for (key, path) in [("Path", &self.path), ("Root", &self.root)] {
            let unset = key == "Root" && path.as_os_str().is_empty();
            if !unset && !path.is_absolute() {
                let path = path.display();
                return Err(Error::invalid(format!(
                    "options: Runtime.{key} = {path}: must be an absolute path"
                )));
            }
        }
        if self.create_timeout == 0 {
            return Err(Error::invalid("options: Runtime.CreateTimeout = 0: must be at least a second"));
        }
        Ok(())
    }

    /// A container of this runtime, known to it or not.
    pub(crate) fn container<'a>(&'a self, layout: &Layout, id: &'a str) -> Container<'a> {
        let root = match self.root.as_os_str().is_empty() {
            true => layout.foreign().join("state"),
            false => self.root.clone(),
        };
        Container {
            runtime: self,
            id,
            root,
            dir: layout.foreign().join(id),
            sockets: layout.root().to_owned(),
        }
    }
}

/// One container of such a runtime. All methods block.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    runtime: &'a Runtime,
    id: &'a str,
    /// The runtime's state.
    root: PathBuf,
    /// What it gets as bundle, and what it writes for us.
    dir: PathBuf,
    /// Where sockets have short names.
    sockets: PathBuf,
}

/// What a container is made of.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) spec: Spec,
    pub(crate) rootfs: &'a Rootfs,
    /// The client's own bundle: where relative paths begin.
    pub(crate) bundle: &'a Path,
    pub(crate) namespaces: &'a Namespaces,
    pub(crate) cgroup: &'a str,
    pub(crate) stdio: Stdio,
    /// The other end of its standard error, where that is ours: a runtime that cannot even write its log speaks there.
    pub(crate) overheard: Option<BorrowedFd<'a>>,
}

/// A container that waits for its start.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) process: Process,
    pub(crate) cgroup: Cgroup,
    pub(crate) pty: Option<OwnedFd>,
}

impl Container<'_> {
    /// `create`. On error nothing is left.
    pub(crate) fn create(&self, new: New<'_>) -> Result<Made> {
        let cgroup = new.cgroup;
        self.try_create(new).inspect_err(|_| {
            // Whoever is in it already.
            let _ = remove_cgroup(cgroup);
            self.remove();
            let _ = remove_cgroup(cgroup);
        })
    }

    fn try_create(&self, new: New<'_>) -> Result<Made> {
        let is_terminal = new.spec.process().as_ref().and_then(ProcessSpec::terminal) == Some(true);
        let scope = bundle::is_scope(&new.spec);
        fs::create_dir_all(&self.root).map_err(|e| Error::io("make", self.root.display(), &e))?;
        bundle::make(&self.dir, &new, self.runtime.standalone)?;
        let console = is_terminal.then(|| Console::listen(&self.sockets)).transpose()?;
        let pid_file = self.dir.join("pid");
        let mut args: Vec<OsString> = vec!["--bundle".into(), self.dir.clone().into()];
        args.extend(["--pid-file".into(), pid_file.clone().into()]);
        if let Some(console) = &console {
            args.extend(["--console-socket".into(), console.path().into()]);
        }
        args.push(self.id.into());
        let call = self.call("create", "create", args, Duration::from_secs(self.runtime.create_timeout));
        let call = if scope { call.with_systemd() } else { call };
        let window = Window::open()?;
        call.run_for(&pid_file, new.stdio, new.overheard)?;
        drop(window);
        let process = orphans::child_of_file(&pid_file).map_err(|why| call.failed(&why))?;
        let Ok(pty) = console.map(Console::receive).transpose() else {
            process.kill_and_reap();
            return Err(call.failed("it sent no terminal to its --console-socket"));
        };
        // One that makes no control group has none to be measured by.
        let cgroup = Cgroup::open(new.cgroup).or_else(|_| Cgroup::named(new.cgroup))?;
        Ok(Made { process, cgroup, pty })
    }

    /// `start`: returns when the container's command runs.
    pub(crate) fn start(&self) -> Result<()> {
        self.call("start", "start", vec![self.id.into()], QUICK).run().map(drop)
    }

    /// Whether a start that a former keeper began is still to be done.
    pub(crate) fn is_waiting(&self) -> Result<bool> {
        let call = self.call("state", "state", vec![self.id.into()], QUICK);
        let said = call.run()?;
        let state: serde_json::Value =
            serde_json::from_str(&said).map_err(|e| call.failed(&format!("its answer is no state: {e}")))?;
        Ok(state["status"] == "created")
    }

    /// A signal to the container's first process, as the runtime gives it: that may be another one than we see.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let args = vec![self.id.into(), signal.to_string().into()];
        self.call("kill", "kill", args, SIGNAL).run().map(drop)
    }

    /// `update`.
    pub(crate) fn update(&self, resources: &LinuxResources) -> Result<()> {
        let file = self.dir.join("resources.json");
        bundle::write_json(&file, resources)?;
        let args = vec!["--resources".into(), file.into(), self.id.into()];
        self.call("update", "update", args, QUICK).run().map(drop)
    }

    /// `exec`: returns when the session's command runs. On error nothing does.
    pub(crate) fn exec(
        &self,
        exec: &str,
        process: &ProcessSpec,
        cgroup: &Cgroup,
        stdio: Stdio,
    ) -> Result<Exec> {
        let (spec, pid_file) = self.files_of(exec);
        let mut process = process.clone();
        bundle::within_reach(&mut process);
        bundle::write_json(&spec, &process)?;
        let console =
            (process.terminal() == Some(true)).then(|| Console::listen(&self.sockets)).transpose()?;
        let mut args: Vec<OsString> = vec!["--detach".into(), "--process".into(), spec.clone().into()];
        args.extend(["--pid-file".into(), pid_file.clone().into()]);
        if let Some(console) = &console {
            args.extend(["--console-socket".into(), console.path().into()]);
        }
        args.push(self.id.into());
        let call = self.call("exec", &format!("exec-{exec}"), args, QUICK);
        let called = Window::open().and_then(|_window| call.run_for(&pid_file, stdio, None));
        let started =
            called.and_then(|()| orphans::child_of_file(&pid_file).map_err(|why| call.failed(&why)));
        for file in [&spec, &pid_file] {
            let _ = fs::remove_file(file);
        }
        let process = started?;
        let group = console
            .map(Console::receive)
            .transpose()
            .map_err(|_| call.failed("it sent no terminal to its --console-socket"))
            .and_then(|pty| Ok((pty, orphans::set_apart(cgroup, exec, process.pid)?)));
        let (pty, group) = group.inspect_err(|_| process.kill_and_reap())?;
        let pid = process.pid;
        let held = process.own_pidfd().and_then(|pidfd| pidfd.try_clone());
        let pidfd = held.map_err(|e| Error::io("hold the process of exec", exec, &e))?;
        Ok(Exec { pid, pidfd, cgroup: group, pty })
    }

    /// What a former keeper's `exec` may have left or still be doing.
    pub(crate) fn clear_exec(&self, exec: &str, container: &str) {
        let (spec, pid_file) = self.files_of(exec);
        orphans::end_calls(&spec);
        orphans::end_by_file(&pid_file, container);
        for file in [&spec, &pid_file] {
            let _ = fs::remove_file(file);
        }
    }

    fn files_of(&self, exec: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("exec-{exec}.json")), self.dir.join(format!("exec-{exec}.pid")))
    }

    /// `delete --force`, and our own part of it: for one whose processes have ended, or that is not to be. What the runtime
    /// cannot or does not do is done without it.
    pub(crate) fn remove(&self) {
        if self.dir.exists() {
            let args = vec!["--force".into(), self.id.into()];
            if let Err(error) = self.call("delete", "delete", args, QUICK).run() {
                tracing::warn!(id = self.id, "{error}; removed without it");
                let _ = fs::remove_dir_all(self.root.join(self.id));
            }
        }
        if let Err(error) = bundle::remove(&self.dir) {
            tracing::warn!(id = self.id, "remove {}: {error}", self.dir.display());
        }
    }

    /// [`Self::remove`] for a container of a former keeper, whose calls may still run.
    pub(crate) fn clear(&self) {
        self.end_calls();
        self.remove();
    }

    /// Ends calls of a former keeper that are under way.
    pub(crate) fn end_calls(&self) {
        orphans::end_calls(&self.dir);
    }

    fn call(&self, verb: &'static str, name: &str, args: Vec<OsString>, limit: Duration) -> Call<'_> {
        Call {
            runtime: self.runtime,
            root: &self.root,
            dir: &self.dir,
            log: self.dir.join(format!("{name}.log")),
            verb,
            args,
            limit,
            systemd: false,
        }
    }
}
