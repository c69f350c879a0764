//! Making a container: from a decoded request to a parked process, and back to nothing if anything fails.

use super::end::remove_cgroup;
use super::{Facts, Gate, Lifecycle, NewTask, Task, prefix};
use crate::checkpoint::Frozen;
use crate::client_log;
use crate::error::{Error, Result};
use crate::foreign;
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::{Layout, is_valid_id};
use crate::logger::Logger;
use crate::logs::Log;
use crate::mounts;
use crate::options::Options;
use crate::prepare::{self, Namespaces};
use crate::process::{Process, born};
use crate::records::{self, TaskPhase, TaskRecord};
use crate::rollback::Rollback;
use crate::shims;
use crate::stdio::{self, Target, key};
use crate::terminal;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use oci_spec::runtime::Spec;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Clocked, CreateRequest, Created, Parked, StartRequest, Subject};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Task {
    /// Create: a container parked before its execve.
    pub(crate) async fn create(keeper: &Arc<Keeper>, new: NewTask) -> Result<Arc<Self>> {
        let keeper = Arc::clone(keeper);
        detached(async move {
            if !is_valid_id(&new.id) {
                return Err(Error::invalid(format!("bad container id {:?}", new.id)));
            }
            keeper.must_serve()?;
            let reservation = keeper.tasks.reserve(&new.id)?;
            let maker = Arc::clone(&keeper);
            let mut event = create_event(&new);
            let of_shim = is_of_shim(&keeper, &new.bundle).await;
            let make = move || match new.checkpoint.clone() {
                from if from.is_empty() => make(&maker, new),
                from => {
                    let options = Options::parse(new.options.as_ref())?;
                    if let Some(runtime) = &options.runtime {
                        let path = runtime.path.display();
                        return Err(Error::unimplemented(format!(
                            "restore container {}: checkpoints are Slipway's own: {path} cannot start from one",
                            new.id
                        )));
                    }
                    let frozen = Frozen::find(&from, &options)?;
                    Self::freeze_made(&maker, new, frozen)
                }
            };
            let task = keeper.aside.run_if(of_shim, make).await?;
            if task.process().is_some()
                && let Err(error) = task.connect(&keeper).await
            {
                task.tear_down(&keeper).await;
                return Err(error);
            }
            client_log::add(&task.facts.bundle);
            reservation.fill(Arc::clone(&task));
            event.pid = task.snapshot().pid.cast_unsigned();
            keeper.events.publish("/tasks/create", &event);
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
                let clients = self.handed.listeners();
                Log { id: self.facts.id.clone(), file, max_line, dropped: self.dropped(), streams, clients }
            };
            keeper.engine.add(log).await.map_err(fail)?;
        }
        let copying = terminal::connect(&self.kept()).map_err(fail)?;
        *self.copying() = copying;
        Ok(())
    }

    /// Undoes a container that nobody has seen yet.
    async fn tear_down(self: &Arc<Self>, keeper: &Arc<Keeper>) {
        let process = self.process();
        let (task, own) = (Arc::clone(self), Arc::clone(keeper));
        if let Some(process) = process {
            let end = move || {
                process.kill_and_reap();
                Ok(())
            };
            let _ = blocking(end).await;
        }
        let _ = keeper.aside.run_if(self.shim().is_some(), move || task.remove(&own)).await;
    }
}

/// Whether a container that is to be made will be its pod's shim's.
async fn is_of_shim(keeper: &Keeper, bundle: &Path) -> bool {
    if keeper.sandboxes.all().iter().all(|sandbox| sandbox.shim().is_none()) {
        return false;
    }
    let bundle = bundle.to_owned();
    // What cannot be read is told by the making.
    let spec = blocking(move || prepare::load_spec(&bundle)).await;
    let pod = spec.ok().and_then(|spec| keeper.sandboxes.find(&prepare::sandbox_of(&spec)));
    pod.is_some_and(|pod| pod.shim().is_some())
}

/// All but the pid.
fn create_event(new: &NewTask) -> TaskCreate {
    let streams = &new.streams;
    let io = TaskIO {
        stdin: streams.stdin.clone(),
        stdout: streams.stdout.clone(),
        stderr: streams.stderr.clone(),
        terminal: streams.terminal,
        ..TaskIO::default()
    };
    TaskCreate {
        container_id: new.id.clone(),
        bundle: new.bundle.to_string_lossy().into_owned(),
        rootfs: new.mounts.clone(),
        io: Some(io).into(),
        checkpoint: new.checkpoint.clone(),
        ..TaskCreate::default()
    }
}

impl Task {
    /// Lets the parked process go, with the hooks and the seccomp agent that its spec names. Blocks.
    pub(super) fn release(&self, layout: &Layout, process: &Process, start: &Gate) -> Result<()> {
        if let Some(shim) = &self.facts.shim {
            return shims::wait(shim.start());
        }
        let start = match (start, self.foreign(layout)) {
            (Gate::Pipe(pipe), _) => pipe,
            (Gate::Foreign, Some(foreign)) => return foreign.start(),
            (Gate::Foreign, None) => return Err(self.wrong("start", "its runtime is not known any more")),
        };
        if !self.facts.attended {
            return Ok(start.start()?);
        }
        let spec = prepare::load_spec(&self.facts.bundle)?;
        let cgroup = Cgroup::open(&self.facts.cgroup)?;
        container::start(&StartRequest {
            subject: Subject { id: &self.facts.id, bundle: &self.facts.bundle, spec: &spec },
            pid: process.pid,
            pidfd: process.own_pidfd().map_err(|e| Error::io("start", &self.facts.id, &e))?,
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

impl Facts {
    /// Of a container that is to be made, with its spec and what the client's options say.
    pub(super) fn of(keeper: &Keeper, new: NewTask) -> Result<(Self, Spec, Namespaces, Options)> {
        let options = Options::parse(new.options.as_ref())?;
        options.note_ignored();
        let (mut spec, namespaces) = prepare::spec(keeper, &new.bundle)?;
        prepare::protect_root(&new.mounts, &mut spec);
        let cgroup = prepare::cgroup(&spec, &keeper.namespace, &new.id, &options);
        prepare::set_cgroup(&mut spec, &cgroup);
        let sandbox = prepare::sandbox_of(&spec);
        let shim = keeper.sandboxes.find(&sandbox).and_then(|sandbox| sandbox.shim().cloned());
        if let (Some(pod), Some(runtime)) = (&shim, &options.runtime) {
            let (shim, runtime) = (pod.shim().path.display(), runtime.path.display());
            return Err(Error::invalid(format!(
                "container {}: its pod is run by {shim}, not by {runtime}",
                new.id
            )));
        }
        let facts = Self {
            // A foreign runtime, and a shim, does all that by itself.
            attended: options.runtime.is_none() && shim.is_none() && container::is_attended(&spec),
            shim: shim.map(|pod| shims::Container::new(pod, &new.id)),
            rootfs: prepare::rootfs(&new.mounts, &new.bundle, &spec)?,
            mounted: prepare::needs_mounting(&new.mounts),
            sandbox,
            cgroup,
            id: new.id,
            bundle: new.bundle,
            oom_before: None,
            streams: new.streams,
            foreign_pids: namespaces.foreign_pids,
            io_owner: options.io_owner(),
            criu: if options.criu_path.is_empty() { "criu".into() } else { options.criu_path.clone().into() },
            foreign: options.runtime.clone(),
        };
        Ok((facts, spec, namespaces, options))
    }
}

/// What the client's options say about the making itself.
fn wishes(options: &Options) -> container::Options {
    container::Options {
        no_pivot: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        ..container::Options::default()
    }
}

/// A container before its start, whoever made it.
struct Made {
    process: Process,
    cgroup: Cgroup,
    pty: Option<OwnedFd>,
    gate: Gate,
    clocked: Clocked,
}

fn by_ourselves(
    facts: &Facts,
    spec: Spec,
    namespaces: Namespaces,
    stdio: container::Stdio,
    options: container::Options,
) -> Result<Made> {
    let Created { pid, pidfd, cgroup, pty, start, clocked } = container::create(CreateRequest {
        id: facts.id.clone(),
        bundle: facts.bundle.clone(),
        spec,
        rootfs: facts.rootfs.clone(),
        join: namespaces.join,
        stdio,
        options,
    })?;
    Ok(Made { process: Process::new(pid, pidfd), cgroup, pty, gate: Gate::Pipe(start), clocked })
}

/// By the shim of its pod, which has its streams, too.
fn by_shim(
    facts: &Facts,
    spec: Spec,
    namespaces: &Namespaces,
    rollback: &mut Rollback<'_>,
) -> Result<(Made, stdio::Opened)> {
    let shim = facts.shim.as_ref().ok_or_else(|| Error::internal("its pod has no shim"))?;
    let (pid, opened) = shim.create(shims::New {
        spec,
        rootfs: &facts.rootfs,
        bundle: &facts.bundle,
        namespaces,
        cgroup: &facts.cgroup,
        streams: &facts.streams,
    })?;
    let undo = Arc::clone(shim);
    rollback.push("container of a shim", move || shims::wait(undo.remove()));
    // One that is in a virtual machine has none to be measured by.
    let cgroup = Cgroup::open(&facts.cgroup).or_else(|_| Cgroup::named(&facts.cgroup))?;
    let process = Process::of_shim(pid, shims::Process::new(Arc::clone(shim), ""));
    Ok((Made { process, cgroup, pty: None, gate: Gate::Foreign, clocked: Clocked::default() }, opened))
}

/// Makes the container; on error nothing is left of it. Blocks.
fn make(keeper: &Keeper, new: NewTask) -> Result<Arc<Task>> {
    let clocked = new.clocked;
    let mounts = new.mounts.clone();
    let (mut facts, mut spec, namespaces, options) = Facts::of(keeper, new)?;
    if let Some(process) = spec.process_mut() {
        prepare::process(process, None, keeper.nofile);
        process.set_terminal(Some(facts.streams.terminal));
    }
    let owner = options.io_owner().unwrap_or_else(|| prepare::owner(&spec, spec.process().as_ref()));
    let logger = Logger { id: &facts.id, namespace: &keeper.namespace };
    let mut opened = match &facts.shim {
        // It opens them itself, by name.
        Some(_) => stdio::Opened::default(),
        None => stdio::open(&facts.streams, owner, logger)?,
    };
    let save = |record: &TaskRecord| {
        records::save(&keeper.layout.tasks(), record).map_err(|e| Error::io("record", &record.id, &e))
    };
    let mut rollback = Rollback::default();
    rollback.push("log", opened.undo());
    let intent = facts.record(TaskPhase::Creating, 0, 0);
    save(&intent)?;
    rollback.push("record", move || drop(records::remove(&keeper.layout.tasks(), &intent)));
    let bundle = facts.bundle.clone();
    if facts.mounted {
        mounts::mount_all(&mounts, &bundle)?;
        rollback.push("root filesystem", move || mounts::unmount_all(&bundle));
    }
    let Made { process, cgroup, pty, gate, clocked } = match &facts.foreign {
        None if facts.shim.is_some() => {
            let (made, streams) = by_shim(&facts, spec, &namespaces, &mut rollback)?;
            opened = streams;
            rollback.push("log", opened.undo());
            made
        }
        None => {
            let wishes = container::Options { clocked, ..wishes(&options) };
            by_ourselves(&facts, spec, namespaces, opened.child, wishes)?
        }
        Some(runtime) => {
            let foreign = runtime.container(&keeper.layout, &facts.id);
            let overheard = opened.kept.get(key::ERR).map(AsFd::as_fd);
            let made = foreign.create(foreign::New {
                spec,
                rootfs: &facts.rootfs,
                bundle: &facts.bundle,
                namespaces: &namespaces,
                cgroup: &facts.cgroup,
                stdio: opened.child,
                overheard,
            })?;
            let (undo, id) = (runtime.clone(), facts.id.clone());
            rollback.push("foreign container", move || undo.container(&keeper.layout, &id).remove());
            Made {
                process: made.process,
                cgroup: made.cgroup,
                pty: made.pty,
                gate: Gate::Foreign,
                clocked: Clocked::default(),
            }
        }
    };
    let pid = process.pid;
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
    let mut kept = opened.kept;
    if let Some(pty) = pty {
        kept.insert(key::PTY, pty);
    }
    let prefix = prefix(&facts.id);
    let undo_prefix = prefix.clone();
    rollback.push("kept descriptors", move || keeper.guardian.forget_all(&undo_prefix));
    let mut more: Vec<_> = process.pidfd().map(|pidfd| ("pidfd", pidfd.as_fd())).into_iter().collect();
    if let Gate::Pipe(start) = &gate {
        more.push(("start", start.socket.as_fd()));
    }
    stdio::keep_all(&keeper.guardian, &prefix, &kept, &more)
        .map_err(|e| Error::io("keep the descriptors of", &facts.id, &e))?;
    let state = Lifecycle::Created { process, start: Arc::new(gate) };
    let task = Task::assemble(facts, state, kept, None, 0);
    task.laps.created(clocked);
    task.born.store(born(pid).unwrap_or_default(), Ordering::Relaxed);
    save(&task.record())?;
    rollback.commit();
    Ok(Arc::new(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_runtime() {
        // SHIM-OPT-01
        let mut asked = Options::default();
        (asked.no_pivot_root, asked.no_new_keyring) = (true, true);
        let wishes = wishes(&asked);
        assert!(wishes.no_pivot && wishes.no_new_keyring);
        let wishes = super::wishes(&Options::default());
        assert!(!wishes.no_pivot && !wishes.no_new_keyring);
    }
}
