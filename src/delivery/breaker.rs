//! Stops the traffic to a destination that is down, so that messages do not use up their attempts: passing, tripped,
//! probing.
//!
//! A breaker that trips on one stuck conversation would delay all others. Failures therefore count only if they come
//! from several lanes without a success between them. A destination that reports itself as not ready trips the breaker
//! at once.
//!
//! A worker may find no message to probe with, because other workers own all partitions. A breaker that waited for a
//! message would never pass again. So after a round of such probes the breaker passes on trial: the first failure
//! trips it. Each trial that fails doubles the number of rounds before the next one, up to 32.
//!
//! Guarantees: while the breaker is tripped, no request starts. While the breaker is probing, at most one message is in
//! flight.
//!
//! Not responsible for: what a pump does with its received messages meanwhile (`worker/pump.rs`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use crate::message::{Destination, TripReason};
use crate::telemetry::Metrics;

/// The breaker trips after this many failures without a success between them, if they come from this many lanes.
const FAILURES_MAX: u32 = 5;
const LANES_MIN: usize = 3;
/// The breaker trips after this many failed connections, from any lane: a connection that cannot be opened says the
/// same about every lane.
const UNREACHABLE_MAX: u32 = 3;
/// The first and the longest pause. A single failure (one HTML page among thousands of good answers) costs about 100
/// ms. An outage of one minute costs sixteen probes of one message each. A user waits behind each message, so the
/// recovery of a destination is noticed within 5 s.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// The longest pause that a destination may ask for. After that time one message probes the destination.
const FLOOR_MAX: Duration = Duration::from_secs(300);
/// The pauses after a refused login are longer, because a platform may lock an account after repeated refusals.
const PAUSE_MIN_CREDENTIALS: Duration = Duration::from_secs(2);
const PAUSE_MAX_CREDENTIALS: Duration = Duration::from_secs(30);
/// At most 2^5 rounds of probes without a message come before a trial.
const TRIAL_DOUBLINGS_MAX: u32 = 5;

/// The state of the breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BreakerState {
    /// Every request may start.
    Passing {
        /// Failures since the last success.
        failures: u32,
        /// The failures among these that never reached the destination.
        unreachable: u32,
        /// The lanes of these failures (hashes).
        lanes: BTreeSet<u64>,
    },
    /// No request may start before `until`.
    Tripped {
        /// When the next probe is due.
        until: Instant,
        /// The reason of the trip.
        reason: TripReason,
        /// Pauses so far without a success.
        pauses: u32,
    },
    /// One message is in flight as the probe.
    Probing {
        /// The reason of the last trip.
        reason: TripReason,
        /// Pauses so far without a success.
        pauses: u32,
    },
}

/// A signal to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerSignal {
    /// The destination answered normally; a refusal counts as well.
    Alive,
    /// An attempt failed through a fault of the destination.
    Failed {
        /// The lane, as a hash.
        lane: u64,
        /// The connection to the destination could not be opened.
        unreachable: bool,
    },
    /// The destination reports that it is not ready.
    NotReady {
        /// The reason.
        reason: TripReason,
        /// The time that the destination asked for.
        floor: Option<Duration>,
    },
    /// A pump takes the probe permit.
    ProbeTaken,
    /// The probe permit was returned without a message.
    ProbeReturned,
    /// A round of probes found no message, because other workers own the partitions.
    NothingToProbe,
    /// The credential of the destination was replaced.
    CredentialReplaced,
}

impl BreakerState {
    /// The initial state: every request may start.
    pub const fn passing() -> Self {
        Self::Passing { failures: 0, unreachable: 0, lanes: BTreeSet::new() }
    }

    /// Every request may start, and the next failure trips the breaker.
    fn on_trial() -> Self {
        let lanes = (0_u64..).take(LANES_MIN).collect();
        Self::Passing { failures: FAILURES_MAX - 1, unreachable: UNREACHABLE_MAX - 1, lanes }
    }

    /// The value of the metric `causeway_breaker_state`.
    pub const fn number(&self) -> i64 {
        match self {
            Self::Passing { .. } => 0,
            Self::Tripped { .. } => 1,
            Self::Probing { .. } => 2,
        }
    }

    const fn reason(&self) -> Option<TripReason> {
        match self {
            Self::Passing { .. } => None,
            Self::Tripped { reason, .. } | Self::Probing { reason, .. } => Some(*reason),
        }
    }

    /// The complete policy: computes the next state from the signal and the time.
    #[must_use]
    pub fn step(self, signal: BreakerSignal, now: Instant) -> Self {
        match (self, signal) {
            (Self::Tripped { until, reason, pauses }, BreakerSignal::NotReady { floor, .. }) => {
                // A late answer of a request that was in flight when the breaker tripped. Only a longer floor changes
                // the state.
                let floor = floor.unwrap_or_default().min(FLOOR_MAX);
                Self::Tripped { until: until.max(now + floor), reason, pauses }
            }
            // A late success of a request that was in flight when the breaker tripped: the destination works.
            (Self::Tripped { reason: TripReason::Failing, .. }, BreakerSignal::Alive) => Self::passing(),
            // The next probe is due now, and the pauses begin anew.
            (Self::Tripped { reason: TripReason::Credentials, .. }, BreakerSignal::CredentialReplaced) => {
                Self::Tripped { until: now, reason: TripReason::Credentials, pauses: 0 }
            }
            // The probe in flight may have the old credential. The pause after its failure is the shortest one.
            (Self::Probing { reason: TripReason::Credentials, .. }, BreakerSignal::CredentialReplaced) => {
                Self::Probing { reason: TripReason::Credentials, pauses: 0 }
            }
            (
                tripped @ Self::Tripped { .. },
                BreakerSignal::Alive
                | BreakerSignal::Failed { .. }
                | BreakerSignal::ProbeReturned
                | BreakerSignal::NothingToProbe
                | BreakerSignal::CredentialReplaced,
            ) => tripped,
            (Self::Tripped { reason, pauses, .. }, BreakerSignal::ProbeTaken) => {
                Self::Probing { reason, pauses }
            }
            (Self::Probing { .. } | Self::Passing { .. }, BreakerSignal::Alive) => Self::passing(),
            (Self::Probing { reason, pauses }, BreakerSignal::Failed { .. }) => {
                tripped(reason, pauses, None, now)
            }
            (Self::Probing { pauses, .. }, BreakerSignal::NotReady { reason, floor }) => {
                tripped(reason, pauses, floor, now)
            }
            (Self::Probing { reason, pauses }, BreakerSignal::ProbeReturned) => {
                Self::Tripped { until: now, reason, pauses }
            }
            (Self::Probing { .. }, BreakerSignal::NothingToProbe) => Self::on_trial(),
            (Self::Passing { .. }, BreakerSignal::NotReady { reason, floor }) => {
                tripped(reason, 0, floor, now)
            }
            (
                Self::Passing { failures, unreachable, mut lanes },
                BreakerSignal::Failed { lane, unreachable: hard },
            ) => {
                let failures = failures.saturating_add(1);
                let unreachable = unreachable.saturating_add(u32::from(hard));
                if lanes.len() < LANES_MIN {
                    lanes.insert(lane);
                }
                if unreachable >= UNREACHABLE_MAX || (failures >= FAILURES_MAX && lanes.len() >= LANES_MIN) {
                    tripped(TripReason::Failing, 0, None, now)
                } else {
                    Self::Passing { failures, unreachable, lanes }
                }
            }
            (
                same,
                BreakerSignal::ProbeTaken
                | BreakerSignal::ProbeReturned
                | BreakerSignal::NothingToProbe
                | BreakerSignal::CredentialReplaced,
            ) => same,
        }
    }
}

fn tripped(reason: TripReason, pauses: u32, floor: Option<Duration>, now: Instant) -> BreakerState {
    let (first, longest) = match reason {
        TripReason::Credentials => (PAUSE_MIN_CREDENTIALS, PAUSE_MAX_CREDENTIALS),
        _ => (PAUSE_MIN, PAUSE_MAX),
    };
    let pause = first.saturating_mul(1 << pauses.min(16)).min(longest);
    let floor = floor.map(|floor| floor.min(FLOOR_MAX));
    // The time that the destination asks for is a lower limit; the pause may be longer.
    let pause = floor.map_or(pause, |floor| if pauses == 0 { floor } else { pause.max(floor) });
    BreakerState::Tripped { until: now + pause, reason, pauses: pauses.saturating_add(1) }
}

/// The breaker of one destination in one worker.
#[derive(Debug)]
pub struct CircuitBreaker {
    destination: Destination,
    state: Mutex<BreakerState>,
    /// When the breaker tripped, if it has not passed since then.
    down_since: Mutex<Option<Instant>>,
    changed: watch::Sender<u64>,
    probe_slot: Arc<Semaphore>,
    empty_probes: Mutex<EmptyProbes>,
    metrics: Arc<Metrics>,
}

/// Counts the probes that found no message.
#[derive(Debug, Default)]
struct EmptyProbes {
    /// In a row: since the last attempt of any message.
    in_a_row: u32,
    /// Trials since the last success.
    trials: u32,
}

impl EmptyProbes {
    /// Counts one more. Whether a trial is due. `round`: the number of partitions.
    fn add(&mut self, round: u16) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let due = self.in_a_row >= u32::from(round) << self.trials.min(TRIAL_DOUBLINGS_MAX);
        if due {
            *self = Self { in_a_row: 0, trials: self.trials + 1 };
        }
        due
    }

    fn hear(&mut self, signal: BreakerSignal) {
        match signal {
            BreakerSignal::Alive => *self = Self::default(),
            BreakerSignal::Failed { .. } | BreakerSignal::NotReady { .. } => self.in_a_row = 0,
            BreakerSignal::ProbeTaken
            | BreakerSignal::ProbeReturned
            | BreakerSignal::NothingToProbe
            | BreakerSignal::CredentialReplaced => {}
        }
    }
}

/// The permit to send the one probe. A permit that is dropped unused goes to the next pump.
#[derive(Debug)]
pub struct ProbePermit {
    breaker: Arc<CircuitBreaker>,
    is_first: bool,
    _slot: OwnedSemaphorePermit,
}

impl ProbePermit {
    /// Whether no probe has failed since the breaker tripped.
    pub const fn is_first(&self) -> bool {
        self.is_first
    }

    /// Returns the permit, because this partition has no message for this worker. `partitions`: the number of partitions
    /// that other workers may own.
    pub fn found_no_message(self, partitions: u16) {
        if self.breaker.empty_probes().add(partitions) {
            self.breaker.record(BreakerSignal::NothingToProbe);
        }
    }
}

impl Drop for ProbePermit {
    fn drop(&mut self) {
        self.breaker.record(BreakerSignal::ProbeReturned);
    }
}

impl CircuitBreaker {
    /// Creates a breaker in the state passing.
    pub fn new(destination: Destination, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            destination,
            state: Mutex::new(BreakerState::passing()),
            down_since: Mutex::default(),
            changed: watch::Sender::new(0),
            probe_slot: Arc::new(Semaphore::new(1)),
            empty_probes: Mutex::default(),
            metrics,
        })
    }

    fn state(&self) -> MutexGuard<'_, BreakerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn empty_probes(&self) -> MutexGuard<'_, EmptyProbes> {
        self.empty_probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether every request may start.
    pub fn passes(&self) -> bool {
        matches!(*self.state(), BreakerState::Passing { .. })
    }

    /// How long the breaker has not passed.
    pub fn down_for(&self) -> Duration {
        let since = *self.down_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Notified at every change of the state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Passes a signal to the breaker.
    pub fn record(&self, signal: BreakerSignal) {
        let mut state = self.state();
        if !matches!((&*state, signal), (BreakerState::Passing { failures: 0, .. }, BreakerSignal::Alive)) {
            self.empty_probes().hear(signal);
        }
        let (before, known) = (state.number(), state.reason());
        *state = std::mem::replace(&mut *state, BreakerState::passing()).step(signal, Instant::now());
        let after = state.number();
        if before == after {
            return;
        }
        let mut down_since = self.down_since.lock().unwrap_or_else(PoisonError::into_inner);
        let known_since = *down_since.get_or_insert_with(Instant::now);
        *down_since = (after != 0).then_some(known_since);
        drop(down_since);
        let destination = self.destination.as_str();
        self.metrics.breaker_state.with_label_values(&[destination]).set(after);
        match &*state {
            BreakerState::Tripped { reason, until, .. } => {
                let pause = until.saturating_duration_since(Instant::now());
                // A new reason is logged as well: a login that is refused after an outage needs an operator.
                if known != Some(*reason) {
                    self.metrics.breaker_trips.with_label_values(&[destination, reason.as_str()]).inc();
                    tracing::warn!(destination, %reason, ?pause, "breaker tripped: nothing is sent there until a probe succeeds");
                } else {
                    tracing::debug!(destination, %reason, ?pause, "probe failed");
                }
            }
            BreakerState::Probing { .. } => tracing::debug!(destination, "breaker probing"),
            BreakerState::Passing { .. } => tracing::info!(destination, "breaker passing again"),
        }
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Probes at once if the breaker tripped because of the credential, which was replaced.
    pub fn credential_replaced(&self) {
        self.record(BreakerSignal::CredentialReplaced);
        // The state has the same name, but its next probe is due.
        self.changed.send_modify(|n| *n += 1);
    }

    /// Waits until the breaker passes.
    pub async fn until_passing(&self) {
        let mut changes = self.changes();
        while !self.passes() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits for the probe permit. `None` if the breaker passes again meanwhile. Cancel-safe.
    pub async fn probe_permit(self: &Arc<Self>) -> Option<ProbePermit> {
        let probe_slot = tokio::select! {
            biased;
            () = self.until_passing() => return None,
            probe_slot = self.probe_slot.clone().acquire_owned() => probe_slot.ok()?,
        };
        loop {
            let mut changes = self.changes();
            let (until, pauses) = match *self.state() {
                BreakerState::Passing { .. } => return None,
                BreakerState::Tripped { until, pauses, .. } => (until, pauses),
                // Only the holder of the probe permit probes, and we hold the permit.
                BreakerState::Probing { pauses, .. } => (Instant::now(), pauses),
            };
            if until <= Instant::now() {
                self.record(BreakerSignal::ProbeTaken);
                return Some(ProbePermit { breaker: self.clone(), is_first: pauses <= 1, _slot: probe_slot });
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => {}
                _ = changes.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(lane: u64) -> BreakerSignal {
        BreakerSignal::Failed { lane, unreachable: false }
    }

    fn after(signal: &[BreakerSignal], now: Instant) -> BreakerState {
        signal.iter().fold(BreakerState::passing(), |state, signal| state.step(*signal, now))
    }

    /// Takes probes without a message, one after another, until the breaker passes, and returns their number.
    async fn empty_probes_until_trial(breaker: &Arc<CircuitBreaker>) -> usize {
        let mut probes = 0;
        while let Some(permit) = breaker.probe_permit().await {
            permit.found_no_message(4);
            probes += 1;
        }
        probes
    }

    #[tokio::test(start_paused = true)]
    async fn a_replaced_credential_is_probed_at_once() {
        let breaker =
            CircuitBreaker::new(Destination::ServiceNow, Arc::new(Metrics::new("embedded").unwrap()));
        for reason in [TripReason::Credentials, TripReason::NotReady] {
            breaker.record(BreakerSignal::Alive);
            let floor = Some(Duration::from_secs(60));
            breaker.record(BreakerSignal::NotReady { reason, floor });
            let began = Instant::now();
            let replaced = async { breaker.credential_replaced() };
            let (permit, ()) = tokio::join!(breaker.probe_permit(), replaced);
            assert!(permit.unwrap().is_first());
            // Another reason keeps its pause.
            assert_eq!(
                began.elapsed() < Duration::from_secs(1),
                reason == TripReason::Credentials,
                "{reason}"
            );
            breaker.record(BreakerSignal::ProbeTaken);
            breaker.record(BreakerSignal::Alive);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_without_messages_gets_a_trial_and_fewer_after_each_failure() {
        let breaker = CircuitBreaker::new(Destination::Xo, Arc::new(Metrics::new("rabbitmq").unwrap()));
        let unreachable = BreakerSignal::Failed { lane: 1, unreachable: true };
        for _ in 0..UNREACHABLE_MAX {
            breaker.record(unreachable);
        }
        assert_eq!(empty_probes_until_trial(&breaker).await, 4);
        breaker.record(failed(1));
        assert!(!breaker.passes(), "the first failure of a trial trips the breaker");
        assert_eq!(empty_probes_until_trial(&breaker).await, 8);
        breaker.record(BreakerSignal::Alive);
        breaker.record(failed(1));
        assert!(breaker.passes(), "a success ends the trial");
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        assert_eq!(empty_probes_until_trial(&breaker).await, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_between_empty_probes_starts_their_count_again() {
        let breaker = CircuitBreaker::new(Destination::Xo, Arc::new(Metrics::new("rabbitmq").unwrap()));
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        breaker.probe_permit().await.unwrap().found_no_message(2);
        let probe = breaker.probe_permit().await.unwrap();
        breaker.record(failed(1));
        drop(probe);
        breaker.probe_permit().await.unwrap().found_no_message(2);
        assert!(!breaker.passes());
        breaker.probe_permit().await.unwrap().found_no_message(2);
        assert!(breaker.passes());
    }

    #[tokio::test(start_paused = true)]
    async fn one_stuck_lane_never_trips_it() {
        let state = after(&[failed(1); 100], Instant::now());
        assert_eq!(state.number(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_several_lanes_trip_it() {
        let now = Instant::now();
        assert_eq!(after(&[failed(1), failed(2), failed(3), failed(1)], now).number(), 0);
        assert_eq!(after(&[failed(1), failed(2), failed(3), failed(1), failed(2)], now).number(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_after_failures_of_several_lanes_takes_them_back() {
        let now = Instant::now();
        let failures = [failed(1), failed(2), failed(3), failed(1), failed(2)];
        assert_eq!(after(&failures, now).step(BreakerSignal::Alive, now).number(), 0);
        let not_ready = BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None };
        assert_eq!(
            after(&[not_ready, BreakerSignal::Alive], now).number(),
            1,
            "it says itself that it is not ready"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_between_starts_the_count_anew() {
        let now = Instant::now();
        let signal = [failed(1), failed(2), failed(3), failed(1), BreakerSignal::Alive, failed(2)];
        assert_eq!(after(&signal, now).number(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_a_floor_and_pauses_grow_to_the_cap() {
        let now = Instant::now();
        let floor = Some(Duration::from_secs(7));
        let not_ready = BreakerSignal::NotReady { reason: TripReason::Throttled, floor };
        let state = after(&[not_ready], now);
        assert!(
            matches!(state, BreakerState::Tripped { until, .. } if until == now + Duration::from_secs(7))
        );
        let mut state = after(&[BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None }], now);
        for pause in [200, 400, 800, 1600, 3200, 5000, 5000] {
            state = state.step(BreakerSignal::ProbeTaken, now).step(failed(1), now);
            assert!(
                matches!(state, BreakerState::Tripped { until, .. } if until == now + Duration::from_millis(pause))
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_floor_of_a_day_is_asked_about_after_five_minutes() {
        let now = Instant::now();
        let day = BreakerSignal::NotReady {
            reason: TripReason::Throttled,
            floor: Some(Duration::from_secs(86_400)),
        };
        let due = |state: &BreakerState| match state {
            BreakerState::Tripped { until, .. } => until.saturating_duration_since(now).as_secs(),
            _ => 0,
        };
        let state = after(&[day], now);
        assert_eq!(due(&state), 300);
        assert_eq!(due(&state.clone().step(day, now)), 300, "also of a request that was in the air");
        assert_eq!(due(&state.step(BreakerSignal::ProbeTaken, now).step(day, now)), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_login_is_not_tried_in_quick_succession() {
        let now = Instant::now();
        let refused = BreakerSignal::NotReady { reason: TripReason::Credentials, floor: None };
        let state = after(&[refused], now);
        let until = |state: &BreakerState| match state {
            BreakerState::Tripped { until, .. } => until.saturating_duration_since(now).as_secs(),
            _ => 0,
        };
        let pauses = std::iter::successors(Some(state), |state| {
            Some(state.clone().step(BreakerSignal::ProbeTaken, now).step(refused, now))
        });
        assert_eq!(pauses.take(6).map(|state| until(&state)).collect::<Vec<_>>(), [2, 4, 8, 16, 30, 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_lasts_until_something_gets_through() {
        let breaker =
            CircuitBreaker::new(Destination::ServiceNow, Arc::new(Metrics::new("embedded").unwrap()));
        assert!(breaker.down_for().is_zero());
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        tokio::time::advance(PAUSE_MIN).await;
        let probe_slot = breaker.probe_permit().await.unwrap();
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        assert_eq!(breaker.down_for(), PAUSE_MIN);
        drop(probe_slot);
        let probe_slot = breaker.probe_permit().await.unwrap();
        breaker.record(BreakerSignal::Alive);
        drop(probe_slot);
        assert!(breaker.passes() && breaker.down_for().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_that_turns_into_another_is_counted_as_that() {
        let metrics = Arc::new(Metrics::new("embedded").unwrap());
        let breaker = CircuitBreaker::new(Destination::ServiceNow, metrics.clone());
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        let probe_slot = breaker.probe_permit().await.unwrap();
        for _ in 0..2 {
            breaker.record(BreakerSignal::NotReady { reason: TripReason::Credentials, floor: None });
        }
        drop(probe_slot);
        let trips = |reason| metrics.breaker_trips.with_label_values(&["servicenow", reason]).get();
        assert_eq!((trips("not_ready"), trips("credentials")), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn only_one_probe_flies_and_its_success_opens_for_all() {
        let metrics = Arc::new(Metrics::new("embedded").unwrap());
        let breaker = CircuitBreaker::new(Destination::ServiceNow, metrics);
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        let probe_slot = breaker.probe_permit().await.unwrap();
        let second = breaker.probe_permit();
        tokio::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        breaker.record(BreakerSignal::Alive);
        assert!(second.await.is_none());
        drop(probe_slot);
        assert!(breaker.passes());
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_permit_goes_to_the_next_waiter() {
        let metrics = Arc::new(Metrics::new("embedded").unwrap());
        let breaker = CircuitBreaker::new(Destination::Xo, metrics);
        breaker.record(BreakerSignal::NotReady { reason: TripReason::NotReady, floor: None });
        drop(breaker.probe_permit().await.unwrap());
        assert!(breaker.probe_permit().await.is_some());
    }
}
