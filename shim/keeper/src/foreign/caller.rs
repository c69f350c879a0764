//! Between keeper and runtime, while a call makes a process that is to live on: takes in all that the call leaves behind, lets
//! go of the dead among it, and leaves the rest to the keeper by its own end.
//!
//! ```text
//!  keeper ──spawn──▶ ourselves, action "runtime" ──spawn──▶ BIN … create ──▶ init, and whatever else
//! ```
//!
//! Only here is it known which orphans are this call's. They cannot wait: a container's first process does not end before the
//! dead ones of its PID namespace are reaped (pid_namespaces(7); crun leaves one there at each exec that fails).

use super::orphans::children;
use rustix::process::{Pid, WaitOptions, waitpid};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Of our own binary; it is followed by the file of the process that is meant to live, and the runtime's command line.
pub(crate) const ACTION: &str = "runtime";
/// argv[0] of it.
pub(super) const NAME: &str = "containerd-shim-slipway-v1";
/// How long what is left may take to end, and how often that is looked at.
const LEAVING: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(1);

/// Ends as the runtime did. Returns why it could not be started.
pub(crate) fn become_caller(args: &[OsString]) -> io::Error {
    match call(args) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn call(args: &[OsString]) -> io::Result<Infallible> {
    let [pid_file, program, args @ ..] = args else { return Err(io::ErrorKind::InvalidInput.into()) };
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // The keeper blocks some for itself; some runtimes hand on what they get, and the container would never hear SIGTERM.
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    let status = Command::new(program).args(args).status()?;
    reap_strangers(Path::new(pid_file));
    std::process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

fn reap_strangers(pid_file: &Path) {
    let named = std::fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
    let end = Instant::now() + LEAVING;
    loop {
        let mut strangers = children(std::process::id().cast_signed());
        strangers.retain(|pid| Some(*pid) != named);
        strangers.retain(|pid| matches!(waitpid(Pid::from_raw(*pid), WaitOptions::NOHANG), Ok(None)));
        // Those that live are meant to, perhaps.
        if strangers.is_empty() || Instant::now() > end {
            return;
        }
        std::thread::sleep(LOOK);
    }
}
