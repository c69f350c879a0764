use super::Id;
use crate::bundle;
use crate::cli::Global;
use crate::fault::{self, Fault};
use crate::status::Status;
use crate::store::Container;
use anyhow::{Result, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use slipway_runtime::container;

/// Start what `create` made
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
    container::start_at(&path, &container.steps())
        .map_err(|error| fault::launch(error, &command(container)))?;
    // Only spares later commands a look; whether the container waits is asked of the socket.
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// For messages only.
fn command(container: &Container) -> String {
    let spec = container.config().and_then(|bytes| bundle::parse::<Spec>("config.json", &bytes)).ok();
    spec.and_then(|spec| spec.process().as_ref().map(|process| bundle::command(process).to_owned()))
        .unwrap_or_default()
}
