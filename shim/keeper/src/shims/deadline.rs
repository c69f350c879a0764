//! When a making is to be over, whatever it is made of: clients wait so long for all of it, and not for each call.

use super::link::Fault;
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    whole: Duration,
}

impl Deadline {
    pub(super) fn after(whole: Duration) -> Self {
        Self { at: Instant::now() + whole, whole }
    }

    /// What the next call may take, if no call of its kind may take more than `most`; nothing when the time is up.
    pub(super) fn left(self, most: Duration) -> Duration {
        most.min(self.at.saturating_duration_since(Instant::now()))
    }

    /// What the whole of it may take.
    pub(super) fn whole(self) -> Duration {
        self.whole
    }

    /// A call that the rest of the time was too short for is told by the time that was set, as users know it.
    pub(super) fn explain(self, fault: Fault, most: Duration) -> Fault {
        match fault {
            Fault::Late(limit) if limit < most => Fault::Late(self.whole),
            fault => fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_calls_together_have_the_time() {
        let deadline = Deadline::after(Duration::from_secs(2));
        let long = Duration::from_secs(60);
        let left = deadline.left(long);
        assert!(left > Duration::from_secs(1) && left <= Duration::from_secs(2), "{left:?}");
        assert_eq!(deadline.left(Duration::from_millis(5)), Duration::from_millis(5));
        assert!(Deadline::after(Duration::ZERO).left(long).is_zero(), "nothing is left");
        let told = deadline.explain(Fault::Late(left), long).to_string();
        assert_eq!(told, "no answer within 2 s");
        let own = deadline.explain(Fault::Late(long), long).to_string();
        assert_eq!(own, "no answer within 60 s", "its own limit");
    }
}
