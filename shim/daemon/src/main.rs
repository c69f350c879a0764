//! `slipway`: the command line. Owns nothing but the way in; `serve` is the daemon, everything else its client.
#![forbid(unsafe_code)]

pub mod cli;
pub mod restarter;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "slipway", version)]
struct Args {
    /// The daemon's socket
    #[arg(long, global = true, default_value = "/run/slipway/slipway.sock")]
    address: PathBuf,
    /// Form of what is printed
    #[arg(long, global = true, value_enum, default_value_t)]
    output: cli::Output,
    #[command(subcommand)]
    command: cli::Cli,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(cli::run(args.command, &args.address, args.output)));
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
