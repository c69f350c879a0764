//! A guardian that becomes a newer program without ceasing to be this process: it executes what the living keeper runs, and
//! hands itself its state.
//!
//! ```text
//!  keeper (new) ──Renew──▶ guardian (old) ── state ──▶ memfd ──execve──▶ guardian (new): same pid, children, descriptors
//! ```
//!
//! - The same process: its children stay its children, so that the exit codes of containers which a former keeper has left
//!   to it are not lost (a second guardian is nobody's parent), it is still the subreaper, and the keeper's socket, with
//!   whatever is in it, stays open: to the keeper nothing happens.
//! - Not the file at the installed path, but the one that the keeper runs: it serves, so it is no broken one.
//! - Descriptors stay where they are, named by their numbers in the state; all else is closed on exec. Signals stay
//!   blocked, and those that come meanwhile wait. An execve that fails leaves everything as it was.

use super::{Guardian, Held, Keeper, Launch, wire::Exit};
use crate::binary::{self, Identity};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

/// What the former program leaves to the next one. Fields that only one of them knows are skipped, or get their default.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    path: PathBuf,
    generation: u32,
    /// Keys, and the descriptors' numbers.
    held: Vec<(String, i32)>,
    /// Pid, status, and nanoseconds since the epoch.
    exits: Vec<(i32, u32, i64)>,
    keeper: Living,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Living {
    /// None: not our child.
    child: Option<i32>,
    socket: i32,
    told: usize,
    terminate: bool,
}

impl Guardian {
    /// Becomes what the keeper with this pid is, if that is another file. Returns only if that cannot be: then all is as
    /// it was.
    pub(super) fn renew(&mut self, keeper: i32) {
        let theirs = Identity::of_process(keeper);
        match (&theirs, Identity::own()) {
            (Ok(theirs), Ok(ours)) if *theirs == ours => return,
            (Err(error), _) => {
                return tracing::error!("guardian: not renewed: what the keeper {keeper} runs: {error}");
            }
            _ => {}
        }
        let error = match self.state().and_then(|state| written(&state)) {
            Ok(state) => self.execute(keeper, state),
            Err(error) => error,
        };
        tracing::error!("guardian: not renewed, goes on as it is: {error}");
    }

    /// # Errors
    /// In the middle of something: the keeper asks once it serves, so that is none of a good one's.
    fn state(&self) -> io::Result<State> {
        let keeper = self.keeper.as_ref().filter(|keeper| keeper.given.is_none() && !self.quitting);
        let keeper = keeper.ok_or_else(|| io::Error::other("no keeper serves"))?;
        let held = self.held.iter();
        Ok(State {
            path: self.path.clone(),
            generation: self.generation,
            held: held.map(|h| (String::from_utf8_lossy(&h.key).into_owned(), h.fd.as_raw_fd())).collect(),
            exits: self.exits.iter().map(|exit| (exit.pid, exit.status, exit.time)).collect(),
            keeper: Living {
                child: keeper.child,
                socket: keeper.socket.as_raw_fd(),
                told: keeper.told,
                terminate: keeper.terminate,
            },
        })
    }

    fn execute(&self, keeper: i32, state: OwnedFd) -> io::Error {
        if let Err(error) = self.each_descriptor(|fd| Ok(fcntl_setfd(fd, FdFlags::empty())?)) {
            return error;
        }
        let program = format!("/proc/{keeper}/exe");
        let error = self.launch.renewed(Path::new(&program)).stdin(Stdio::from(state)).exec();
        let restored = self.each_descriptor(|fd| Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?));
        let stdin = File::open("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdin(null)?));
        for failure in [restored, stdin].into_iter().filter_map(Result::err) {
            tracing::error!("guardian: after an execve that failed: {failure}");
        }
        error
    }

    fn each_descriptor(&self, work: impl Fn(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
        let socket = self.keeper.iter().map(|keeper| keeper.socket.as_fd());
        self.held.iter().map(|held| held.fd.as_fd()).chain(socket).try_for_each(work)
    }

    /// The other side of [`Guardian::renew`]: goes on with what `state` says.
    ///
    /// # Errors
    /// A state that cannot be read: the keeper sees its socket close, and makes another guardian.
    pub(crate) fn renewed(launch: Box<dyn Launch>, state: OwnedFd) -> io::Result<Self> {
        let state = read(state)?;
        let ourselves = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let take = |number: i32| -> io::Result<OwnedFd> {
            // The kernel makes the copy an owner's, and closed on exec.
            let copy = pidfd_getfd(&ourselves, number, PidfdGetfdFlags::empty())?;
            let _ = nix::unistd::close(number);
            Ok(copy)
        };
        let mut guardian = Self::bare(launch)?;
        guardian.path = state.path;
        guardian.generation = state.generation;
        guardian.keeper = Some(Keeper {
            child: state.keeper.child,
            socket: take(state.keeper.socket)?,
            since: Instant::now(),
            ready: true,
            given: None,
            told: state.keeper.told,
            terminate: state.keeper.terminate,
        });
        for (key, number) in state.held {
            match take(number) {
                Ok(fd) => guardian.held.push(Held { key: key.into_bytes(), fd }),
                Err(error) => tracing::error!(key, "guardian: a descriptor is lost: {error}"),
            }
        }
        guardian.exits.extend(state.exits.into_iter().map(|(pid, status, time)| Exit { pid, status, time }));
        tracing::info!(
            "guardian: goes on as the file that its keeper runs, {}",
            binary::own_path().display()
        );
        // Whatever died meanwhile has sent its signal, which waits; once more does no harm.
        guardian.reap();
        Ok(guardian)
    }
}

fn written(state: &State) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("slipway-guardian", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(state)?)?;
    file.rewind()?;
    Ok(file.into())
}

fn read(state: OwnedFd) -> io::Result<State> {
    let mut text = Vec::new();
    File::from(state).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_understood_by_older_and_newer_programs() {
        let state = State {
            path: "/usr/local/bin/shim".into(),
            generation: 7,
            held: vec![("listener".into(), 3), ("t/a/pidfd".into(), 9)],
            exits: vec![(77, 137, 5)],
            keeper: Living { child: Some(12), socket: 4, told: 1, terminate: true },
        };
        assert_eq!(read(written(&state).unwrap()).unwrap(), state);
        let other = r#"{"generation": 2, "colour": "red", "keeper": {"socket": 4, "colour": "blue"}}"#;
        let expected =
            State { generation: 2, keeper: Living { socket: 4, ..Living::default() }, ..State::default() };
        assert_eq!(serde_json::from_str::<State>(other).unwrap(), expected);
    }
}
