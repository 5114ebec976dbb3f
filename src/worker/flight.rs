//! Processes one message: deadline, deduplication, gate, attempt, decision, and the action that follows.
//!
//! Guarantees: a delivered message is acked only after the destination has it, a dead one only after its dead letter is on
//! disk. If processing cannot finish (broker unreachable, subscription ended), the message is not acked and the queue
//! redelivers it. A lane moves on only after the message in front is acked. A redelivered message that was already
//! delivered or dead-lettered is not sent again.
//! Not responsible for: when a message is processed (`pump.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::WorkerSettings;
use super::settle::{Standing, Verdict};
use crate::clock;
use crate::conversation::{DedupKey, DoneBefore};
use crate::delivery::backoff::{self, Backoff};
use crate::delivery::breaker::ProbeSeat;
use crate::delivery::{Attempt, Deliverer, Past, Repeats, SettledBefore, settled_by, settling_keys};
use crate::message::{AttemptRecord, DeadLetter, DeadReason, Destination, LaneKey, Message, Outcome, Story};
use crate::queue::{Loan, Queue, QueueError};
use crate::telemetry::{self, Metrics, Settled, logged_conversation};
use crate::trace;

/// A lane is stuck once its first message has failed for this long while other messages were delivered.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// The longest delay between two attempts of a message that a user waits for.
const BOT_TURN_PAUSE_MAX: Duration = Duration::from_secs(5);
const BURY_AGAIN: Duration = Duration::from_millis(500);
const OTHER_PAYLOAD: &str = "its Idempotency-Key was used before in this conversation, for another request, and that one was delivered";

/// The retry state of a message. It survives a return to the queue as long as this worker runs.
#[derive(Debug)]
pub(super) struct Effort {
    pub(super) story: Story,
    backoff: Backoff,
    /// An earlier attempt may have reached the destination.
    pub(super) maybe_taken: bool,
    /// The redelivery count when the message was last received.
    pub(super) earlier: u32,
    hold: Hold,
    /// The time of the last failure, and the destination that was called.
    failed: Option<(Instant, Destination)>,
    pub(super) seen: Instant,
}

/// How long a message has failed while its endpoint accepted other messages.
#[derive(Debug, Default)]
struct Hold {
    held: Duration,
    failed_at: Option<Instant>,
    /// The time between the last two failures, if it is not counted yet.
    open: Duration,
}

impl Hold {
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

impl Effort {
    pub(super) fn new(settings: &WorkerSettings, loan: &Loan) -> Self {
        let mut retry = settings.retry.clone();
        if loan.message.kind.is_bot_turn() {
            retry.max = retry.max.min(BOT_TURN_PAUSE_MAX);
        }
        Self {
            story: Story::default(),
            backoff: Backoff::new(&retry),
            maybe_taken: loan.earlier > 0 || loan.message.replays > 0,
            earlier: loan.earlier,
            hold: Hold::default(),
            failed: None,
            seen: Instant::now(),
        }
    }

    /// Records a redelivery. The time in between says nothing about the message.
    pub(super) fn lent_again(&mut self, earlier: u32) {
        self.earlier = earlier;
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
pub(super) enum Ticket {
    /// The breaker passes.
    Open,
    /// The message has the probe permit.
    Probe(ProbeSeat),
    /// No call is allowed: the message may only expire or turn out to be done before.
    Grounded,
}

/// The result of processing.
#[derive(Debug)]
pub(super) enum Landing {
    /// The lane moves on. `freed`: the destination answered for this message, so the lane is not stuck.
    Settled { lane: LaneKey, freed: bool },
    /// A message beyond the limit of its lane is acked, or goes back with the subscription. Its lane did not wait.
    Excess,
    /// The message is processed again at `at`. `waits`: for another message, not for the destination.
    Again { loan: Loan, effort: Effort, at: Instant, waits: bool },
    /// The message waits for the breaker, or for another subscription.
    Parked { loan: Loan, effort: Effort },
    /// The ack failed and the message will be redelivered. No later message may start before, and the subscription ends.
    Unsettled,
}

/// The dependencies that all messages of a partition share.
#[derive(Debug)]
pub(super) struct Crew {
    pub(super) queue: Queue,
    pub(super) deliverer: Arc<Deliverer>,
    pub(super) settings: WorkerSettings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) repeats: Mutex<Repeats>,
}

impl Crew {
    /// Processes the message once. Rare paths are boxed: otherwise every future would reserve memory for them. `over`
    /// becomes true when the subscription of the message ends.
    pub(super) async fn fly(
        self: Arc<Self>,
        mut loan: Loan,
        effort: Effort,
        ticket: Ticket,
        mut over: watch::Receiver<bool>,
    ) -> Landing {
        if let Some(why) = loan.unreadable.clone() {
            return Box::pin(self.bury(loan, effort, DeadReason::Unreadable, why, &mut over)).await;
        }
        if self.is_too_late(&loan, &effort) {
            return Box::pin(self.expire(loan, effort, &mut over)).await;
        }
        match self.settled_before(&loan).await {
            SettledBefore::No => {}
            SettledBefore::Yes => return self.done(loan, &effort, &Outcome::Repeated).await,
            SettledBefore::OtherPayload => {
                let bury = self.bury(loan, effort, DeadReason::Rejected, OTHER_PAYLOAD.into(), &mut over);
                return Box::pin(bury).await;
            }
        }
        let seat = match ticket {
            Ticket::Grounded => return Landing::Parked { loan, effort },
            Ticket::Open => None,
            Ticket::Probe(seat) => Some(seat),
        };
        if loan.is_large() && !Box::pin(self.load(&mut loan, &mut over)).await {
            return Landing::Parked { loan, effort };
        }
        let gate = self.deliverer.gate(loan.message.destination);
        let pass = tokio::select! {
            // Biased: after the end of its subscription no attempt starts, even if the gate is ready.
            biased;
            _ = over.wait_for(|over| *over) => None,
            pass = gate.enter(seat.is_some()) => pass,
        };
        let Some(pass) = pass else { return Landing::Parked { loan, effort } };
        // The wait at the gate is long if the destination is slow.
        if self.is_too_late(&loan, &effort) {
            drop((pass, seat));
            return Box::pin(self.expire(loan, effort, &mut over)).await;
        }
        let at = clock::now();
        let fails_alone =
            seat.is_none() && effort.fails_alone(|destination| self.deliverer.served(destination));
        let past = Past { maybe_taken: effort.maybe_taken, fails_alone };
        let attempt =
            trace::within(loan.message.trace.clone(), self.deliverer.attempt(&loan.message, past)).await;
        // The breaker has recorded the result of the probe before the permit is released.
        drop((pass, seat));
        self.land(loan, effort, at, attempt, &mut over).await
    }

    async fn land(
        &self,
        loan: Loan,
        mut effort: Effort,
        at: jiff::Timestamp,
        attempt: Attempt,
        over: &mut watch::Receiver<bool>,
    ) -> Landing {
        let remote = attempt.remote(loan.message.destination);
        let Attempt { outcome, status, error, said, .. } = attempt;
        if !matches!(outcome, Outcome::Held { .. }) || effort.story.count() == 0 {
            let outcome = outcome.as_str().to_owned();
            effort.story.add(AttemptRecord { at, status, outcome, error: error.clone(), said });
        }
        if let Outcome::Retry { ambiguous, .. } = outcome {
            effort.maybe_taken |= ambiguous;
            let now = Instant::now();
            effort.hold.failed(now, self.deliverer.served(remote));
            effort.failed = Some((now, remote));
        }
        let step = effort.backoff.next(&mut backoff::dice());
        let message = &loan.message;
        match self.standing(message, &effort, step).verdict(&outcome) {
            Verdict::Done => self.done(loan, &effort, &outcome).await,
            Verdict::WaitForBreaker => Landing::Parked { loan, effort },
            Verdict::RetryIn(wait) => {
                let waits = matches!(outcome, Outcome::Held { .. });
                tracing::debug!(id = %message.id, kind = %message.kind, ?wait, error, "will retry");
                Landing::Again { loan, effort, at: Instant::now() + wait, waits }
            }
            Verdict::Dead(reason) => Box::pin(self.bury(loan, effort, reason, error, over)).await,
        }
    }

    /// Loads a large body when there is memory for the body. Returns `false` if the subscription ended before.
    async fn load(&self, loan: &mut Loan, over: &mut watch::Receiver<bool>) -> bool {
        let gate = self.deliverer.gate(loan.message.destination);
        if !loan.has_room() {
            let room = tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return false,
                room = gate.room(loan.body_bytes()) => room,
            };
            loan.keep_room(room);
        }
        while let Err(error) = loan.load().await {
            tracing::warn!(id = %loan.message.id, %error, "cannot read the body of a waiting message yet");
            tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return false,
                () = tokio::time::sleep(BURY_AGAIN) => {}
            }
        }
        true
    }

    fn is_too_late(&self, loan: &Loan, effort: &Effort) -> bool {
        self.standing(&loan.message, effort, Duration::ZERO).expired().is_some()
    }

    async fn expire(&self, loan: Loan, effort: Effort, over: &mut watch::Receiver<bool>) -> Landing {
        match self.standing(&loan.message, &effort, Duration::ZERO).expired() {
            Some(Verdict::Dead(reason)) => {
                self.bury(loan, effort, reason, "its deadline passed".into(), over).await
            }
            _ => self.done(loan, &effort, &Outcome::Dropped).await,
        }
    }

    fn standing(&self, message: &Message, effort: &Effort, backoff: Duration) -> Standing {
        Standing {
            kind: message.kind,
            age: clock::since(message.accepted_at),
            deadline: self.settings.deadlines.of(message.kind),
            held: effort.hold.held,
            hold: self.settings.hold,
            backoff,
        }
    }

    async fn settled_before(&self, loan: &Loan) -> SettledBefore {
        let (message, redelivered) = (&loan.message, loan.earlier > 0);
        for key in settling_keys(message, redelivered) {
            let known = self.repeats.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
            match known.map(|digest| settled_by(message, DoneBefore { key, digest })) {
                None | Some(SettledBefore::No) => {}
                Some(settled) => return settled,
            }
        }
        self.deliverer.settled_before(message, redelivered).await
    }

    async fn note(&self, message: &Message, fact: DedupKey) {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner).add(fact, message.digest);
        self.deliverer.note(message, fact).await;
    }

    async fn done(&self, loan: Loan, effort: &Effort, outcome: &Outcome) -> Landing {
        let message = &loan.message;
        let (destination, kind) = (message.destination.as_str(), message.kind.as_str());
        if let Some(fact) = Deliverer::fact_of(message, outcome) {
            self.note(message, fact).await;
        }
        if matches!(outcome, Outcome::Delivered | Outcome::Answered) {
            let latency = clock::since(message.accepted_at).as_secs_f64();
            self.metrics.latency.with_label_values(&[destination, kind]).observe(latency);
            if message.replays > 0 {
                self.metrics.replayed.with_label_values(&[destination]).inc();
            }
        }
        match outcome {
            // The message is not settled: it waits in the queue of its real destination now.
            Outcome::Routed => tracing::debug!(id = %message.id, kind, "put on the queue of its destination"),
            _ => telemetry::log_settled(message, Settled::Acked(outcome), effort.story.count()),
        }
        self.settle(loan, true).await
    }

    /// Acks the message. If the ack fails, the message is redelivered and recognised by its id.
    async fn settle(&self, loan: Loan, freed: bool) -> Landing {
        let (lane, id) = (loan.message.lane.clone(), loan.message.id);
        match loan.done().await {
            Ok(()) => Landing::Settled { lane, freed },
            Err(error) => {
                tracing::debug!(%id, %error, "could not ack; the queue will redeliver");
                Landing::Unsettled
            }
        }
    }

    /// Dead-letters the message. The dead letter is on disk before the original is acked; until then this call tries again.
    pub(super) async fn bury(
        &self,
        mut loan: Loan,
        effort: Effort,
        reason: DeadReason,
        detail: String,
        over: &mut watch::Receiver<bool>,
    ) -> Landing {
        if loan.is_large() && !self.load(&mut loan, over).await {
            return Landing::Parked { loan, effort };
        }
        let dead = DeadLetter::new(loan.message.clone(), reason, detail, effort.story.clone());
        while let Err(error) = self.try_bury(&dead).await {
            tracing::warn!(id = %dead.message.id, %error, "cannot write a dead letter yet");
            tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return Landing::Parked { loan, effort },
                () = tokio::time::sleep(BURY_AGAIN) => {}
            }
        }
        let (message, replays) = (dead.message.id, dead.message.replays);
        self.note(&dead.message, DedupKey::DeadLettered { message, replays }).await;
        let destination = dead.message.destination;
        self.metrics.dead_letters.with_label_values(&[destination.as_str(), reason.as_str()]).inc();
        let lane = logged_conversation(&dead.message.lane);
        tracing::warn!(
            id = %dead.message.id, kind = %dead.message.kind, lane, %reason, detail = dead.detail,
            attempts = dead.story.count(), "dead letter"
        );
        telemetry::log_settled(&dead.message, Settled::DeadLettered(reason), dead.story.count());
        self.settle(loan, !matches!(reason, DeadReason::Exhausted | DeadReason::Expired)).await
    }

    async fn try_bury(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        // The bot side is notified first: after a crash between the two steps it is notified again with the same id.
        let before = trace::within(dead.message.trace.clone(), self.deliverer.before_burial(dead));
        before.await.map_err(QueueError::Unavailable)?;
        self.queue.bury(dead).await
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
        let (start, mut hold) = (Instant::now(), Hold::default());
        hold.failed(at(start, 0), Some(at(start, 0)));
        hold.failed(at(start, 10), Some(at(start, 9)));
        assert_eq!(hold.held.as_secs(), 10);
        hold.failed(at(start, 30), Some(at(start, 9)));
        hold.failed(at(start, 40), None);
        assert_eq!(hold.held.as_secs(), 10, "no other message was delivered since");
    }

    #[tokio::test(start_paused = true)]
    async fn who_lets_nobody_else_in_is_charged_for_it_once() {
        let (start, mut hold) = (Instant::now(), Hold::default());
        hold.failed(at(start, 0), None);
        hold.failed(at(start, 3), None);
        hold.count();
        hold.count();
        assert_eq!(hold.held.as_secs(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_in_the_queue_is_not_held_against_a_message() {
        let (start, mut hold) = (Instant::now(), Hold::default());
        hold.failed(at(start, 0), Some(at(start, 0)));
        // As in `Effort::lent_again`.
        hold.failed_at = None;
        hold.failed(at(start, 600), Some(at(start, 599)));
        assert_eq!(hold.held, Duration::ZERO);
    }
}
