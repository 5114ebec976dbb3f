//! The in-memory queue of the simulation (`worker/simulation`): the clauses of [`super`], on the clock of the test.
//!
//! On request the model shows every fault that the clauses allow to a broker. It ends a subscription, is unreachable
//! for a while, leaves a publish unconfirmed, or loses acks on their way. It also takes a worker for dead and gives the
//! partitions of the worker to another one.
//! Not responsible for: the time of these faults, and the invariants (`worker/simulation`).

mod subscription;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::partition::{consumer_position, rendezvous_weight};
use super::{BrokerLease, PartitionId, QueueDepth, QueueError, QueueTuning};
use crate::message::{DeadLetter, Destinations, Message, MessageId};
pub(crate) use subscription::ModelAck;
pub(crate) use subscription::ModelSubscription;

/// Lease renewals in one heartbeat.
const LEASE_ASKS: u32 = 3;

/// How often random faults happen, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FaultPlan {
    /// A publish or a dead letter ends with an error; half of these messages are stored nevertheless.
    pub(crate) unconfirmed: u32,
    /// A subscribe is refused.
    pub(crate) refused: u32,
}

/// The state that all handles share.
#[derive(Debug)]
pub(crate) struct ModelBroker {
    tuning: QueueTuning,
    heartbeat: Duration,
    mishaps: FaultPlan,
    state: Mutex<ModelState>,
}

#[derive(Debug)]
struct ModelState {
    random: StdRng,
    number: u64,
    away: bool,
    lines: BTreeMap<PartitionId, QueueLine>,
    places: BTreeMap<u64, ConsumerPlace>,
    members: BTreeMap<String, ConsumerMember>,
    record: BrokerRecord,
}

/// The history for the checker.
#[derive(Debug, Default, Clone)]
pub(crate) struct BrokerRecord {
    pub(crate) dead: Vec<(Instant, DeadLetter)>,
    /// May be delivered twice: published with an error, or returned by a subscription that was lost.
    pub(crate) twice: BTreeSet<MessageId>,
    /// Returned by a worker that closed its subscription cleanly.
    pub(crate) given_back: Vec<(Instant, MessageId)>,
}

#[derive(Debug, Default)]
struct QueueLine {
    waiting: VecDeque<QueueRow>,
    /// The consumers; the first one is active.
    places: VecDeque<u64>,
    lent: BTreeMap<u64, QueueRow>,
}

#[derive(Debug)]
struct QueueRow {
    number: u64,
    message: Message,
    redeliveries: u32,
    /// Acked, but the ack has not arrived at the broker.
    written: bool,
}

#[derive(Debug)]
struct ConsumerPlace {
    partition: PartitionId,
    worker: String,
    news: Arc<Notify>,
    /// The worker knows that the subscription ended.
    over: bool,
    /// The worker has closed it, but the broker could not receive that.
    closed: bool,
}

#[derive(Debug)]
struct ConsumerMember {
    wanted: watch::Sender<BTreeMap<PartitionId, u64>>,
    connected: watch::Sender<bool>,
    answered: watch::Sender<Option<Instant>>,
    /// The worker and the broker do not reach each other, and neither has noticed.
    cut: bool,
    /// The broker has given its partitions to others.
    given_up: bool,
    known_to_others: bool,
}

/// The handle of one process.
#[derive(Debug, Clone)]
pub struct ModelQueue {
    broker: Arc<ModelBroker>,
    worker: String,
}

impl ModelBroker {
    pub(crate) fn new(seed: u64, tuning: QueueTuning, heartbeat: Duration, mishaps: FaultPlan) -> Arc<Self> {
        let state = ModelState {
            random: StdRng::seed_from_u64(seed),
            number: 0,
            away: false,
            lines: BTreeMap::new(),
            places: BTreeMap::new(),
            members: BTreeMap::new(),
            record: BrokerRecord::default(),
        };
        Arc::new(Self { tuning, heartbeat, mishaps, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, ModelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self) -> BrokerRecord {
        self.state().record.clone()
    }

    pub(crate) fn is_buried(&self, id: MessageId) -> bool {
        self.state().record.dead.iter().any(|(_, dead)| dead.message.id == id)
    }

    /// Whether the message may be delivered twice without a fault of a worker.
    pub(crate) fn may_come_twice(&self, id: MessageId) -> bool {
        self.state().record.twice.contains(&id)
    }

    /// The number of messages in the queue.
    pub(crate) fn left(&self) -> usize {
        self.state().lines.values().map(|line| line.waiting.len() + line.lent.len()).sum()
    }

    /// A process connects under this name.
    pub(crate) fn join(self: &Arc<Self>, worker: &str) -> ModelQueue {
        let mut state = self.state();
        let member = ConsumerMember {
            wanted: watch::Sender::new(BTreeMap::new()),
            connected: watch::Sender::new(!state.away),
            answered: watch::Sender::new((!state.away).then(Instant::now)),
            cut: false,
            given_up: false,
            known_to_others: false,
        };
        state.members.insert(worker.to_owned(), member);
        drop(state);
        ModelQueue { broker: self.clone(), worker: worker.to_owned() }
    }

    /// Renews the lease of a worker until the task is aborted.
    pub(crate) async fn keep_lease(self: Arc<Self>, worker: String) {
        loop {
            tokio::time::sleep(self.heartbeat / LEASE_ASKS).await;
            let state = self.state();
            if let Some(member) = state.members.get(&worker).filter(|member| !member.cut && !state.away) {
                member.answered.send_replace(Some(Instant::now()));
            }
        }
    }

    /// Removes a process and all of its subscriptions.
    pub(crate) fn leave(&self, worker: &str) {
        self.take_away(|place| place.worker == worker);
        self.state().members.remove(worker);
        self.rank();
    }

    /// The first announcement of this worker reaches the others.
    pub(crate) fn introduce(&self, worker: &str) {
        if let Some(member) = self.state().members.get_mut(worker) {
            member.known_to_others = true;
        }
        self.rank();
    }

    /// Shows every worker the partitions that a preferred worker wants, as `rabbit/membership.rs` does.
    fn rank(&self) {
        let state = self.state();
        let all = || {
            let destinations = self.tuning.destinations.iter();
            destinations.flat_map(|it| PartitionId::all(it, self.tuning.partitions))
        };
        for (own, member) in &state.members {
            let others = || state.members.iter().filter(|(name, it)| *name != own && it.known_to_others);
            let wanted = all().filter_map(|partition| {
                let best =
                    others().map(|(name, _)| name).max_by_key(|it| rendezvous_weight(it, partition))?;
                let better = rendezvous_weight(best, partition) > rendezvous_weight(own, partition);
                better.then(|| (partition, consumer_position(best, "")))
            });
            member.wanted.send_replace(wanted.collect());
        }
    }

    /// Ends subscriptions on both sides at once, as a broken connection does.
    fn take_away(&self, which: impl Fn(&ConsumerPlace) -> bool) {
        let mut state = self.state();
        let found = state.places.iter().filter(|(_, it)| which(it)).map(|(number, _)| *number);
        for number in found.collect::<Vec<_>>() {
            state.forget(number, false);
            state.tell(number);
        }
    }

    /// Ends all subscriptions to this partition.
    pub(crate) fn lose(&self, partition: PartitionId) {
        self.take_away(|place| place.partition == partition);
    }

    /// Makes the broker unreachable and ends all subscriptions.
    pub(crate) fn go_away(&self) {
        self.state().away = true;
        self.take_away(|_| true);
        for member in self.state().members.values() {
            member.connected.send_replace(false);
        }
    }

    pub(crate) fn come_back(&self) {
        let mut state = self.state();
        state.away = false;
        for member in state.members.values().filter(|member| !member.cut) {
            member.connected.send_replace(true);
        }
    }

    /// Cuts the connection between this worker and the broker. Returns false if it is cut already.
    pub(crate) fn cut(&self, worker: &str) -> bool {
        let mut state = self.state();
        let Some(member) = state.members.get_mut(worker).filter(|member| !member.cut) else { return false };
        member.cut = true;
        true
    }

    /// The broker gives up a silent worker and gives its partitions to the next consumers. The worker does not know.
    pub(crate) fn give_up(&self, worker: &str) {
        let mut state = self.state();
        let found = state.places.iter().filter(|(_, it)| it.worker == worker).map(|(number, _)| *number);
        for number in found.collect::<Vec<_>>() {
            state.forget(number, false);
        }
        if let Some(member) = state.members.get_mut(worker) {
            member.given_up = true;
        }
    }

    pub(crate) fn has_given_up(&self, worker: &str) -> bool {
        self.state().members.get(worker).is_some_and(|member| member.given_up)
    }

    /// The silent worker notices that its subscriptions ended.
    pub(crate) fn notice(&self, worker: &str) {
        let mut state = self.state();
        let found = state.places.iter().filter(|(_, it)| it.worker == worker).map(|(number, _)| *number);
        for number in found.collect::<Vec<_>>() {
            state.tell(number);
        }
        if let Some(member) = state.members.get(worker) {
            member.connected.send_replace(false);
        }
    }

    /// The connection works again. Subscriptions that the broker gave up stay ended.
    pub(crate) fn heal(&self, worker: &str) {
        let mut state = self.state();
        let away = state.away;
        if let Some(member) = state.members.get_mut(worker) {
            member.cut = false;
            member.given_up = false;
            member.connected.send_replace(!away);
        }
        state.hear_at_last(worker);
    }

    /// Handles the arrival of an ack.
    fn hear_ack(&self, place: u64, number: u64) {
        let mut state = self.state();
        let Some(partition) = state.places.get(&place).map(|it| it.partition) else { return };
        if state.is_cut(place) {
            return;
        }
        if let Some(line) = state.lines.get_mut(&partition).filter(|line| line.places.front() == Some(&place))
        {
            line.lent.remove(&number);
            state.wake(partition);
        }
    }

    fn store(
        &self,
        on_disk: impl FnOnce(&mut ModelState),
        id: MessageId,
        worker: &str,
    ) -> Result<(), QueueError> {
        let mut state = self.state();
        let reaches = state.members.get(worker).is_some_and(|member| !member.cut);
        if state.away || !reaches {
            return Err(QueueError::Unavailable("no connection".into()));
        }
        if state.random.random_ratio(self.mishaps.unconfirmed, 1000) {
            state.record.twice.insert(id);
            if state.random.random_bool(0.5) {
                on_disk(&mut state);
            }
            return Err(QueueError::Unavailable("not confirmed".into()));
        }
        on_disk(&mut state);
        Ok(())
    }
}

impl ModelState {
    fn is_cut(&self, place: u64) -> bool {
        let worker = self.places.get(&place).map(|it| &it.worker);
        worker.and_then(|worker| self.members.get(worker)).is_none_or(|member| member.cut)
    }

    /// The broker forgets a consumer. Its unacked messages go back to their original position.
    fn forget(&mut self, number: u64, in_order: bool) {
        let Some(place) = self.places.get(&number) else { return };
        let partition = place.partition;
        let Some(line) = self.lines.get_mut(&partition) else { return };
        let borrowed = line.places.front() == Some(&number);
        line.places.retain(|it| *it != number);
        if borrowed {
            for (_, mut entry) in std::mem::take(&mut line.lent).into_iter().rev() {
                if entry.written && in_order {
                    continue;
                }
                let id = entry.message.id;
                if in_order {
                    self.record.given_back.push((Instant::now(), id));
                } else {
                    self.record.twice.insert(id);
                }
                entry.written = false;
                entry.redeliveries += 1;
                line.waiting.push_front(entry);
            }
            // Messages in the buffer of the lost client were not handled, but count as redelivered.
            if !in_order && self.random.random_bool(0.3) {
                line.waiting
                    .iter_mut()
                    .take(4)
                    .for_each(|entry| entry.redeliveries = entry.redeliveries.max(1));
            }
        }
        self.wake(partition);
    }

    /// Acks and closes of a cut-off worker arrive, if its connection survived.
    fn hear_at_last(&mut self, worker: &str) {
        let of = self.places.iter().filter(|(_, it)| it.worker == worker);
        let of: Vec<_> = of.map(|(number, it)| (*number, it.partition, it.closed)).collect();
        for (number, partition, closed) in of {
            if let Some(line) =
                self.lines.get_mut(&partition).filter(|line| line.places.front() == Some(&number))
            {
                line.lent.retain(|_, entry| !entry.written);
            }
            if closed {
                self.forget(number, true);
                self.places.remove(&number);
            }
            self.wake(partition);
        }
    }

    /// The worker learns that its subscription ended.
    fn tell(&mut self, number: u64) {
        if let Some(place) = self.places.get_mut(&number) {
            place.over = true;
            place.news.notify_one();
        }
    }

    fn wake(&self, partition: PartitionId) {
        let first = self.lines.get(&partition).and_then(|line| line.places.front());
        if let Some(place) = first.and_then(|number| self.places.get(number)) {
            place.news.notify_one();
        }
    }
}

impl ModelQueue {
    pub(super) fn partitions(&self) -> u16 {
        self.broker.tuning.partitions
    }

    fn member<T>(&self, read: impl FnOnce(&ConsumerMember) -> T) -> Option<T> {
        self.broker.state().members.get(&self.worker).map(read)
    }

    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        self.member(|it| it.connected.subscribe()).unwrap_or_else(|| watch::Sender::new(false).subscribe())
    }

    pub(super) fn destinations(&self) -> &Destinations {
        &self.broker.tuning.destinations
    }

    pub(super) fn lease(&self) -> BrokerLease {
        let answered = self.member(|it| it.answered.subscribe());
        let answered = answered.unwrap_or_else(|| watch::Sender::new(None).subscribe());
        BrokerLease::For { answered, term: self.broker.heartbeat }
    }

    pub(super) fn preferred_elsewhere(&self) -> watch::Receiver<BTreeMap<PartitionId, u64>> {
        let none = || watch::Sender::new(BTreeMap::new()).subscribe();
        self.member(|it| it.wanted.subscribe()).unwrap_or_else(none)
    }

    pub(super) fn has_other_workers(&self) -> bool {
        let state = self.broker.state();
        state.members.iter().any(|(name, it)| *name != self.worker && it.known_to_others)
    }

    pub(super) async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        let partition = PartitionId::of(message.destination, &message.lane, self.partitions());
        let on_disk = |state: &mut ModelState| {
            state.number += 1;
            let entry =
                QueueRow { number: state.number, message: message.clone(), redeliveries: 0, written: false };
            state.lines.entry(partition).or_default().waiting.push_back(entry);
            state.wake(partition);
        };
        self.broker.store(on_disk, message.id, &self.worker)
    }

    pub(super) async fn dead_letter(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        let on_disk = |state: &mut ModelState| state.record.dead.push((Instant::now(), dead.clone()));
        self.broker.store(on_disk, dead.message.id, &self.worker)
    }

    pub(super) async fn subscribe(&self, partition: PartitionId) -> Result<ModelSubscription, QueueError> {
        let gone = |_| QueueError::Unavailable("the process is gone".into());
        self.connected().wait_for(|connected| *connected).await.map_err(gone)?;
        let mut state = self.broker.state();
        if state.random.random_ratio(self.broker.mishaps.refused, 1000) {
            return Err(QueueError::Unavailable("refused".into()));
        }
        state.number += 1;
        let number = state.number;
        let news = Arc::new(Notify::new());
        let place = ConsumerPlace {
            partition,
            worker: self.worker.clone(),
            news: news.clone(),
            over: false,
            closed: false,
        };
        state.places.insert(number, place);
        state.lines.entry(partition).or_default().places.push_back(number);
        state.wake(partition);
        Ok(ModelSubscription { broker: self.broker.clone(), number, partition, news })
    }

    pub(super) async fn depth(&self) -> Result<QueueDepth, QueueError> {
        let mut depth = QueueDepth::default();
        for (partition, line) in &self.broker.state().lines {
            let waiting = u64::try_from(line.waiting.len()).unwrap_or(u64::MAX);
            *depth.waiting.entry(partition.destination).or_default() += waiting;
        }
        Ok(depth)
    }

    pub(super) async fn close(&self) {
        self.broker.leave(&self.worker);
    }
}
