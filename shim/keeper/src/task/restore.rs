//! Containers of a former keeper; see [`crate::recovery`].

use super::{Facts, Gate, Lifecycle, Task};
use crate::checkpoint::Frozen;
use crate::client_log;
use crate::error::Result;
use crate::keeper::Keeper;
use crate::layout::Layout;
use crate::process::{Awaited, Process, now};
use crate::records::{self, Ended, TaskRecord};
use crate::shims;
use crate::stdio::Kept;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The living part of a recovered container.
#[derive(Debug)]
pub(crate) enum Restored {
    /// Made from a checkpoint, not started.
    Frozen(Frozen),
    /// `sent`: the start byte may have been sent.
    Parked {
        process: Process,
        start: Gate,
        sent: bool,
    },
    Running {
        process: Process,
        started_at: i64,
        paused: bool,
    },
    Stopped {
        pid: i32,
        started_at: i64,
        ended: Ended,
    },
}

impl Task {
    /// A container as a former keeper left it; see [`crate::recovery`].
    pub(crate) fn restore(keeper: &Keeper, record: TaskRecord, kept: Kept, restored: Restored) -> Arc<Self> {
        let shim = record.by_shim.then(|| Self::known_shim(keeper, &record.sandbox, &record.id)).flatten();
        let state = match restored {
            Restored::Frozen(frozen) => Lifecycle::Frozen { frozen, begun: false },
            Restored::Parked { process, start, sent: false } => {
                Lifecycle::Created { process, start: Arc::new(start) }
            }
            Restored::Parked { process, start, sent: true } => {
                Lifecycle::Starting { process, start: Arc::new(start) }
            }
            Restored::Running { process, started_at, paused } => {
                Lifecycle::Running { process, started_at, paused }
            }
            Restored::Stopped { pid, started_at, ended } => Lifecycle::Stopped { pid, started_at, ended },
        };
        let ended = match &state {
            Lifecycle::Stopped { ended, .. } => Some(*ended),
            _ => None,
        };
        let facts = Facts {
            id: record.id,
            bundle: record.bundle,
            sandbox: record.sandbox,
            cgroup: record.cgroup,
            oom_before: record.oom_before,
            streams: record.streams,
            rootfs: record.rootfs,
            mounted: record.mounted,
            foreign_pids: record.foreign_pids,
            attended: record.attended,
            io_owner: record.io_owner,
            criu: record.criu,
            foreign: record.foreign,
            shim,
        };
        client_log::add(&facts.bundle);
        let task = Self::assemble(facts, state, kept, ended, record.dropped);
        task.born.store(record.born, Ordering::Relaxed);
        Arc::new(task)
    }

    /// Takes the streams over from a former keeper, before anything else can fail.
    pub(crate) async fn take_over(&self, keeper: &Keeper) {
        if self.process().is_some()
            && let Err(error) = self.connect(keeper).await
        {
            tracing::error!(id = self.facts.id, "take over the streams: {error}");
        }
        // Those of one whose output is over.
        for client in self.handed.listeners() {
            keeper.engine.leftover(client);
        }
    }

    /// Goes on where a former keeper stopped: with a start that was under way, and the wait for the end.
    pub(crate) async fn resume(self: &Arc<Self>, keeper: &Arc<Keeper>, adopted: Option<Awaited>) {
        if self.ended().is_some() {
            // Perhaps only found out now.
            if let Err(error) = records::save(&keeper.layout.tasks(), &self.record()) {
                tracing::error!(id = self.facts.id, "record the end: {error}");
            }
            self.forget_by_shim();
            return self.let_go(keeper);
        }
        let starting = match &*self.lock() {
            Lifecycle::Starting { process, start } => Some((process.clone(), Arc::clone(start))),
            _ => None,
        };
        if let Some((process, start)) = starting {
            // A client that asks for the start meanwhile waits for this one.
            let _changing = self.changing.lock().await;
            let (task, starting, layout) = (Arc::clone(self), process.clone(), keeper.layout.clone());
            let finish = move || task.finish_start(&layout, &starting, &start);
            match keeper.aside.run_if(self.facts.shim.is_some(), finish).await {
                Ok(()) => {
                    let pid = process.pid;
                    let running = Lifecycle::Running { process, started_at: now(), paused: false };
                    if let Err(error) = self.go_to(keeper, running) {
                        tracing::error!(id = self.facts.id, "record the start: {error}");
                    }
                    self.let_go_of_places(keeper);
                    self.publish_start(keeper, pid);
                }
                Err(error) => tracing::warn!(id = self.facts.id, "start begun by the former keeper: {error}"),
            }
        }
        self.watch(keeper, adopted);
    }

    /// A start whose byte the former keeper may have sent. The process's end of the socket closes with execve; while it
    /// is open, a second byte does no harm, as only one is read.
    fn finish_start(&self, layout: &Layout, process: &Process, start: &Gate) -> Result<()> {
        use rustix::net::{RecvFlags, recv};
        if let Some(shim) = &self.facts.shim {
            // One that a shim is at still is refused a second time.
            let done = shims::wait(async {
                match shim.is_waiting().await? {
                    false => Ok(()),
                    true => match shim.start().await {
                        Err(_) if !shim.is_waiting().await? => Ok(()),
                        result => result,
                    },
                }
            });
            return done;
        }
        let is_done = match (start, self.foreign(layout)) {
            (Gate::Pipe(pipe), _) => matches!(
                recv(&pipe.socket, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT),
                Ok((_, 0))
            ),
            (Gate::Foreign, Some(foreign)) => {
                // Perhaps it is at it still.
                foreign.end_calls();
                !foreign.is_waiting()?
            }
            (Gate::Foreign, None) => false,
        };
        if is_done { Ok(()) } else { self.release(layout, process, start) }
    }
}
