use super::{BUSY, Id};
use crate::bundle;
use crate::cli::Global;
use crate::fault::Fault;
use crate::status::Status;
use crate::store::{Container, Store};
use crate::verified::Verified;
use anyhow::{Result, bail};
use clap::Args;
use oci_spec::runtime::Spec;
use slipway_runtime::cgroup::Cgroup;
use slipway_runtime::container::{self, Subject};
use slipway_runtime::error::Kind;
use slipway_runtime::sys;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a killed container may take to go.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a forced deletion waits for whoever changes the container, before it goes on regardless.
const POLITE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    id: Id,
    /// Kill it first; a container that does not exist is no error
    #[arg(short, long)]
    force: bool,
}

impl Delete {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let store = Store::new(global.root());
        let locked = store.lock(&self.id.id, if self.force { POLITE } else { BUSY });
        let container = match locked {
            Ok(container) => container,
            Err(error) if self.force => match error.downcast_ref::<Fault>() {
                Some(Fault::Missing) => return Ok(()),
                Some(Fault::State(_)) => store.open(&self.id.id)?,
                Some(_) => return Err(error),
                // A record that cannot be read must not stay for ever.
                None => {
                    global.journal.warn(&format!("{error:#}"));
                    return discard(store.salvage(&self.id.id)?);
                }
            },
            Err(error) => return Err(error),
        };
        let status = Status::of(&container);
        if !self.force && !matches!(status, Status::Stopped | Status::Created) {
            let id = container.id();
            bail!(Fault::State(format!("cannot delete container {id} that is not stopped: {status}")));
        }
        remove(container, global)
    }
}

/// Ends what still runs, then removes group and state. What fails is tried again by the next `delete`.
pub(super) fn remove(container: Container, global: &Global) -> Result<()> {
    end(&container)?;
    after(&container, global);
    container.remove()
}

/// The same for what never came to be: no hook hears of it.
pub(super) fn discard(container: Container) -> Result<()> {
    end(&container)?;
    container.remove()
}

fn end(container: &Container) -> Result<()> {
    let record = &container.record;
    if let Some(process) = Verified::find(record.pid, record.start_time) {
        let _ = sys::signal::send(process.pidfd().as_fd(), libc::SIGKILL);
        end_group(&record.cgroup)?;
        if !process.ended_within(PATIENCE) {
            bail!(Fault::State(format!(
                "container {} did not end within {PATIENCE:?} of SIGKILL",
                record.id
            )));
        }
    }
    // A child whose creator was killed before it knew the pid.
    container::release_at(&container.start_socket());
    if !record.cgroup.is_empty() {
        end_group(&record.cgroup)?;
        Cgroup::remove_at(&record.cgroup, PATIENCE)?;
    }
    Ok(())
}

/// Poststop hooks. OCI: what fails is a warning, and the deletion goes on.
fn after(container: &Container, global: &Global) {
    let record = &container.record;
    if !record.attended {
        return;
    }
    let spec = container.config().and_then(|config| bundle::parse::<Spec>("config.json", &config));
    match spec {
        Ok(spec) => {
            let subject = Subject { id: &record.id, bundle: &record.bundle, spec: &spec };
            for error in container::after_delete(&subject) {
                global.journal.warn(&error.to_string());
            }
        }
        Err(error) => global.journal.warn(&format!("poststop hooks: {error:#}")),
    }
}

fn end_group(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    match Cgroup::open(path) {
        Err(e) if e.kind() == Kind::NotFound => Ok(()),
        group => Ok(group?.kill_all()?),
    }
}
