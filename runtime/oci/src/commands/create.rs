use crate::cli::Global;
use crate::create::{self, CreateArgs};
use anyhow::Result;
use clap::Args;

/// Create a container from a bundle; it waits for `start`
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    args: CreateArgs,
}

impl Create {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        protect()?;
        create::create(global, &self.args, false).map(drop)
    }
}

/// Whoever makes a process inside a container does it from a read-only copy of this program.
pub(super) fn protect() -> Result<()> {
    use anyhow::Context;
    if crate::cli::is_root() {
        slipway_runtime::sys::exe::run_read_only().context("protect this program from containers")?;
    }
    Ok(())
}
