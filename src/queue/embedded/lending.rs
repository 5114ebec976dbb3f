//! The dispatcher: it knows which consumer has which message. It keeps this in memory, because one process serves the file.
//!
//! Guarantees: a partition has one consumer, and other consumers wait in order. No consumer has more than `prefetch`
//! unacked messages. A message that may have been delivered before is marked as redelivered. The dispatcher reads only the
//! messages that it hands out, so memory does not grow with the queue.
//! Not responsible for: acks on disk (`writer.rs`).

use std::collections::{BTreeMap, HashMap, VecDeque};

use tokio::sync::mpsc;

use super::line::{Line, Seq};
use super::store::{LineState, Store};
use super::subscription::{Receipt, RowBody};
use super::writer::{Gate, Reply};
use crate::queue::waiting_body::{SMALL_BYTES, WaitingBody};
use crate::queue::{self, Loan, QueueError};

/// The number of a new consumer, and its stream of messages.
pub(super) type Borrowed = (u64, mpsc::Receiver<Loan>);

/// The consumers of all partitions.
#[derive(Debug)]
pub(super) struct Lending {
    prefetch: u16,
    partitions: BTreeMap<Line, Partition>,
    borrowers: u64,
}

#[derive(Debug)]
struct Partition {
    lent: Lent,
    borrower: Option<Borrower>,
    waiting: VecDeque<(Gate, Reply<Borrowed>)>,
}

/// The last message that may have been delivered before. Messages are delivered in order, so all earlier ones may have
/// been, too.
#[derive(Debug, Clone, Copy)]
enum Lent {
    UpTo(Seq),
    /// After a crash: at most the first `out` messages before `before` had been delivered and not acked.
    Unknown {
        out: u16,
        before: Seq,
    },
}

#[derive(Debug)]
struct Borrower {
    number: u64,
    gate: Gate,
    loans: mpsc::Sender<Loan>,
    /// The last message that was handed out or skipped.
    at: Seq,
    unsettled: u16,
    /// There may be more messages after `at`.
    more: bool,
}

impl Lending {
    /// `out`: see [`Store::started`].
    pub(super) fn new(prefetch: u16, out: u16, lines: &[LineState]) -> Self {
        let partitions = lines.iter().filter(|state| !state.line.is_siding()).map(|state| {
            let unknown = Lent::Unknown { out, before: state.line.seq(state.next) };
            let lent = state.lent.map_or(unknown, Lent::UpTo);
            (state.line, Partition { lent, borrower: None, waiting: VecDeque::new() })
        });
        Self { prefetch, partitions: partitions.collect(), borrowers: 0 }
    }

    /// Adds a consumer. The reply comes when the partition is free.
    pub(super) fn queue_up(&mut self, line: Line, gate: Gate, reply: Reply<Borrowed>) {
        if let Some(partition) = self.partitions.get_mut(&line) {
            partition.waiting.push_back((gate, reply));
            self.admit(line);
        } else {
            let _ = reply.send(Err(QueueError::Mismatch(format!("the queue has no partition {}", line.0))));
        }
    }

    fn admit(&mut self, line: Line) {
        let Some(partition) = self.partitions.get_mut(&line) else { return };
        while partition.borrower.is_none() {
            let Some((gate, reply)) = partition.waiting.pop_front() else { return };
            self.borrowers += 1;
            let (loans, receiver) = mpsc::channel(usize::from(self.prefetch.max(1)));
            // A consumer that gave up has dropped its receiver: the next one gets the partition.
            if reply.send(Ok((self.borrowers, receiver))).is_ok() {
                let number = self.borrowers;
                partition.borrower =
                    Some(Borrower { number, gate, loans, at: line.start(), unsettled: 0, more: true });
            }
        }
    }

    /// Removes a consumer. The next one gets its unacked messages in their original position.
    pub(super) fn give_back(&mut self, line: Line, number: u64) {
        let Some(partition) = self.partitions.get_mut(&line) else { return };
        if partition.borrower.as_ref().is_some_and(|borrower| borrower.number == number) {
            partition.borrower = None;
            self.admit(line);
        }
    }

    fn borrower(&mut self, line: Line) -> Option<&mut Borrower> {
        self.partitions.get_mut(&line)?.borrower.as_mut()
    }

    /// Whether this consumer still has the partition.
    pub(super) fn stands(&self, line: Line, number: u64) -> bool {
        let borrower = self.partitions.get(&line).and_then(|partition| partition.borrower.as_ref());
        borrower.is_some_and(|borrower| borrower.number == number)
    }

    /// Records that one message of this consumer is acked on disk.
    pub(super) fn settled(&mut self, line: Line, number: u64) {
        if let Some(borrower) = self.borrower(line).filter(|borrower| borrower.number == number) {
            borrower.unsettled = borrower.unsettled.saturating_sub(1);
        }
    }

    /// Records that a message was published to the partition.
    pub(super) fn arrived(&mut self, line: Line) {
        if let Some(borrower) = self.borrower(line) {
            borrower.more = true;
        }
    }

    /// Records that another process may have published to any partition.
    pub(super) fn arrived_anywhere(&mut self) {
        for partition in self.partitions.values_mut() {
            if let Some(borrower) = &mut partition.borrower {
                borrower.more = true;
            }
        }
    }

    /// Hands out all messages that fit, except those in `settling`, which are acked but not written yet.
    pub(super) fn lend(&mut self, store: &Store, settling: &HashMap<Seq, u64>) -> rusqlite::Result<()> {
        for (line, partition) in &mut self.partitions {
            partition.lend(*line, self.prefetch, store, settling)?;
        }
        Ok(())
    }

    /// The last delivered message of each partition, for the note of a clean stop.
    pub(super) fn lent(&self) -> Vec<(Line, Option<Seq>)> {
        let lent = |partition: &Partition| match partition.lent {
            Lent::UpTo(seq) => Some(seq),
            Lent::Unknown { .. } => None,
        };
        self.partitions.iter().map(|(line, partition)| (*line, lent(partition))).collect()
    }
}

impl Partition {
    fn lend(
        &mut self,
        line: Line,
        prefetch: u16,
        store: &Store,
        settling: &HashMap<Seq, u64>,
    ) -> rusqlite::Result<()> {
        let Some(borrower) = &mut self.borrower else { return Ok(()) };
        while borrower.more && borrower.unsettled < prefetch {
            let lent = match self.lent {
                Lent::UpTo(seq) => seq,
                Lent::Unknown { out, before } => store.nth(line, before, out)?.unwrap_or(line.start()),
            };
            let free = prefetch - borrower.unsettled;
            let window = store.window(line, borrower.at, free)?;
            borrower.more = window.len() == usize::from(free);
            self.lent = Lent::UpTo(lent.max(window.last().map_or(borrower.at, |(last, _)| last.seq)));
            for (stored, bytes) in window {
                borrower.at = stored.seq;
                if settling.contains_key(&stored.seq) {
                    continue;
                }
                let receipt = Receipt::loan(stored.seq, borrower.number, borrower.gate.clone());
                let waiting = if bytes > SMALL_BYTES {
                    WaitingBody::Row(RowBody { seq: stored.seq, bytes, gate: borrower.gate.clone() })
                } else {
                    WaitingBody::Here(None)
                };
                let loan = Loan {
                    message: stored.entry,
                    earlier: u32::from(stored.seq <= lent),
                    unreadable: stored.unreadable,
                    receipt: queue::Receipt::Embedded(receipt),
                    waiting,
                    room: None,
                };
                borrower.unsettled += 1;
                // Fails only if the receiver is gone. The command that reports the end of this consumer is on its way.
                let _ = borrower.loans.try_send(loan);
            }
        }
        Ok(())
    }
}
