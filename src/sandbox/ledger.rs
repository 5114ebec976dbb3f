//! The witness: every request that reached the sandbox, what became of it, in which order it took effect, and
//! what was in the air at the same time. Ordering tests believe this and nothing else.
//!
//! A request is *applied* when the simulated platform did what it asked; `effect` numbers those in the order
//! in which they were done, which under delays is not the order of arrival.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::script::{Operation, Side};

/// One request.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Its number, in order of arrival.
    pub seq: u64,
    /// When it arrived.
    pub at: Timestamp,
    /// Where it arrived.
    pub side: Side,
    /// What it wanted.
    pub operation: Operation,
    /// The ServiceNow group, or the conversation id of an event.
    pub conversation: Option<String>,
    /// The ServiceNow group, where one is named.
    pub group: Option<String>,
    /// The `sys_id` of a callback, the `id` of an event.
    pub message_id: Option<String>,
    /// The `type` of an event.
    pub event: Option<String>,
    /// What was said.
    pub text: Option<String>,
    /// The HTTP method.
    pub method: String,
    /// The path, with its query.
    pub path: String,
    /// The body as it came (not kept for reads).
    pub body: String,
    /// The status answered; none: no answer (yet).
    pub status: Option<u16>,
    /// Whether the platform did what was asked.
    pub applied: bool,
    /// Its number in the order of effects.
    pub effect: Option<u64>,
    /// The fault that a rule put in its way.
    pub fault: Option<&'static str>,
    /// When it began.
    #[serde(skip)]
    pub started: Instant,
    /// When it was answered or given up; none: still in the air.
    #[serde(skip)]
    pub finished: Option<Instant>,
    /// How long that was, in milliseconds.
    pub took_ms: Option<u64>,
    /// Posted by the sandbox itself: a callback on its way out.
    pub outbound: bool,
}

/// What is known of a request when it arrives.
#[derive(Debug, Default)]
pub(super) struct Arrival {
    pub(super) conversation: Option<String>,
    pub(super) group: Option<String>,
    pub(super) message_id: Option<String>,
    pub(super) event: Option<String>,
    pub(super) text: Option<String>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: String,
    pub(super) outbound: bool,
}

/// How many requests there were of one sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Count {
    /// All that arrived.
    pub arrived: u64,
    /// Those that took effect.
    pub applied: u64,
}

/// A turn in the life of an entry, as a recorder hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The request is here.
    Arrived,
    /// The platform did what it asked.
    TookEffect,
    /// It was answered or given up; an effect may still follow.
    Ended,
}

type Hear = dyn Fn(Moment, &Entry) + Send + Sync;

/// Hears of every entry, for a witness of more requests than memory can keep.
#[derive(Clone)]
struct Recorder(Arc<Hear>);

impl fmt::Debug for Recorder {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Recorder")
    }
}

/// The ledger. Clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Book {
    keep: Option<usize>,
    next_seq: u64,
    next_effect: u64,
    entries: VecDeque<Entry>,
    counts: BTreeMap<(Side, Operation), Count>,
    recorder: Option<Recorder>,
}

impl Ledger {
    pub(super) fn new(keep: Option<usize>) -> Self {
        let (entries, counts) = (VecDeque::new(), BTreeMap::new());
        let book = Book { keep, next_seq: 1, next_effect: 1, entries, counts, recorder: None };
        Self { book: Arc::new(Mutex::new(book)), changed: watch::Sender::new(0) }
    }

    /// From now on tells `recorder` of every entry, in order, also of those that are not kept. It runs while the ledger is
    /// locked: it must be quick, and must not ask the ledger.
    pub fn record(&self, recorder: impl Fn(Moment, &Entry) + Send + Sync + 'static) {
        self.lock().recorder = Some(Recorder(Arc::new(recorder)));
    }

    /// Every entry that is still kept, in order of arrival.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().entries.iter().cloned().collect()
    }

    /// Those that the filter lets through.
    pub fn find(&self, filter: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.lock().entries.iter().filter(|entry| filter(entry)).cloned().collect()
    }

    /// How many the filter lets through.
    pub fn count(&self, filter: impl Fn(&Entry) -> bool) -> usize {
        self.lock().entries.iter().filter(|entry| filter(entry)).count()
    }

    /// How many there were of one sort since the start (or the last clearing), forgotten ones included.
    pub fn total(&self, side: Side, operation: Operation) -> Count {
        self.lock().counts.get(&(side, operation)).copied().unwrap_or_default()
    }

    /// The totals of every sort.
    pub fn totals(&self) -> Vec<(Side, Operation, Count)> {
        self.lock().counts.iter().map(|((side, operation), count)| (*side, *operation, *count)).collect()
    }

    /// What the user's side said to ServiceNow, by group, in the order of effects: the start's text, then each message's.
    pub fn servicenow_texts(&self) -> BTreeMap<String, Vec<String>> {
        self.applied_by_conversation(|entry| {
            let said = matches!(entry.operation, Operation::Start | Operation::Message);
            (entry.side == Side::ServiceNow && said).then(|| entry.text.clone().unwrap_or_default())
        })
    }

    /// The callbacks that XO took, by group, in the order of effects.
    pub fn xo_callbacks(&self) -> BTreeMap<String, Vec<Entry>> {
        self.applied_by_conversation(|entry| {
            (entry.side == Side::Xo && entry.operation == Operation::Callback).then(|| entry.clone())
        })
    }

    /// The events that were taken, by conversation, in the order of effects.
    pub fn events(&self) -> BTreeMap<String, Vec<Entry>> {
        self.applied_by_conversation(|entry| (entry.side == Side::Events).then(|| entry.clone()))
    }

    /// What XO's BotKit API did, by user, in the order of effects.
    pub fn botkit(&self) -> BTreeMap<String, Vec<Entry>> {
        self.applied_by_conversation(|entry| (entry.side == Side::BotKit).then(|| entry.clone()))
    }

    fn applied_by_conversation<T>(&self, pick: impl Fn(&Entry) -> Option<T>) -> BTreeMap<String, Vec<T>> {
        let book = self.lock();
        let inbound = book.entries.iter().filter(|entry| !entry.outbound);
        let mut done: Vec<(u64, &Entry)> =
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

    /// Pairs of requests (by `seq`) of one conversation, both of which change something, that were in the air
    /// at one side at once.
    pub fn overlaps(&self) -> Vec<(u64, u64)> {
        self.overlaps_where(|entry| entry.operation.moves())
    }

    /// The same among the inbound requests that the filter lets through.
    pub fn overlaps_where(&self, filter: impl Fn(&Entry) -> bool) -> Vec<(u64, u64)> {
        let book = self.lock();
        let mut in_the_air: BTreeMap<(Side, &str), Vec<&Entry>> = BTreeMap::new();
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

    /// Waits until the condition holds, looking again at each change; false when the time is up.
    pub async fn wait_for(&self, condition: impl Fn(&Ledger) -> bool, timeout: Duration) -> bool {
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

    /// Forgets everything; numbers go on.
    pub fn clear(&self) {
        let mut book = self.lock();
        book.entries.clear();
        book.counts.clear();
        drop(book);
        self.notify();
    }

    /// Opens an entry. It is finished when the flight is dropped.
    pub(super) fn open(&self, side: Side, operation: Operation, arrival: Arrival) -> Flight {
        let mut book = self.lock();
        let seq = book.next_seq;
        book.next_seq += 1;
        book.counts.entry((side, operation)).or_default().arrived += 1;
        book.entries.push_back(Entry {
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
            status: None,
            applied: false,
            effect: None,
            fault: None,
            started: Instant::now(),
            finished: None,
            took_ms: None,
            outbound: arrival.outbound,
        });
        book.tell(Moment::Arrived, seq);
        while book.keep.is_some_and(|keep| book.entries.len() > keep) {
            book.entries.pop_front();
        }
        drop(book);
        self.notify();
        Flight { page: Page { ledger: self.clone(), seq } }
    }

    fn notify(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn tell(&mut self, moment: Moment, seq: u64) {
        let Some(Recorder(hear)) = self.recorder.clone() else { return };
        if let Some(entry) = self.entry(seq) {
            hear(moment, entry);
        }
    }

    fn entry(&mut self, seq: u64) -> Option<&mut Entry> {
        let first = self.entries.front()?.seq;
        self.entries.get_mut(usize::try_from(seq.checked_sub(first)?).ok()?)
    }
}

/// Where a request's fate is written down; may outlive the caller's patience.
#[derive(Debug, Clone)]
pub(super) struct Page {
    ledger: Ledger,
    seq: u64,
}

impl Page {
    fn write(&self, change: impl FnOnce(&mut Book, u64)) {
        change(&mut self.ledger.lock(), self.seq);
        self.ledger.notify();
    }

    /// The platform did what was asked; a start learns its conversation here.
    pub(super) fn applied(&self, conversation: Option<String>) {
        self.write(|book, seq| {
            let effect = book.next_effect;
            book.next_effect += 1;
            let Some(entry) = book.entry(seq) else { return };
            entry.applied = true;
            entry.effect = Some(effect);
            if conversation.is_some() {
                // An event names its conversation and its group apart.
                if !matches!(entry.side, Side::Events | Side::BotKit) {
                    entry.group.clone_from(&conversation);
                }
                entry.conversation = conversation;
            }
            let sort = (entry.side, entry.operation);
            book.counts.entry(sort).or_default().applied += 1;
            book.tell(Moment::TookEffect, seq);
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

/// A request in the air, as its caller sees it.
#[derive(Debug)]
pub(super) struct Flight {
    page: Page,
}

impl Flight {
    pub(super) fn page(&self) -> &Page {
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

impl Drop for Flight {
    fn drop(&mut self) {
        self.page.write(|book, seq| {
            if let Some(entry) = book.entry(seq) {
                let took = entry.started.elapsed();
                entry.finished = Some(entry.started + took);
                entry.took_ms = u64::try_from(took.as_millis()).ok();
            }
            book.tell(Moment::Ended, seq);
        });
    }
}
