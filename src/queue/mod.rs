//! The durable middle. What every engine promises, as numbered clauses; `tests/it/queue_contract.rs` runs each clause
//! on each engine.
//!
//! 1. **Durable.** When [`Queue::publish`] or [`Queue::bury`] returns `Ok`, the message survives a crash of any process.
//!    When it returns an error, the message may or may not be there.
//! 2. **In order.** Messages of one lane are lent in the order in which their publishes returned.
//! 3. **One borrower.** A partition lends to one [`Subscription`] at a time (with RabbitMQ: see the lease below).
//! 4. **Kept until settled.** A message lent is lent again, in its old place, unless its loan was settled by
//!    [`Loan::done`]: after [`Subscription::close`], a crash of the worker, of the broker, of the machine.
//! 5. **Bounded.** No subscription holds more than `prefetch` unsettled loans.
//! 6. **Honest about repeats.** A message that may have been lent before says so ([`Loan::earlier`]).
//! 7. **Refuses rather than forgets.** A full or absent queue is an error, at once or within the publish timeout.
//! 8. **Unreadable is not lost.** What cannot be read is lent with its raw bytes and the reason.
//! 9. **Siding.** Dead letters wait in the order in which they died, can be looked at without being changed, and go
//!    away only one by one, by [`Held::remove`].
//! 10. **Lease.** [`Lease::holds`] is true only while the queue certainly has not given our partitions to another.
//!
//! Leaves to others: what to do with a loan (`worker/`), what a dead letter is (`message/dead_letter.rs`).

pub mod embedded;
#[cfg(test)]
pub(crate) mod model;
pub mod partition;
pub mod rabbit;
pub(crate) mod waiting_body;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::message::{DeadLetter, Destination, Destinations, Message};
use embedded::EmbeddedQueue;
pub use partition::PartitionId;
use rabbit::RabbitQueue;
use waiting_body::WaitingBody;
pub use waiting_body::keep_bodies_in;

/// Why the queue could not do it. Whatever the reason, the caller may try again later.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The broker is away, blocked, or does not answer in time; or the disk refuses.
    #[error("the queue cannot be reached: {0}")]
    Unavailable(String),
    /// The queue refuses more.
    #[error("the queue is full")]
    Full,
    /// Somebody else holds what only one may hold.
    #[error("{0}")]
    Busy(String),
    /// The queue is there but is not what this program expects: an operator must look.
    #[error("{0}")]
    Mismatch(String),
}

/// How long a reader of dead letters waits for a visitor on RabbitMQ.
const READER_PATIENCE: Duration = Duration::from_secs(5);
const READER_LOOKS_AGAIN: Duration = Duration::from_millis(200);

/// Tuning shared by both engines.
#[derive(Debug, Clone)]
pub struct QueueTuning {
    /// What has partitions and a dead-letter queue.
    pub destinations: Destinations,
    /// Partitions for each destination.
    pub partitions: u16,
    /// Unsettled loans for each partition.
    pub prefetch: u16,
    /// How long a publish may take before it counts as failed.
    pub publish_timeout: Duration,
}

/// One engine, chosen once at start.
#[derive(Debug, Clone)]
pub enum Queue {
    /// SQLite in `data_dir`: one machine, one process.
    Embedded(EmbeddedQueue),
    /// RabbitMQ: as many ingresses and workers as wanted.
    Rabbit(RabbitQueue),
    /// In memory, for simulations.
    #[cfg(test)]
    Model(model::ModelQueue),
}

impl Queue {
    /// `embedded` or `rabbitmq`.
    pub const fn engine(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Rabbit(_) => "rabbitmq",
            #[cfg(test)]
            Self::Model(_) => "rabbitmq",
        }
    }

    /// Whether other processes may borrow from the same partitions.
    pub const fn shared(&self) -> bool {
        !matches!(self, Self::Embedded(_))
    }

    /// Partitions for each destination.
    pub fn partitions(&self) -> u16 {
        match self {
            Self::Embedded(queue) => queue.partitions(),
            Self::Rabbit(queue) => queue.partitions(),
            #[cfg(test)]
            Self::Model(queue) => queue.partitions(),
        }
    }

    /// What has partitions and a dead-letter queue. A tool of an operator also reaches destinations that its settings do not
    /// name, as far as the engine knows them.
    pub fn destinations(&self) -> &Destinations {
        match self {
            Self::Embedded(queue) => queue.destinations(),
            Self::Rabbit(queue) => queue.destinations(),
            #[cfg(test)]
            Self::Model(queue) => queue.destinations(),
        }
    }

    /// Puts a message at the end of its lane. Clause 1. A destination without queues is [`QueueError::Mismatch`].
    pub async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        self.knows(message.destination)?;
        match self {
            Self::Embedded(queue) => queue.publish(message).await,
            Self::Rabbit(queue) => queue.publish(message).await,
            #[cfg(test)]
            Self::Model(queue) => queue.publish(message).await,
        }
    }

    /// Puts a dead letter into the siding. Clause 1. The caller settles the original afterwards, never before.
    pub async fn bury(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        self.knows(dead.message.destination)?;
        match self {
            Self::Embedded(queue) => queue.bury(dead).await,
            Self::Rabbit(queue) => queue.bury(dead).await,
            #[cfg(test)]
            Self::Model(queue) => queue.bury(dead).await,
        }
    }

    /// Without this check a broker would take the message and no queue would get it.
    fn knows(&self, destination: Destination) -> Result<(), QueueError> {
        if self.destinations().contains(destination) {
            return Ok(());
        }
        Err(QueueError::Mismatch(format!(
            "the settings know no destination {destination}: nothing can be put on its queue"
        )))
    }

    /// Borrows from a partition, once the engine lets us. Clauses 2 to 6 and 8.
    pub async fn subscribe(&self, partition: PartitionId) -> Result<Subscription, QueueError> {
        match self {
            Self::Embedded(queue) => queue.subscribe(partition).await.map(Subscription::Embedded),
            Self::Rabbit(queue) => {
                queue.subscribe(partition).await.map(|it| Subscription::Rabbit(Box::new(it)))
            }
            #[cfg(test)]
            Self::Model(queue) => queue.subscribe(partition).await.map(Subscription::Model),
        }
    }

    /// Opens the siding of a destination for one visitor at a time. Clause 9.
    pub async fn siding(&self, destination: Destination) -> Result<Siding, QueueError> {
        match self {
            Self::Embedded(queue) => queue.siding(destination).await.map(Siding::Embedded),
            Self::Rabbit(queue) => queue.siding(destination).await.map(|it| Siding::Rabbit(Box::new(it))),
            #[cfg(test)]
            Self::Model(_) => Err(QueueError::Unavailable("a simulation looks at its siding itself".into())),
        }
    }

    /// Opens the dead letters of a destination for reading. On the embedded engine readers read beside each other and beside the
    /// one visitor of [`Self::siding`]. RabbitMQ shows a dead letter to one consumer at a time: there a reader waits for a
    /// visitor, and after [`READER_PATIENCE`] the error says that somebody has them.
    pub async fn read_dead_letters(&self, destination: Destination) -> Result<Siding, QueueError> {
        if let Self::Embedded(queue) = self {
            return queue.read_dead_letters(destination).await.map(Siding::Embedded);
        }
        let until = tokio::time::Instant::now() + READER_PATIENCE;
        loop {
            match self.siding(destination).await {
                Err(QueueError::Busy(_)) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(READER_LOOKS_AGAIN).await;
                }
                opened => return opened,
            }
        }
    }

    /// Whether the engine can be used now; changes are seen by awaiting the receiver.
    pub fn connected(&self) -> watch::Receiver<bool> {
        match self {
            Self::Embedded(queue) => queue.connected(),
            Self::Rabbit(queue) => queue.connected(),
            #[cfg(test)]
            Self::Model(queue) => queue.connected(),
        }
    }

    /// Waits for what cannot heal by itself: the process should end with this error.
    pub async fn broken(&self) -> QueueError {
        match self {
            Self::Embedded(_) => std::future::pending().await,
            Self::Rabbit(queue) => queue.broken().await,
            #[cfg(test)]
            Self::Model(_) => std::future::pending().await,
        }
    }

    /// The right to start a request. Clause 10.
    pub fn lease(&self) -> Lease {
        match self {
            Self::Embedded(_) => Lease::Always,
            Self::Rabbit(queue) => queue.lease(),
            #[cfg(test)]
            Self::Model(queue) => queue.lease(),
        }
    }

    /// Partitions that a better-ranked worker should have: the owner yields them. Empty where there is no other worker.
    pub fn wanted_elsewhere(&self) -> watch::Receiver<std::collections::BTreeMap<PartitionId, u64>> {
        match self {
            Self::Embedded(queue) => queue.wanted_elsewhere(),
            Self::Rabbit(queue) => queue.wanted_elsewhere(),
            #[cfg(test)]
            Self::Model(queue) => queue.wanted_elsewhere(),
        }
    }

    /// How much waits; for metrics, so not to the message.
    pub async fn depth(&self) -> Result<Depth, QueueError> {
        match self {
            Self::Embedded(queue) => queue.depth().await,
            Self::Rabbit(queue) => queue.depth().await,
            #[cfg(test)]
            Self::Model(queue) => queue.depth().await,
        }
    }

    /// Whether what is published finds its way, tried without touching any queue of ours; for operators.
    pub async fn routes(&self) -> Result<(), QueueError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Rabbit(queue) => queue.routes().await,
            #[cfg(test)]
            Self::Model(_) => Ok(()),
        }
    }

    /// Lets go of the engine in order. Subscriptions are closed before by their holders.
    pub async fn close(&self) {
        match self {
            Self::Embedded(queue) => queue.close().await,
            Self::Rabbit(queue) => queue.close().await,
            #[cfg(test)]
            Self::Model(queue) => queue.close().await,
        }
    }
}

/// A message lent by the queue. Dropping it unsettled leaves it lent until its subscription is closed.
#[derive(Debug)]
pub struct Loan {
    /// What was lent.
    pub message: Message,
    /// How often it may have been lent, and even delivered, before; 0 = certainly never.
    pub earlier: u32,
    /// Set where the message could not be read; its body then holds the raw bytes.
    pub unreadable: Option<String>,
    pub(crate) receipt: Receipt,
    pub(crate) waiting: WaitingBody,
    /// The memory that its attempt may use.
    pub(crate) room: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// How an engine recognises a loan that is settled.
#[derive(Debug)]
pub(crate) enum Receipt {
    Embedded(embedded::Receipt),
    Rabbit(rabbit::Receipt),
    #[cfg(test)]
    Model(model::Receipt),
}

impl Loan {
    /// How large the body is, wherever the body is.
    pub(crate) fn body_bytes(&self) -> usize {
        self.message.body.len().max(self.waiting.bytes())
    }

    /// Whether the body has to wait for room before its attempt.
    pub(crate) fn is_large(&self) -> bool {
        self.waiting.is_away() || self.message.body.len() > waiting_body::LARGE_BYTES
    }

    pub(crate) const fn has_room(&self) -> bool {
        self.room.is_some()
    }

    /// Holds the room until [`Self::unload`] or the end of the loan.
    pub(crate) fn keep_room(&mut self, room: Option<tokio::sync::OwnedSemaphorePermit>) {
        self.room = room;
    }

    /// Whether the body is somewhere else than in the message now.
    fn is_away(&self) -> bool {
        self.waiting.is_away() && self.message.body.is_empty()
    }

    /// Brings the body into the message.
    pub(crate) async fn load(&mut self) -> Result<(), QueueError> {
        if self.is_away()
            && let Some(body) = self.waiting.read().await?
        {
            self.message.body = body;
        }
        Ok(())
    }

    /// Takes the body out of the message again, if it is somewhere else as well, and gives the room back.
    pub(crate) fn unload(&mut self) {
        self.room = None;
        if self.waiting.is_away() {
            self.message.body = bytes::Bytes::new();
        }
    }

    /// Settles the loan: the message is delivered or buried, and leaves the queue. At most once, since it takes `self`. It
    /// counts at the latest when its subscription is next asked, flushed or closed; lost before that, it is lent again.
    pub async fn done(self) -> Result<(), QueueError> {
        match self.receipt {
            Receipt::Embedded(receipt) => receipt.done().await,
            Receipt::Rabbit(receipt) => receipt.done().await,
            #[cfg(test)]
            Receipt::Model(receipt) => receipt.done(),
        }
    }
}

/// A borrower's place at a partition.
#[derive(Debug)]
pub enum Subscription {
    /// See [`embedded`].
    Embedded(embedded::Subscription),
    /// See [`rabbit`].
    Rabbit(Box<rabbit::Subscription>),
    /// See [`model`].
    #[cfg(test)]
    Model(model::Subscription),
}

impl Subscription {
    /// The next loan; `None` when the subscription is over, and every unsettled loan of it with it. Cancel-safe.
    pub async fn next(&mut self) -> Option<Loan> {
        match self {
            Self::Embedded(subscription) => subscription.next().await,
            Self::Rabbit(subscription) => subscription.next().await,
            #[cfg(test)]
            Self::Model(subscription) => subscription.next().await,
        }
    }

    /// Has other workers know that this one wants the partition for good, not only for a look: who ranks lower yields it.
    pub fn announce(&mut self) {
        if let Self::Rabbit(subscription) = self {
            subscription.announce();
        }
    }

    /// Whether something is on its way that [`Self::next`] may not hand out yet: a window of large bodies takes its time.
    pub fn is_arriving(&self) -> bool {
        match self {
            Self::Rabbit(subscription) => subscription.is_arriving(),
            _ => false,
        }
    }

    /// Makes sure that what is settled counts soon, also while nobody asks for the next loan.
    pub fn flush(&self) {
        if let Self::Rabbit(subscription) = self {
            subscription.flush();
        }
    }

    /// Gives every unsettled loan back, in order. Settling one of them afterwards is an error without effect.
    pub async fn close(self) {
        match self {
            Self::Embedded(subscription) => subscription.close().await,
            Self::Rabbit(subscription) => subscription.close().await,
            #[cfg(test)]
            Self::Model(subscription) => subscription.close(),
        }
    }
}

/// A visit to the dead letters of one destination. What is not removed stays, in its place.
#[derive(Debug)]
pub enum Siding {
    /// See [`embedded`].
    Embedded(embedded::Siding),
    /// See [`rabbit`].
    Rabbit(Box<rabbit::Siding>),
}

impl Siding {
    /// The next dead letter, oldest death first; `None` at the end of what was there when the visit began.
    pub async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        match self {
            Self::Embedded(siding) => siding.next().await,
            Self::Rabbit(siding) => siding.next().await,
        }
    }

    /// Ends the visit.
    pub async fn close(self) {
        match self {
            Self::Embedded(siding) => siding.close().await,
            Self::Rabbit(siding) => siding.close().await,
        }
    }
}

/// A dead letter in a visitor's hand. Dropping it leaves it where it was.
#[derive(Debug)]
pub struct Held {
    /// The dead letter.
    pub dead: DeadLetter,
    pub(crate) receipt: Receipt,
}

impl Held {
    /// Takes it out of the siding for good.
    pub async fn remove(self) -> Result<(), QueueError> {
        match self.receipt {
            Receipt::Embedded(receipt) => receipt.done().await,
            Receipt::Rabbit(receipt) => receipt.done().await,
            #[cfg(test)]
            Receipt::Model(receipt) => receipt.done(),
        }
    }
}

/// How much waits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that nobody borrowed yet, by destination; the embedded engine counts those that are lent, too.
    pub waiting: std::collections::BTreeMap<Destination, u64>,
    /// When the oldest message still in the queue was accepted, where the engine can tell.
    pub oldest: std::collections::BTreeMap<Destination, jiff::Timestamp>,
    /// Dead letters of all destinations.
    pub dead: u64,
    /// Messages that reached no queue, or died without our doing: always 0, an alarm otherwise.
    pub astray: u64,
}

/// The right to start a request to a platform.
///
/// RabbitMQ's single active consumer is not a lock: a worker that the broker lost sight of goes on for seconds while the
/// next one has started. So a worker starts a request only if the broker answered it within the last heartbeat.
#[derive(Debug, Clone)]
pub enum Lease {
    /// Nobody else can have the partitions.
    Always,
    /// Valid as long after the last question that the broker answered.
    For {
        /// When the question that was answered last had been asked.
        answered: watch::Receiver<Option<Instant>>,
        /// One heartbeat.
        term: Duration,
    },
}

impl Lease {
    /// Whether a request may start at `now`.
    pub fn holds(&self, now: Instant) -> bool {
        match self {
            Self::Always => true,
            Self::For { answered, term } => {
                answered.borrow().is_some_and(|asked| now.saturating_duration_since(asked) < *term)
            }
        }
    }

    /// Waits until the broker answers again.
    pub async fn renewed(&mut self) {
        match self {
            Self::Always => {}
            Self::For { answered, .. } => {
                if answered.changed().await.is_err() {
                    // The queue is closed: nothing will be renewed, and whoever waits is being stopped.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
