//! The gates of all destinations, and what the attempts of each destination say about the destination and its credential.
//!
//! Guarantees: each attempt is counted in the metrics once. Only a failure of the destination itself counts as a failure of
//! its breaker. A credential that other addresses of a bot accept does not pause the whole bot.
//!
//! Not responsible for: when a call may start (`gate.rs`), when a destination counts as down (`breaker.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::{BreakerSignal, CircuitBreaker};
use super::{Attempt, Gate, GateSettings, PriorAttempts};
use crate::message::{Destination, Message, Outcome, RetryReason, TripReason};
use crate::queue::Queue;
use crate::telemetry::Metrics;

/// A bot that accepted its credential within this time is not paused as a whole when one of its addresses refuses the
/// credential.
const CREDENTIAL_WORKED: Duration = Duration::from_secs(60);
/// If this many conversations are refused without a success between them, the credential itself is wrong.
const UNAUTHORIZED_LANES: usize = 3;

/// The gates of a worker.
#[derive(Debug)]
pub struct Gates {
    gates: BTreeMap<Destination, Gate>,
    /// The gate of a destination that the settings do not know. No message is sent there.
    no_gate: Gate,
    /// The time of the last success of each destination.
    served: Mutex<BTreeMap<Destination, Instant>>,
    /// The lanes whose calls were refused as unauthorized since the last success of their destination.
    unauthorized: Mutex<BTreeMap<Destination, BTreeSet<u64>>>,
    metrics: Arc<Metrics>,
}

impl Gates {
    /// Creates the gates of the destinations of this queue. `limits` holds the limits of each destination.
    pub fn new(
        queue: &Queue,
        limits: &BTreeMap<Destination, GateSettings>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let lease = queue.lease();
        let gate = |destination: Destination| {
            let breaker = CircuitBreaker::new(destination, metrics.clone());
            let settings = limits.get(&destination).cloned().unwrap_or_default();
            Gate::new(destination, &settings, breaker, lease.clone(), metrics.clone())
        };
        let destinations = queue.destinations();
        Arc::new(Self {
            gates: destinations.iter().map(|destination| (destination, gate(destination))).collect(),
            no_gate: gate(Destination::Callbacks),
            served: Mutex::default(),
            unauthorized: Mutex::default(),
            metrics,
        })
    }

    /// The gate of a destination.
    pub fn gate(&self, destination: Destination) -> &Gate {
        self.gates.get(&destination).unwrap_or(&self.no_gate)
    }

    /// Probes these destinations at once if their breakers tripped because of the credentials, which were replaced.
    pub fn credentials_replaced(&self, is_meant: impl Fn(Destination) -> bool) {
        let gates = self.gates.iter().filter(|(destination, _)| is_meant(**destination));
        gates.for_each(|(_, gate)| gate.breaker().credential_replaced());
    }

    /// The time of the last success of a destination.
    pub fn served(&self, destination: Destination) -> Option<Instant> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).get(&destination).copied()
    }

    /// Counts an attempt, and reports it to the breaker.
    pub(crate) fn record(&self, message: &Message, past: PriorAttempts, attempt: &Attempt, took: Duration) {
        let destination = message.destination.as_str();
        let label = attempt.outcome.as_str();
        self.metrics.attempts.with_label_values(&[destination, message.kind.as_str(), label]).inc();
        self.metrics.attempt_duration.with_label_values(&[destination]).observe(took.as_secs_f64());
        if let Outcome::Retry { reason, .. } = &attempt.outcome {
            self.metrics.retries.with_label_values(&[destination, reason.as_str()]).inc();
        }
        let fails_again = past.fails_alone
            && matches!(&attempt.outcome, Outcome::Retry { reason, floor: None, .. } if *reason != RetryReason::Connect);
        if !fails_again {
            self.record_in_breaker(message.destination, Some(message), attempt);
        }
    }

    /// Decides whether a refused credential concerns the whole bot. If other addresses of the bot accept the same
    /// credential, only this conversation is tried again, and the bot's other users are not delayed.
    pub(crate) fn check_credentials(&self, message: &Message, attempt: Attempt) -> Attempt {
        let is_refused = matches!(attempt.outcome, Outcome::Pause { reason: TripReason::Credentials, .. });
        if !is_refused || !matches!(message.destination, Destination::Bot(_)) {
            return attempt;
        }
        let lane = lane_number(message.lane.as_str());
        let mut refused = self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = refused.entry(message.destination).or_default();
        lanes.insert(lane);
        let works = self.served(message.destination).is_some_and(|at| at.elapsed() < CREDENTIAL_WORKED);
        if !works || lanes.len() >= UNAUTHORIZED_LANES {
            return attempt;
        }
        let outcome = Outcome::Retry { reason: RetryReason::Unauthorized, ambiguous: false, floor: None };
        Attempt { outcome, ..attempt }
    }

    /// Reports the attempt to the breaker. Only a failure of the destination itself counts as a failure.
    pub(crate) fn record_in_breaker(
        &self,
        destination: Destination,
        message: Option<&Message>,
        attempt: &Attempt,
    ) {
        let breaker = self.gate(destination).breaker();
        let lane = message.map_or(0, |message| lane_number(message.lane.as_str()));
        match &attempt.outcome {
            Outcome::Delivered | Outcome::Declined => {
                let answered = attempt.remote(destination);
                self.served.lock().unwrap_or_else(PoisonError::into_inner).insert(answered, Instant::now());
                self.unauthorized.lock().unwrap_or_else(PoisonError::into_inner).remove(&answered);
                breaker.record(BreakerSignal::Alive);
            }
            // A refusal is an answer of a destination that works.
            Outcome::Dead(_) if attempt.status.is_some() => breaker.record(BreakerSignal::Alive),
            Outcome::Pause { reason, floor } => {
                breaker.record(BreakerSignal::NotReady { reason: *reason, floor: *floor })
            }
            Outcome::Retry { reason: RetryReason::Internal, .. } => {}
            Outcome::Retry { floor: Some(floor), .. } => {
                breaker
                    .record(BreakerSignal::NotReady { reason: TripReason::Throttled, floor: Some(*floor) });
            }
            Outcome::Retry { reason, .. } => {
                breaker.record(BreakerSignal::Failed { lane, unreachable: *reason == RetryReason::Connect });
            }
            Outcome::Dead(_)
            | Outcome::Repeated
            | Outcome::Routed
            | Outcome::Dropped
            | Outcome::Deferred { .. } => {}
        }
    }
}

/// The number by which the breaker distinguishes lanes.
pub(crate) fn lane_number(lane: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    lane.hash(&mut hasher);
    hasher.finish()
}
