//! Where the time of a creation and of a start goes, step by step, for whoever asks ([`super::Options::clocked`]).

use crate::program::PARK;
use crate::sys::step_clock::{StepClock, now};
use crate::{Error, Result};

/// One step, with nanoseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lap {
    /// As [`crate::program::Program::sentences`] has it, or what was done before there was a process.
    pub step: String,
    pub begun: u64,
    pub ended: u64,
}

/// The stopwatch of a creation; it stands still unless somebody asked.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    running: bool,
    last: u64,
    laps: Vec<Lap>,
    child: Option<StepClock>,
}

impl Stopwatch {
    pub(super) fn new(running: bool) -> Self {
        Self { running, last: if running { now() } else { 0 }, ..Self::default() }
    }

    /// What was done since the last call.
    pub(super) fn lap(&mut self, step: &str) {
        if self.running {
            let begun = std::mem::replace(&mut self.last, now());
            self.laps.push(Lap { step: step.to_owned(), begun, ended: self.last });
        }
    }

    /// For a child of so many steps.
    pub(super) fn prepare(&mut self, steps: usize) -> Result<()> {
        if self.running {
            let clock = StepClock::new(steps).map_err(|e| Error::sys("clock the steps", "mmap", e))?;
            self.child = Some(clock);
        }
        Ok(())
    }

    pub(super) fn for_child(&self) -> Option<&StepClock> {
        self.child.as_ref()
    }

    /// The steps up to the parked child, and what the rest will be read from.
    pub(super) fn stop(self, sentences: &[String]) -> Clocked {
        let Self { mut laps, child, last, .. } = self;
        if let Some(child) = &child {
            let parked = parking(sentences);
            let first = child.step(0).map_or(last, |(begun, _)| begun);
            laps.push(Lap {
                step: "prepare descriptors and mounts, clone".into(),
                begun: last,
                ended: first,
            });
            laps.extend(read(child, sentences, 0..parked));
        }
        Clocked { laps, child }
    }
}

/// What a creation took, and what its start will have taken.
#[derive(Debug, Default)]
pub struct Clocked {
    laps: Vec<Lap>,
    child: Option<StepClock>,
}

impl Clocked {
    /// The steps of the creation; empty unless it was clocked.
    pub fn creation(&self) -> &[Lap] {
        &self.laps
    }

    /// The steps from the start byte on. To be asked when the start is over: execve, which no child comes back from, ends now.
    pub fn start(&self, sentences: &[String]) -> Vec<Lap> {
        let Some(child) = &self.child else { return Vec::new() };
        let mut laps = read(child, sentences, parking(sentences) + 1..sentences.len());
        // A filter is loaded without a mark of its end: it counts as part of the last one.
        if let (Some(before), Some(execve)) = (laps.last(), sentences.last()) {
            laps.push(Lap { step: execve.clone(), begun: before.ended, ended: now() });
        }
        laps
    }
}

fn parking(sentences: &[String]) -> usize {
    sentences.iter().position(|sentence| sentence == PARK).unwrap_or(sentences.len())
}

fn read(clock: &StepClock, sentences: &[String], steps: std::ops::Range<usize>) -> Vec<Lap> {
    let lap = |index: usize| {
        let (begun, ended) = clock.step(index)?;
        Some(Lap { step: sentences.get(index)?.clone(), begun, ended })
    };
    steps.filter_map(lap).collect()
}
