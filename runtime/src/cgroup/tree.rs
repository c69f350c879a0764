//! Group directories: make them with their parents, list what is below, remove them.
//!
//! Never removes a directory that it was not told to, and never moves a process.

use super::files::{self, absent};
use super::layout::Hierarchy;
use crate::error::Kind;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Directories made so far; removed again, the last first, unless kept.
#[derive(Debug, Default)]
pub(super) struct Made(Vec<String>);

impl Made {
    pub(super) fn keep(mut self) {
        self.0.clear();
    }

    /// mkdir(2); true if it was us who made it.
    fn mkdir(&mut self, dir: &str) -> io::Result<bool> {
        match fs::create_dir(dir) {
            Ok(()) => {
                self.0.push(dir.to_owned());
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // Nobody has joined it yet; if another group was put below meanwhile, that one needs it.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// The groups above `path` and `path` itself, from the top: `/a`, `/a/b`, ...
fn ancestry(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(at, _)| &path[..at]).chain([path])
}

/// Makes `path` in one hierarchy, parents included. True if the leaf is new.
///
/// # Errors
/// `Exists` if the leaf is there and holds processes or groups.
pub(super) fn make(hierarchy: &Hierarchy, path: &str, made: &mut Made) -> Result<bool> {
    let leaf = hierarchy.dir(path);
    let failed = |dir: &str, e: io::Error| {
        let full = matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOSPC));
        let error = Error::sys("make control group", dir, e);
        if full {
            error.hint("a limit on the number of groups is reached: see cgroup.max.descendants above")
        } else {
            error
        }
    };
    let new = match made.mkdir(&leaf) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut new = false;
            for dir in ancestry(path).map(|p| hierarchy.dir(p)) {
                new = made.mkdir(&dir).map_err(|e| failed(&dir, e))?;
            }
            new
        }
        other => other.map_err(|e| failed(&leaf, e))?,
    };
    if !new && is_used(&leaf).map_err(|e| failed(&leaf, e))? {
        return Err(Error::new(Kind::Exists, "make control group", leaf).hint(
            "it holds processes or groups: another container has this path, or a former one was not removed",
        ));
    }
    Ok(new)
}

/// Gives a version 1 cpuset the cpus and memory nodes of its parent, as far as it has none: without them no process
/// can enter. Empty parents are filled the same way; that changes nothing for anybody, since they can hold nobody.
pub(super) fn inherit_cpuset(hierarchy: &Hierarchy, path: &str, list: &str) -> Result<String> {
    let file = format!("{}/{list}", hierarchy.dir(path));
    let own = files::must_read(&file)?.trim().to_owned();
    if !own.is_empty() || path.is_empty() {
        return Ok(own);
    }
    let parent = path.rfind('/').map_or("", |at| &path[..at]);
    let inherited = inherit_cpuset(hierarchy, parent, list)?;
    let refused = files::Refused { controller: "cpuset", path: &file, value: &inherited };
    files::write(&file, &inherited).map_err(|e| refused.because(e))?;
    Ok(inherited)
}

/// Makes `wanted` controllers of version 2 available in `path` by enabling them in every group above.
///
/// # Errors
/// `State` when a group above holds processes itself: the kernel then hands no controllers down.
pub(super) fn enable(hierarchy: &Hierarchy, path: &str, wanted: &[&str], required: &[String]) -> Result<()> {
    let has = |list: &str, controller: &str| list.split_whitespace().any(|c| c == controller);
    let leaf = files::must_read(&format!("{}/cgroup.controllers", hierarchy.dir(path)))?;
    if wanted.iter().all(|c| has(&leaf, c)) {
        return Ok(());
    }
    let parents = ancestry(path).map(|p| p.rfind('/').map_or("", |at| &p[..at]));
    for dir in parents.map(|p| hierarchy.dir(p)) {
        let enabled = files::must_read(&format!("{dir}/cgroup.subtree_control"))?;
        let missing: Vec<&str> = wanted.iter().copied().filter(|c| !has(&enabled, c)).collect();
        if !missing.is_empty() {
            enable_in(&dir, &missing, required)?;
        }
    }
    Ok(())
}

/// Hands `missing` controllers down from one group.
fn enable_in(dir: &str, missing: &[&str], required: &[String]) -> Result<()> {
    let file = format!("{dir}/cgroup.subtree_control");
    let inhabited = |error: Error| {
        error
            .with_kind(Kind::State)
            .hint("this group holds processes itself, so it cannot have controlled groups below: move them")
    };
    // Asked before the kernel is: it would take cpu or pids from such a group, and make it and its processes
    // "threaded". Only the real root has no type, and may hold processes.
    let is_root = fs::metadata(format!("{dir}/cgroup.type")).is_err();
    if !is_root
        && !own_pids(dir).map_err(|e| Error::sys("list processes of control group", dir, e))?.is_empty()
    {
        return Err(inhabited(Error::new(
            Kind::State,
            format!("enable controllers {}", missing.join(" ")),
            file,
        )));
    }
    let all: Vec<String> = missing.iter().map(|c| format!("+{c}")).collect();
    if files::write(&file, &all.join(" ")).is_ok() {
        return Ok(());
    }
    for controller in missing {
        match files::write(&file, &format!("+{controller}")) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                return Err(inhabited(Error::sys(format!("enable controller {controller}"), file, e)));
            }
            // Not on offer here; that matters only to those who asked for it.
            Err(_) if !required.iter().any(|r| r == controller) => {}
            Err(e) => {
                return Err(Error::sys(format!("enable controller {controller}"), file, e)
                    .with_kind(Kind::Unsupported)
                    .hint("a group above does not offer this controller: see its cgroup.controllers"));
            }
        }
    }
    Ok(())
}

/// The groups directly below `dir`; none if it has gone.
pub(super) fn children(dir: &str) -> io::Result<Vec<String>> {
    // kernfs counts sub-directories in the link count: that spares reading a directory of fifty control files.
    match fs::metadata(dir) {
        Ok(meta) if meta.nlink() <= 2 => return Ok(Vec::new()),
        Ok(_) => {}
        Err(e) if absent(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// `dir` and all groups below, parents before children.
pub(super) fn subtree(dir: &str) -> io::Result<Vec<String>> {
    let mut all = vec![dir.to_owned()];
    let mut at = 0;
    while at < all.len() {
        let below = children(&all[at])?;
        all.extend(below);
        at += 1;
    }
    Ok(all)
}

/// Host pids in the group `dir` itself.
fn own_pids(dir: &str) -> io::Result<Vec<i32>> {
    match files::read(&format!("{dir}/cgroup.procs")) {
        // 0 stands for a process outside of our own pid namespace.
        Ok(text) => Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|pid| *pid != 0).collect()),
        // A threaded group of version 2: its processes are listed in the domain above.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Host pids in the group and in all below it. A process that moves meanwhile may be listed twice or not at all.
pub(super) fn pids(dir: &str) -> io::Result<Vec<i32>> {
    let mut all = own_pids(dir)?;
    for below in &subtree(dir)?[1..] {
        match own_pids(below) {
            Ok(pids) => all.extend(pids),
            Err(e) if absent(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// True if the group holds processes or groups.
pub(super) fn is_used(dir: &str) -> io::Result<bool> {
    Ok(!children(dir)?.is_empty() || !own_pids(dir)?.is_empty())
}

/// Waits until `deadline` for the last process to leave `dir` and the groups below. Missing is success.
///
/// # Errors
/// `State`, naming who is there.
pub(super) fn vacate(dir: &str, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        let pids = match pids(dir) {
            Ok(pids) if pids.is_empty() => return Ok(()),
            Err(e) if absent(&e) => return Ok(()),
            other => other.map_err(|e| Error::sys("list processes of control group", dir, e))?,
        };
        if Instant::now() >= deadline {
            return Err(Error::new(Kind::State, "remove control group", dir)
                .hint(format!("processes are still in it: {pids:?}; end them and try again")));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Removes `dir` and the groups below, waiting until `deadline` for the last processes to leave. Missing is success.
pub(super) fn remove(dir: &str, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(100);
    loop {
        let refused = match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(e) if absent(&e) => return Ok(()),
            Err(e) => e,
        };
        if refused.raw_os_error() != Some(libc::EBUSY) {
            return Err(Error::sys("remove control group", dir, refused));
        }
        // Either groups below, or processes (a dying one leaves a moment after its parent has seen it die).
        let below = children(dir).map_err(|e| Error::sys("list control groups", dir, e))?;
        for child in &below {
            remove(child, deadline)?;
        }
        if !below.is_empty() && Instant::now() < deadline {
            continue;
        }
        if Instant::now() >= deadline {
            let pids = own_pids(dir).unwrap_or_default();
            return Err(Error::sys("remove control group", dir, refused)
                .with_kind(Kind::State)
                .hint(format!("processes are still in it: {pids:?}; end them and try again")));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestry_goes_from_the_top() {
        assert_eq!(ancestry("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(ancestry("/a").collect::<Vec<_>>(), ["/a"]);
    }
}
