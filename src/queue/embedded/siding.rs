//! A visit to the dead letters of one destination.
//!
//! Guarantees: one visitor that may remove at a time, also across processes; readers read beside it; a visit sees what was there when it began, in the order of
//! death, and changes nothing by looking.
//! Leaves to others: which dead letters leave, and for where (`dead/`).

use super::line::Seq;
use super::lock::Lock;
use super::subscription::Receipt;
use super::writer::{Ask, Command, Gate};
use crate::queue::{self, Held, QueueError};

/// A visit.
#[derive(Debug)]
pub struct Siding {
    /// The last dead letter that was shown.
    pub(super) at: Seq,
    /// Where the siding ended when the visit began.
    pub(super) end: Seq,
    pub(super) gate: Gate,
    /// `None` for a reader, who removes nothing.
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
