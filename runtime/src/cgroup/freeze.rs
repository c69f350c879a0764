//! Freezing, thawing and killing whole groups.
//!
//! Version 2 does each with one write. On version 1 a kill is signal, look again, and done when nobody new is there; only a
//! group that keeps growing is frozen first, so that no fork can outrun it: freezing costs up to 20 ms and few need it;
//! `freezer.state` is driven by cgroups-rs (`FreezerController`: one open and one write, as it should be).
//! Waiting is bounded: for a freeze until [`PATIENCE`], for a kill not at all (the holder of the pidfd waits).

use super::files::{self, absent};
use super::tree;
use crate::error::Kind;
use crate::{Error, Result};
use cgroups_rs::FreezerState;
use cgroups_rs::fs::freezer::FreezerController;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long processes may take to stop. One in an uninterruptible sleep cannot be frozen before it wakes.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same before a kill, which works without it, too, only with more rounds.
const KILL_PATIENCE: Duration = Duration::from_millis(20);
/// Rounds of a kill before it freezes: the second finds nobody new unless processes were just being born.
const QUICK_ROUNDS: usize = 3;
/// Rounds of a kill that could not freeze: each ends what the former let be born.
const ROUNDS: usize = 200;

fn controller(dir: &str) -> FreezerController {
    FreezerController::new(PathBuf::from(dir), PathBuf::new(), false)
}

/// Version 1: freezes or thaws `dir`; on failure it is thawed again.
pub(super) fn set_v1(dir: &str, frozen: bool) -> Result<()> {
    if !frozen {
        return controller(dir).thaw().map_err(|e| files::from_crate("thaw control group", dir, &e));
    }
    if freeze_within(dir, PATIENCE)? {
        return Ok(());
    }
    controller(dir).thaw().map_err(|e| files::from_crate("thaw control group", dir, &e))?;
    Err(not_frozen(dir))
}

/// Version 2: the same.
pub(super) fn set_v2(dir: &str, frozen: bool) -> Result<()> {
    let file = format!("{dir}/cgroup.freeze");
    let write =
        |value: &str| files::write(&file, value).map_err(|e| Error::sys("freeze control group", &*file, e));
    write(if frozen { "1" } else { "0" })?;
    let events = format!("{dir}/cgroup.events");
    let wanted = u64::from(frozen);
    if wait(PATIENCE, || Ok(files::keyed(&files::must_read(&events)?, "frozen") == Some(wanted)))? {
        return Ok(());
    }
    // Thawing a group whose parent is frozen changes nothing until the parent is thawed: that is no failure.
    if frozen {
        write("0")?;
        return Err(not_frozen(dir));
    }
    Ok(())
}

fn not_frozen(dir: &str) -> Error {
    Error::new(Kind::State, "freeze control group", dir).hint(
        "a process did not stop in time: it waits for a device or a file system; the group is thawed again",
    )
}

/// Writes FROZEN until all have stopped; false if time ran out.
fn freeze_within(dir: &str, patience: Duration) -> Result<bool> {
    let freezer = controller(dir);
    // Writing again helps: a process forked while the first write went through the group is caught by the next.
    wait(patience, || {
        freezer.freeze().map_err(|e| files::from_crate("freeze control group", dir, &e))?;
        let state = freezer.state().map_err(|e| files::from_crate("read freezer state", dir, &e))?;
        Ok(matches!(state, FreezerState::Frozen))
    })
}

/// Tries until it is true or time is over.
fn wait(patience: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(50);
    loop {
        if is_so()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// SIGKILL to everything in the version 2 group and below.
pub(super) fn kill_v2(dir: &str) -> Result<()> {
    let file = format!("{dir}/cgroup.kill");
    match files::write(&file, "1") {
        Ok(()) => Ok(()),
        // Linux before 5.14, or the group has gone: the rounds below find out.
        Err(e) if absent(&e) => kill_in_rounds(dir),
        Err(e) => Err(Error::sys("kill control group", file, e)),
    }
}

/// SIGKILL to everything in the version 1 freezer group and below. Groups that were frozen are thawed: a frozen
/// process dies only then.
pub(super) fn kill_v1(dir: &str) -> Result<()> {
    let mut signalled = BTreeSet::new();
    for _ in 0..QUICK_ROUNDS {
        if !signal_all(dir, &mut signalled)? {
            return if signalled.is_empty() { Ok(()) } else { thaw_tree(dir) };
        }
    }
    let still = freeze_within(dir, KILL_PATIENCE).unwrap_or(false);
    let killed = if still { signal_all(dir, &mut BTreeSet::new()).map(drop) } else { Ok(()) };
    let thawed = thaw_tree(dir);
    killed.and(thawed)?;
    // Not all stopped, or there is no freezer: then rounds.
    if still { Ok(()) } else { kill_in_rounds(dir) }
}

/// The container may have frozen groups of its own.
fn thaw_tree(dir: &str) -> Result<()> {
    let groups = tree::subtree(dir).map_err(|e| Error::sys("list control groups", dir, e))?;
    for group in groups {
        match files::write(&format!("{group}/freezer.state"), "THAWED") {
            Err(e) if !absent(&e) => return Err(Error::sys("thaw control group", group, e)),
            _ => {}
        }
    }
    Ok(())
}

/// A process that has a SIGKILL pending cannot fork, so each round leaves fewer.
fn kill_in_rounds(dir: &str) -> Result<()> {
    let mut signalled = BTreeSet::new();
    for _ in 0..ROUNDS {
        if !signal_all(dir, &mut signalled)? {
            return Ok(());
        }
    }
    Err(Error::new(Kind::State, "kill control group", dir)
        .hint("processes are born faster than they can be ended; freeze it"))
}

/// True if there was anybody not in `signalled` yet.
fn signal_all(dir: &str, signalled: &mut BTreeSet<i32>) -> Result<bool> {
    let pids = match tree::pids(dir) {
        Ok(pids) => pids,
        Err(e) if absent(&e) => return Ok(false),
        Err(e) => return Err(Error::sys("list processes of control group", dir, e)),
    };
    let mut anybody = false;
    for pid in pids {
        let Some(target) = Pid::from_raw(pid) else { continue };
        anybody |= signalled.insert(pid);
        match kill_process(target, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(Error::sys("kill process", pid.to_string(), e)),
        }
    }
    Ok(anybody)
}
