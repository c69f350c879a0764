//! A container to and from a checkpoint.
//!
//! One that is created from a checkpoint has no process yet: it is restored by its start, as with runc's shim. Until then its
//! record names the images; a keeper that dies in the middle leaves a control group that the next one empties.

use super::end::remove_cgroup;
use super::{Facts, Lifecycle, NewTask, Phase, Task, prefix};
use crate::checkpoint::{self, Checkpoint, Frozen};
use crate::error::{Error, Result};
use crate::keeper::{Keeper, blocking, detached};
use crate::layout::Layout;
use crate::logger::Logger;
use crate::mounts;
use crate::prepare::{self, Namespaces};
use crate::process::{Process, born, now};
use crate::records;
use crate::rollback::Rollback;
use crate::stdio::{self, Kept, key};
use containerd_shim_protos::events::task::TaskCheckpointed;
use oci_spec::runtime::Spec;
use slipway_criu::{
    CONFIG_ANNOTATION, Dump, Images, Restore, Restored, Streams, Wishes, config_file, own_mounts,
};
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Subject};
use slipway_runtime::plan::Plan;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Task {
    /// Checkpoint: the container's processes as files; they go on unless the client says otherwise.
    pub(crate) async fn checkpoint(self: &Arc<Self>, keeper: &Arc<Keeper>, asked: Checkpoint) -> Result<()> {
        let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
        detached(async move {
            let _changing = task.changing.lock().await;
            let others = task.facts.foreign.as_ref().map(|runtime| &runtime.path);
            if let Some(path) = others.or(task.facts.shim.as_ref().map(|shim| &shim.pod().shim().path)) {
                let (id, path) = (&task.facts.id, path.display());
                return Err(Error::unimplemented(format!(
                    "checkpoint container {id}: it is run by {path}, and checkpoints are of Slipway's own containers"
                )));
            }
            let process = match &*task.lock() {
                Lifecycle::Running { process, .. } => process.clone(),
                _ => return Err(task.wrong("checkpoint", "it is not running")),
            };
            if let Some(exec) = task.execs.all().iter().find(|exec| exec.snapshot().phase == Phase::Running) {
                let why = format!("its exec session {} runs, which no restore could bring back", exec.id());
                return Err(task.wrong("checkpoint", &why));
            }
            let event = TaskCheckpointed {
                container_id: task.facts.id.clone(),
                checkpoint: asked.images.to_string_lossy().into_owned(),
                ..TaskCheckpointed::default()
            };
            let (dumper, dump_keeper) = (Arc::clone(&task), Arc::clone(&keeper));
            blocking(move || dumper.dump(&dump_keeper, &process, &asked)).await?;
            keeper.events.publish("/tasks/checkpointed", &event);
            Ok(())
        })
        .await
    }

    fn dump(&self, keeper: &Keeper, process: &Process, asked: &Checkpoint) -> Result<()> {
        let fail = |error: &anyhow::Error| checkpoint::failed("checkpoint", &self.facts.id, error);
        let known = self.known(keeper)?;
        let mut options = asked.wishes.options(known.criu_config());
        options.leave_running = Some(!asked.exit);
        let work = asked.work.as_deref().unwrap_or(&self.facts.bundle);
        let images = Images::open(&asked.images, Some(work), "dump.log", true).map_err(|e| fail(&e))?;
        let dump = Dump {
            program: &self.facts.criu,
            plan: &known.plan,
            pid: process.pid,
            rootfs: &self.facts.bundle.join("rootfs"),
            cgroup: &Cgroup::open(&self.facts.cgroup)?,
            images: &images,
            options,
            pre_dump: false,
        };
        dump.run(&mut || Ok(())).map_err(|error| {
            images.discard();
            fail(&images.explain(error))
        })
    }

    /// A container that is to be restored by its start.
    pub(super) fn freeze_made(keeper: &Keeper, new: NewTask, frozen: Frozen) -> Result<Arc<Self>> {
        let mounts = new.mounts.clone();
        let (facts, ..) = Facts::of(keeper, new)?;
        if let Some(shim) = &facts.shim {
            let (id, path) = (&facts.id, shim.pod().shim().path.display());
            return Err(Error::unimplemented(format!(
                "restore container {id}: checkpoints are Slipway's own: {path} cannot start from one"
            )));
        }
        stdio::check(&facts.streams)?;
        let task = Self::assemble(facts, Lifecycle::Frozen { frozen, begun: false }, Kept::new(), None, 0);
        let mut rollback = Rollback::default();
        // Before the record, which says that it can be started; a client that finds neither has it deleted.
        if task.facts.mounted {
            mounts::mount_all(&mounts, &task.facts.bundle)?;
            rollback.push("root filesystem", || mounts::unmount_all(&task.facts.bundle));
        }
        records::save(&keeper.layout.tasks(), &task.record())
            .map_err(|e| Error::io("record", &task.facts.id, &e))?;
        rollback.commit();
        Ok(Arc::new(task))
    }

    /// Start of such a container; its lock is held. After an error it can be tried again.
    pub(super) async fn thaw(self: &Arc<Self>, keeper: &Arc<Keeper>, frozen: Frozen) -> Result<i32> {
        self.go_to(keeper, Lifecycle::Frozen { frozen: frozen.clone(), begun: true })?;
        let started_at = now();
        let (task, maker, from) = (Arc::clone(self), Arc::clone(keeper), frozen.clone());
        let made = on_a_thread_of_its_own(move || task.restore_from(&maker, &from)).await;
        let process = match made {
            Ok(process) => process,
            Err(error) => {
                self.go_to(keeper, Lifecycle::Frozen { frozen, begun: false })?;
                return Err(error);
            }
        };
        let pid = process.pid;
        self.born.store(born(pid).unwrap_or_default(), Ordering::Relaxed);
        let running = Lifecycle::Running { process: process.clone(), started_at, paused: false };
        let connected = match self.connect(keeper).await {
            Ok(()) => self.go_to(keeper, running),
            failed => failed,
        };
        if let Err(error) = connected {
            let (task, keeper) = (Arc::clone(self), Arc::clone(keeper));
            blocking(move || {
                process.kill_and_reap();
                task.clear_thaw(&keeper);
                task.go_to(&keeper, Lifecycle::Frozen { frozen, begun: false })
            })
            .await?;
            return Err(error);
        }
        self.publish_start(keeper, pid);
        self.watch(keeper, None);
        Ok(pid)
    }

    /// The restore itself: processes, descriptors. On error nothing is left. Blocks; spoils the thread it runs on.
    fn restore_from(&self, keeper: &Keeper, frozen: &Frozen) -> Result<Process> {
        let facts = &self.facts;
        let fail = |error: &anyhow::Error| checkpoint::failed("restore", &facts.id, error);
        let known = self.known(keeper)?;
        let owner = self.io_owner();
        let owner = owner.unwrap_or_else(|| prepare::owner(&known.spec, known.spec.process().as_ref()));
        let logger = Logger { id: &facts.id, namespace: &keeper.namespace };
        // A logging program lives on in our own mount namespace.
        let mut opened = stdio::open(&facts.streams, owner, logger)?;
        own_mounts().map_err(|e| fail(&e))?;
        let work = frozen.work.as_deref().unwrap_or(&facts.bundle);
        let images = Images::open(&frozen.images, Some(work), "restore.log", false).map_err(|e| fail(&e))?;
        let mut rollback = Rollback::default();
        rollback.push("log", opened.undo());
        rollback.push("control group and descriptors", || self.clear_thaw(keeper));
        let group = Cgroup::create(&known.plan.cgroup_path, container::resources(&known.spec).as_ref())?;
        let place = keeper.layout.restored_root(&facts.id);
        std::fs::create_dir(&place).map_err(|e| Error::io("make", place.display(), &e))?;
        let mut kept = opened.kept;
        let restore = Restore {
            program: &facts.criu,
            plan: &known.plan,
            subject: Subject { id: &facts.id, bundle: &facts.bundle, spec: &known.spec },
            cgroup: &group,
            place,
            images: &images,
            options: Wishes::default().options(known.criu_config()),
            streams: Streams::Given([opened.child.stdin, opened.child.stdout, opened.child.stderr]),
        };
        let mut terminal = None;
        let restored = restore.run(&mut |master| {
            terminal = Some(master);
            Ok(())
        });
        let Restored { pid, pidfd } = restored.map_err(|error| fail(&images.explain(error)))?;
        let process = Process::new(pid, pidfd);
        let undo = process.clone();
        rollback.push("restored process", move || undo.kill_and_reap());
        kept.extend(terminal.map(|master| (key::PTY, master)));
        let pidfd = process.pidfd().map(|pidfd| ("pidfd", pidfd.as_fd()));
        stdio::keep_all(&keeper.guardian, &self.prefix(), &kept, pidfd.as_slice())
            .map_err(|e| Error::io("keep the descriptors of", &facts.id, &e))?;
        *self.kept() = kept;
        rollback.commit();
        Ok(process)
    }

    /// Takes back all that a restore may have made, but for its first process where that is known.
    pub(super) fn clear_thaw(&self, keeper: &Keeper) {
        clear(&keeper.layout, &self.facts.id, &self.facts.cgroup);
        self.kept().clear();
        keeper.guardian.forget_all(&prefix(&self.facts.id));
    }

    /// What the container is, as it was decided when it was made.
    fn known(&self, keeper: &Keeper) -> Result<Known> {
        let (mut spec, namespaces) = prepare::spec(keeper, &self.facts.bundle)?;
        prepare::set_cgroup(&mut spec, &self.facts.cgroup);
        by_descriptor(&mut spec, &namespaces);
        let plan = container::decide(&self.facts.id, &self.facts.bundle, &self.facts.rootfs, &spec)?;
        Ok(Known { spec, plan, _namespaces: namespaces })
    }
}

/// What a former keeper's restore may have left. Blocks.
pub(crate) fn clear(layout: &Layout, id: &str, cgroup: &str) {
    if let Err(error) = remove_cgroup(cgroup) {
        tracing::warn!(id, "control group of a restore: {error}");
    }
    let _ = std::fs::remove_dir(layout.restored_root(id));
}

/// A container's spec, and what it means; the descriptors that its paths name are open meanwhile.
struct Known {
    spec: Spec,
    plan: Plan,
    _namespaces: Namespaces,
}

impl Known {
    fn criu_config(&self) -> Option<String> {
        let annotations = self.spec.annotations().as_ref();
        config_file(annotations.and_then(|all| all.get(CONFIG_ANNOTATION)).map(String::as_str))
    }
}

/// The pod's own namespaces have no name but that of our descriptor.
fn by_descriptor(spec: &mut Spec, namespaces: &Namespaces) {
    let entries = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for entry in entries.into_iter().flatten() {
        let kind = prepare::kind(entry.typ());
        let held = namespaces.join.iter().find(|(held, _)| Some(*held) == kind);
        if let Some((_, fd)) = held {
            let path = format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
            entry.set_path(Some(path.into()));
        }
    }
}

/// CRIU needs a mount namespace that ends with the work: no thread of a pool may come back from there.
async fn on_a_thread_of_its_own<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("restore".into())
        .spawn(move || drop(sender.send(work())))
        .map_err(|e| Error::io("start", "a thread", &e))?;
    receiver.await.map_err(|_| Error::internal("the restore was cut short"))?
}
