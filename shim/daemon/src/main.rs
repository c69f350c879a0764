//! `slipway`: the daemon (`slipway serve`) and the commands for people, which are clients of its socket.

#![forbid(unsafe_code)]

mod apparmor;
mod cdi;
mod cgroups;
mod check;
mod cli;
mod clock;
mod config;
mod containers;
mod cri;
mod daemon;
mod error;
mod events;
mod handlers;
mod ids;
mod incoming;
mod keeper;
mod metrics;
mod names;
mod nri;
mod object;
mod pods;
mod records;
mod recovery;
mod restarter;
mod rollback;
mod serve;
mod signals;
mod spec;
mod streaming;
mod telemetry;
mod usage;
mod user;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A container runtime for Kubernetes
#[derive(Debug, Parser)]
#[command(name = "slipway", version)]
struct Args {
    /// The daemon's socket
    #[arg(long, global = true, default_value = "/run/slipway/slipway.sock")]
    address: PathBuf,
    /// How answers are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    output: cli::Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(config::ServeArgs),
    /// Is this host fit for the daemon, and what to do about it
    Check(config::ServeArgs),
    /// Configuration, ours and others'
    #[command(subcommand)]
    Config(cli::snippet::ConfigCommand),
    #[command(flatten)]
    Client(cli::Cli),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Command::Serve(serve) => run_daemon(&serve, &args.address),
        Command::Check(serve) => check::run(&serve, &args.address, args.output),
        Command::Config(command) => {
            command.run();
            Ok(ExitCode::SUCCESS)
        }
        Command::Client(command) => run_client(command, &args.address, args.output),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("slipway: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_daemon(args: &config::ServeArgs, address: &Path) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log_level)?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve::serve(args, address))?;
    Ok(ExitCode::SUCCESS)
}

fn run_client(command: cli::Cli, address: &Path, output: cli::Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cli::run(command, address, output))
}
