//! A place in version 2 for a container of version 1, for as long as somebody takes note of its groups there.
//!
//! On a hybrid host a container without huge page limits has a group in the hierarchies of version 1 alone: on the version 2
//! mount it stays where its maker is, often in the root. Who notes down its groups there, as criu does, would note
//! everybody's, and make them all again at a restore.

use super::layout::{Hierarchy, Layout};
use super::name::Name;
use super::tree::{self, Made};
use super::{Cgroup, files};
use crate::error::Kind;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Processes may fork while they are moved; the children of those that were moved are born in the place.
const ROUNDS: usize = 100;
/// How long the last zombies may stay.
const PATIENCE: Duration = Duration::from_secs(2);
/// A component's name may be a little longer.
const LONGEST: usize = 200;

/// The container's place of its own; its processes go back when this is dropped.
#[derive(Debug)]
pub struct Apart {
    /// Its directory, and the `cgroup.procs` of the group that the processes came from.
    dir: String,
    home: String,
    _made: Made,
}

impl Cgroup {
    /// Moves the group's processes to a place of their own in the version 2 hierarchy of a hybrid host. None where they have
    /// one: on version 2, without such a mount, with huge page limits. Should the caller die before it drops what it got,
    /// [`Cgroup::remove`] takes the place away.
    pub fn set_apart(&self) -> Result<Option<Apart>> {
        let Layout::V1 { unified: Some(beside), .. } = Layout::get()? else { return Ok(None) };
        if self.unified || self.is_none() || self.base.is_some() {
            return Ok(None);
        }
        let place = place(&self.name);
        // A caller that died left them there: then nobody knows any more where they were, and they go back to the root.
        let Some(home) = self.home()?.map(|path| if path == place { String::new() } else { path }) else {
            return Ok(None);
        };
        let mut made = Made::default();
        tree::make(beside, &place, &mut made).or_else(|error| match error.kind() {
            // A caller died.
            Kind::Exists => Ok(false),
            _ => Err(error),
        })?;
        let dir = beside.dir(&place);
        let apart = Apart { home: format!("{}/cgroup.procs", beside.dir(&home)), dir, _made: made };
        self.move_all(&apart.dir)?;
        Ok(Some(apart))
    }

    /// Where its processes are in version 2; None if there are none, or if that is outside of what we see.
    fn home(&self) -> Result<Option<String>> {
        for pid in self.pids()? {
            let path = format!("/proc/{pid}/cgroup");
            match files::read(&path) {
                Ok(text) => {
                    let home = text.lines().find_map(|line| line.strip_prefix("0::"));
                    let home = home.filter(|path| !path.contains("/.."));
                    return Ok(home.map(|path| path.trim_end_matches('/').to_owned()));
                }
                // It has ended.
                Err(e) if files::absent(&e) || e.raw_os_error() == Some(libc::ESRCH) => {}
                Err(e) => return Err(Error::sys("read control file", path, e)),
            }
        }
        Ok(None)
    }

    fn move_all(&self, dir: &str) -> Result<()> {
        for _ in 0..ROUNDS {
            let all = self.pids()?;
            // Read later: who is in neither list was born in the place.
            let there: BTreeSet<i32> =
                tree::pids(dir).map_err(|e| Error::sys("list", dir, e))?.into_iter().collect();
            let new: Vec<_> = all.into_iter().filter(|pid| !there.contains(pid)).collect();
            if send(&new, &format!("{dir}/cgroup.procs"))? == 0 {
                return Ok(());
            }
        }
        Err(Error::new(Kind::State, "set a control group apart", &*self.name.text)
            .hint("its processes fork faster than they can be moved; pause it first"))
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for _ in 0..ROUNDS {
            match tree::pids(&self.dir) {
                Ok(pids) if !pids.is_empty() && send(&pids, &self.home).is_ok() => {}
                _ => break,
            }
        }
        let _ = tree::remove(&self.dir, Instant::now() + PATIENCE);
    }
}

/// Takes away what a caller that died left behind; missing is success.
pub(super) fn sweep(beside: &Hierarchy, name: &Name, deadline: Instant) -> Result<()> {
    tree::remove(&beside.dir(&place(name)), deadline)
}

/// One group below the root, so that there are no parents to be removed: all of the name in one word, its end if it is long.
fn place(name: &Name) -> String {
    let flat = name.dir.trim_matches('/').replace('/', "-");
    let from = flat.char_indices().map(|(at, _)| at).find(|at| flat.len() - at <= LONGEST).unwrap_or(0);
    format!("/slipway-apart-{}", &flat[from..])
}

/// Answers how many were moved; the others have ended.
fn send(pids: &[i32], procs: &str) -> Result<usize> {
    let mut moved = 0;
    for pid in pids {
        match files::write(procs, &pid.to_string()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(Error::sys("move a process to control group", procs, error)),
            Ok(()) => moved += 1,
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_component() {
        let place = |path: &str| place(&Name::parse(path).unwrap());
        assert_eq!(place("/kubepods/pod1/c"), "/slipway-apart-kubepods-pod1-c");
        let long = place(&format!("/{}/end", "ä".repeat(120)));
        assert!(long.len() <= 255 && long.ends_with("ä-end"), "{long}");
    }
}
