//! Writable layers as projects of the file system, where they are to be limited and it can: the kernel counts what each holds.
//! (Usage is not told by that count: the host's root, which many containers run as, can take files out of a project.)
//!
//! A project's number is nowhere but on the layer's directory itself, so nothing can disagree with it. All of a layer has to
//! be in the same one: overlayfs moves files from work/ to upper/, and rename(2) across projects is EXDEV.

use super::Inner;
use super::layout::Layout;
use crate::{Error, Kind, Result};
use slipway_runtime::sys::quota::{self, Held, Support};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Numbers of ours: far from those that people write into projid(5), and that the kubelet counts up from them.
const FIRST: u32 = 0x5000_0000;
const NUMBERS: u32 = 0x1000_0000;

/// What the store's file system does for writable layers.
#[derive(Debug)]
pub(crate) struct Projects {
    support: Support,
    /// Why layers cannot be limited.
    missing: Option<String>,
    /// Held from the choice of a number until a directory has it.
    choosing: Mutex<()>,
}

impl Projects {
    pub(crate) fn of(layout: &Layout) -> Result<Self> {
        let path = layout.dir("containers");
        let dir = File::open(&path).map_err(|e| Error::io("open store", &path, e))?;
        // Somebody gave the whole store to a project: that one counts.
        let taken = quota::project(dir.as_fd()).ok().filter(|project| *project != 0);
        let support = if taken.is_some() { Support::Nothing } else { quota::support(dir.as_fd()) };
        let missing = match (taken, support) {
            (Some(project), _) => Some(format!("the store itself belongs to project {project}")),
            (None, Support::Limits) => None,
            (None, Support::Counts | Support::Nothing) => {
                Some("its file system enforces no project quotas; mount it with prjquota (XFS, or ext4 with its features quota and project)".to_owned())
            }
        };
        Ok(Self { support, missing, choosing: Mutex::default() })
    }

    /// Why `limit` of [`Projects::begin`] has no effect here; None: it has.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.missing.as_deref()
    }

    /// Makes the new directory of `owner` a project, before anything is in it that counts. `limit`: bytes, 0 for none.
    pub(crate) fn begin(&self, directory: &Path, owner: &str, limit: u64) -> Result<()> {
        if limit == 0 || self.support != Support::Limits {
            return Ok(());
        }
        let failed = |e: io::Error| Error::io("set project quota", directory, e);
        let dir = File::open(directory).map_err(failed)?;
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let project = free(&dir, owner)?;
        // In this order a number that nobody has is never left with a limit.
        quota::join(dir.as_fd(), project).map_err(failed)?;
        quota::limit(dir.as_fd(), project, limit).map_err(failed)
    }

    /// The number is free again, as soon as the files are gone.
    pub(crate) fn end(&self, directory: &Path) {
        let ended = self.own(directory).and_then(|own| match own {
            Some((dir, project)) if self.support == Support::Limits => quota::limit(dir.as_fd(), project, 0),
            _ => Ok(()),
        });
        if let Err(error) = ended {
            tracing::warn!(directory = %directory.display(), %error, "cannot lift the project quota of a layer that goes");
        }
    }

    fn own(&self, directory: &Path) -> io::Result<Option<(File, u32)>> {
        if self.support == Support::Nothing {
            return Ok(None);
        }
        let dir = match File::open(directory) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let project = quota::project(dir.as_fd())?;
        let is_ours = (FIRST..FIRST + NUMBERS).contains(&project);
        Ok(is_ours.then_some((dir, project)))
    }
}

/// A number that nobody holds anything by: from the owner's name on, so that neighbours seldom meet.
fn free(dir: &File, owner: &str) -> Result<u32> {
    const TRIES: u32 = 64;
    let start = owner.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    for step in 0..TRIES {
        let project = FIRST + start.wrapping_add(step) % NUMBERS;
        let held = quota::held(dir.as_fd(), project)
            .map_err(|e| Error::new(Kind::Io, "find a free project", owner, e))?;
        if held == Held::default() {
            return Ok(project);
        }
    }
    let taken = format!("{TRIES} numbers from {} on are taken", FIRST + start % NUMBERS);
    Err(Error::new(Kind::Exhausted, "find a free project", owner, taken))
}

impl Inner {
    /// Bytes that the next writable layers may hold; 0: any.
    pub(super) fn writable_limit(&self) -> u64 {
        self.writable_limit.load(std::sync::atomic::Ordering::Relaxed)
    }
}
