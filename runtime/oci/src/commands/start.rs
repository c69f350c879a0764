use super::Id;
use crate::bundle;
use crate::cli::Global;
use crate::fault::{self, Fault};
use crate::status::Status;
use crate::store::Container;
use crate::verified::Verified;
use anyhow::{Result, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use slipway_runtime::container::{self, Parked, StartRequest, Subject};
use std::path::Path;

#[derive(Debug, Args)]
pub(crate) struct Start {
    #[command(flatten)]
    id: Id,
}

impl Start {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let container = self.id.lock(global)?;
        start(&container)
    }
}

/// Sends the byte; the container's user program runs when this returns.
pub(super) fn start(container: &Container) -> Result<()> {
    match Status::of(container) {
        Status::Created => {}
        Status::Stopped => bail!(Fault::State("cannot start a container that has stopped".to_owned())),
        Status::Running => bail!(Fault::State("cannot start an already running container".to_owned())),
        other => bail!(Fault::State(format!("cannot start a container in the {other} state"))),
    }
    let path = container.start_socket();
    release(container, &path).map_err(|error| match error.downcast() {
        Ok(error) => fault::launch(error, &command(container)),
        Err(other) => other,
    })?;
    // Only spares later commands a look; whether the container waits is asked of the socket.
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// The start itself, with the hooks and the seccomp agent that the spec names.
fn release(container: &Container, path: &Path) -> Result<()> {
    let record = &container.record;
    let steps = container.steps();
    let spec = if record.attended {
        bundle::parse::<Spec>("config.json", &container.config()?)?
    } else {
        Spec::default()
    };
    let process = Verified::find(record.pid, record.start_time)
        .ok_or_else(|| Fault::State("the container's process has ended".to_owned()))?;
    container::start(&StartRequest {
        subject: Subject { id: &record.id, bundle: &record.bundle, spec: &spec },
        pid: record.pid,
        pidfd: process.pidfd(),
        cgroup: &record.group()?,
        parked: Parked::Listening(path, &steps),
    })?;
    Ok(())
}

/// For messages only.
fn command(container: &Container) -> String {
    let spec = container.config().and_then(|bytes| bundle::parse::<Spec>("config.json", &bytes)).ok();
    spec.and_then(|spec| spec.process().as_ref().map(|process| bundle::command(process).to_owned()))
        .unwrap_or_default()
}
