//! The schedule of faults. The seed determines the whole schedule, so that a run can be repeated.
//!
//! Guarantees: no I/O. The same seed, span and kinds give the same schedule. Each kind occurs at least once. Each
//! fault ends within the span.
//! Not responsible for: making the faults (`nemesis.rs`).

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::message::Destination;

#[expect(unreachable_pub, reason = "`named!` knows no other visibility")]
mod kinds {
    use crate::message::named;

    named! {
        /// A kind of fault, named as in `--faults`.
        FaultKind {
            /// kill -9 of the ingress, then its restart.
            KillIngress = "kill-ingress",
            /// kill -9 of a worker (embedded: of the only process), then its restart.
            KillWorker = "kill-worker",
            /// SIGSTOP of a worker for longer than the broker's heartbeat timeout, then SIGCONT.
            FreezeWorker = "freeze-worker",
            /// The callers' connections to the ingress are reset.
            CutCallers = "cut-callers",
            /// Connections between the callers and the ingress stay open, but no data moves.
            HoleCallers = "hole-callers",
            /// The ingress' connections to the broker are reset.
            CutIngressBroker = "cut-ingress-broker",
            /// Connections between the ingress and the broker stay open, but no data moves.
            HoleIngressBroker = "hole-ingress-broker",
            /// A worker's connections to the broker are reset.
            CutWorkerBroker = "cut-worker-broker",
            /// Connections between a worker and the broker stay open, but no data moves.
            HoleWorkerBroker = "hole-worker-broker",
            /// The workers' connections to a platform are reset.
            CutPlatform = "cut-platform",
            /// Connections between the workers and a platform stay open, but no data moves.
            HolePlatform = "hole-platform",
            /// A platform refuses connections.
            DownPlatform = "down-platform",
            /// A platform answers some requests with 503.
            Busy = "503",
            /// A platform answers some requests with 429 and `Retry-After`.
            TooMany = "429",
            /// A platform answers some requests with 504.
            GatewayTimeout = "504",
            /// A platform does not answer some requests.
            Hang = "hang",
            /// A platform closes some connections instead of answering.
            Cut = "cut",
            /// A platform performs the action of some requests, then closes the connection without an answer.
            CutAfter = "cut-after",
            /// A platform answers some requests with an HTML page.
            Html = "html",
            /// A platform answers some requests slowly.
            Slow = "slow",
            /// Every write to a file fails, as on a full disk.
            FullDisk = "full-disk",
            /// The broker is stopped cleanly, then started.
            StopBroker = "stop-broker",
            /// kill -9 of the broker, then its restart.
            KillBroker = "kill-broker",
        }
    }
}
pub(super) use kinds::FaultKind;

/// The deployment under test: its parts decide which faults are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FaultScope {
    /// Whether a broker connects ingress and workers.
    pub(super) broker: bool,
    /// Whether the run can stop the broker.
    pub(super) broker_control: bool,
    pub(super) workers: usize,
    /// A time after which the broker has given up a silent worker.
    pub(super) call_timeout: Duration,
}

impl FaultKind {
    /// Whether this fault is possible in this deployment.
    pub(super) fn possible(self, scope: FaultScope) -> bool {
        match self {
            Self::KillIngress
            | Self::CutIngressBroker
            | Self::HoleIngressBroker
            | Self::CutWorkerBroker
            | Self::HoleWorkerBroker => scope.broker,
            Self::StopBroker | Self::KillBroker => scope.broker && scope.broker_control,
            // A broker has a disk of its own. The file size limit that simulates a full disk exists only on Linux.
            Self::FullDisk => !scope.broker && cfg!(target_os = "linux"),
            _ => true,
        }
    }

    /// Whether it can leave unknown if a delivery happened or was recorded.
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

    /// Whether it can leave unknown if a message was accepted, so that the caller posts the message again.
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

    /// The shortest and longest duration in milliseconds.
    fn lasting(self, scope: FaultScope, long_run: bool) -> (u64, u64) {
        match self {
            Self::CutCallers | Self::CutIngressBroker | Self::CutWorkerBroker | Self::CutPlatform => (0, 0),
            Self::KillIngress | Self::KillWorker => (100, 1_500),
            Self::FreezeWorker if scope.broker => {
                let call_timeout = u64::try_from(scope.call_timeout.as_millis()).unwrap_or(u64::MAX);
                (call_timeout, call_timeout.saturating_add(3_000))
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

/// One scheduled fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlannedFault {
    pub(super) fault_kind: FaultKind,
    /// Start, since the faults began.
    pub(super) at: Duration,
    pub(super) lasts: Duration,
    /// The worker, for a fault of a worker.
    pub(super) worker: usize,
    /// The platform, for a fault of a platform.
    pub(super) side: Destination,
    /// Seed of the fault's own random decisions.
    pub(super) seed: u64,
}

/// Longer runs also have long faults.
const LONG: Duration = Duration::from_secs(600);
/// Each measured kill gets this much time without other faults.
const APART: Duration = Duration::from_secs(6);
const MEASURED_MOST: u32 = 10;

/// The schedule: first some kills of workers without other faults, if the span is long enough, then all kinds.
pub(super) fn schedule(
    seed: u64,
    kinds: &[FaultKind],
    scope: FaultScope,
    span: Duration,
    every: Duration,
) -> Vec<PlannedFault> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut planned = Vec::new();
    let kills = if kinds.contains(&FaultKind::KillWorker) {
        u32::try_from(span.as_secs() / 10 / APART.as_secs()).unwrap_or(0).min(MEASURED_MOST)
    } else {
        0
    };
    for kill in 0..kills {
        let fault = draw(&mut rng, FaultKind::KillWorker, scope, span);
        planned.push(PlannedFault { at: APART * kill, ..fault });
    }
    let begin = APART * kills;
    let rest = span.saturating_sub(begin);
    let wanted = usize::try_from(rest.as_millis() / every.as_millis().max(1)).unwrap_or(usize::MAX);
    let count = if kinds.is_empty() { 0 } else { wanted.max(kinds.len()) };
    let mut deck: Vec<FaultKind> = Vec::new();
    for place in 0..count {
        if deck.is_empty() {
            deck = kinds.to_vec();
            deck.shuffle(&mut rng);
        }
        let Some(fault_kind) = deck.pop() else { break };
        let fault = draw(&mut rng, fault_kind, scope, span);
        let share = (place as f64 + rng.random_range(0.0..0.7)) / count as f64;
        let at = begin + rest.mul_f64(share);
        // A long fault begins early enough to end within the span.
        planned.push(PlannedFault { at: at.min(span.saturating_sub(fault.lasts)), ..fault });
    }
    planned.sort_by_key(|fault| fault.at);
    planned
}

fn draw(rng: &mut StdRng, fault_kind: FaultKind, scope: FaultScope, span: Duration) -> PlannedFault {
    let (from, to) = fault_kind.lasting(scope, span >= LONG);
    let lasts = Duration::from_millis(rng.random_range(from..=to)).min(span);
    let worker = rng.random_range(0..scope.workers.max(1));
    let side = if rng.random_bool(0.5) { Destination::ServiceNow } else { Destination::Xo };
    PlannedFault { fault_kind, at: Duration::ZERO, lasts, worker, side, seed: rng.random() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUND: FaultScope =
        FaultScope { broker: true, broker_control: false, workers: 3, call_timeout: Duration::from_secs(19) };
    const EVERY: Duration = Duration::from_secs(3);

    fn kinds(scope: FaultScope) -> Vec<FaultKind> {
        FaultKind::ALL.iter().copied().filter(|kind| kind.possible(scope)).collect()
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
                assert!(faults.iter().any(|fault| fault.fault_kind == kind), "{kind} in {span:?}");
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
        assert!(measured.iter().all(|fault| fault.fault_kind == FaultKind::KillWorker));
    }

    #[test]
    fn nothing_is_planned_that_cannot_be_done() {
        let alone = FaultScope { broker: false, workers: 1, ..GROUND };
        assert!(!kinds(alone).contains(&FaultKind::CutWorkerBroker));
        assert!(
            !kinds(GROUND).contains(&FaultKind::KillBroker) && !kinds(GROUND).contains(&FaultKind::FullDisk)
        );
        assert!(kinds(FaultScope { broker_control: true, ..GROUND }).contains(&FaultKind::KillBroker));
        assert_eq!(schedule(1, &[], GROUND, Duration::from_secs(60), EVERY), []);
    }
}
