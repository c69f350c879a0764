//! The command line's client half: an ordinary CRI client on the daemon's socket.
//!
//! ```text
//! manifest (as written) -> translate (as CRI wants it) -> run (the calls, their order and undoing)
//!                                                          |-> pod_dir   directories on the host
//!                                                          `-> logs, remove, pull
//! ```
//!
//! Owns the commands for people and `slipway run`. Never reaches into the daemon: everything goes over the socket,
//! except a pod's own directories and reading log files, which are on the same host.

mod attach;
pub(crate) mod client;
mod console;
mod events;
mod exec;
mod expand;
pub(crate) mod explain;
mod export;
mod facts;
mod forward;
mod identity;
mod interrupt;
mod logfile;
mod logs;
mod manifest;
pub(crate) mod output;
pub(crate) mod pod_dir;
mod pull;
pub(crate) mod registry;
mod remove;
mod resources;
mod run;
mod security;
mod show;
pub(crate) mod snippet;
mod store;
pub(crate) mod translate;
#[cfg(test)]
mod translate_tests;
mod users;
mod verify;
mod volumes;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

pub(crate) use output::Output;

/// Commands that talk to a running daemon.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Cli {
    /// Run the pods of a Kubernetes v1 Pod manifest
    Run(run::Args),
    /// List pods
    Pods,
    /// List containers
    Ps(show::PsArgs),
    /// Print what containers wrote
    Logs(logs::Args),
    /// Run a command in a container
    Exec(exec::Args),
    /// Watch a running container's output, or type into it
    Attach(attach::Args),
    /// Make ports of a pod reachable on this host
    PortForward(forward::Args),
    /// List images, or verify them
    Images {
        #[command(subcommand)]
        command: Option<Images>,
    },
    /// Pull an image
    Pull(store::PullArgs),
    /// Load images from a `docker save` or OCI-layout archive
    Import(store::ImportArgs),
    /// Write images into an archive that slipway, ctr, podman, skopeo and docker read. Layers are packed anew, uncompressed, so
    /// the digests are not those of the registry
    Export(export::ExportArgs),
    /// Remove images with all their names
    Rmi(store::RemoveArgs),
    /// Is what the image store holds what was unpacked; fails if something is damaged
    Verify(verify::Args),
    /// Show what containers use of CPU, memory and disk
    Stats(show::StatsArgs),
    /// The same again every second, until Ctrl-C
    Top,
    /// Follow what happens to pods and containers
    Events,
    /// Stop and remove pods with everything of theirs
    Rm(remove::Args),
}

/// `slipway images …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Images {
    /// Is what the image store holds what was unpacked; fails if something is damaged
    Verify(verify::Args),
}

/// Runs one command against the daemon at `address` (a path, or unix:///path).
///
/// # Errors
/// A sentence for people: no daemon there, what the daemon refused, what is wrong with the manifest. Nothing half-made
/// stays behind.
pub(crate) async fn run(command: Cli, address: &Path, output: Output) -> Result<ExitCode> {
    let mut client = client::Client::connect(address).await?;
    let client = &mut client;
    let done = match command {
        Cli::Run(args) => return run::run(client, &args, output).await,
        Cli::Exec(args) => return exec::run(client, &args).await,
        Cli::Attach(args) => return attach::run(client, &args).await,
        Cli::PortForward(args) => forward::run(client, &args).await,
        Cli::Pods => show::pods(client, output).await,
        Cli::Ps(args) => show::ps(client, &args, output).await,
        Cli::Logs(args) => logs::run(client, &args).await,
        Cli::Images { command: None } => show::images(client, output).await,
        Cli::Images { command: Some(Images::Verify(args)) } => {
            return verify::run(client, &args, output).await;
        }
        Cli::Pull(args) => store::pull(client, &args, output).await,
        Cli::Import(args) => store::import(client, &args, output).await,
        Cli::Export(args) => export::export(client, &args).await,
        Cli::Rmi(args) => store::remove(client, &args, output).await,
        Cli::Verify(args) => return verify::run(client, &args, output).await,
        Cli::Stats(args) => show::stats(client, &args, output).await,
        Cli::Top => show::stats(client, &show::StatsArgs { watch: true }, output).await,
        Cli::Events => events::run(client, output).await,
        Cli::Rm(args) => remove::run(client, &args, output).await,
    };
    match done {
        // `slipway logs | head`: whoever read has enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(broken)
}
