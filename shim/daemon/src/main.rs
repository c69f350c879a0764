//! `slipway`: the daemon (`slipway serve`) and the commands for people, which are clients of its socket.

#![forbid(unsafe_code)]

mod apparmor;
mod cdi;
mod cgroups;
mod check;
mod checkpoints;
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
mod logging;
mod metrics;
mod names;
mod nri;
mod object;
mod pods;
mod quantity;
mod records;
mod recovery;
mod reload;
mod restarter;
mod rollback;
mod selinux;
mod serve;
mod signals;
mod spec;
mod streaming;
mod supervisor;
mod telemetry;
#[cfg(test)]
mod testing;
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
    /// What a pod would make the kernel do, step by step; needs no daemon and no root
    Explain(cli::explain::Args),
    /// Registries: where a pull goes, and why
    #[command(subcommand)]
    Registry(cli::registry::Command),
    /// Configuration, ours and others'
    #[command(subcommand)]
    Config(config::command::Command),
    #[command(flatten)]
    Client(cli::Cli),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Command::Serve(serve) => run_daemon(serve, &args.address),
        Command::Check(serve) => check::run(&serve, &args.address, args.output),
        Command::Explain(explain) => cli::explain::run(&explain, args.output).map(|()| ExitCode::SUCCESS),
        Command::Registry(command) => run_registry(&command, args.output),
        Command::Config(command) => command.run(&args.address, args.output),
        Command::Client(command) => run_client(command, &args.address, args.output),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("slipway: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_daemon(args: config::ServeArgs, address: &Path) -> anyhow::Result<ExitCode> {
    let config = config::Config::load(&args, address)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let traces = {
        let _entered = runtime.enter();
        telemetry::Traces::open(&config.file.tracing)?
    };
    let logging = logging::Logging::start(&config.file, traces.as_ref())?;
    let served = runtime.block_on(serve::serve(config, args, logging));
    if let Some(traces) = traces {
        traces.close();
    }
    served?;
    Ok(ExitCode::SUCCESS)
}

fn run_registry(command: &cli::registry::Command, output: cli::Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command.run(output)).map(|()| ExitCode::SUCCESS)
}

fn run_client(command: cli::Cli, address: &Path, output: cli::Output) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cli::run(command, address, output))
}
