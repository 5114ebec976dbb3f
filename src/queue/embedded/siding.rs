//! The dead-letter reader of one destination.
//!
//! Guarantees: one exclusive reader at a time, across all processes, may remove letters; others only read beside it. A
//! session sees the letters that existed when it began, oldest first. Reading changes nothing.
//! Not responsible for: which dead letters are removed, and why (`dead/`).

use super::line::Seq;
use super::lock::Lock;
use super::subscription::Receipt;
use super::writer::{Ask, Command, Gate};
use crate::queue::{self, Held, QueueError};

/// A reading session.
#[derive(Debug)]
pub struct Siding {
    /// The last dead letter that was read.
    pub(super) at: Seq,
    /// The end of the dead letters when the session began.
    pub(super) end: Seq,
    pub(super) gate: Gate,
    /// `None` for a reader that removes nothing.
    pub(super) lock: Option<Lock>,
}

impl Siding {
    pub(in crate::queue) async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        let (after, before) = (self.at, self.end);
        let found = self.gate.ask(|reply| Command::Ask(Ask::DeadLetter { after, before, reply })).await?;
        Ok(found.map(|stored| {
            self.at = stored.seq;
            let receipt = Receipt::dead_letter(stored.seq, self.gate.clone());
            Held { dead: stored.entry, receipt: queue::Receipt::Embedded(receipt) }
        }))
    }

    pub(in crate::queue) async fn close(self) {
        drop(self.lock);
    }
}
