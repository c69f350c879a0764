//! Freezing, killing and removing whole groups.

use super::files::{read, write, write_if_there};
use crate::{Error, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a version 1 group is looked at while it freezes, and how long between looks. A process in an
/// uninterruptible call never freezes: killing goes on without it.
const FREEZE_LOOKS: u32 = 200;
const FREEZE_PAUSE: Duration = Duration::from_micros(500);

/// Host pids in `dir` and below.
pub(crate) fn pids_below(dir: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for group in tree(dir) {
        let text = read(&group, "cgroup.procs").unwrap_or_default();
        found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    found
}

/// cgroup.kill (Linux 5.14); older kernels: one by one until nobody is left to signal.
pub(crate) fn v2(dir: &Path) -> Result<()> {
    if write_if_there(dir, "cgroup.kill", "1")? {
        return Ok(());
    }
    write(dir, "cgroup.freeze", "1")?;
    signal_all(dir);
    write(dir, "cgroup.freeze", "0")
}

/// Version 1: a frozen group cannot fork away from us; the signals take effect at thawing (CRI-STOP-11).
pub(crate) fn v1(dir: &Path, freezer: bool) -> Result<()> {
    if !freezer {
        // Without a freezer a fork may slip through a round: go on until a round finds nobody new.
        for _ in 0..FREEZE_LOOKS {
            if signal_all(dir) == 0 {
                break;
            }
            std::thread::sleep(FREEZE_PAUSE);
        }
        return Ok(());
    }
    let frozen = freeze_v1(dir, true);
    signal_all(dir);
    freeze_v1(dir, false)?;
    // A group that would not freeze whole may have forked meanwhile.
    if frozen.is_err() {
        signal_all(dir);
    }
    Ok(())
}

/// freezer.state; waits until the group is frozen as a whole.
pub(crate) fn freeze_v1(dir: &Path, frozen: bool) -> Result<()> {
    if !frozen {
        return write(dir, "freezer.state", "THAWED");
    }
    for _ in 0..FREEZE_LOOKS {
        write(dir, "freezer.state", "FROZEN")?;
        if read(dir, "freezer.state")? == "FROZEN" {
            return Ok(());
        }
        std::thread::sleep(FREEZE_PAUSE);
    }
    Err(Error::sys("freeze cgroup", dir.display().to_string(), io::Error::from_raw_os_error(libc::EBUSY))
        .hint("a process in it is in an uninterruptible call"))
}

/// SIGKILL to everybody; returns how many were there.
fn signal_all(dir: &Path) -> usize {
    let pids = pids_below(dir);
    for pid in &pids {
        // Gone meanwhile is what we want.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    pids.len()
}

/// Removes `dir` and the groups below it, deepest first; the kernel refuses while zombies are in them.
pub(crate) fn remove_tree(dir: &Path, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        let mut busy = None;
        for group in tree(dir).into_iter().rev() {
            match std::fs::remove_dir(&group) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY)) => {
                    busy = Some((group, e))
                }
                Err(e) => return Err(Error::sys("remove cgroup", group.display().to_string(), e)),
            }
        }
        let Some((group, error)) = busy else { return Ok(()) };
        if Instant::now() >= deadline {
            let left = pids_below(&group);
            return Err(Error::sys("remove cgroup", group.display().to_string(), error)
                .hint(format!("processes are still in it: {left:?}")));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// `dir` and all groups below it, parents before children. Missing: none.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if dir.is_dir() {
        found.push(dir.to_owned());
    }
    let mut next = 0;
    while next < found.len() {
        let entries = std::fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let below = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
        found.extend(below.collect::<Vec<_>>());
        next += 1;
    }
    found
}
