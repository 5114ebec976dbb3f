//! Records which messages were sent, accepted and delivered, for the comparison of all systems.
//!
//! A message is a number. The number determines the conversation and the position in it, so no lookup is needed:
//! message `i` is number `i / conversations` of conversation `i % conversations`.
//! Guarantees: each mark of a message is set only once, and without a lock.
//! Not responsible for: sending (`load.rs`) and receiving (`sink.rs`).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Set once for each message: microseconds since the ledger was opened. 0 means not yet.
#[derive(Debug, Default)]
struct Mark {
    sent: AtomicU32,
    accepted: AtomicU32,
    arrived: AtomicU32,
}

/// The record of one job.
#[derive(Debug)]
pub(crate) struct Ledger {
    opened: Instant,
    /// Separates the messages of this ledger from the messages of an earlier job.
    pub(crate) nonce: u32,
    conversations: u32,
    /// The number of the first message. Earlier numbers belong to an earlier ledger of the same conversations.
    pub(crate) first: u32,
    marks: Vec<Mark>,
    /// For each conversation: one more than the highest number that has arrived.
    reached: Vec<AtomicU32>,
    accepted: AtomicU64,
    refused: AtomicU64,
    arrived: AtomicU64,
    repeated: AtomicU64,
    overtaken: AtomicU64,
    strangers: AtomicU64,
}

/// The counters at one time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) arrived: u64,
    pub(crate) repeated: u64,
    pub(crate) overtaken: u64,
}

/// The times of messages that were sent within a window, in milliseconds, sorted.
#[derive(Debug, Default, Clone)]
pub(crate) struct Times {
    /// From the post to its answer.
    pub(crate) ingress: Vec<f64>,
    /// From the answer to the arrival.
    pub(crate) delivery: Vec<f64>,
    /// From the post to the arrival.
    pub(crate) whole: Vec<f64>,
}

impl Ledger {
    /// Creates a ledger for the given number of messages, from `first` on.
    pub(crate) fn new(nonce: u32, conversations: u32, first: u32, room: usize) -> Self {
        Self {
            opened: Instant::now(),
            nonce,
            conversations,
            first,
            marks: (0..room).map(|_| Mark::default()).collect(),
            reached: (0..conversations).map(|_| AtomicU32::new(0)).collect(),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
            overtaken: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.marks.len()
    }

    fn mark(&self, message: u32) -> Option<&Mark> {
        self.marks.get(message.checked_sub(self.first)? as usize)
    }

    pub(crate) fn conversation(&self, message: u32) -> u32 {
        message % self.conversations
    }

    /// Whether this is the first message of its conversation.
    pub(crate) fn is_first(&self, message: u32) -> bool {
        message < self.conversations
    }

    /// Microseconds since the ledger was opened, never 0.
    pub(crate) fn now(&self) -> u32 {
        u32::try_from(self.opened.elapsed().as_micros()).unwrap_or(u32::MAX).max(1)
    }

    pub(crate) fn at(&self, instant: Instant) -> u32 {
        let since = instant.saturating_duration_since(self.opened);
        u32::try_from(since.as_micros()).unwrap_or(u32::MAX).max(1)
    }

    pub(crate) fn sent(&self, message: u32, at: u32) {
        if let Some(mark) = self.mark(message) {
            mark.sent.store(at, Ordering::Relaxed);
        }
    }

    pub(crate) fn accepted(&self, message: u32) {
        if let Some(mark) = self.mark(message) {
            mark.accepted.store(self.now(), Ordering::Relaxed);
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks the message as arrived. Returns true for its first arrival.
    pub(crate) fn arrived(&self, nonce: u32, message: u32) -> bool {
        let mark = self.mark(message).filter(|_| nonce == self.nonce);
        let Some(mark) = mark else {
            self.strangers.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let first = mark.arrived.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
        if first.is_err() {
            self.repeated.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let number = message / self.conversations + 1;
        let conversation = self.conversation(message) as usize;
        if self.reached[conversation].fetch_max(number, Ordering::Relaxed) > number {
            self.overtaken.fetch_add(1, Ordering::Relaxed);
        }
        self.arrived.fetch_add(1, Ordering::Relaxed);
        true
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accepted: read(&self.accepted),
            refused: read(&self.refused),
            arrived: read(&self.arrived),
            repeated: read(&self.repeated),
            overtaken: read(&self.overtaken),
        }
    }

    /// The number of messages that were accepted and have not arrived.
    pub(crate) fn missing(&self) -> u64 {
        let missing = |mark: &&Mark| {
            mark.accepted.load(Ordering::Relaxed) != 0 && mark.arrived.load(Ordering::Relaxed) == 0
        };
        self.marks.iter().filter(missing).count() as u64
    }

    /// The times of messages that were sent from `from` to `to` (microseconds) and have arrived.
    pub(crate) fn times(&self, from: u32, to: u32) -> Times {
        let mut times = Times::default();
        for mark in &self.marks {
            let [sent, accepted, arrived] =
                [&mark.sent, &mark.accepted, &mark.arrived].map(|at| at.load(Ordering::Relaxed));
            if accepted == 0 || arrived == 0 || sent < from || sent > to {
                continue;
            }
            // A message may be delivered before its sender has read the answer.
            let between = |one: u32, other: u32| f64::from(other.saturating_sub(one)) / 1000.0;
            times.ingress.push(between(sent, accepted));
            times.delivery.push(between(accepted, arrived));
            times.whole.push(between(sent, arrived));
        }
        for list in [&mut times.ingress, &mut times.delivery, &mut times.whole] {
            list.sort_by(f64::total_cmp);
        }
        times
    }
}
