//! Processes that outlive the call which made them: a container's init and sessions, which are to be our own children, and
//! whatever else such a runtime leaves behind.

use crate::error::{Error, Result};
use crate::keeper::Keeper;
use crate::process::{Process, reopen};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, pidfd_open, waitid,
    waitpid,
};
use slipway_runtime::cgroup::Cgroup;
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a killed call is waited for.
const LAST_BREATH: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Variable in the environment of calls of ours, and so of what these start. Its value says whom they are for.
pub(crate) const MARK: &str = "SLIPWAY_CALLED_FOR";
/// The most ancestors that are looked at.
const ANCESTORS: usize = 64;

/// How many calls are under way whose orphans we take.
static WINDOWS: Mutex<usize> = Mutex::new(0);

/// While one is open, processes whose parent ends become our children instead of the guardian's (prctl(2),
/// PR_SET_CHILD_SUBREAPER). Only so long: what processes of containers leave behind is for the guardian to reap.
#[derive(Debug)]
pub(super) struct Window(());

impl Window {
    pub(super) fn open() -> Result<Self> {
        let mut count = WINDOWS.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            let fail = |e: rustix::io::Errno| Error::io("become", "subreaper", &e.into());
            rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(fail)?;
        }
        *count += 1;
        Ok(Self(()))
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut count = WINDOWS.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            let _ = rustix::process::set_child_subreaper(None);
        }
    }
}

/// The process that a runtime names in a file. It must be a child of ours: else it is not what it has just made, and how it
/// ends would never be known.
pub(super) fn child_of_file(file: &Path) -> Result<Process, String> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            return Err(format!("it says that all is well, and wrote no pid to {}: {error}", file.display()));
        }
    };
    let pid: i32 =
        text.trim().parse().map_err(|_| format!("it wrote {:.40?} where a pid should be", text.trim()))?;
    let foreign = || format!("the pid that it wrote, {pid}, is not of a process that it has made");
    let raw = Pid::from_raw(pid).ok_or_else(foreign)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| foreign())?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(pidfd.as_fd()), options).map_err(|_| foreign())?;
    Ok(Process::new(pid, pidfd))
}

/// Puts a session's process, and the children it has by now, into a group of its own below the container's, so that it can
/// be ended with all that it starts. One that is not in the container's group (the runtime's own, of a virtual machine, say)
/// stays where it is.
pub(crate) fn set_apart(container: &Cgroup, exec: &str, pid: i32) -> Result<Cgroup> {
    let group = container.exec_group(exec)?;
    if !container.pids()?.contains(&pid) {
        return Ok(group);
    }
    let mut waiting = vec![pid];
    while let Some(pid) = waiting.pop() {
        // One that has ended meanwhile needs no group.
        let _ = group.admit(pid.cast_unsigned());
        // Read after it has moved: what it starts from now on is born there.
        waiting.extend(children(pid));
    }
    Ok(group)
}

pub(super) fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let lists: Vec<_> = threads.flatten().map(of).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// A process's command line has a path of ours among its words, or something below that.
pub(crate) fn names(pid: i32, what: &Path) -> bool {
    let needle = what.as_os_str().as_bytes();
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| {
        command.split(|byte| *byte == 0).any(|word| {
            let rest = word.strip_prefix(needle);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        })
    })
}

/// Something that we have called, or that this has started; not somebody's who only looks at our files.
pub(crate) fn is_ours(pid: i32) -> bool {
    let prefix = [MARK.as_bytes(), b"="].concat();
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(&prefix)) || descends(pid)
}

/// From us, or from the guardian, to whom falls what a former keeper had started.
fn descends(pid: i32) -> bool {
    let guardian = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()).filter(|pid| *pid > 1);
    let own = [Some(std::process::id().cast_signed()), guardian];
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(Some(pid), parent).take(ANCESTORS).skip(1).any(|above| own.contains(&Some(above)))
}

/// Ends calls that are still under way, with what they have started: they name `what`, a path of ours, or something below it.
/// They lead process groups of their own.
pub(crate) fn end_calls(what: &Path) {
    end_calls_that(|pid| names(pid, what));
}

/// The same for those of them that are for one id, a word of their command line.
pub(crate) fn end_calls_for(what: &Path, id: &str) {
    end_calls_that(|pid| names(pid, what) && names(pid, Path::new(id)));
}

/// Ends a process that is known by number and birth, with its group if it leads one; gone is success.
pub(crate) fn end(pid: i32, born: u64) {
    if let Some(pidfd) = reopen(pid, born) {
        end_by(pid, &pidfd);
    }
}

fn end_calls_that(is_meant: impl Fn(i32) -> bool) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some(raw) = Pid::from_raw(pid) else { continue };
        let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { continue };
        if is_meant(pid) && is_ours(pid) {
            end_by(pid, &pidfd);
        }
    }
}

fn end_by(pid: i32, pidfd: &OwnedFd) {
    // Its group first, while its number cannot be another's.
    if let Some(leader) = Pid::from_raw(pid).filter(|pid| rustix::process::getpgid(Some(*pid)) == Ok(*pid)) {
        let _ = kill_process_group(leader, Signal::KILL);
    }
    let _ = slipway_runtime::sys::signal::send(pidfd.as_fd(), 9);
    let mut end = [PollFd::new(pidfd, PollFlags::IN)];
    let _ = poll(&mut end, Some(&LAST_BREATH));
}

/// Ends the process that a former keeper's call named in a file, if it is in the container's group; the keeper did not come
/// to know it.
pub(super) fn end_by_file(file: &Path, container: &str) {
    let named = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let Some(pid) = named else { return };
    let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return;
    };
    // Asked after opening: had the number been another's by then, it would not be there.
    if Cgroup::open(container).and_then(|group| group.pids()).is_ok_and(|inside| inside.contains(&pid)) {
        let _ = slipway_runtime::sys::signal::send(pidfd.as_fd(), 9);
    }
}

/// How long a dead child may be somebody's business before it is nobody's.
const MOURNING: Duration = Duration::from_secs(10);

/// Lets go of dead children that nobody waits for: what runtimes left to us beside the processes that they named and that lived
/// longer than the call (helpers of virtual machines, say). Cheap; called when a container of such a runtime has gone.
pub(crate) fn sweep(keeper: &Keeper) {
    static SEEN: Mutex<Option<HashMap<i32, Instant>>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    let own = std::process::id().cast_signed();
    let is_dead = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"))
    };
    let dead: Vec<i32> = children(own).into_iter().filter(is_dead).collect();
    seen.retain(|pid, _| dead.contains(pid));
    for pid in dead {
        let since = *seen.entry(pid).or_insert_with(Instant::now);
        let is_known = || {
            keeper.tasks.all().iter().any(|task| {
                task.snapshot().pid == pid || task.execs.all().iter().any(|exec| exec.snapshot().pid == pid)
            })
        };
        if since.elapsed() > MOURNING && !is_known() {
            let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
            seen.remove(&pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::born;
    use std::process::Command;

    /// A process that is nobody's child here, and whose command line names `path`; its pid.
    fn stranger(path: &Path, mark: Option<&Path>) -> i32 {
        let mut command = Command::new("sh");
        // The subshell ends at once: what it started is the next subreaper's or init's.
        let script = "(setsid sh -c 'echo $$; exec 1>&- 2>&-; sleep 1000; :' sh \"$0\" &)";
        command.args(["-c", script]).arg(path).env_remove(MARK);
        if let Some(mark) = mark {
            command.env(MARK, mark);
        }
        let output = command.output().unwrap();
        let pid = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let end = Instant::now() + Duration::from_secs(10);
        while !names(pid, path) {
            assert!(Instant::now() < end, "it has not begun");
            std::thread::sleep(Duration::from_millis(5));
        }
        pid
    }

    fn lives(pid: i32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
    }

    #[test]
    fn who_looks_at_our_files_lives() {
        let dir = tempfile::tempdir().unwrap();
        let bystander = stranger(&dir.path().join("c/config.json"), None);
        let call = stranger(&dir.path().join("c"), Some(dir.path()));
        let other = stranger(&dir.path().join("other"), Some(dir.path()));
        assert!(is_ours(call) && !is_ours(bystander));
        end_calls(&dir.path().join("c"));
        let after = (lives(bystander), lives(call), lives(other));
        end(other, born(other).unwrap_or_default());
        let last = (lives(bystander), lives(other));
        if let Some(born) = born(bystander) {
            end(bystander, born + 1);
            assert!(lives(bystander), "another process of that number");
            end(bystander, born);
        }
        assert_eq!(after, (true, false, true));
        assert_eq!(last, (true, false));
        assert!(!lives(bystander));
    }
}
