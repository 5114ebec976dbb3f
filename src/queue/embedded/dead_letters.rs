//! The dead-letter reader of one destination.
//!
//! Guarantees: one exclusive reader at a time, across all processes, may remove letters; others only read beside it. A
//! session sees the letters that existed when it began, oldest first. Reading changes nothing.
//! Not responsible for: the choice of the dead letters to remove (`dead_letters/`).

use super::lock::FileLock;
use super::stream::SequenceNumber;
use super::subscription::EmbeddedAck;
use super::writer::{ControlRequest, WriterCommand, WriterHandle};
use crate::queue::{self, DeadLetterEntry, QueueError};

/// A reading session.
#[derive(Debug)]
pub struct EmbeddedReader {
    /// The last dead letter that was read.
    pub(super) at: SequenceNumber,
    /// The end of the dead letters when the session began.
    pub(super) end: SequenceNumber,
    pub(super) writer_handle: WriterHandle,
    /// `None` for a reader that removes nothing.
    pub(super) lock: Option<FileLock>,
}

impl EmbeddedReader {
    pub(in crate::queue) async fn next(&mut self) -> Result<Option<DeadLetterEntry>, QueueError> {
        let (after, before) = (self.at, self.end);
        let found = self
            .writer_handle
            .ask(|reply| WriterCommand::Ask(ControlRequest::DeadLetter { after, before, reply }))
            .await?;
        Ok(found.map(|stored| {
            self.at = stored.seq;
            let ack_token = EmbeddedAck::dead_letter(stored.seq, self.writer_handle.clone());
            DeadLetterEntry { dead: stored.entry, ack_token: queue::AckToken::Embedded(ack_token) }
        }))
    }

    pub(in crate::queue) async fn close(self) {
        drop(self.lock);
    }
}
