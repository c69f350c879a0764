use super::Id;
use crate::cli::Global;
use crate::fault::Fault;
use crate::status::Status;
use anyhow::{Result, bail};
use clap::Args;
use slipway_runtime::cgroup::Cgroup;

/// Stop all processes of a container where they are
#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    id: Id,
}

/// Let a paused container go on
#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    id: Id,
}

impl Pause {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.lock(global)?;
        match Status::of(&container) {
            Status::Running | Status::Created => {}
            status => bail!(Fault::State(format!("container not running or created: {status}"))),
        }
        Ok(Cgroup::open(&container.record.cgroup)?.freeze(true)?)
    }
}

impl Resume {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.lock(global)?;
        if Status::of(&container) != Status::Paused {
            bail!(Fault::State("container not paused".to_owned()));
        }
        Ok(Cgroup::open(&container.record.cgroup)?.freeze(false)?)
    }
}
