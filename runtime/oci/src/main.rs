//! `slipway-oci`: the command line that engines (podman, containerd's runc shim, conmon, people) expect of an OCI runtime.
//!
//! ```text
//!  argv ──cli──▶ command ──store──▶ Container {record, lock} ──▶ slipway_runtime::container ──▶ kernel
//!                   │                    <root>/<id>/                                
//!                   └──fault──▶ what engines parse: log file, standard error, exit code
//! ```
//!
//! Each command is one file below `commands`. No process of ours stays: a created container is parked on a socket in its
//! state directory (`start.sock`), and the next command finds everything else in `state.json`.

mod bundle;
mod cli;
mod commands;
mod console;
mod create;
mod fault;
mod foreground;
mod log;
mod output;
mod record;
mod signal;
mod status;
mod store;
mod verified;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    commands::protect_early();
    // Before we open anything ourselves.
    let inherited = slipway_runtime::sys::process::inherited();
    let mut cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return fault::usage(&error),
    };
    cli.global.inherited = inherited;
    cli.global.journal = log::Log::new(&cli.global);
    match commands::run(&cli.global, cli.command) {
        Ok(code) => code,
        Err(error) => fault::report(&cli.global.journal, &error),
    }
}
