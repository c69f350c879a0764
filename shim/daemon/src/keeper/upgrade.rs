//! After a start: whether keeper and guardian run the program that is installed, and if not, the request that they do.
//!
//! Files are compared, not versions: a package replaces a program by renaming another one into its place.

use super::{Keeper, quick};
use crate::error::{Error, Result};
use cri_proto::keeper as ext;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

/// How long the keeper may take to make way: its calls under way end first, then the next one starts.
const PATIENCE: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(20);

/// What differs from the installed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Age {
    pub(crate) keeper_is_old: bool,
    pub(crate) guardian_is_old: bool,
}

impl Keeper {
    /// Which of the two is another file than the one that is installed; what cannot be told is taken for the same.
    pub(crate) fn age(&self, info: &ext::InfoResponse) -> Age {
        let installed = identity(&self.binary);
        let is_old = |pid: i32| {
            let runs = (pid > 0).then(|| identity(Path::new(&format!("/proc/{pid}/exe")))).flatten();
            installed.zip(runs).is_some_and(|(installed, runs)| installed != runs)
        };
        Age { keeper_is_old: is_old(info.keeper_pid), guardian_is_old: is_old(info.guardian_pid) }
    }

    /// Brings the installed program into service where another one runs. A failure leaves the one that runs, and is only told:
    /// it serves as it did.
    pub(crate) async fn bring_up_to_date(&self) {
        match self.upgrade().await {
            Ok(None) => {}
            Ok(Some(now)) => tracing::info!(
                keeper = now.keeper_pid,
                guardian = now.guardian_pid,
                version = now.version,
                "keeper and guardian are upgraded to {}; containers run on",
                self.binary.display()
            ),
            Err(error) => tracing::warn!(
                "the keeper is not upgraded to {}: {error}; the former program goes on and nothing is lost; hint: see that the \
                 file is whole (it must answer -v), then restart this daemon or send SIGHUP to the keeper (keeperPid in crictl info)",
                self.binary.display()
            ),
        }
    }

    /// None: it runs already.
    async fn upgrade(&self) -> Result<Option<ext::InfoResponse>> {
        // Without a keeper there is nothing to upgrade; what comes next says why there is none.
        let Ok(before) = self.info().await else { return Ok(None) };
        let age = self.age(&before);
        if !age.keeper_is_old && !age.guardian_is_old {
            return Ok(None);
        }
        let path =
            std::path::absolute(&self.binary).map_err(|e| Error::io("find keeper", &self.binary, &e))?;
        let request = ext::UpgradeRequest { path: path.display().to_string(), ..Default::default() };
        // Asked twice it is a file that runs already.
        let asked = self.call(super::Retry::Safe, |c| {
            let request = request.clone();
            async move { c.ext.upgrade(quick(), &request).await }
        });
        match asked.await {
            Err(error) if error.code() == Code::Unimplemented || error.code() == Code::InvalidArgument => {
                let text = format!(
                    "the keeper that runs ({}) cannot be upgraded in order: {error}; drain this node and end it (SIGTERM to its \
                     guardian, pid {})",
                    before.version, before.guardian_pid
                );
                return Err(Error::state(text));
            }
            other => drop(other?),
        }
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.info().await?;
            let age = self.age(&now);
            if !age.keeper_is_old && !age.guardian_is_old {
                return Ok(Some(now));
            }
            if Instant::now() > end {
                let who = if age.keeper_is_old { "keeper" } else { "guardian" };
                let seconds = PATIENCE.as_secs();
                return Err(Error::internal(format!(
                    "the {who} is still the former one after {seconds} s; its log says why"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}
