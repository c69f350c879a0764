//! When the child came to the end of each of its steps: memory that it shares with its maker, for whoever wants to know where
//! the time goes. Without one nothing is clocked.

use super::raw::{call, word};
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Times in nanoseconds since the epoch: when the child began, then one for each step, 0 while it is not done.
pub struct StepClock {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the value alone and holds nothing but atomics.
unsafe impl Send for StepClock {}
// SAFETY: as above.
unsafe impl Sync for StepClock {}

impl StepClock {
    /// For a program of so many steps.
    pub fn new(steps: usize) -> io::Result<Self> {
        let words = steps + 1;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing memory. Shared and anonymous: a
        // child that gets a copy of our memory still writes to the same pages, which nobody can shrink.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * size_of::<AtomicU64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base: base.cast(), words })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: base is a live, page-aligned mapping of so many words for as long as self; zeroed memory is a valid
        // AtomicU64, and only atomics write to it.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }

    /// Begin and end of step `index`; None if it is not done.
    pub fn step(&self, index: usize) -> Option<(u64, u64)> {
        let at = |word: usize| self.words().get(word).map(|word| word.load(Relaxed)).filter(|at| *at != 0);
        Some((at(index)?, at(index + 1)?))
    }
}

impl Drop for StepClock {
    fn drop(&mut self) {
        // SAFETY: base is our own mapping of that size; no reference into it outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<AtomicU64>()) };
    }
}

impl fmt::Debug for StepClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StepClock")
    }
}

/// Nanoseconds since the epoch, without libc: also for the child.
#[inline]
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [word(libc::CLOCK_REALTIME), &raw mut time as usize, 0, 0, 0, 0];
    match call(libc::SYS_clock_gettime, args) {
        Ok(_) => (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_there_once_it_is_done() {
        let clock = StepClock::new(2).unwrap();
        assert_eq!(clock.step(0), None);
        clock.words()[0].store(now(), Relaxed);
        clock.words()[1].store(now(), Relaxed);
        let (begun, ended) = clock.step(0).unwrap();
        assert!(begun <= ended && begun > 0);
        assert_eq!((clock.step(1), clock.step(2)), (None, None));
    }
}
