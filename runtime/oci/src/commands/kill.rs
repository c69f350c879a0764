use super::Id;
use crate::cli::Global;
use crate::fault::Fault;
use crate::signal;
use crate::status::Status;
use crate::store::Container;
use crate::verified::Verified;
use anyhow::{Context, Result, bail};
use clap::Args;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::sys;
use std::os::fd::AsFd;

#[derive(Debug, Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    id: Id,
    /// Name or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
    /// To all processes of the container
    #[arg(short, long)]
    all: bool,
}

impl Kill {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let signal = signal::parse(&self.signal)?;
        let container = self.id.open(global)?;
        if self.all { kill_all(&container, signal) } else { kill(&container, signal) }
    }
}

fn kill(container: &Container, signal: i32) -> Result<()> {
    let record = &container.record;
    let Some(process) = Verified::find(record.pid, record.start_time) else { bail!(Fault::NotRunning) };
    match sys::signal::send(process.pidfd().as_fd(), signal) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => bail!(Fault::NotRunning),
        sent => sent.context("send the signal")?,
    }
    if signal == libc::SIGKILL && Status::of(container) == Status::Paused {
        // On version 1 a frozen process does not even die.
        Cgroup::open(&record.cgroup).and_then(|group| group.freeze(false))?;
    }
    Ok(())
}

/// A container whose first process has ended may have left others behind: no error if there are none.
fn kill_all(container: &Container, signal: i32) -> Result<()> {
    if container.record.cgroup.is_empty() {
        // The end of a PID namespace's first process is the end of all. Others have no list to be found on.
        return kill(container, signal);
    }
    let group = match Cgroup::open(&container.record.cgroup) {
        Err(e) if e.kind() == slipway_runtime::error::Kind::NotFound => return Ok(()),
        group => group?,
    };
    if signal == libc::SIGKILL {
        return Ok(group.kill_all()?);
    }
    for pid in group.pids()? {
        // One that has ended meanwhile needs no signal.
        if let Ok(pidfd) = sys::process::open(pid) {
            let _ = sys::signal::send(pidfd.as_fd(), signal);
        }
    }
    Ok(())
}
