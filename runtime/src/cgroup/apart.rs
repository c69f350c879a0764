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

/// Processes may fork while they are moved; the children of those that were moved are there already.
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
        let Some(first) = self.pids()?.first().copied() else { return Ok(None) };
        let place = place(&self.name);
        let Some(home) = home(first)?.map(|path| if path == place { String::new() } else { path }) else {
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
        self.move_all(&format!("{}/cgroup.procs", apart.dir))?;
        Ok(Some(apart))
    }

    fn move_all(&self, procs: &str) -> Result<()> {
        let mut moved = BTreeSet::new();
        for _ in 0..ROUNDS {
            let new: Vec<_> = self.pids()?.into_iter().filter(|pid| moved.insert(*pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            send(&new, procs)?;
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

/// Where a process is in version 2; none if that is outside of what we see.
fn home(pid: i32) -> Result<Option<String>> {
    let text = files::must_read(&format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).filter(|path| !path.contains("/.."));
    Ok(path.map(|path| path.trim_end_matches('/').to_owned()))
}

fn send(pids: &[i32], procs: &str) -> Result<()> {
    for pid in pids {
        match files::write(procs, &pid.to_string()) {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result.map_err(|e| Error::sys("move a process to control group", procs, e))?,
        }
    }
    Ok(())
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
