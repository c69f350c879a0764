//! containerd-shim-slipway-v1: the keeper, parent of all containers, as containerd's shim v2 wants it started.
//!
//! ```text
//!  start (short) ──▶ guardian ──▶ serve: the keeper           delete (short)
//! ```
//!
//! `guardian`, `serve` and `adopt` are our own: only `start`, the guardian, and a keeper whose guardian died call them.
#![forbid(unsafe_code)]

mod binary;
mod bootstrap;
mod checkpoint;
mod client_log;
mod connections;
mod delete;
mod error;
mod events;
mod exec;
mod flags;
mod foreign;
mod guardian;
mod info;
mod keeper;
mod layout;
mod logger;
mod logs;
mod mounts;
mod options;
mod prepare;
mod process;
mod readiness;
mod records;
mod recovery;
mod registry;
mod rollback;
mod sandbox;
mod serve;
mod service;
mod shims;
mod start;
mod stdio;
mod task;
mod terminal;
mod upgrade;

use nix::sys::signal::{SigSet, Signal};
use start::Origin;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Becomes the message that users see (SHIM-OUT-07).
            eprintln!("containerd-shim-slipway-v1: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[OsString]) -> Result<(), Box<dyn Error>> {
    // What follows it is another program's.
    if args.first().is_some_and(|action| action == logger::ACTION) {
        return Err(logger::become_program(&args[1..]).into());
    }
    if args.first().is_some_and(|action| action == foreign::ACTION) {
        return Err(foreign::become_caller(&args[1..]).into());
    }
    if args.first().is_some_and(|action| action == shims::ACTION) {
        return Err(shims::become_shim(&args[1..]).into());
    }
    if args.first().is_some_and(|action| action == upgrade::ACTION) {
        return Ok(start::print(upgrade::upgrade_all()?.as_bytes())?);
    }
    if shims::is_publishing(args) {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
        return Ok(());
    }
    let flags = flags::parse(args)?;
    if flags.version {
        println!("containerd-shim-slipway-v1 {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    if flags.info {
        return Ok(start::print(&info::info()?)?);
    }
    // Of our own actions: the group's directory, behind the action's name.
    let root = || args.last().map(PathBuf::from).ok_or("no directory given");
    if matches!(flags.action.as_str(), "start" | "delete") {
        not_to_be_cut_short()?;
    }
    match flags.action.as_str() {
        "start" => Ok(start::print(&start::start(&flags)?)?),
        "delete" => Ok(start::print(&delete::delete(&flags)?)?),
        action @ ("guardian" | start::ADOPT | start::RENEWED) => {
            log_to_stderr(flags.debug);
            let origin = match action {
                start::ADOPT => Origin::Keeper,
                start::RENEWED => Origin::Former,
                _ => Origin::Start,
            };
            let root = root()?;
            start::guardian(flags, root, origin)
        }
        "serve" => {
            let level = level(flags.debug);
            tracing_subscriber::fmt()
                .with_max_level(level)
                .with_ansi(false)
                .with_writer(|| client_log::Line)
                .init();
            serve::serve(root()?, flags)
        }
        other => Err(format!("unknown action {other:?}; containerd calls start and delete").into()),
    }
}

/// Whoever ends the client's processes one by one must not leave half a keeper, or half of a container (SHIM-PROC-05).
fn not_to_be_cut_short() -> nix::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()
}

/// Only for the long-lived ones: containerd reads the others' stderr as their answer (SHIM-OUT-06).
fn log_to_stderr(debug: bool) {
    tracing_subscriber::fmt()
        .with_max_level(level(debug))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

fn level(debug: bool) -> tracing::Level {
    if debug { tracing::Level::DEBUG } else { tracing::Level::INFO }
}
