//! Levels in use: two random categories keep each pod apart from all others of the node.

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More categories than policies have.
const MOST: usize = 4096;

/// Who has which level: pods, and containers that ask for one of their own.
#[derive(Debug, Default)]
pub(crate) struct Levels(Mutex<BTreeMap<String, String>>);

impl Levels {
    /// Two categories below `range` that nobody has, for `owner`.
    ///
    /// # Errors
    /// ResourceExhausted when all pairs are taken.
    pub(crate) fn choose(&self, owner: &str, range: u32) -> Result<String> {
        let mut levels = self.lock();
        let pairs = u64::from(range) * u64::from(range.saturating_sub(1)) / 2;
        let first = random()? % pairs.max(1);
        let taken: BTreeSet<_> = levels.values().map(|level| categories(level)).collect();
        for step in 0..pairs {
            // From a random one on through all of them: always ends, and finds the last free one.
            let level = nth((first + step) % pairs);
            if !taken.contains(&categories(&level)) {
                levels.insert(owner.to_owned(), level.clone());
                return Ok(level);
            }
        }
        let what =
            format!("all {pairs} pairs of SELinux categories are in use: raise selinux.category_range");
        Err(Error::new(tonic::Code::ResourceExhausted, what))
    }

    /// One that was asked for: two may have the same, and no pod gets it by chance.
    pub(crate) fn take(&self, owner: &str, level: &str) {
        self.lock().insert(owner.to_owned(), level.to_owned());
    }

    /// Missing is fine.
    pub(crate) fn free(&self, owner: &str) {
        self.lock().remove(owner);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Poisoned or not, the map is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells a level from another: its categories, however they are written (`c2,c1`, `c0.c1`); of a range the upper end's.
fn categories(level: &str) -> BTreeSet<u32> {
    let listed = level.rsplit_once(':').map_or("", |(_, listed)| listed);
    let number = |word: &str| word.trim().strip_prefix('c')?.parse::<u32>().ok();
    let parts = listed.split(',').filter_map(|part| match part.split_once('.') {
        Some((first, last)) => Some(number(first)?..=number(last)?),
        None => number(part).map(|one| one..=one),
    });
    // The kernel knows no more than 1,024 or so; a number without bound is nobody's.
    parts.flat_map(|range| range.take(MOST)).collect()
}

/// The pairs in a row: (0,1), (0,2), (1,2), (0,3), …
fn nth(number: u64) -> String {
    let mut high = (((8 * number + 1) as f64).sqrt() as u64).div_ceil(2);
    // The root is rounded: at most one off.
    while high * (high + 1) / 2 <= number {
        high += 1;
    }
    while high * (high - 1) / 2 > number {
        high -= 1;
    }
    format!("s0:c{},c{high}", number - high * (high - 1) / 2)
}

fn random() -> Result<u64> {
    getrandom::u64().map_err(|e| Error::internal(format!("random categories: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pair_is_there_once() {
        let all: Vec<_> = (0..6).map(nth).collect();
        assert_eq!(all, ["s0:c0,c1", "s0:c0,c2", "s0:c1,c2", "s0:c0,c3", "s0:c1,c3", "s0:c2,c3"]);
        let many: BTreeSet<_> = (0..1024 * 1023 / 2).map(nth).collect();
        assert_eq!(many.len(), 1024 * 1023 / 2);
        assert!(many.contains("s0:c1022,c1023") && !many.contains("s0:c0,c1024"));
    }

    #[test]
    fn a_level_is_the_same_however_it_is_written() {
        for (level, same) in
            [("s0:c2,c1", true), ("s0:c1.c2", true), ("s0-s0:c1,c2", true), ("s0:c1", false), ("s0", false)]
        {
            assert_eq!(categories(level) == categories("s0:c1,c2"), same, "{level}");
        }
        let levels = Levels::default();
        levels.take("asked", "s0:c1,c0");
        levels.take("odd", "s0:c0.c4294967295");
        assert!(levels.choose("pod", 2).is_err(), "the only pair is in use");
    }

    #[test]
    fn no_two_pods_have_the_same_and_what_is_freed_comes_again() {
        let levels = Levels::default();
        levels.take("asked", "s0:c0,c1");
        levels.take("asked too", "s0:c0,c1");
        let chosen: BTreeSet<_> = (0..5).map(|n| levels.choose(&n.to_string(), 4).expect("a pair")).collect();
        assert!(chosen.len() == 5 && !chosen.contains("s0:c0,c1"), "{chosen:?}");
        let full = levels.choose("one more", 4).expect_err("none is left");
        assert!(
            full.code() == tonic::Code::ResourceExhausted && full.to_string().contains("category_range"),
            "{full}"
        );
        levels.free("asked");
        assert!(levels.choose("one more", 4).is_err(), "another one has it still");
        levels.free("3");
        levels.choose("one more", 4).expect("the freed one");
    }
}
