//! One file per command: its options, and what it does with them.

mod checkpoint;
mod create;
mod criu;
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
use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use slipway_runtime::rootless;
use std::process::ExitCode;
use std::time::Duration;

/// How long a command waits for another one that changes the same container.
const BUSY: Duration = Duration::from_secs(30);

/// The enum of all commands, each with its name and what `--help` says of it. A command's options are looked at only when it
/// is called: engines call us several times for each container, and all options together take longer to put together than
/// some commands do.
macro_rules! commands {
    ($($name:literal $variant:ident($args:ty): $about:literal,)+) => {
        #[derive(Debug)]
        pub(crate) enum Command {
            $($variant($args),)+
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, own)) => <$args>::from_arg_matches(own).map(Self::$variant),)+
                    _ => Err(clap::Error::new(ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command$(.subcommand(clap::Command::new($name).about($about).defer(<$args>::augment_args)))+
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),+].contains(&name)
            }
        }
    };
}

commands! {
    "create" Create(create::Create): "Create a container from a bundle; it waits for `start`",
    "start" Start(start::Start): "Start what `create` made",
    "run" Run(run::Run): "Create a container, start it, and wait for its end",
    "state" State(state::State): "Print the state of a container as JSON",
    "kill" Kill(kill::Kill): "Send a signal to a container's first process",
    "delete" Delete(delete::Delete): "Remove a stopped container and all that was made for it",
    "exec" Exec(exec::Exec): "Run a process inside a running container",
    "ps" Ps(ps::Ps): "List the processes of a container",
    "list" List(list::List): "List containers",
    "pause" Pause(pause::Pause): "Stop all processes of a container where they are",
    "resume" Resume(pause::Resume): "Let a paused container go on",
    "update" Update(update::Update): "Change the limits of a running container",
    "checkpoint" Checkpoint(checkpoint::Checkpoint): "Freeze a running container into files, by CRIU",
    "restore" Restore(restore::Restore): "Make a container again from what `checkpoint` wrote, by CRIU",
    "events" Events(events::Events): "Print statistics and out-of-memory events of a container, one JSON object a line",
    "spec" Spec(spec::Spec): "Write a config.json to start from",
    "features" Features(features::Features): "Print what this runtime can do, as the runtime specification's features.md has it",
    "plan" Plan(plan::Plan): "Print every kernel step that a start of this bundle would take, in order, without taking any",
}

/// Commands that make a process inside a container.
const MAKERS: [&str; 3] = ["create", "run", "exec"];

/// Whoever makes a process inside a container does it from a read-only copy of this program; called before anything else is
/// done, that costs least. A failure is told by [`create::protect`].
pub(crate) fn protect_early() {
    let makes = |word: std::ffi::OsString| MAKERS.iter().any(|maker| word == *maker);
    if std::env::args_os().skip(1).any(makes) && crate::cli::is_root() && rootless::gain_mounts().is_ok() {
        let _ = slipway_runtime::sys::exe::run_read_only();
    }
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
        Command::Plan(command) => done(command.run(global)),
    }
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
