//! Containers that the shim of their pod runs: where a task does not do it all by itself.

use super::{SIGKILL, Task};
use crate::error::{Error, Result};
use crate::keeper::{Keeper, blocking};
use crate::process::Process;
use crate::shims;
use crate::stdio;
use protobuf::well_known_types::any::Any;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::error::Kind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a dead container's output may be on its way through its shim (runc's own waits as long).
const ON_THE_WAY: Duration = Duration::from_secs(2);
/// How long the word of memory that ran out may come after that of the end.
const OVERTAKEN: Duration = Duration::from_millis(200);
/// Between two looks at either.
const LOOK: Duration = Duration::from_millis(2);

impl Task {
    /// [`Task::kill`] by its shim.
    pub(super) async fn kill_by_shim(
        &self,
        shim: &shims::Container,
        process: &Process,
        signal: i32,
        all: bool,
        paused: bool,
    ) -> Result<()> {
        let number = u32::try_from(signal).ok().filter(|signal| *signal <= 64);
        let number = number.ok_or_else(|| Error::invalid(format!("{signal} is not a signal")))?;
        if process.has_ended() {
            return Err(self.finished());
        }
        if signal == SIGKILL {
            self.killed.store(true, Ordering::Relaxed);
            if paused {
                // A frozen process dies only once it is thawed.
                let _ = shim.freeze(false).await;
            }
        }
        if signal == SIGKILL && all {
            self.kill_group().await;
            return shim.kill().await;
        }
        let error = match shim.signal("", number, all).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => return Err(self.finished()),
            Err(error) => error,
        };
        // As long as there is a process of it on this host, its shim is not needed for that.
        let (cgroup, pid) = (self.facts.cgroup.clone(), process.pid);
        let sent = blocking(move || {
            let here =
                Cgroup::open(&cgroup).and_then(|group| group.pids()).is_ok_and(|pids| pids.contains(&pid));
            if here {
                super::signal_pid(pid, signal);
            }
            Ok(here)
        });
        if sent.await? {
            tracing::warn!(id = self.facts.id, "{error}; the process that we see gets the signal");
            return Ok(());
        }
        Err(error)
    }

    /// All that is in its control group, if it is in one of this host.
    pub(super) async fn kill_group(&self) {
        let cgroup = self.facts.cgroup.clone();
        let killed = blocking(move || match Cgroup::open(&cgroup).and_then(|group| group.kill_all()) {
            Err(error) if error.kind() != Kind::NotFound => Err(error.into()),
            _ => Ok(()),
        });
        if let Err(error) = killed.await {
            tracing::warn!(id = self.facts.id, "kill what is in the container's control group: {error}");
        }
    }

    /// A container that its shim has lost, or that has lost its shim, may have left its processes.
    pub(super) async fn end_of_shim(&self) {
        if self.facts.shim.is_some() {
            tracing::error!(id = self.facts.id, "{}", self.lost_because());
            self.kill_group().await;
        }
    }

    /// Its shim has opened its ends of the fifos, or never will.
    pub(super) fn let_go_of_places(&self, keeper: &Keeper) {
        if self.facts.shim.is_none() {
            return;
        }
        let places: Vec<_> = self.kept().extract_if(|key, _| stdio::by_name::is_placeholder(key)).collect();
        for (key, _) in places {
            keeper.guardian.forget(&format!("{}{key}", self.prefix()));
        }
    }

    /// Returns when all that it wrote is in the log's pipes, or it takes too long.
    pub(super) async fn output_of_shim(&self, keeper: &Keeper) {
        self.let_go_of_places(keeper);
        let over = async {
            while !keeper.engine.is_over(&self.facts.id).await.unwrap_or(true) {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(ON_THE_WAY, over).await.is_err() {
            tracing::warn!(
                id = self.facts.id,
                "its output is still open {} s after its end",
                ON_THE_WAY.as_secs()
            );
        }
    }

    /// Its shim says that its memory ran out; which may come after its end (SHIM-EVT-08).
    pub(super) async fn told_out_of_memory(&self, keeper: &Keeper) -> bool {
        let end = Instant::now() + OVERTAKEN;
        loop {
            if keeper.shims.ran_out(&self.facts.id) {
                return true;
            }
            let is_expected = self.facts.shim.is_some() && !self.killed.load(Ordering::Relaxed);
            if !is_expected || Instant::now() > end {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Lets the shim forget it, now that its end is on record.
    pub(super) fn forget_by_shim(&self) {
        let Some(shim) = self.facts.shim.clone() else { return };
        tokio::spawn(async move {
            if let Err(error) = shim.delete().await {
                tracing::warn!("{error}; tried again when it is removed");
            }
        });
    }

    /// What its shim measures.
    pub(crate) async fn shim_stats(&self) -> Option<Result<Any>> {
        Some(self.facts.shim.as_ref()?.stats().await)
    }

    /// Why nobody knows how it ended.
    pub(crate) fn lost_because(&self) -> String {
        let Some(shim) = &self.facts.shim else { return String::new() };
        let path = shim.pod().shim().path.display();
        match shim.lost() {
            Some(shims::Lost::Gone) => {
                format!("its shim, {path}, was gone before it could tell how the container ended")
            }
            Some(shims::Lost::Unknown) => {
                format!("its shim, {path}, does not know the container, and so not how it ended")
            }
            None => format!(
                "its shim, {path}, could not tell how the container ended: it was gone, or did not know it"
            ),
        }
    }

    /// The container in its pod's shim, if it has one, that a former keeper made.
    pub(crate) fn known_shim(keeper: &Keeper, sandbox: &str, id: &str) -> Option<Arc<shims::Container>> {
        let pod = keeper.sandboxes.find(sandbox).and_then(|sandbox| sandbox.shim().cloned());
        let pod = pod.or_else(|| shims::Pod::find(keeper, sandbox, None));
        pod.map(|pod| shims::Container::new(pod, id))
    }
}
