//! The phases of a run, on one clock.

use std::time::Duration;

/// One phase. All phases have the same rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunPhase {
    /// Connections open and caches fill. Latencies of this phase are not measured.
    Warming,
    Clean,
    Poisoned,
    Faults,
}

/// The end of each phase, since the beginning of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunPhases {
    pub(super) warm: Duration,
    pub(super) clean: Duration,
    pub(super) poisoned: Duration,
    pub(super) end: Duration,
}

/// Upper limit of a phase that is compared. A longer phase does not improve the comparison.
const COMPARED_MOST: Duration = Duration::from_secs(120);
const WARMING_MOST: Duration = Duration::from_secs(5);

impl RunPhases {
    pub(super) fn of(span: Duration, poisoned: bool, faults: bool) -> Self {
        let warm = (span / 20).min(WARMING_MOST);
        let share = match (poisoned, faults) {
            (true, true) => (span / 5).min(COMPARED_MOST),
            (false, true) => (span / 4).min(COMPARED_MOST),
            (true, false) => (span - warm) / 2,
            (false, false) => span - warm,
        };
        let clean = warm + share;
        let after = if poisoned { clean + share } else { clean };
        Self { warm, clean, poisoned: after, end: span }
    }

    pub(super) fn at(&self, since: Duration) -> RunPhase {
        match since {
            since if since < self.warm => RunPhase::Warming,
            since if since < self.clean => RunPhase::Clean,
            since if since < self.poisoned => RunPhase::Poisoned,
            _ => RunPhase::Faults,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_one_another() {
        let seconds = Duration::from_secs;
        let phases = RunPhases::of(seconds(40), true, true);
        assert_eq!((phases.warm, phases.clean, phases.poisoned), (seconds(2), seconds(10), seconds(18)));
        let at = [1, 5, 12, 30].map(|second| phases.at(seconds(second)));
        assert_eq!(at, [RunPhase::Warming, RunPhase::Clean, RunPhase::Poisoned, RunPhase::Faults]);
        assert_eq!(RunPhases::of(seconds(3600), true, true).poisoned, seconds(245));
        assert_eq!(RunPhases::of(seconds(40), false, false).clean, seconds(40));
    }
}
