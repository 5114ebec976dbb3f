//! The consumer's end of the embedded engine: received messages and their acks.
//!
//! Guarantees: the partition is free after a subscription ends, in every case.
//! Not responsible for: which messages are handed out (`lending.rs`).

use bytes::Bytes;
use tokio::sync::mpsc;

use super::line::{Line, Seq};
use super::writer::{Ask, Command, Gate, Write};
use crate::queue::{Loan, QueueError};

/// The consumer of one partition.
#[derive(Debug)]
pub struct Subscription {
    line: Line,
    number: u64,
    loans: mpsc::Receiver<Loan>,
    gate: Gate,
    closed: bool,
}

impl Subscription {
    pub(super) const fn new(line: Line, number: u64, loans: mpsc::Receiver<Loan>, gate: Gate) -> Self {
        Self { line, number, loans, gate, closed: false }
    }

    pub(in crate::queue) async fn next(&mut self) -> Option<Loan> {
        self.loans.recv().await
    }

    pub(in crate::queue) async fn close(mut self) {
        self.closed = true;
        let (line, number) = (self.line, self.number);
        // An error means that the queue is closed; then the partition is free, too.
        let _ = self.gate.ask(|reply| Command::Ask(Ask::GiveBack { line, number, reply: Some(reply) })).await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.closed {
            let (line, number) = (self.line, self.number);
            let _ = self.gate.send(Command::Ask(Ask::GiveBack { line, number, reply: None }));
        }
    }
}

/// A body that stays in its row until the attempt of its message.
#[derive(Debug)]
pub(crate) struct RowBody {
    pub(super) seq: Seq,
    pub(in crate::queue) bytes: usize,
    pub(super) gate: Gate,
}

impl RowBody {
    pub(in crate::queue) async fn read(&self) -> Result<Bytes, QueueError> {
        let seq = self.seq;
        let body = self.gate.ask(|reply| Command::Ask(Ask::Body { seq, reply })).await?;
        Ok(body.into())
    }
}

/// The ack token of a message or of a dead letter.
#[derive(Debug)]
pub(crate) struct Receipt {
    write: Write,
    gate: Gate,
}

impl Receipt {
    pub(super) const fn loan(seq: Seq, borrower: u64, gate: Gate) -> Self {
        Self { write: Write::Settle { seq, borrower }, gate }
    }

    pub(super) const fn dead_letter(seq: Seq, gate: Gate) -> Self {
        Self { write: Write::Remove { seq }, gate }
    }

    pub(in crate::queue) async fn done(self) -> Result<(), QueueError> {
        let Self { write, gate } = self;
        gate.ask(|reply| Command::Write(write, reply)).await
    }
}
