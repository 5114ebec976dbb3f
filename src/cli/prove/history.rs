//! The record of one message: due, accepted, arrived, took effect. It holds no text.
//!
//! Guarantees: some hundred bytes for each message, so that a run of millions fits into memory.
//! Not responsible for: interpreting it (`checker.rs`), recording it (`observer.rs`, `generator.rs`).

use crate::message::{Destination, LaneKey, MessageId};

use super::fault_plan::FaultKind;

/// Microseconds since the run began.
pub(super) type Micros = u64;

pub(super) const SECOND: Micros = 1_000_000;

/// One arrival of a message at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DeliveryCall {
    pub(super) began: Micros,
    /// When the visit was answered or given up.
    pub(super) ended: Option<Micros>,
    /// When the visit took effect, and its position among all effects.
    pub(super) effect: Option<(Micros, u64)>,
    pub(super) status: Option<u16>,
    /// The fault that a rule of the sandbox applied to it.
    pub(super) fault: Option<&'static str>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct MessageTrace {
    /// When the message was scheduled, independent of delays.
    pub(super) due: Micros,
    pub(super) posted: Option<Micros>,
    pub(super) posts: u32,
    /// When the caller received the 2xx.
    pub(super) accepted: Option<Micros>,
    /// When the caller was first told to repeat, with a status of 500 or more.
    pub(super) turned_away: Option<Micros>,
    /// A status after which a correct caller does not retry.
    pub(super) refused: Option<u16>,
    pub(super) calls: Vec<DeliveryCall>,
}

impl MessageTrace {
    /// Time and position of the first effect.
    pub(super) fn effect(&self) -> Option<(Micros, u64)> {
        self.calls.iter().filter_map(|call| call.effect).min_by_key(|(_, place)| *place)
    }

    /// The time from the first post to its 2xx, if the message was posted once.
    pub(super) fn answer_time(&self) -> Option<Micros> {
        let accepted = self.accepted.filter(|_| self.posts == 1)?;
        Some(accepted.saturating_sub(self.posted?))
    }
}

/// One conversation with one destination: a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProveChat {
    pub(super) name: String,
    pub(super) destination: Destination,
    /// Whether its destination rejects it.
    pub(super) poisoned: bool,
    /// Message n has index n.
    pub(super) messages: Vec<MessageTrace>,
}

impl ProveChat {
    /// The id that Causeway derives for message `n`.
    pub(super) fn id_of(&self, n: usize) -> MessageId {
        match self.destination {
            Destination::ServiceNow => MessageId::derived_from("handoff", &[&self.name, &self.key_of(n)]),
            _ => MessageId::derived("servicenow", &self.key_of(n)),
        }
    }

    /// The key that makes a repeated post the same message: the `sys_id` of a callback, the `Idempotency-Key` of a
    /// handoff.
    pub(super) fn key_of(&self, n: usize) -> String {
        format!("{}-{n}", self.name)
    }

    pub(super) fn lane(&self) -> Option<LaneKey> {
        LaneKey::parse(&self.name).ok()
    }
}

/// A fault that took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FaultRecord {
    pub(super) fault_kind: FaultKind,
    pub(super) from: Micros,
    pub(super) until: Micros,
    pub(super) worker: usize,
    pub(super) side: Destination,
}
