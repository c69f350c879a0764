//! Making a container: from a decoded request to a parked process, and back to nothing if anything fails.

use super::end::remove_cgroup;
use super::{Facts, Lifecycle, NewTask, Task, prefix};
use crate::client_log;
use crate::error::{Error, Result};
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::is_valid_id;
use crate::logger::Logger;
use crate::logs::Log;
use crate::options::Options;
use crate::prepare;
use crate::process::{Process, born};
use crate::records::{self, TaskPhase, TaskRecord};
use crate::rollback::Rollback;
use crate::stdio::{self, Target, key};
use crate::terminal;
use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, CreateRequest, Created, Parked, StartPipe, StartRequest, Subject};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

impl Task {
    /// Create: a container parked before its execve.
    pub(crate) async fn create(keeper: &Arc<Keeper>, new: NewTask) -> Result<Arc<Self>> {
        let keeper = Arc::clone(keeper);
        detached(async move {
            if !is_valid_id(&new.id) {
                return Err(Error::invalid(format!("bad container id {:?}", new.id)));
            }
            keeper.must_stay()?;
            let reservation = keeper.tasks.reserve(&new.id)?;
            let maker = Arc::clone(&keeper);
            let (task, mounts) = blocking(move || {
                let mounts = new.mounts.clone();
                make(&maker, new).map(|task| (task, mounts))
            })
            .await?;
            if let Err(error) = task.connect(&keeper).await {
                task.tear_down(&keeper).await;
                return Err(error);
            }
            client_log::add(&task.facts.bundle);
            reservation.fill(Arc::clone(&task));
            keeper.events.publish("/tasks/create", &task.create_event(mounts));
            task.watch(&keeper, None);
            Ok(task)
        })
        .await
    }

    /// Hands the container's output to the log engine, or its terminal to a copier.
    pub(super) async fn connect(&self, keeper: &Keeper) -> Result<()> {
        let fail = |e: std::io::Error| Error::io("connect the streams of", &self.facts.id, &e);
        if let Target::Log { max_line, .. } = Target::parse(&self.facts.streams.stdout)? {
            let log = {
                let mut kept = self.kept();
                let file = kept.remove(key::LOG).map(File::from);
                let streams = stdio::take_log_inputs(&mut kept).map_err(fail)?;
                Log { id: self.facts.id.clone(), file, max_line, dropped: self.dropped(), streams }
            };
            keeper.engine.add(log).await.map_err(fail)?;
        }
        terminal::connect(&self.kept()).map_err(fail)
    }

    /// Undoes a container that nobody has seen yet.
    async fn tear_down(self: &Arc<Self>, keeper: &Arc<Keeper>) {
        let process = self.process();
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        if let Some(process) = process {
            let end = move || {
                process.kill_and_reap();
                Ok(())
            };
            let _ = blocking(end).await;
        }
        let _ = blocking(move || task.remove(&keeper)).await;
    }

    fn create_event(&self, rootfs: Vec<Mount>) -> TaskCreate {
        let streams = &self.facts.streams;
        let io = TaskIO {
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            ..TaskIO::default()
        };
        TaskCreate {
            container_id: self.facts.id.clone(),
            bundle: self.facts.bundle.to_string_lossy().into_owned(),
            rootfs,
            io: Some(io).into(),
            pid: self.snapshot().pid.cast_unsigned(),
            ..TaskCreate::default()
        }
    }
}

impl Task {
    /// Lets the parked process go, with the hooks and the seccomp agent that its spec names. Blocks.
    pub(super) fn release(&self, process: &Process, start: &StartPipe) -> Result<()> {
        if !self.facts.attended {
            return Ok(start.start()?);
        }
        let spec = prepare::load_spec(&self.facts.bundle)?;
        let cgroup = Cgroup::open(&self.facts.cgroup)?;
        container::start(&StartRequest {
            subject: Subject { id: &self.facts.id, bundle: &self.facts.bundle, spec: &spec },
            pid: process.pid,
            pidfd: &process.pidfd,
            cgroup: &cgroup,
            parked: Parked::Pipe(start),
        })?;
        Ok(())
    }

    /// The hooks after the deletion; what fails is a warning. Blocks.
    pub(super) fn after_delete(&self) {
        if !self.facts.attended {
            return;
        }
        match prepare::load_spec(&self.facts.bundle) {
            Ok(spec) => {
                let subject = Subject { id: &self.facts.id, bundle: &self.facts.bundle, spec: &spec };
                for error in container::after_delete(&subject) {
                    tracing::warn!(id = self.facts.id, "{error}");
                }
            }
            Err(error) => tracing::warn!(id = self.facts.id, "poststop hooks: {error}"),
        }
    }
}

/// Makes the container; on error nothing is left of it. Blocks.
fn make(keeper: &Keeper, new: NewTask) -> Result<Arc<Task>> {
    let options = Options::parse(new.options.as_ref())?;
    if options.no_pivot_root {
        return Err(Error::unimplemented(
            "option NoPivotRoot: not supported; run from a root file system that is no initramfs, and leave it out",
        ));
    }
    options.note_ignored();
    let mut spec = prepare::load_spec(&new.bundle)?;
    let sandbox_id = prepare::sandbox_of(&spec);
    let sandbox = keeper.sandboxes.find(&sandbox_id);
    if keeper.events.is_wanted() && sandbox.is_some() {
        prepare::pod_files(&mut spec, &keeper.layout.sandbox_files(&sandbox_id));
    }
    prepare::protect_root(&new.mounts, &mut spec);
    let namespaces = prepare::namespaces(&mut spec, sandbox.as_deref())?;
    let cgroup = prepare::cgroup_path(&mut spec, &keeper.namespace, &new.id);
    if let Some(process) = spec.process_mut() {
        prepare::process(process, None, keeper.nofile);
        process.set_terminal(Some(new.streams.terminal));
    }
    let owner = options.io_owner().unwrap_or_else(|| prepare::owner(&spec, spec.process().as_ref()));
    let mut facts = Facts {
        rootfs: prepare::rootfs(&new.mounts, &new.bundle, &spec)?,
        id: new.id,
        bundle: new.bundle,
        sandbox: sandbox_id,
        cgroup,
        oom_before: None,
        streams: new.streams,
        foreign_pids: namespaces.foreign_pids,
        attended: slipway_runtime::container::is_attended(&spec),
        io_owner: options.io_owner(),
        born: 0,
    };
    let logger = Logger { id: &facts.id, namespace: &keeper.namespace };
    let mut opened = stdio::open(&facts.streams, owner, logger)?;
    let save = |record: &TaskRecord| {
        records::save(&keeper.layout.tasks(), record).map_err(|e| Error::io("record", &record.id, &e))
    };
    let mut rollback = Rollback::default();
    rollback.push("log", opened.undo());
    let intent = facts.record(TaskPhase::Creating, 0);
    save(&intent)?;
    rollback.push("record", move || drop(records::remove(&keeper.layout.tasks(), &intent)));
    let Created { pid, pidfd, cgroup, pty, start } = slipway_runtime::container::create(CreateRequest {
        id: facts.id.clone(),
        bundle: facts.bundle.clone(),
        spec,
        rootfs: facts.rootfs.clone(),
        join: namespaces.join,
        stdio: opened.child,
        options: slipway_runtime::container::Options::default(),
    })?;
    let process = Process::new(pid, pidfd);
    facts.cgroup = cgroup.path().to_owned();
    let (undo_process, undo_cgroup) = (process.clone(), facts.cgroup.clone());
    rollback.push("process and control group", move || {
        undo_process.kill_and_reap();
        let _ = remove_cgroup(&undo_cgroup);
    });
    facts.oom_before = cgroup.oom_before().unwrap_or_else(|error| {
        tracing::warn!(id = facts.id, "{error}");
        None
    });
    facts.born = born(pid).unwrap_or_default();
    let mut kept = opened.kept;
    if let Some(pty) = pty {
        kept.insert(key::PTY, pty);
    }
    let prefix = prefix(&facts.id);
    let undo_prefix = prefix.clone();
    rollback.push("kept descriptors", move || keeper.guardian.forget_all(&undo_prefix));
    let more = [("pidfd", process.pidfd.as_fd()), ("start", start.socket.as_fd())];
    stdio::keep_all(&keeper.guardian, &prefix, &kept, &more)
        .map_err(|e| Error::io("keep the descriptors of", &facts.id, &e))?;
    let state = Lifecycle::Created { process, start: Arc::new(start) };
    let task = Task::assemble(facts, state, kept, None, 0);
    save(&task.record())?;
    rollback.commit();
    Ok(Arc::new(task))
}
