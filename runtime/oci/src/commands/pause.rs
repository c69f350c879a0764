use super::Id;
use crate::cli::Global;
use crate::fault::Fault;
use crate::status::Status;
use anyhow::{Result, bail};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    id: Id,
}

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
        Ok(container.record.own_group()?.freeze(true)?)
    }
}

impl Resume {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.lock(global)?;
        if Status::of(&container) != Status::Paused {
            bail!(Fault::State("container not paused".to_owned()));
        }
        Ok(container.record.own_group()?.freeze(false)?)
    }
}
