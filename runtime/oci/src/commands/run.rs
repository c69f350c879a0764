use super::{create, delete, start};
use crate::cli::Global;
use crate::create::{self as making, CreateArgs, Made};
use crate::foreground::{self, Signals};
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;

/// Create a container, start it, and wait for its end
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    args: CreateArgs,
    /// Return once it runs
    #[arg(short, long)]
    detach: bool,
    /// Do not delete it when it has ended
    #[arg(long)]
    keep: bool,
    /// Accepted for runc's sake: the process is waited for by descriptor
    #[arg(long, hide = true)]
    no_subreaper: bool,
}

impl Run {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode> {
        create::protect()?;
        let signals = if self.detach { None } else { Some(Signals::catch()?) };
        let Made { container, pidfd, master } = making::create(global, &self.args, !self.detach)?;
        if let Err(error) = start::start(&container) {
            let _ = slipway_runtime::sys::process::reap(&pidfd);
            let _ = delete::remove(container, global);
            return Err(error);
        }
        let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
        let code = foreground::wait(&signals, &pidfd, master.as_ref())?;
        if !self.keep {
            delete::remove(container, global)?;
        }
        Ok(ExitCode::from(code))
    }
}
