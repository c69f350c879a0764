//! Which limit ran out when the OOM killer took a process of a group: its own, one of a group above, or the machine.

use super::files;
use super::layout::Layout;
use super::name::parent;
use super::stats::{self, kills_v1, kills_v2};
use super::{Cgroup, tree};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What the OOM killer did to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oom {
    /// Processes that it ended.
    pub kills: u64,
    pub level: OomLevel,
}

/// Whose memory ran out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OomLevel {
    /// The group's own limit, or one of a group below it.
    Own,
    /// The limit of this group above: for a container its pod, or what pods are in.
    Above(String),
    /// No limit: the machine has no more.
    Host,
}

impl std::fmt::Display for OomLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Own => f.write_str("own memory limit"),
            Self::Above(group) => write!(f, "memory limit of {group}"),
            Self::Host => f.write_str("memory of the host"),
        }
    }
}

/// What the group above a scope had counted before: version 2 counts there, too, and what it counted stays when systemd
/// takes the scope away with its last process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomBefore {
    /// Processes that the OOM killer ended in it and below.
    kills: u64,
    /// Times that a limit ran out in it and below, and its own among them.
    ran_out: u64,
    own: u64,
}

impl OomBefore {
    /// # Errors
    /// `Kernel` if the accounting cannot be read.
    fn read(above: &str) -> Result<Self> {
        let all = format!("{above}/memory.events");
        let own = counted(&format!("{above}/memory.events.local"), "oom")?;
        Ok(Self { kills: counted(&all, "oom_kill")?, ran_out: counted(&all, "oom")?, own })
    }
}

/// For a scope; None for groups that go only when we remove them.
pub(super) fn before(layout: &Layout, group: &Cgroup) -> Result<Option<OomBefore>> {
    match (layout, &group.name.scope, parent(&group.name.dir)) {
        (Layout::V2(hierarchy), Some(_), Some(above)) => OomBefore::read(&hierarchy.dir(above)).map(Some),
        _ => Ok(None),
    }
}

/// As [`read`], of a scope that has gone, by what the group above counted since.
pub(super) fn since(layout: &Layout, group: &Cgroup, before: &OomBefore) -> Result<Option<Oom>> {
    let (Layout::V2(hierarchy), Some(above)) = (layout, parent(&group.name.dir)) else { return Ok(None) };
    let now = OomBefore::read(&hierarchy.dir(above))?;
    let kills = now.kills.saturating_sub(before.kills);
    if kills == 0 {
        return Ok(None);
    }
    let level = if now.own > before.own {
        OomLevel::Above(above.to_owned())
    } else if now.ran_out > before.ran_out {
        OomLevel::Own
    } else {
        level_above(above, |path| ran_out_v2(&hierarchy.dir(path), false))?
    };
    Ok(Some(Oom { kills, level }))
}

/// The first group above `dir` whose limit ran out, or the machine.
fn level_above(dir: &str, ran_out: impl Fn(&str) -> Result<bool>) -> Result<OomLevel> {
    let mut above = parent(dir);
    while let Some(path) = above {
        if ran_out(path)? {
            return Ok(OomLevel::Above(path.to_owned()));
        }
        above = parent(path);
    }
    Ok(OomLevel::Host)
}

pub(super) fn read(layout: &Layout, group: &Cgroup) -> Result<Option<Oom>> {
    let (hierarchy, is_v2) = match layout {
        Layout::V2(hierarchy) => (hierarchy, true),
        Layout::V1 { .. } => match layout.v1("memory") {
            Some(hierarchy) => (hierarchy, false),
            None => return Ok(None),
        },
    };
    let dir = group.dir(layout, hierarchy);
    let kills = if is_v2 { kills_v2(&dir)? } else { kills_v1(&dir)? };
    if kills == 0 {
        // A group that has gone counts nobody, but must not look innocent.
        return stats::must_exist(group, &dir).map(|()| None);
    }
    let ran_out =
        |dir: &str, below: bool| if is_v2 { ran_out_v2(dir, below) } else { ran_out_v1(dir, below) };
    if ran_out(&dir, true)? {
        return Ok(Some(Oom { kills, level: OomLevel::Own }));
    }
    let level = level_above(group.governing_dir(), |path| ran_out(&hierarchy.dir(path), false))?;
    Ok(Some(Oom { kills, level }))
}

/// The kernel counts `oom` at the group whose limit was hit, and (but for .local) at all above it.
fn ran_out_v2(dir: &str, below: bool) -> Result<bool> {
    let file = if below { "memory.events" } else { "memory.events.local" };
    Ok(counted(&format!("{dir}/{file}"), "oom")? > 0)
}

/// Version 1 does not say which limit called the OOM killer; one that was never hit did not.
fn ran_out_v1(dir: &str, below: bool) -> Result<bool> {
    let groups = if below {
        tree::subtree(dir).map_err(|e| Error::sys("list control groups", dir, e))?
    } else {
        vec![dir.to_owned()]
    };
    for group in groups {
        if was_hit(&format!("{group}/memory"))? || was_hit(&format!("{group}/memory.memsw"))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Since the kernel counts failures only where it is told to (`track_failcnt`, seen with Linux 6.18), those of memory and
/// swap together stay at 0: then the highest use tells, which comes as close to a limit as one batch of pages.
fn was_hit(counter: &str) -> Result<bool> {
    const BATCH: u64 = 64 * 4096;
    let read = |file: &str| {
        let path = format!("{counter}.{file}");
        files::number(&path).map_err(|e| Error::sys("read accounting", &*path, e))
    };
    if read("failcnt")?.unwrap_or(0) > 0 {
        return Ok(true);
    }
    let (limit, most) = (read("limit_in_bytes")?, read("max_usage_in_bytes")?);
    Ok(limit.zip(most).is_some_and(|(limit, most)| most.saturating_add(BATCH) >= limit))
}

fn counted(path: &str, key: &str) -> Result<u64> {
    match files::read(path) {
        Ok(text) => Ok(files::keyed(&text, key).unwrap_or(0)),
        Err(e) if files::absent(&e) => Ok(0),
        Err(e) => Err(Error::sys("read accounting", path, e)),
    }
}
