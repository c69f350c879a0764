use crate::cli::Global;
use crate::create::{self, CreateArgs};
use anyhow::Result;
use clap::Args;

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
    slipway_runtime::rootless::gain_rights()?;
    slipway_runtime::sys::exe::run_read_only().context("protect this program from containers")
}

/// The same for a process in a container that is there. An ordinary user has no right to mounts, and gets it only where
/// the container is: it goes there from where it is.
pub(super) fn protect_exec() -> Result<()> {
    if crate::cli::is_root() { protect() } else { Ok(()) }
}
