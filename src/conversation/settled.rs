//! The fact that the outcome of a message proves, and the row of the journal for the fact.
//!
//! Guarantees: pure. "Delivered" is recorded only if a destination answered 2xx.
//! Not responsible for: when the row is written (`bridge/` together with the other changes of an attempt, otherwise
//! `worker/deduplication.rs`), dead letters.

use super::{Changes, DedupKey, JournalEntry, SettledAfter};
use crate::message::{Destination, Kind, Message, Outcome};

impl DedupKey {
    /// The key of a 2xx answer of the destination. A message to XO's Callback URL was not relayed to a user of ours, so it
    /// has a key of its own.
    pub const fn of_delivery(message: &Message) -> Self {
        match message.destination {
            Destination::Xo => Self::Forwarded(message.id),
            _ => Self::Delivered(message.id),
        }
    }

    /// The key to record for the outcome of a message that is not dead-lettered; `None` if no record is needed.
    pub fn of_outcome(message: &Message, outcome: &Outcome) -> Option<Self> {
        let nothing = Self::NothingToSend { message: message.id, replays: message.replays };
        match outcome {
            Outcome::Delivered => Some(Self::of_delivery(message)),
            Outcome::Declined => Some(Self::Answered(message.id)),
            // Typing is frequent, and its row would tell nothing.
            Outcome::Dropped if message.kind == Kind::HandoffTyping && message.replays == 0 => None,
            Outcome::Dropped => Some(nothing),
            // The operator who replayed the message waits for its result.
            Outcome::Repeated if message.replays > 0 => Some(nothing),
            _ => None,
        }
    }
}

impl Changes {
    /// Adds the row of the journal, if the outcome needs a row.
    #[must_use]
    pub fn with_outcome(self, message: &Message, outcome: &Outcome, attempts: u32) -> Self {
        let after = SettledAfter { attempts, ..SettledAfter::default() };
        let fact = DedupKey::of_outcome(message, outcome);
        match fact.and_then(|fact| JournalEntry::of(message, fact, after)) {
            Some(entry) => self.settled(&entry),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{LaneKey, MessageId};

    #[test]
    fn only_an_answer_of_the_destination_is_a_delivery() {
        let of = |kind: Kind, destination, replays, outcome: &Outcome| {
            let lane = LaneKey::parse("c").unwrap();
            let message =
                Message { replays, ..Message::new(MessageId::fresh(), kind, destination, lane, "{}") };
            DedupKey::of_outcome(&message, outcome).map(|key| match key {
                DedupKey::Delivered(_) => "delivered",
                DedupKey::Forwarded(_) => "forwarded",
                DedupKey::Answered(_) => "answered",
                DedupKey::NothingToSend { .. } => "nothing to send",
                _ => "another",
            })
        };
        let (callback, typing) = (Kind::CallbackMessage, Kind::HandoffTyping);
        let (xo, events, servicenow) = (Destination::Xo, Destination::Events, Destination::ServiceNow);
        assert_eq!(of(callback, events, 0, &Outcome::Delivered), Some("delivered"));
        assert_eq!(of(callback, xo, 0, &Outcome::Delivered), Some("forwarded"));
        assert_eq!(of(Kind::HandoffStart, servicenow, 0, &Outcome::Declined), Some("answered"));
        assert_eq!(of(callback, events, 0, &Outcome::Dropped), Some("nothing to send"));
        assert_eq!(of(typing, servicenow, 0, &Outcome::Dropped), None);
        assert_eq!(of(typing, servicenow, 1, &Outcome::Dropped), Some("nothing to send"));
        assert_eq!(of(callback, events, 0, &Outcome::Repeated), None);
        assert_eq!(of(callback, events, 1, &Outcome::Repeated), Some("nothing to send"));
        assert_eq!(of(callback, events, 1, &Outcome::Routed), None);
    }
}
