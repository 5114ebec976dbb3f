//! Records the callers' answers and the entries of the sandbox's ledger for each message.
//!
//! Guarantees: answers come only from the callers; arrivals and effects come only from the ledger. No text is kept.
//! Not responsible for: checking the records (`checker.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::history::{DeliveryCall, MessageTrace, Micros, ProveChat};
use crate::message::Destination;
use crate::queue::PartitionId;
use crate::sandbox::{LedgerEntry, LedgerMoment, Operation, RequestLedger, Side};

/// The number of partitions for each destination in a run.
pub(super) const PARTITIONS: u16 = 8;
/// Requests that a killed process had already sent still arrive in this time. They do not show that its successor
/// works.
const ON_THE_WIRE: Micros = 30_000;

/// A message that arrives within this time after it was due has not waited.
const AT_ONCE: Micros = 250_000;

/// Clones share the same records.
#[derive(Debug, Clone)]
pub(super) struct HistoryObserver {
    began: Instant,
    book: Arc<Mutex<ObservedHistory>>,
}

#[derive(Debug)]
struct ObservedHistory {
    /// Distinguishes our messages from those of an earlier run.
    run: String,
    chats: Vec<ProveChat>,
    partitions: Vec<usize>,
    groups: HashMap<String, usize>,
    in_the_air: HashMap<u64, (usize, usize, usize)>,
    counts: ObserverCounts,
    watches: Vec<RecoveryWatch>,
}

/// The counts for the progress bar and the wait for quiet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ObserverCounts {
    pub(super) accepted: u64,
    /// Messages that were accepted and took effect.
    pub(super) delivered: u64,
    pub(super) posts: u64,
    /// Effects that came after the effect of a later message, as far as observed.
    pub(super) swapped: u64,
}

/// Waits for the first arrival in each partition after a kill.
#[derive(Debug)]
struct RecoveryWatch {
    from: Micros,
    /// For each partition: when the first message after the kill arrived, and when that message was due.
    first: Vec<Option<(Micros, Micros)>>,
}

impl HistoryObserver {
    pub(super) fn new(run: &str, began: Instant) -> Self {
        let book = ObservedHistory {
            run: run.to_owned(),
            chats: Vec::new(),
            partitions: Vec::new(),
            groups: HashMap::new(),
            in_the_air: HashMap::new(),
            counts: ObserverCounts::default(),
            watches: Vec::new(),
        };
        Self { began, book: Arc::new(Mutex::new(book)) }
    }

    /// Subscribes to all further entries of the sandbox's ledger.
    pub(super) fn attend(&self, ledger: &RequestLedger) {
        let observer = self.clone();
        ledger.record(move |moment, entry| {
            let now = observer.now();
            observer.lock().heard(moment, entry, now, |at| observer.at(at));
        });
    }

    pub(super) fn now(&self) -> Micros {
        self.at(Instant::now())
    }

    pub(super) fn at(&self, at: Instant) -> Micros {
        u64::try_from(at.saturating_duration_since(self.began).as_micros()).unwrap_or(u64::MAX)
    }

    /// Opens a conversation. Returns its number, and its name, which contains the number.
    pub(super) fn open(&self, destination: Destination, poisoned: bool) -> (usize, String) {
        let mut book = self.lock();
        let number = book.chats.len();
        let name = format!("prove-{}-{number}", book.run);
        let chat = ProveChat { name: name.clone(), destination, poisoned, messages: Vec::new() };
        let index = chat.lane().map_or(0, |lane| PartitionId::of(destination, &lane, PARTITIONS).index);
        let offset = if destination == Destination::Xo { PARTITIONS } else { 0 };
        book.partitions.push(usize::from(index + offset));
        book.chats.push(chat);
        (number, name)
    }

    /// Adds the next message of a conversation and returns its number.
    pub(super) fn due(&self, chat: usize, due: Micros) -> usize {
        let mut book = self.lock();
        let Some(chat) = book.chats.get_mut(chat) else { return 0 };
        chat.messages.push(MessageTrace { due, ..MessageTrace::default() });
        chat.messages.len() - 1
    }

    pub(super) fn posted(&self, chat: usize, n: usize) {
        let now = self.now();
        let mut book = self.lock();
        book.counts.posts += 1;
        if let Some(trace) = book.trace(chat, n) {
            trace.posted.get_or_insert(now);
            trace.posts += 1;
        }
    }

    pub(super) fn accepted(&self, chat: usize, n: usize) {
        let now = self.now();
        let mut book = self.lock();
        let Some(trace) = book.trace(chat, n) else { return };
        trace.accepted = Some(now);
        let arrived = trace.effect().is_some();
        book.counts.accepted += 1;
        book.counts.delivered += u64::from(arrived);
    }

    pub(super) fn turned_away(&self, chat: usize, n: usize) {
        let now = self.now();
        if let Some(trace) = self.lock().trace(chat, n) {
            trace.turned_away.get_or_insert(now);
        }
    }

    pub(super) fn refused(&self, chat: usize, n: usize, status: u16) {
        if let Some(trace) = self.lock().trace(chat, n) {
            trace.refused = Some(status);
        }
    }

    pub(super) fn counts(&self) -> ObserverCounts {
        self.lock().counts
    }

    /// Begins to look for the next arrival in each partition. The returned number reads the result.
    pub(super) fn watch(&self) -> usize {
        let from = self.now();
        let mut book = self.lock();
        book.watches.push(RecoveryWatch { from, first: vec![None; 2 * usize::from(PARTITIONS)] });
        book.watches.len() - 1
    }

    /// Time from the kill until the last partition with messages to deliver was served again. A partition whose first
    /// message was due later and did not wait was served before, so that it does not count.
    pub(super) fn served_again(&self, watch: usize) -> Option<Micros> {
        let book = self.lock();
        let watch = book.watches.get(watch)?;
        let waited = |(arrived, due): &(Micros, Micros)| {
            *due <= watch.from + AT_ONCE || arrived.saturating_sub(*due) > AT_ONCE
        };
        let arrived = watch.first.iter().flatten().filter(|first| waited(first)).map(|(arrived, _)| *arrived);
        Some(arrived.max()?.saturating_sub(watch.from))
    }

    /// Gives access to all records.
    pub(super) fn look<T>(&self, look: impl FnOnce(&[ProveChat]) -> T) -> T {
        look(&self.lock().chats)
    }

    fn lock(&self) -> MutexGuard<'_, ObservedHistory> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ObservedHistory {
    fn trace(&mut self, chat: usize, n: usize) -> Option<&mut MessageTrace> {
        self.chats.get_mut(chat)?.messages.get_mut(n)
    }

    fn heard(
        &mut self,
        moment: LedgerMoment,
        entry: &LedgerEntry,
        now: Micros,
        at: impl Fn(Instant) -> Micros,
    ) {
        match moment {
            LedgerMoment::Arrived => self.arrived(entry, at(entry.started)),
            LedgerMoment::TookEffect => self.took_effect(entry, now),
            LedgerMoment::Ended => {
                let ended = entry.finished.map_or(now, at);
                let Some(call) = self.call(entry.seq) else { return };
                (call.ended, call.status, call.fault) = (Some(ended), entry.status, entry.fault);
                // After the caller gave up, the effect may still come. Most entries have had their effect.
                if call.effect.is_some() || entry.status.is_some() {
                    self.in_the_air.remove(&entry.seq);
                }
            }
        }
    }

    fn arrived(&mut self, entry: &LedgerEntry, began: Micros) {
        let Some((chat, n)) = self.recognise(entry) else { return };
        let partition = self.partitions.get(chat).copied().unwrap_or_default();
        let due = self.trace(chat, n).map_or(0, |trace| trace.due);
        for watch in &mut self.watches {
            if began >= watch.from + ON_THE_WIRE
                && let Some(first @ None) = watch.first.get_mut(partition)
            {
                *first = Some((began, due));
            }
        }
        let Some(trace) = self.trace(chat, n) else { return };
        trace.calls.reserve_exact(1);
        trace.calls.push(DeliveryCall { began, ..DeliveryCall::default() });
        let call = trace.calls.len() - 1;
        self.in_the_air.insert(entry.seq, (chat, n, call));
    }

    fn took_effect(&mut self, entry: &LedgerEntry, now: Micros) {
        let Some((chat, n, _)) = self.in_the_air.get(&entry.seq).copied() else { return };
        if entry.operation == Operation::Start
            && let Some(group) = &entry.group
        {
            self.groups.insert(group.clone(), chat);
        }
        let Some(trace) = self.trace(chat, n) else { return };
        let (first, accepted) = (trace.effect().is_none(), trace.accepted.is_some());
        let later = self.chats.get(chat).and_then(|chat| chat.messages.get(n + 1));
        let swapped = first && later.is_some_and(|later| later.effect().is_some());
        self.counts.delivered += u64::from(first && accepted);
        self.counts.swapped += u64::from(swapped);
        if let (Some(call), Some(place)) = (self.call(entry.seq), entry.effect) {
            call.effect = Some((now, place));
            if call.ended.is_some() {
                self.in_the_air.remove(&entry.seq);
            }
        }
    }

    fn call(&mut self, seq: u64) -> Option<&mut DeliveryCall> {
        let (chat, n, call) = self.in_the_air.get(&seq).copied()?;
        self.trace(chat, n)?.calls.get_mut(call)
    }

    /// The conversation and message to which a request belongs.
    fn recognise(&self, entry: &LedgerEntry) -> Option<(usize, usize)> {
        if entry.outbound {
            return None;
        }
        match (entry.side, entry.operation) {
            (Side::ServiceNow, Operation::Leave) => {
                let chat = *self.groups.get(entry.group.as_deref()?)?;
                let last = self.chats.get(chat)?.messages.len().checked_sub(1)?;
                Some((chat, last))
            }
            (Side::ServiceNow, Operation::Start | Operation::Message) | (Side::Xo, Operation::Callback) => {
                let mut words = entry.text.as_deref()?.split_whitespace();
                let named = words.next()?.strip_prefix("prove-")?.strip_prefix(&self.run)?;
                let chat: usize = named.strip_prefix('-')?.parse().ok()?;
                let n: usize = words.next()?.parse().ok()?;
                self.chats.get(chat)?.messages.get(n)?;
                Some((chat, n))
            }
            _ => None,
        }
    }
}
