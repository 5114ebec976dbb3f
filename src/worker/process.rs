//! Processes one message: deadline, deduplication, gate, attempt, decision, and the action that follows.
//!
//! Guarantees: a delivered message is acked only after the destination has it, a dead one only after its dead letter is on
//! disk. If processing cannot finish (broker unreachable, subscription ended), the message is not acked and the queue
//! redelivers it. A lane moves on only after the message in front is acked. A redelivered message that was already
//! delivered or dead-lettered is not sent again.
//! Not responsible for: when a message is processed (`pump.rs`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::WorkerSettings;
use super::deduplication::{Deduplication, SettledBefore};
use super::policy::{PolicyDecision, RetryContext};
use crate::bridge::Deliverer;
use crate::clock;
use crate::conversation::{DedupKey, SettledAfter};
use crate::delivery::backoff::{self, Backoff};
use crate::delivery::breaker::ProbePermit;
use crate::delivery::{Attempt, Gates, PriorAttempts};
use crate::message::current_trace;
use crate::message::{
    AttemptHistory, AttemptRecord, DeadLetter, DeadReason, Destination, LaneKey, Message, Outcome,
};
use crate::queue::{Queue, QueueError, ReceivedMessage};
use crate::telemetry::{self, Metrics, Settled, logged_conversation};

/// A lane is stuck once its first message has failed for this long while other messages were delivered.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// The longest delay between two attempts of a message that a user waits for.
const BOT_TURN_PAUSE_MAX: Duration = Duration::from_secs(5);
const DEAD_LETTER_RETRY: Duration = Duration::from_millis(500);
const OTHER_PAYLOAD: &str = "its Idempotency-Key was used before in this conversation, for another request, and that one was delivered";

/// The retry state of a message. It survives a return to the queue as long as this worker runs.
#[derive(Debug)]
pub(super) struct RetryState {
    pub(super) story: AttemptHistory,
    backoff: Backoff,
    /// An earlier attempt may have reached the destination.
    pub(super) possibly_delivered: bool,
    /// The redelivery count when the message was last received.
    pub(super) redeliveries: u32,
    hold: FailureTimer,
    /// The time of the last failure, and the destination that was called.
    failed: Option<(Instant, Destination)>,
    pub(super) seen: Instant,
}

/// How long a message has failed while its endpoint accepted other messages.
#[derive(Debug, Default)]
struct FailureTimer {
    held: Duration,
    failed_at: Option<Instant>,
    /// The time between the last two failures, if it is not counted yet.
    open: Duration,
}

impl FailureTimer {
    /// Records one more failure. `served`: when the endpoint last accepted a message.
    fn failed(&mut self, now: Instant, served: Option<Instant>) {
        let before = self.failed_at.replace(now);
        self.open = before.map_or(Duration::ZERO, |before| now.saturating_duration_since(before));
        if before.is_some_and(|before| served.is_some_and(|served| served > before)) {
            self.count();
        }
    }

    fn count(&mut self) {
        self.held += std::mem::take(&mut self.open);
    }
}

impl RetryState {
    pub(super) fn new(settings: &WorkerSettings, received: &ReceivedMessage) -> Self {
        let mut retry = settings.retry.clone();
        if received.message.kind.is_bot_turn() {
            retry.max = retry.max.min(BOT_TURN_PAUSE_MAX);
        }
        Self {
            story: AttemptHistory::default(),
            backoff: Backoff::new(&retry),
            possibly_delivered: received.redeliveries > 0 || received.message.replays > 0,
            redeliveries: received.redeliveries,
            hold: FailureTimer::default(),
            failed: None,
            seen: Instant::now(),
        }
    }

    /// Records a redelivery. The time in between says nothing about the message.
    pub(super) fn redelivered(&mut self, redeliveries: u32) {
        self.redeliveries = redeliveries;
        self.seen = Instant::now();
        self.hold.failed_at = None;
    }

    /// The lane of the message fills the window, so that no other message can be delivered. The time since the last failure
    /// counts in this case, too.
    pub(super) fn crowds_others_out(&mut self) {
        self.hold.count();
    }

    /// Whether other messages were delivered since the last failure or between two failures. One more failure is then not
    /// the destination's fault.
    fn fails_alone(&self, served: impl Fn(Destination) -> Option<Instant>) -> bool {
        let served_since = |(at, destination)| served(destination).is_some_and(|served| served > at);
        !self.hold.held.is_zero() || self.failed.is_some_and(served_since)
    }

    /// A stuck lane may not hold more than its limit of a crowded window.
    pub(super) fn is_stuck(&self) -> bool {
        self.hold.held >= STUCK_AFTER
    }
}

/// The permission to call the destination.
#[derive(Debug)]
pub(super) enum StartPermission {
    /// The breaker passes.
    Normal,
    /// The message has the probe permit.
    Probe(ProbePermit),
    /// No call is allowed: the message may only expire or turn out to be done before.
    ExpireOnly,
}

/// The result of processing.
#[derive(Debug)]
pub(super) enum ProcessResult {
    /// The lane moves on. `freed`: the destination answered for this message, so the lane is not stuck.
    Settled { lane: LaneKey, freed: bool },
    /// A message beyond the limit of its lane is acked, or goes back with the subscription. Its lane did not wait.
    Excess,
    /// The message is processed again at `at`. `waits`: for another message, not for the destination.
    Retry { received: ReceivedMessage, retry_state: RetryState, at: Instant, waits: bool },
    /// The message waits for the breaker, or for another subscription.
    Blocked { received: ReceivedMessage, retry_state: RetryState },
    /// The ack failed and the message will be redelivered. No later message may start before, and the subscription ends.
    AckFailed,
}

/// The dependencies that all messages of a partition share.
#[derive(Debug)]
pub(super) struct MessageProcessor {
    pub(super) queue: Queue,
    pub(super) deliverer: Arc<Deliverer>,
    pub(super) gates: Arc<Gates>,
    pub(super) settings: WorkerSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) deduplication: Deduplication,
}

impl MessageProcessor {
    /// Processes the message once. Rare paths are boxed: otherwise every future would reserve memory for them. `over`
    /// becomes true when the subscription of the message ends.
    pub(super) async fn process(
        self: Arc<Self>,
        mut received: ReceivedMessage,
        retry_state: RetryState,
        permission: StartPermission,
        mut over: watch::Receiver<bool>,
    ) -> ProcessResult {
        if let Some(why) = received.unreadable.clone() {
            return Box::pin(self.dead_letter(received, retry_state, DeadReason::Unreadable, why, &mut over))
                .await;
        }
        if self.is_too_late(&received, &retry_state) {
            return Box::pin(self.expire(received, retry_state, &mut over)).await;
        }
        let (settled, known) = if received.redeliveries == 0 && self.deliverer.only_routes(&received.message)
        {
            (SettledBefore::No, None)
        } else {
            self.deduplication.settled_before(&received.message, received.redeliveries > 0).await
        };
        match settled {
            SettledBefore::No => {}
            SettledBefore::Yes => return self.ack(received, &retry_state, &Outcome::Repeated, false).await,
            SettledBefore::OtherPayload => {
                let (reason, why) = (DeadReason::Rejected, OTHER_PAYLOAD.into());
                return Box::pin(self.dead_letter(received, retry_state, reason, why, &mut over)).await;
            }
        }
        let permit = match permission {
            StartPermission::ExpireOnly => return ProcessResult::Blocked { received, retry_state },
            StartPermission::Normal => None,
            StartPermission::Probe(permit) => Some(permit),
        };
        if received.is_large() && !Box::pin(self.load(&mut received, &mut over)).await {
            return ProcessResult::Blocked { received, retry_state };
        }
        let gate = self.gates.gate(received.message.destination);
        let pass = tokio::select! {
            // Biased: after the end of its subscription no attempt starts, even if the gate is ready.
            biased;
            _ = over.wait_for(|over| *over) => None,
            pass = gate.enter(permit.is_some()) => pass,
        };
        let Some(pass) = pass else { return ProcessResult::Blocked { received, retry_state } };
        let known = self.deduplication.fresh_rows(&received.message, known).await;
        if *over.borrow() {
            return ProcessResult::Blocked { received, retry_state };
        }
        // The wait at the gate is long if the destination is slow.
        if self.is_too_late(&received, &retry_state) {
            drop((pass, permit));
            return Box::pin(self.expire(received, retry_state, &mut over)).await;
        }
        let at = clock::now();
        let fails_alone =
            permit.is_none() && retry_state.fails_alone(|destination| self.gates.served(destination));
        let past = PriorAttempts {
            count: retry_state.story.count(),
            possibly_delivered: retry_state.possibly_delivered,
            fails_alone,
        };
        // An attempt is large. Without the box each wrapper would copy it.
        let attempt = Box::pin(self.deliverer.attempt(&received.message, past));
        let attempt = current_trace::within(received.message.trace.clone(), attempt);
        let attempt = match known {
            Some(known) => known.within(attempt).await,
            None => attempt.await,
        };
        // The breaker has recorded the result of the probe before the permit is released.
        drop((pass, permit));
        self.finish(received, retry_state, at, attempt, &mut over).await
    }

    async fn finish(
        &self,
        received: ReceivedMessage,
        mut retry_state: RetryState,
        at: jiff::Timestamp,
        attempt: Attempt,
        over: &mut watch::Receiver<bool>,
    ) -> ProcessResult {
        let remote = attempt.remote(received.message.destination);
        let Attempt { outcome, status, error, said, is_recorded, .. } = attempt;
        if !matches!(outcome, Outcome::Deferred { .. }) || retry_state.story.count() == 0 {
            let outcome = outcome.as_str().to_owned();
            retry_state.story.add(AttemptRecord { at, status, outcome, error: error.clone(), said });
        }
        if let Outcome::Retry { ambiguous, .. } = outcome {
            retry_state.possibly_delivered |= ambiguous;
            let now = Instant::now();
            retry_state.hold.failed(now, self.gates.served(remote));
            retry_state.failed = Some((now, remote));
        }
        let step = retry_state.backoff.next(&mut backoff::rng());
        let message = &received.message;
        match self.retry_context(message, &retry_state, step).decide(&outcome) {
            PolicyDecision::Done => self.ack(received, &retry_state, &outcome, is_recorded).await,
            PolicyDecision::WaitForBreaker => ProcessResult::Blocked { received, retry_state },
            PolicyDecision::RetryIn(wait) => {
                let waits = matches!(outcome, Outcome::Deferred { .. });
                tracing::debug!(id = %message.id, kind = %message.kind, ?wait, error, "will retry");
                ProcessResult::Retry { received, retry_state, at: Instant::now() + wait, waits }
            }
            PolicyDecision::Dead(reason) => {
                Box::pin(self.dead_letter(received, retry_state, reason, error, over)).await
            }
        }
    }

    /// Loads a large body when there is memory for the body. Returns `false` if the subscription ended before.
    async fn load(&self, received: &mut ReceivedMessage, over: &mut watch::Receiver<bool>) -> bool {
        let gate = self.gates.gate(received.message.destination);
        if !received.has_room() {
            let room = tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return false,
                room = gate.room(received.body_bytes()) => room,
            };
            received.keep_room(room);
        }
        while let Err(error) = received.load().await {
            tracing::warn!(id = %received.message.id, %error, "cannot read the body of a waiting message yet");
            tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return false,
                () = tokio::time::sleep(DEAD_LETTER_RETRY) => {}
            }
        }
        true
    }

    fn is_too_late(&self, received: &ReceivedMessage, retry_state: &RetryState) -> bool {
        self.retry_context(&received.message, retry_state, Duration::ZERO).expired().is_some()
    }

    async fn expire(
        &self,
        received: ReceivedMessage,
        retry_state: RetryState,
        over: &mut watch::Receiver<bool>,
    ) -> ProcessResult {
        match self.retry_context(&received.message, &retry_state, Duration::ZERO).expired() {
            Some(PolicyDecision::Dead(reason)) => {
                self.dead_letter(received, retry_state, reason, "its deadline passed".into(), over).await
            }
            _ => self.ack(received, &retry_state, &Outcome::Dropped, false).await,
        }
    }

    fn retry_context(&self, message: &Message, retry_state: &RetryState, backoff: Duration) -> RetryContext {
        RetryContext {
            kind: message.kind,
            age: clock::since(message.accepted_at),
            deadline: self.settings.deadlines.of(message.kind),
            held: retry_state.hold.held,
            hold: self.settings.hold,
            backoff,
        }
    }

    async fn note(
        &self,
        message: &Message,
        fact: DedupKey,
        story: &AttemptHistory,
        reason: Option<DeadReason>,
    ) {
        let status = story.attempts().last().and_then(|attempt| attempt.status);
        let after = SettledAfter { attempts: story.count(), status, reason };
        self.deduplication.note(message, fact, after).await;
    }

    async fn ack(
        &self,
        received: ReceivedMessage,
        retry_state: &RetryState,
        outcome: &Outcome,
        is_recorded: bool,
    ) -> ProcessResult {
        let message = &received.message;
        let (destination, kind) = (message.destination.as_str(), message.kind.as_str());
        match DedupKey::of_outcome(message, outcome) {
            Some(fact) if is_recorded => self.deduplication.remember(message, fact),
            Some(fact) => self.note(message, fact, &retry_state.story, None).await,
            None => {}
        }
        if matches!(outcome, Outcome::Delivered | Outcome::Declined) {
            let latency = clock::since(message.accepted_at).as_secs_f64();
            self.metrics.latency.with_label_values(&[destination, kind]).observe(latency);
            if message.replays > 0 {
                self.metrics.replayed.with_label_values(&[destination]).inc();
            }
        }
        match outcome {
            // The message is not settled: it waits in the queue of its real destination now.
            Outcome::Routed => tracing::debug!(id = %message.id, kind, "put on the queue of its destination"),
            _ => telemetry::log_settled(message, Settled::Acked(outcome), retry_state.story.count()),
        }
        self.settle(received, true).await
    }

    /// Acks the message. If the ack fails, the message is redelivered and recognised by its id.
    async fn settle(&self, received: ReceivedMessage, freed: bool) -> ProcessResult {
        let (lane, id) = (received.message.lane.clone(), received.message.id);
        match received.ack().await {
            Ok(()) => ProcessResult::Settled { lane, freed },
            Err(error) => {
                tracing::debug!(%id, %error, "could not ack; the queue will redeliver");
                ProcessResult::AckFailed
            }
        }
    }

    /// Dead-letters the message. The dead letter is on disk before the original is acked; until then this call tries again.
    pub(super) async fn dead_letter(
        &self,
        mut received: ReceivedMessage,
        retry_state: RetryState,
        reason: DeadReason,
        detail: String,
        over: &mut watch::Receiver<bool>,
    ) -> ProcessResult {
        if received.is_large() && !self.load(&mut received, over).await {
            return ProcessResult::Blocked { received, retry_state };
        }
        let dead = DeadLetter::new(received.message.clone(), reason, detail, retry_state.story.clone());
        while let Err(error) = self.try_dead_letter(&dead).await {
            tracing::warn!(id = %dead.message.id, %error, "cannot write a dead letter yet");
            tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return ProcessResult::Blocked { received, retry_state },
                () = tokio::time::sleep(DEAD_LETTER_RETRY) => {}
            }
        }
        let (message, replays) = (dead.message.id, dead.message.replays);
        let fact = DedupKey::DeadLettered { message, replays };
        self.note(&dead.message, fact, &dead.story, Some(reason)).await;
        let destination = dead.message.destination;
        self.metrics.dead_letters.with_label_values(&[destination.as_str(), reason.as_str()]).inc();
        let lane = logged_conversation(&dead.message.lane);
        tracing::warn!(
            id = %dead.message.id, kind = %dead.message.kind, lane, %reason, detail = dead.detail,
            attempts = dead.story.count(), "dead letter"
        );
        telemetry::log_settled(&dead.message, Settled::DeadLettered(reason), dead.story.count());
        self.settle(received, !matches!(reason, DeadReason::Exhausted | DeadReason::Expired)).await
    }

    async fn try_dead_letter(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        // The bot side is notified first: after a crash between the two steps it is notified again with the same id.
        let before =
            current_trace::within(dead.message.trace.clone(), self.deliverer.before_dead_letter(dead));
        before.await.map_err(QueueError::Unavailable)?;
        self.queue.dead_letter(dead).await
    }
}

#[cfg(test)]
mod unsettled_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, second: u64) -> Instant {
        start + Duration::from_secs(second)
    }

    #[tokio::test(start_paused = true)]
    async fn the_hold_counts_only_while_others_are_served() {
        let (start, mut hold) = (Instant::now(), FailureTimer::default());
        hold.failed(at(start, 0), Some(at(start, 0)));
        hold.failed(at(start, 10), Some(at(start, 9)));
        assert_eq!(hold.held.as_secs(), 10);
        hold.failed(at(start, 30), Some(at(start, 9)));
        hold.failed(at(start, 40), None);
        assert_eq!(hold.held.as_secs(), 10, "no other message was delivered since");
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocking_lane_is_counted_once() {
        let (start, mut hold) = (Instant::now(), FailureTimer::default());
        hold.failed(at(start, 0), None);
        hold.failed(at(start, 3), None);
        hold.count();
        hold.count();
        assert_eq!(hold.held.as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_in_the_queue_is_not_held_against_a_message() {
        let (start, mut hold) = (Instant::now(), FailureTimer::default());
        hold.failed(at(start, 0), Some(at(start, 0)));
        // As in `RetryState::redelivered`.
        hold.failed_at = None;
        hold.failed(at(start, 600), Some(at(start, 599)));
        assert_eq!(hold.held, Duration::ZERO);
    }
}
