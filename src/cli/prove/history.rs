//! What is written down of a message while it travels: when it was due, taken, when it arrived and took effect. No text.
//!
//! Guarantees: some hundred bytes for each message, so that a run of millions fits into memory. Leaves to others: what it
//! means (`verdict.rs`), how it gets here (`witness.rs`, `load.rs`).

use crate::message::{Destination, LaneKey, MessageId};

use super::plan::Mishap;

/// Microseconds since the run began.
pub(super) type Micros = u64;

pub(super) const SECOND: Micros = 1_000_000;

/// One arrival of a message at its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Visit {
    pub(super) began: Micros,
    /// Answered or given up.
    pub(super) ended: Option<Micros>,
    /// When it took effect, and its place among all effects.
    pub(super) effect: Option<(Micros, u64)>,
    pub(super) status: Option<u16>,
    /// The fault that a rule of the sandbox put in its way.
    pub(super) fault: Option<&'static str>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Trace {
    /// When its turn was, whatever held it up.
    pub(super) due: Micros,
    pub(super) posted: Option<Micros>,
    pub(super) posts: u32,
    /// When the 2xx came.
    pub(super) accepted: Option<Micros>,
    /// An answer that a good caller does not answer with another try.
    pub(super) refused: Option<u16>,
    pub(super) visits: Vec<Visit>,
}

impl Trace {
    /// The first effect: when, and its place.
    pub(super) fn effect(&self) -> Option<(Micros, u64)> {
        self.visits.iter().filter_map(|visit| visit.effect).min_by_key(|(_, place)| *place)
    }
}

/// One conversation toward one destination: a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chat {
    pub(super) name: String,
    pub(super) destination: Destination,
    /// Its destination refuses it.
    pub(super) poisoned: bool,
    /// Message n stands at place n.
    pub(super) messages: Vec<Trace>,
}

impl Chat {
    /// Causeway's id of message `n`.
    pub(super) fn id_of(&self, n: usize) -> MessageId {
        match self.destination {
            Destination::ServiceNow => MessageId::derived_from("handoff", &[&self.name, &self.key_of(n)]),
            _ => MessageId::derived("servicenow", &self.key_of(n)),
        }
    }

    /// What makes a repeated post the same message: the `sys_id` of a callback, the `Idempotency-Key` of a handoff.
    pub(super) fn key_of(&self, n: usize) -> String {
        format!("{}-{n}", self.name)
    }

    pub(super) fn lane(&self) -> Option<LaneKey> {
        LaneKey::parse(&self.name).ok()
    }
}

/// A fault that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) mishap: Mishap,
    pub(super) from: Micros,
    pub(super) until: Micros,
    pub(super) worker: usize,
    pub(super) side: Destination,
}
