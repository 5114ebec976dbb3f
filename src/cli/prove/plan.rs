//! What goes wrong, and when: the whole schedule follows from the seed, so that a run can be made again.
//!
//! Guarantees: pure; the same seed, span and kinds give the same schedule; each kind comes at least once, and each fault ends
//! within the span. Leaves to others: doing it (`faults.rs`).

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::message::Destination;

#[expect(unreachable_pub, reason = "`named!` knows no other visibility")]
mod kinds {
    use crate::message::named;

    named! {
        /// One way in which something goes wrong, by the name that `--faults` knows.
        Mishap {
            /// kill -9 of the ingress, and its restart.
            KillIngress = "kill-ingress",
            /// kill -9 of a worker (embedded: of the one process), and its restart.
            KillWorker = "kill-worker",
            /// A worker stopped for longer than the broker's patience, and woken.
            FreezeWorker = "freeze-worker",
            /// The callers' connections to the ingress are reset.
            CutCallers = "cut-callers",
            /// Nothing moves between the callers and the ingress.
            HoleCallers = "hole-callers",
            /// The ingress' connections to the broker are reset.
            CutIngressBroker = "cut-ingress-broker",
            /// Nothing moves between the ingress and the broker.
            HoleIngressBroker = "hole-ingress-broker",
            /// A worker's connections to the broker are reset.
            CutWorkerBroker = "cut-worker-broker",
            /// Nothing moves between a worker and the broker.
            HoleWorkerBroker = "hole-worker-broker",
            /// The workers' connections to a platform are reset.
            CutPlatform = "cut-platform",
            /// Nothing moves between the workers and a platform.
            HolePlatform = "hole-platform",
            /// A platform refuses connections.
            DownPlatform = "down-platform",
            /// A platform answers some with 503.
            Busy = "503",
            /// A platform answers some with 429 and `Retry-After`.
            TooMany = "429",
            /// A platform answers some with 504.
            GatewayTimeout = "504",
            /// A platform answers some not at all.
            Hang = "hang",
            /// A platform closes some connections instead of an answer.
            Cut = "cut",
            /// The same, after it did what was asked.
            CutAfter = "cut-after",
            /// A platform answers with an HTML page.
            Html = "html",
            /// A platform takes its time.
            Slow = "slow",
            /// Every write to a file fails, as on a full disk.
            FullDisk = "full-disk",
            /// The broker stops in good order, and starts.
            StopBroker = "stop-broker",
            /// kill -9 of the broker, and its restart.
            KillBroker = "kill-broker",
        }
    }
}
pub(super) use kinds::Mishap;

/// What there is to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ground {
    /// Whether there is a broker between ingress and workers.
    pub(super) broker: bool,
    /// Whether it can be told to stop.
    pub(super) broker_control: bool,
    pub(super) workers: usize,
    /// Longer than the broker waits for a silent worker.
    pub(super) patience: Duration,
}

impl Mishap {
    /// Whether it can be made on this ground.
    pub(super) fn possible(self, ground: Ground) -> bool {
        match self {
            Self::KillIngress
            | Self::CutIngressBroker
            | Self::HoleIngressBroker
            | Self::CutWorkerBroker
            | Self::HoleWorkerBroker => ground.broker,
            Self::StopBroker | Self::KillBroker => ground.broker && ground.broker_control,
            // A broker has a disk of its own. The limit that stands for it is Linux'.
            Self::FullDisk => !ground.broker && cfg!(target_os = "linux"),
            _ => true,
        }
    }

    /// Whether it can leave open whether a delivery has happened or was noted.
    pub(super) const fn blurs_delivery(self) -> bool {
        matches!(
            self,
            Self::KillWorker
                | Self::FreezeWorker
                | Self::CutWorkerBroker
                | Self::HoleWorkerBroker
                | Self::CutPlatform
                | Self::HolePlatform
                | Self::DownPlatform
                | Self::StopBroker
                | Self::KillBroker
        )
    }

    /// Whether it can leave open whether a message was taken, so that its caller posts it again.
    pub(super) const fn blurs_acceptance(self) -> bool {
        matches!(
            self,
            Self::KillIngress
                | Self::KillWorker
                | Self::FreezeWorker
                | Self::CutCallers
                | Self::HoleCallers
                | Self::CutIngressBroker
                | Self::HoleIngressBroker
                | Self::StopBroker
                | Self::KillBroker
        )
    }

    /// How long it lasts, in milliseconds: from, to.
    fn lasting(self, ground: Ground, long_run: bool) -> (u64, u64) {
        match self {
            Self::CutCallers | Self::CutIngressBroker | Self::CutWorkerBroker | Self::CutPlatform => (0, 0),
            Self::KillIngress | Self::KillWorker => (100, 1_500),
            Self::FreezeWorker if ground.broker => {
                let patience = u64::try_from(ground.patience.as_millis()).unwrap_or(u64::MAX);
                (patience, patience.saturating_add(3_000))
            }
            Self::FreezeWorker => (1_000, 3_000),
            Self::HoleWorkerBroker | Self::HoleIngressBroker if long_run => (1_000, 20_000),
            Self::HolePlatform | Self::FullDisk if long_run => (1_000, 10_000),
            Self::DownPlatform if long_run => (2_000, 60_000),
            Self::StopBroker | Self::KillBroker => (1_000, 4_000),
            _ => (500, 2_500),
        }
    }
}

/// One fault to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) mishap: Mishap,
    /// Since the faults began.
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    /// Which worker, where it is one's.
    pub(super) worker: usize,
    /// Which platform, where it is one's.
    pub(super) side: Destination,
    /// What its own dice start from.
    pub(super) seed: u64,
}

/// Runs beyond this also break things for long.
const LONG: Duration = Duration::from_secs(600);
/// Kills that are measured have this much time for themselves.
const APART: Duration = Duration::from_secs(6);
const MEASURED_MOST: u32 = 10;

/// The schedule: first some kills of workers with nothing else around, where there is time, then everything.
pub(super) fn schedule(
    seed: u64,
    kinds: &[Mishap],
    ground: Ground,
    span: Duration,
    every: Duration,
) -> Vec<Planned> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut planned = Vec::new();
    let kills = if kinds.contains(&Mishap::KillWorker) {
        u32::try_from(span.as_secs() / 10 / APART.as_secs()).unwrap_or(0).min(MEASURED_MOST)
    } else {
        0
    };
    for kill in 0..kills {
        let fault = draw(&mut dice, Mishap::KillWorker, ground, span);
        planned.push(Planned { at: APART * kill, ..fault });
    }
    let begin = APART * kills;
    let rest = span.saturating_sub(begin);
    let wanted = usize::try_from(rest.as_millis() / every.as_millis().max(1)).unwrap_or(usize::MAX);
    let count = if kinds.is_empty() { 0 } else { wanted.max(kinds.len()) };
    let mut deck: Vec<Mishap> = Vec::new();
    for place in 0..count {
        if deck.is_empty() {
            deck = kinds.to_vec();
            deck.shuffle(&mut dice);
        }
        let Some(mishap) = deck.pop() else { break };
        let fault = draw(&mut dice, mishap, ground, span);
        let share = (place as f64 + dice.random_range(0.0..0.7)) / count as f64;
        let at = begin + rest.mul_f64(share);
        // What takes long begins early enough to end in time.
        planned.push(Planned { at: at.min(span.saturating_sub(fault.lasts)), ..fault });
    }
    planned.sort_by_key(|fault| fault.at);
    planned
}

fn draw(dice: &mut StdRng, mishap: Mishap, ground: Ground, span: Duration) -> Planned {
    let (from, to) = mishap.lasting(ground, span >= LONG);
    let lasts = Duration::from_millis(dice.random_range(from..=to)).min(span);
    let worker = dice.random_range(0..ground.workers.max(1));
    let side = if dice.random_bool(0.5) { Destination::ServiceNow } else { Destination::Xo };
    Planned { mishap, at: Duration::ZERO, lasts, worker, side, seed: dice.random() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUND: Ground =
        Ground { broker: true, broker_control: false, workers: 3, patience: Duration::from_secs(19) };
    const EVERY: Duration = Duration::from_secs(3);

    fn kinds(ground: Ground) -> Vec<Mishap> {
        Mishap::ALL.iter().copied().filter(|kind| kind.possible(ground)).collect()
    }

    #[test]
    fn the_seed_is_the_schedule() {
        let make = |seed| schedule(seed, &kinds(GROUND), GROUND, Duration::from_secs(300), EVERY);
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }

    #[test]
    fn every_kind_comes_and_ends_in_time() {
        for (seconds, seed) in [(20, 1), (60, 2), (1800, 3)] {
            let span = Duration::from_secs(seconds);
            let faults = schedule(seed, &kinds(GROUND), GROUND, span, EVERY);
            for kind in kinds(GROUND) {
                assert!(faults.iter().any(|fault| fault.mishap == kind), "{kind} in {span:?}");
            }
            assert!(faults.iter().all(|fault| fault.at + fault.lasts <= span && fault.worker < 3));
            assert!(faults.is_sorted_by_key(|fault| fault.at));
        }
    }

    #[test]
    fn a_long_run_begins_with_kills_that_are_alone() {
        let faults = schedule(5, &kinds(GROUND), GROUND, Duration::from_secs(1800), EVERY);
        let measured: Vec<_> = faults.iter().take_while(|fault| fault.at < APART * MEASURED_MOST).collect();
        assert_eq!(measured.len(), MEASURED_MOST as usize);
        assert!(measured.iter().all(|fault| fault.mishap == Mishap::KillWorker));
    }

    #[test]
    fn nothing_is_planned_that_cannot_be_done() {
        let alone = Ground { broker: false, workers: 1, ..GROUND };
        assert!(!kinds(alone).contains(&Mishap::CutWorkerBroker));
        assert!(!kinds(GROUND).contains(&Mishap::KillBroker) && !kinds(GROUND).contains(&Mishap::FullDisk));
        assert!(kinds(Ground { broker_control: true, ..GROUND }).contains(&Mishap::KillBroker));
        assert_eq!(schedule(1, &[], GROUND, Duration::from_secs(60), EVERY), []);
    }
}
