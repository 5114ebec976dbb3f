//! The record of every request that reached the sandbox: its outcome, the order of effects, and the requests that
//! were in flight at the same time. Ordering tests rely on this record only.
//!
//! A request is *applied* when the simulated platform has performed the requested action. `effect` numbers applied
//! requests in the order of their effects. With delays this order differs from the order of arrival.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::fault_rules::{Operation, Side};

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerEntry {
    /// Its number, in order of arrival.
    pub seq: u64,
    /// Time of arrival.
    pub at: Timestamp,
    /// The simulator that received it.
    pub side: Side,
    /// The requested operation.
    pub operation: Operation,
    /// The ServiceNow group, or the conversation id of an event.
    pub conversation: Option<String>,
    /// The ServiceNow group, if the request names one.
    pub group: Option<String>,
    /// The `sys_id` of a callback, the `id` of an event.
    pub message_id: Option<String>,
    /// The `type` of an event.
    pub event: Option<String>,
    /// The text of the message.
    pub text: Option<String>,
    /// The HTTP method.
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The body as received (empty for reads).
    pub body: String,
    /// The header `traceparent`.
    pub traceparent: Option<String>,
    /// The status of the answer; `None` if there is no answer (yet).
    pub status: Option<u16>,
    /// Whether the platform performed the requested action.
    pub applied: bool,
    /// Its number in the order of effects.
    pub effect: Option<u64>,
    /// The fault that a rule applied to the request.
    pub fault: Option<&'static str>,
    /// Start of the processing.
    #[serde(skip)]
    pub started: Instant,
    /// The time at which the request was answered or given up; `None` while it is in flight.
    #[serde(skip)]
    pub finished: Option<Instant>,
    /// Duration in milliseconds.
    pub took_ms: Option<u64>,
    /// Whether the sandbox itself sent the request: an outgoing callback.
    pub outbound: bool,
}

/// The facts about a request that are known when it arrives.
#[derive(Debug, Default)]
pub(super) struct ArrivedCall {
    pub(super) conversation: Option<String>,
    pub(super) group: Option<String>,
    pub(super) message_id: Option<String>,
    pub(super) event: Option<String>,
    pub(super) text: Option<String>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: String,
    pub(super) traceparent: Option<String>,
    pub(super) outbound: bool,
}

/// The number of requests of one side and operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CallCount {
    /// All requests that arrived.
    pub arrived: u64,
    /// The requests that took effect.
    pub applied: u64,
}

/// An event in the life of an entry, reported to a recorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerMoment {
    /// The request has arrived.
    Arrived,
    /// The platform has performed the requested action.
    TookEffect,
    /// The request was answered or given up; an effect may still follow.
    Ended,
}

type Hear = dyn Fn(LedgerMoment, &LedgerEntry) + Send + Sync;

/// Receives every entry. A recorder can observe more requests than the ledger keeps in memory.
#[derive(Clone)]
struct LedgerRecorder(Arc<Hear>);

impl fmt::Debug for LedgerRecorder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Recorder")
    }
}

/// The ledger. Clones share its entries.
#[derive(Debug, Clone)]
pub struct RequestLedger {
    book: Arc<Mutex<LedgerBook>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct LedgerBook {
    keep: Option<usize>,
    next_seq: u64,
    next_effect: u64,
    entries: VecDeque<LedgerEntry>,
    counts: BTreeMap<(Side, Operation), CallCount>,
    recorder: Option<LedgerRecorder>,
}

impl RequestLedger {
    pub(super) fn new(keep: Option<usize>) -> Self {
        let (entries, counts) = (VecDeque::new(), BTreeMap::new());
        let book = LedgerBook { keep, next_seq: 1, next_effect: 1, entries, counts, recorder: None };
        Self { book: Arc::new(Mutex::new(book)), changed: watch::Sender::new(0) }
    }

    /// Reports every further entry to `recorder`, in order, including entries that are not kept. The recorder runs
    /// while the ledger is locked: it must be quick and must not call the ledger.
    pub fn record(&self, recorder: impl Fn(LedgerMoment, &LedgerEntry) + Send + Sync + 'static) {
        self.lock().recorder = Some(LedgerRecorder(Arc::new(recorder)));
    }

    /// Every entry that is still kept, in order of arrival.
    pub fn entries(&self) -> Vec<LedgerEntry> {
        self.lock().entries.iter().cloned().collect()
    }

    /// The entries that match the filter.
    pub fn find(&self, filter: impl Fn(&LedgerEntry) -> bool) -> Vec<LedgerEntry> {
        self.lock().entries.iter().filter(|entry| filter(entry)).cloned().collect()
    }

    /// The number of entries that match the filter.
    pub fn count(&self, filter: impl Fn(&LedgerEntry) -> bool) -> usize {
        self.lock().entries.iter().filter(|entry| filter(entry)).count()
    }

    /// The number of requests of one side and operation since the start or the last [`RequestLedger::clear`], including
    /// dropped entries.
    pub fn total(&self, side: Side, operation: Operation) -> CallCount {
        self.lock().counts.get(&(side, operation)).copied().unwrap_or_default()
    }

    /// The totals of every side and operation.
    pub fn totals(&self) -> Vec<(Side, Operation, CallCount)> {
        self.lock().counts.iter().map(|((side, operation), count)| (*side, *operation, *count)).collect()
    }

    /// The texts that the user's side sent to ServiceNow, by group, in the order of effects: the start's text, then
    /// each message.
    pub fn servicenow_texts(&self) -> BTreeMap<String, Vec<String>> {
        self.applied_by_conversation(|entry| {
            let said = matches!(entry.operation, Operation::Start | Operation::Message);
            (entry.side == Side::ServiceNow && said).then(|| entry.text.clone().unwrap_or_default())
        })
    }

    /// The callbacks that XO accepted, by group, in the order of effects.
    pub fn xo_callbacks(&self) -> BTreeMap<String, Vec<LedgerEntry>> {
        self.applied_by_conversation(|entry| {
            (entry.side == Side::Xo && entry.operation == Operation::Callback).then(|| entry.clone())
        })
    }

    /// The accepted events, by conversation, in the order of effects.
    pub fn events(&self) -> BTreeMap<String, Vec<LedgerEntry>> {
        self.applied_by_conversation(|entry| (entry.side == Side::Events).then(|| entry.clone()))
    }

    /// The applied BotKit calls, by user, in the order of effects.
    pub fn botkit(&self) -> BTreeMap<String, Vec<LedgerEntry>> {
        self.applied_by_conversation(|entry| (entry.side == Side::BotKit).then(|| entry.clone()))
    }

    fn applied_by_conversation<T>(
        &self,
        pick: impl Fn(&LedgerEntry) -> Option<T>,
    ) -> BTreeMap<String, Vec<T>> {
        let book = self.lock();
        let inbound = book.entries.iter().filter(|entry| !entry.outbound);
        let mut done: Vec<(u64, &LedgerEntry)> =
            inbound.filter_map(|entry| entry.effect.map(|effect| (effect, entry))).collect();
        done.sort_unstable_by_key(|(effect, _)| *effect);
        let mut by_conversation: BTreeMap<String, Vec<T>> = BTreeMap::new();
        for (_, entry) in done {
            if let Some(picked) = pick(entry) {
                by_conversation
                    .entry(entry.conversation.clone().unwrap_or_default())
                    .or_default()
                    .push(picked);
            }
        }
        by_conversation
    }

    /// Pairs of requests (by `seq`) of one conversation that were in flight at one side at the same time. Both
    /// requests change something.
    pub fn overlaps(&self) -> Vec<(u64, u64)> {
        self.overlaps_where(|entry| entry.operation.moves())
    }

    /// The same pairs among the inbound requests that match the filter.
    pub fn overlaps_where(&self, filter: impl Fn(&LedgerEntry) -> bool) -> Vec<(u64, u64)> {
        let book = self.lock();
        let mut in_the_air: BTreeMap<(Side, &str), Vec<&LedgerEntry>> = BTreeMap::new();
        let mut found = Vec::new();
        for entry in book.entries.iter().filter(|entry| !entry.outbound && filter(entry)) {
            let Some(conversation) = entry.conversation.as_deref() else { continue };
            let others = in_the_air.entry((entry.side, conversation)).or_default();
            others.retain(|other| other.finished.is_none_or(|finished| finished > entry.started));
            found.extend(others.iter().map(|other| (other.seq, entry.seq)));
            others.push(entry);
        }
        found
    }

    /// Waits until the condition holds, and checks it after each change. Returns false after the timeout.
    pub async fn wait_for(&self, condition: impl Fn(&RequestLedger) -> bool, timeout: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let holds = async {
            while !condition(self) {
                if changed.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(timeout, holds).await.unwrap_or(false)
    }

    /// Removes all entries. Numbering continues.
    pub fn clear(&self) {
        let mut book = self.lock();
        book.entries.clear();
        book.counts.clear();
        drop(book);
        self.notify();
    }

    /// Opens an entry. Dropping the [`OpenCall`] finishes the entry.
    pub(super) fn open(&self, side: Side, operation: Operation, arrival: ArrivedCall) -> OpenCall {
        let mut book = self.lock();
        let seq = book.next_seq;
        book.next_seq += 1;
        book.counts.entry((side, operation)).or_default().arrived += 1;
        book.entries.push_back(LedgerEntry {
            seq,
            at: crate::clock::now(),
            side,
            operation,
            conversation: arrival.conversation,
            group: arrival.group,
            message_id: arrival.message_id,
            event: arrival.event,
            text: arrival.text,
            method: arrival.method,
            path: arrival.path,
            body: arrival.body,
            traceparent: arrival.traceparent,
            status: None,
            applied: false,
            effect: None,
            fault: None,
            started: Instant::now(),
            finished: None,
            took_ms: None,
            outbound: arrival.outbound,
        });
        book.tell(LedgerMoment::Arrived, seq);
        while book.keep.is_some_and(|keep| book.entries.len() > keep) {
            book.entries.pop_front();
        }
        drop(book);
        self.notify();
        OpenCall { page: LedgerPage { ledger: self.clone(), seq } }
    }

    fn notify(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, LedgerBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerBook {
    fn tell(&mut self, moment: LedgerMoment, seq: u64) {
        let Some(LedgerRecorder(hear)) = self.recorder.clone() else { return };
        if let Some(entry) = self.entry(seq) {
            hear(moment, entry);
        }
    }

    fn entry(&mut self, seq: u64) -> Option<&mut LedgerEntry> {
        let first = self.entries.front()?.seq;
        self.entries.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }
}

/// A handle that records the outcome of a request. It may live longer than the caller waits.
#[derive(Debug, Clone)]
pub(super) struct LedgerPage {
    ledger: RequestLedger,
    seq: u64,
}

impl LedgerPage {
    fn write(&self, change: impl FnOnce(&mut LedgerBook, u64)) {
        change(&mut self.ledger.lock(), self.seq);
        self.ledger.notify();
    }

    /// Records that the platform performed the action. A start gets its conversation here.
    pub(super) fn applied(&self, conversation: Option<String>) {
        self.write(|book, seq| {
            let effect = book.next_effect;
            book.next_effect += 1;
            let Some(entry) = book.entry(seq) else { return };
            entry.applied = true;
            entry.effect = Some(effect);
            if conversation.is_some() {
                // An event has its own fields for conversation and group.
                if !matches!(entry.side, Side::Events | Side::BotKit) {
                    entry.group.clone_from(&conversation);
                }
                entry.conversation = conversation;
            }
            let sort = (entry.side, entry.operation);
            book.counts.entry(sort).or_default().applied += 1;
            book.tell(LedgerMoment::TookEffect, seq);
        });
    }

    pub(super) fn spoiled(&self, fault: &'static str) {
        self.write(|book, seq| {
            if let Some(entry) = book.entry(seq) {
                entry.fault = Some(fault);
            }
        });
    }
}

/// A request in flight, as its caller sees it.
#[derive(Debug)]
pub(super) struct OpenCall {
    page: LedgerPage,
}

impl OpenCall {
    pub(super) fn page(&self) -> &LedgerPage {
        &self.page
    }

    pub(super) fn answered(&self, status: u16) {
        self.page.write(|book, seq| {
            if let Some(entry) = book.entry(seq) {
                entry.status = Some(status);
            }
        });
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.page.write(|book, seq| {
            if let Some(entry) = book.entry(seq) {
                let took = entry.started.elapsed();
                entry.finished = Some(entry.started + took);
                entry.took_ms = u64::try_from(took.as_millis()).ok();
            }
            book.tell(LedgerMoment::Ended, seq);
        });
    }
}
