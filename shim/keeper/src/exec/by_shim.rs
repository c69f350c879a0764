//! Sessions in containers that the shim of their pod runs.

use super::{Exec, Lifecycle, group_of, kill_group, wait_until_gone};
use crate::error::{Error, Result};
use crate::foreign;
use crate::keeper::{Keeper, blocking};
use crate::process::Process;
use crate::shims;
use crate::stdio;
use crate::task::{SIGKILL, Task};
use oci_spec::runtime::Process as ProcessSpec;
use slipway_runtime::cgroup::Cgroup;
use std::sync::Arc;

impl Exec {
    /// [`Self::launch`] by the container's shim, which opens the streams itself.
    pub(super) fn launch_by_shim(
        &self,
        keeper: &Keeper,
        task: &Task,
        shim: &Arc<shims::Container>,
        process: &ProcessSpec,
    ) -> Result<Process> {
        let stdio::by_name::Session { kept, names, places } = stdio::by_name::session(&self.streams)?;
        stdio::keep_all(&keeper.guardian, &self.prefix(), &kept, &[])
            .map_err(|e| Error::io("keep the descriptors of exec", &self.id, &e))?;
        let started = shims::wait(shim.exec(&self.id, process, names));
        drop(places);
        let pid = started.inspect_err(|_| keeper.guardian.forget_all(&self.prefix()))?;
        // One in a virtual machine stays with the others.
        let group = Cgroup::open(task.cgroup()).map_err(Error::from);
        let group = group.and_then(|group| foreign::set_apart(&group, &self.id, pid));
        // A shim of our own kind has made it already.
        let group = group.or_else(|_| Cgroup::open(&group_of(task, &self.id)));
        let cgroup = group.map(|group| group.path().to_owned()).unwrap_or_default();
        let started = Process::of_shim(pid, shims::Process::new(Arc::clone(shim), &self.id));
        self.go_to(keeper, Lifecycle::Running { process: started.clone(), cgroup });
        *self.kept() = kept;
        Ok(started)
    }

    /// [`Self::kill`] by the container's shim; its group, if it has one here, is ours to end.
    pub(super) async fn kill_by_shim(
        &self,
        shim: &shims::Container,
        alive: bool,
        cgroup: String,
        signal: i32,
        all: bool,
    ) -> Result<()> {
        let killed = all && signal == SIGKILL && !cgroup.is_empty();
        if killed {
            let group = cgroup.clone();
            blocking(move || kill_group(&group)).await?;
        }
        if alive {
            let number =
                u32::try_from(signal).map_err(|_| Error::invalid(format!("{signal} is not a signal")))?;
            match shim.signal(&self.id, number, false).await {
                // Dead of the first blow.
                Err(error) if error.is_not_found() && killed => {}
                Err(error) if error.is_not_found() => return Err(self.finished()),
                result => result?,
            }
        }
        if killed {
            let wait = move || {
                wait_until_gone(&cgroup);
                Ok(())
            };
            blocking(wait).await?;
        }
        Ok(())
    }
}
