//! The last few compiled profiles: a node runs hundreds of containers on two or three profiles.
//!
//! Equality of content decides, so a file changed on disk is compiled anew and nothing needs to be invalidated.

use super::Filter;
use crate::Result;
use oci_spec::runtime::LinuxSeccomp;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const KEPT: usize = 16;

/// Newest use first.
static COMPILED: Mutex<VecDeque<(LinuxSeccomp, Filter)>> = Mutex::new(VecDeque::new());

/// The filter of `profile`, compiled by `compile` unless it is known. Failures are not kept.
pub(super) fn get_or(profile: &LinuxSeccomp, compile: impl FnOnce() -> Result<Filter>) -> Result<Filter> {
    if let Some(filter) = find(profile) {
        return Ok(filter);
    }
    let filter = compile()?;
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    kept.push_front((profile.clone(), filter.clone()));
    kept.truncate(KEPT);
    Ok(filter)
}

fn find(profile: &LinuxSeccomp) -> Option<Filter> {
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let at = kept.iter().position(|(known, _)| known == profile)?;
    let entry = kept.remove(at)?;
    let filter = entry.1.clone();
    kept.push_front(entry);
    Some(filter)
}
