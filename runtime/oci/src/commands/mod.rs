//! One file per command: its options, and what it does with them.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod plan;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod update;

use crate::cli::Global;
use crate::store::{Container, Store};
use anyhow::Result;
use clap::{Args, Subcommand};
use std::process::ExitCode;
use std::time::Duration;

/// How long a command waits for another one that changes the same container.
const BUSY: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(create::Create),
    Start(start::Start),
    Run(run::Run),
    State(state::State),
    Kill(kill::Kill),
    Delete(delete::Delete),
    Exec(exec::Exec),
    Ps(ps::Ps),
    List(list::List),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Update(update::Update),
    Checkpoint(checkpoint::Checkpoint),
    Restore(restore::Restore),
    Events(events::Events),
    Spec(spec::Spec),
    Features(features::Features),
    Plan(plan::Plan),
}

/// A command's only argument.
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Name of the container
    #[arg(value_name = "CONTAINER_ID")]
    id: String,
}

impl Id {
    fn open(&self, global: &Global) -> Result<Container> {
        Store::new(global.root()).open(&self.id)
    }

    fn lock(&self, global: &Global) -> Result<Container> {
        Store::new(global.root()).lock(&self.id, BUSY)
    }
}

pub(crate) fn run(global: &Global, command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(command) => done(command.run(global)),
        Command::Start(command) => done(command.run(global)),
        Command::Run(command) => command.run(global),
        Command::State(command) => done(command.run(global)),
        Command::Kill(command) => done(command.run(global)),
        Command::Delete(command) => done(command.run(global)),
        Command::Exec(command) => command.run(global),
        Command::Ps(command) => done(command.run(global)),
        Command::List(command) => done(command.run(global)),
        Command::Pause(command) => done(command.run(global)),
        Command::Resume(command) => done(command.run(global)),
        Command::Update(command) => done(command.run(global)),
        Command::Checkpoint(command) => done(command.run(global)),
        Command::Restore(command) => command.run(global),
        Command::Events(command) => done(command.run(global)),
        Command::Spec(command) => done(command.run()),
        Command::Features(command) => done(command.run()),
        Command::Plan(command) => done(command.run()),
    }
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
