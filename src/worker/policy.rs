//! The retry policy, the only place that decides about a message: from an outcome and the facts about the message to a
//! decision.
//!
//! Guarantees: pure. Every outcome leads to exactly one decision. A message that never succeeds ends at its deadline at the
//! latest. Not responsible for: carrying out the decision (`process.rs`).

use std::time::Duration;

use crate::message::{DeadReason, Kind, Outcome};

/// `delivery.deadline.*`, counted from acceptance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageDeadlines {
    /// `handoff.start`
    pub start: Duration,
    /// `handoff.message`, `callback.message` and `callback.event`
    pub message: Duration,
    /// `handoff.typing`
    pub typing: Duration,
    /// `handoff.end`, `handoff.incident`, `callback.ended` and `handoff.failed`
    pub end: Duration,
    /// `bot.*`: a user waits for each of these messages.
    pub bot: Duration,
}

impl Default for MessageDeadlines {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(120),
            message: Duration::from_secs(900),
            typing: Duration::from_secs(5),
            end: Duration::from_secs(24 * 3600),
            bot: Duration::from_secs(60),
        }
    }
}

impl MessageDeadlines {
    /// The largest age of a message of this kind.
    pub const fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::HandoffStart => self.start,
            Kind::HandoffMessage | Kind::CallbackMessage | Kind::CallbackEvent => self.message,
            Kind::HandoffTyping => self.typing,
            Kind::HandoffEnd | Kind::HandoffIncident | Kind::CallbackEnded | Kind::HandoffFailed => self.end,
            Kind::BotUserMessage | Kind::BotBotMessage | Kind::BotAlert | Kind::BotClientEvent => self.bot,
        }
    }
}

/// The next step for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PolicyDecision {
    /// The message leaves the queue.
    Done,
    /// The message is processed again after this time.
    RetryIn(Duration),
    /// The message waits until the breaker passes; the failure was not its fault.
    WaitForBreaker,
    /// The message becomes a dead letter.
    Dead(DeadReason),
}

/// The facts about a message after its attempt.
#[derive(Debug, Clone)]
pub(super) struct RetryContext {
    pub(super) kind: Kind,
    /// The time since acceptance.
    pub(super) age: Duration,
    /// The deadline of its kind.
    pub(super) deadline: Duration,
    /// How long the message has failed while its endpoint accepted other messages.
    pub(super) held: Duration,
    /// `delivery.hold`
    pub(super) hold: Duration,
    /// The next delay of its backoff.
    pub(super) backoff: Duration,
}

/// How often a deferred message checks whether its condition is met.
const RECHECK_DELAY: Duration = Duration::from_millis(500);

impl RetryContext {
    /// The end of a message after its deadline. A typing indicator is dropped, because it is worthless later.
    fn too_late(&self) -> PolicyDecision {
        if self.kind == Kind::HandoffTyping {
            PolicyDecision::Done
        } else {
            PolicyDecision::Dead(DeadReason::Expired)
        }
    }

    /// The decision before an attempt: a message past its deadline is not sent.
    pub(super) fn expired(&self) -> Option<PolicyDecision> {
        (self.age >= self.deadline).then(|| self.too_late())
    }

    /// The decision after an attempt.
    pub(super) fn decide(&self, outcome: &Outcome) -> PolicyDecision {
        match outcome {
            Outcome::Delivered
            | Outcome::Declined
            | Outcome::Repeated
            | Outcome::Routed
            | Outcome::Dropped => PolicyDecision::Done,
            Outcome::Dead(reason) => PolicyDecision::Dead(*reason),
            _ if self.age >= self.deadline => self.too_late(),
            Outcome::Pause { .. } => PolicyDecision::WaitForBreaker,
            Outcome::Retry { .. } if self.held >= self.hold => PolicyDecision::Dead(DeadReason::Exhausted),
            // A retry is never planned past the deadline: at the deadline the message expires.
            Outcome::Retry { .. } => PolicyDecision::RetryIn(self.backoff.min(self.deadline - self.age)),
            Outcome::Deferred { at_most, then } if self.age >= *at_most => PolicyDecision::Dead(*then),
            Outcome::Deferred { at_most, .. } => {
                PolicyDecision::RetryIn(RECHECK_DELAY.min(*at_most - self.age))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{RetryReason, TripReason};

    fn retry_context(age: u64, held: u64) -> RetryContext {
        let secs = Duration::from_secs;
        RetryContext {
            kind: Kind::HandoffMessage,
            age: secs(age),
            deadline: secs(900),
            held: secs(held),
            hold: secs(60),
            backoff: secs(8),
        }
    }

    const RETRY: Outcome = Outcome::Retry { reason: RetryReason::ServerError, ambiguous: false, floor: None };

    #[test]
    fn every_outcome_has_its_verdict() {
        let secs = Duration::from_secs;
        let pause = Outcome::Pause { reason: TripReason::NotReady, floor: None };
        let held = Outcome::Deferred { at_most: secs(30), then: DeadReason::UnknownConversation };
        let table = [
            (retry_context(1, 0), Outcome::Delivered, PolicyDecision::Done),
            (retry_context(5000, 0), Outcome::Delivered, PolicyDecision::Done),
            (retry_context(1, 0), Outcome::Declined, PolicyDecision::Done),
            (retry_context(1, 0), Outcome::Repeated, PolicyDecision::Done),
            (retry_context(1, 0), Outcome::Dropped, PolicyDecision::Done),
            (
                retry_context(1, 0),
                Outcome::Dead(DeadReason::Rejected),
                PolicyDecision::Dead(DeadReason::Rejected),
            ),
            (retry_context(1, 0), RETRY, PolicyDecision::RetryIn(secs(8))),
            (retry_context(897, 0), RETRY, PolicyDecision::RetryIn(secs(3))),
            (retry_context(900, 0), RETRY, PolicyDecision::Dead(DeadReason::Expired)),
            (retry_context(70, 59), RETRY, PolicyDecision::RetryIn(secs(8))),
            (retry_context(70, 60), RETRY, PolicyDecision::Dead(DeadReason::Exhausted)),
            (retry_context(70, 60), pause.clone(), PolicyDecision::WaitForBreaker),
            (retry_context(900, 0), pause, PolicyDecision::Dead(DeadReason::Expired)),
            (retry_context(1, 0), held.clone(), PolicyDecision::RetryIn(RECHECK_DELAY)),
            (retry_context(30, 0), held, PolicyDecision::Dead(DeadReason::UnknownConversation)),
        ];
        for (retry_context, outcome, verdict) in table {
            assert_eq!(retry_context.decide(&outcome), verdict, "{retry_context:?} {outcome:?}");
        }
    }

    #[test]
    fn typing_is_not_worth_a_dead_letter() {
        let typing = RetryContext {
            kind: Kind::HandoffTyping,
            deadline: Duration::from_secs(5),
            ..retry_context(5, 0)
        };
        assert_eq!(typing.expired(), Some(PolicyDecision::Done));
        assert_eq!(retry_context(5, 0).expired(), None);
    }
}
