//! The retry policy, the only place that decides about a message: from an outcome and the facts about the message to a
//! decision.
//!
//! Guarantees: pure. Every outcome leads to exactly one decision. A message that never succeeds ends at its deadline at the
//! latest. Not responsible for: carrying out the decision (`flight.rs`).

use std::time::Duration;

use crate::message::{DeadReason, Kind, Outcome};

/// `delivery.deadline.*`, counted from acceptance.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// `handoff.start`
    pub start: Duration,
    /// `handoff.message`, `callback.message` and `callback.event`
    pub message: Duration,
    /// `handoff.typing`
    pub typing: Duration,
    /// `handoff.end`, `callback.ended` and `handoff.failed`
    pub end: Duration,
    /// `bot.*`: a user waits for each of these messages.
    pub bot: Duration,
}

impl Default for Deadlines {
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

impl Deadlines {
    /// The largest age of a message of this kind.
    pub const fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::HandoffStart => self.start,
            Kind::HandoffMessage | Kind::CallbackMessage | Kind::CallbackEvent => self.message,
            Kind::HandoffTyping => self.typing,
            Kind::HandoffEnd | Kind::CallbackEnded | Kind::HandoffFailed => self.end,
            Kind::BotUserMessage | Kind::BotBotMessage | Kind::BotAlert | Kind::BotClientEvent => self.bot,
        }
    }
}

/// The next step for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
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
pub(super) struct Standing {
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
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Standing {
    /// The end of a message after its deadline. A typing indicator is dropped, because it is worthless later.
    fn too_late(&self) -> Verdict {
        if self.kind == Kind::HandoffTyping { Verdict::Done } else { Verdict::Dead(DeadReason::Expired) }
    }

    /// The decision before an attempt: a message past its deadline is not sent.
    pub(super) fn expired(&self) -> Option<Verdict> {
        (self.age >= self.deadline).then(|| self.too_late())
    }

    /// The decision after an attempt.
    pub(super) fn verdict(&self, outcome: &Outcome) -> Verdict {
        match outcome {
            Outcome::Delivered
            | Outcome::Answered
            | Outcome::Repeated
            | Outcome::Routed
            | Outcome::Dropped => Verdict::Done,
            Outcome::Dead(reason) => Verdict::Dead(*reason),
            _ if self.age >= self.deadline => self.too_late(),
            Outcome::Pause { .. } => Verdict::WaitForBreaker,
            Outcome::Retry { .. } if self.held >= self.hold => Verdict::Dead(DeadReason::Exhausted),
            // A retry is never planned past the deadline: at the deadline the message expires.
            Outcome::Retry { .. } => Verdict::RetryIn(self.backoff.min(self.deadline - self.age)),
            Outcome::Held { at_most, then } if self.age >= *at_most => Verdict::Dead(*then),
            Outcome::Held { at_most, .. } => Verdict::RetryIn(LOOK_AGAIN.min(*at_most - self.age)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{RetryReason, TripReason};

    fn standing(age: u64, held: u64) -> Standing {
        let secs = Duration::from_secs;
        Standing {
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
        let held = Outcome::Held { at_most: secs(30), then: DeadReason::UnknownConversation };
        let table = [
            (standing(1, 0), Outcome::Delivered, Verdict::Done),
            (standing(5000, 0), Outcome::Delivered, Verdict::Done),
            (standing(1, 0), Outcome::Answered, Verdict::Done),
            (standing(1, 0), Outcome::Repeated, Verdict::Done),
            (standing(1, 0), Outcome::Dropped, Verdict::Done),
            (standing(1, 0), Outcome::Dead(DeadReason::Rejected), Verdict::Dead(DeadReason::Rejected)),
            (standing(1, 0), RETRY, Verdict::RetryIn(secs(8))),
            (standing(897, 0), RETRY, Verdict::RetryIn(secs(3))),
            (standing(900, 0), RETRY, Verdict::Dead(DeadReason::Expired)),
            (standing(70, 59), RETRY, Verdict::RetryIn(secs(8))),
            (standing(70, 60), RETRY, Verdict::Dead(DeadReason::Exhausted)),
            (standing(70, 60), pause.clone(), Verdict::WaitForBreaker),
            (standing(900, 0), pause, Verdict::Dead(DeadReason::Expired)),
            (standing(1, 0), held.clone(), Verdict::RetryIn(LOOK_AGAIN)),
            (standing(30, 0), held, Verdict::Dead(DeadReason::UnknownConversation)),
        ];
        for (standing, outcome, verdict) in table {
            assert_eq!(standing.verdict(&outcome), verdict, "{standing:?} {outcome:?}");
        }
    }

    #[test]
    fn typing_is_not_worth_a_dead_letter() {
        let typing =
            Standing { kind: Kind::HandoffTyping, deadline: Duration::from_secs(5), ..standing(5, 0) };
        assert_eq!(typing.expired(), Some(Verdict::Done));
        assert_eq!(standing(5, 0).expired(), None);
    }
}
