//! The durable queue between ingress and workers. Each engine keeps the numbered clauses below; `tests/it/queue_contract.rs`
//! tests each clause on each engine.
//!
//! 1. **Durable.** When [`Queue::publish`] or [`Queue::dead_letter`] returns `Ok`, the message survives a crash of any
//!    process. After an error the message may or may not be stored.
//! 2. **In order.** Messages of one lane are delivered in the order in which their publishes returned.
//! 3. **One consumer.** A partition delivers to one [`Subscription`] at a time (with RabbitMQ: see clause 10).
//! 4. **Redelivered until acked.** A received message without [`ReceivedMessage::ack`] is redelivered in its original
//!    position, after [`Subscription::close`] and after a crash of the worker, the broker or the machine.
//! 5. **Bounded.** No subscription has more than `prefetch` unacked messages.
//! 6. **Redeliveries are marked.** A message that may have been delivered before is marked
//!    ([`ReceivedMessage::redeliveries`]).
//! 7. **Refuses instead of losing.** A full or missing queue is an error, at once or within the publish timeout.
//! 8. **Unreadable is not lost.** An unreadable message is delivered with its raw bytes and the reason.
//! 9. **Dead letters.** Dead letters keep the order in which they were dead-lettered. Reading does not change them.
//!    Only [`DeadLetterEntry::remove`] removes a letter.
//! 10. **Lease.** [`BrokerLease::holds`] is true only while the queue has certainly not given our partitions to another
//!     worker.
//!
//! Not responsible for: processing a message (`worker/`), the content of a dead letter (`message/dead_letter.rs`).

pub mod embedded;
mod error;
mod lease;
mod majority;
#[cfg(test)]
pub(crate) mod model;
pub mod partition;
pub mod rabbit;
pub mod spool;
mod tuning;
pub(crate) mod waiting_body;

use std::time::Duration;

use tokio::sync::watch;

use crate::message::{DeadLetter, DeadReason, Destination, Destinations, Message};
use embedded::EmbeddedQueue;
pub use error::QueueError;
pub use lease::BrokerLease;
pub use partition::PartitionId;
use rabbit::RabbitQueue;
pub use tuning::QueueTuning;
use waiting_body::WaitingBody;
pub use waiting_body::keep_bodies_in;

/// The time limit for waiting until another session has closed its dead-letter reader (RabbitMQ only).
const READER_TIMEOUT: Duration = Duration::from_secs(5);
const READER_RETRY: Duration = Duration::from_millis(200);

/// One engine, chosen once at start.
#[derive(Debug, Clone)]
pub enum Queue {
    /// SQLite in `data_dir`: one machine, one process.
    Embedded(EmbeddedQueue),
    /// RabbitMQ: any number of ingresses and workers.
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

    /// Whether other processes may consume from the same partitions.
    pub const fn shared(&self) -> bool {
        !matches!(self, Self::Embedded(_))
    }

    /// Whether another worker is known, which may own any partition.
    pub fn has_other_workers(&self) -> bool {
        match self {
            Self::Embedded(_) => false,
            Self::Rabbit(queue) => queue.has_other_workers(),
            #[cfg(test)]
            Self::Model(queue) => queue.has_other_workers(),
        }
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

    /// The destinations that have partitions and a dead-letter queue. If the engine knows them, an operator's tool also
    /// reaches destinations that its settings do not name.
    pub fn destinations(&self) -> &Destinations {
        match self {
            Self::Embedded(queue) => queue.destinations(),
            Self::Rabbit(queue) => queue.destinations(),
            #[cfg(test)]
            Self::Model(queue) => queue.destinations(),
        }
    }

    /// Appends a message to its lane (clause 1). Returns [`QueueError::Mismatch`] if the destination has no queues.
    pub async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        self.knows(message.destination)?;
        match self {
            Self::Embedded(queue) => queue.publish(message).await,
            Self::Rabbit(queue) => queue.publish(message).await,
            #[cfg(test)]
            Self::Model(queue) => queue.publish(message).await,
        }
    }

    /// Writes a dead letter to the dead-letter queue (clause 1). The caller acks the original after this call, never before.
    pub async fn dead_letter(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        self.knows(dead.message.destination)?;
        match self {
            Self::Embedded(queue) => queue.dead_letter(dead).await,
            Self::Rabbit(queue) => queue.dead_letter(dead).await,
            #[cfg(test)]
            Self::Model(queue) => queue.dead_letter(dead).await,
        }
    }

    /// Whether a destination has a dead-letter queue. The broker would treat dead letters without a queue as
    /// unroutable.
    pub async fn keeps_dead_letters(&self, destination: Destination) -> Result<bool, QueueError> {
        match self {
            _ if self.knows(destination).is_err() => Ok(false),
            Self::Rabbit(queue) => queue.keeps_dead_letters(destination).await,
            _ => Ok(true),
        }
    }

    /// Without this check a broker would accept a message that no worker can receive.
    fn knows(&self, destination: Destination) -> Result<(), QueueError> {
        if self.destinations().contains(destination) {
            return Ok(());
        }
        Err(QueueError::Mismatch(format!("the settings have no destination {destination}: it has no queue")))
    }

    /// Subscribes to a partition, as soon as the engine allows it. Clauses 2 to 6 and 8.
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

    /// Opens the exclusive dead-letter reader of a destination; there is one at a time. Clause 9.
    pub async fn dead_letter_reader(&self, destination: Destination) -> Result<DeadLetterReader, QueueError> {
        match self {
            Self::Embedded(queue) => queue.dlq_reader(destination).await.map(DeadLetterReader::Embedded),
            Self::Rabbit(queue) => Ok(DeadLetterReader::Rabbit(queue.dlq_reader(destination).await?.into())),
            #[cfg(test)]
            Self::Model(_) => Err(QueueError::Unavailable("a simulation reads dead letters itself".into())),
        }
    }

    /// Opens the dead letters of a destination for reading only. The embedded engine allows several readers at once,
    /// also beside the exclusive reader of [`Self::dead_letter_reader`]. RabbitMQ delivers a dead letter to one
    /// consumer at a time: a reader waits for another session at most [`READER_TIMEOUT`], then returns
    /// [`QueueError::Busy`].
    pub async fn read_dead_letters(&self, destination: Destination) -> Result<DeadLetterReader, QueueError> {
        if let Self::Embedded(queue) = self {
            return queue.read_dead_letters(destination).await.map(DeadLetterReader::Embedded);
        }
        let until = tokio::time::Instant::now() + READER_TIMEOUT;
        loop {
            match self.dead_letter_reader(destination).await {
                Err(QueueError::Busy(_)) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(READER_RETRY).await;
                }
                opened => return opened,
            }
        }
    }

    /// The reason why the engine is not usable now; `None` if it is usable.
    pub fn unready(&self) -> Option<String> {
        match self {
            Self::Rabbit(queue) => queue.unready(),
            _ if *self.connected().borrow() => None,
            _ => Some("its file cannot be written: is the disk full?".to_owned()),
        }
    }

    /// Whether the engine is usable now. The receiver reports changes.
    pub fn connected(&self) -> watch::Receiver<bool> {
        match self {
            Self::Embedded(queue) => queue.connected(),
            Self::Rabbit(queue) => queue.connected(),
            #[cfg(test)]
            Self::Model(queue) => queue.connected(),
        }
    }

    /// Waits for an error that needs an operator. The process should end with this error.
    pub async fn broken(&self) -> QueueError {
        match self {
            Self::Embedded(_) => std::future::pending().await,
            Self::Rabbit(queue) => queue.broken().await,
            #[cfg(test)]
            Self::Model(_) => std::future::pending().await,
        }
    }

    /// The lease: the right to start a request. Clause 10.
    pub fn lease(&self) -> BrokerLease {
        match self {
            Self::Embedded(_) => BrokerLease::Always,
            Self::Rabbit(queue) => queue.lease(),
            #[cfg(test)]
            Self::Model(queue) => queue.lease(),
        }
    }

    /// The partitions that a preferred worker is waiting for: the owner should release them. Empty if there is no other worker.
    pub fn preferred_elsewhere(&self) -> watch::Receiver<std::collections::BTreeMap<PartitionId, u64>> {
        match self {
            Self::Embedded(queue) => queue.preferred_elsewhere(),
            Self::Rabbit(queue) => queue.preferred_elsewhere(),
            #[cfg(test)]
            Self::Model(queue) => queue.preferred_elsewhere(),
        }
    }

    /// The numbers of waiting messages, for metrics. The numbers may be slightly out of date.
    pub async fn depth(&self) -> Result<QueueDepth, QueueError> {
        match self {
            Self::Embedded(queue) => queue.depth().await,
            Self::Rabbit(queue) => queue.depth().await,
            #[cfg(test)]
            Self::Model(queue) => queue.depth().await,
        }
    }

    /// The number of dead letters by reason, without reading them. `None` for RabbitMQ, which counts only the total.
    pub async fn dead_reasons(
        &self,
    ) -> Result<Option<std::collections::BTreeMap<DeadReason, u64>>, QueueError> {
        match self {
            Self::Embedded(queue) => queue.dead_reasons().await.map(Some),
            _ => Ok(None),
        }
    }

    /// The number of workers that announce themselves to the broker. This takes about three seconds. `None` for the
    /// embedded engine, which only one process serves.
    pub async fn count_workers(&self) -> Result<Option<u64>, QueueError> {
        match self {
            Self::Rabbit(queue) => queue.count_workers().await.map(Some),
            _ => Ok(None),
        }
    }

    /// Checks that published messages are routed, without using a queue of the deployment. For operators.
    pub async fn routes(&self) -> Result<bool, QueueError> {
        match self {
            Self::Embedded(_) => Ok(true),
            Self::Rabbit(queue) => queue.routes().await,
            #[cfg(test)]
            Self::Model(_) => Ok(true),
        }
    }

    /// Closes the engine. The owners of subscriptions must close their subscriptions before.
    pub async fn close(&self) {
        match self {
            Self::Embedded(queue) => queue.close().await,
            Self::Rabbit(queue) => queue.close().await,
            #[cfg(test)]
            Self::Model(queue) => queue.close().await,
        }
    }
}

/// A received message that is not acked yet. If it is dropped, it stays unacked until its subscription closes.
#[derive(Debug)]
pub struct ReceivedMessage {
    /// The message.
    pub message: Message,
    /// How often the message may have been delivered before; 0 means certainly never.
    pub redeliveries: u32,
    /// The reason if the message is unreadable. The body then holds the raw bytes.
    pub unreadable: Option<String>,
    pub(crate) ack_token: AckToken,
    pub(crate) waiting: WaitingBody,
    /// The memory permit of the attempt.
    pub(crate) room: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// The ack token: how an engine identifies the message to ack.
#[derive(Debug)]
pub(crate) enum AckToken {
    Embedded(embedded::EmbeddedAck),
    Rabbit(rabbit::RabbitAck),
    #[cfg(test)]
    Model(model::ModelAck),
}

impl ReceivedMessage {
    /// The size of the body in bytes, in memory or not.
    pub(crate) fn body_bytes(&self) -> usize {
        self.message.body.len().max(self.waiting.bytes())
    }

    /// Whether the body needs a memory permit before the attempt.
    pub(crate) fn is_large(&self) -> bool {
        self.waiting.is_away() || self.message.body.len() > waiting_body::LARGE_BYTES
    }

    pub(crate) const fn has_room(&self) -> bool {
        self.room.is_some()
    }

    /// Keeps the memory permit until [`Self::unload`] or the end of this message.
    pub(crate) fn keep_room(&mut self, room: Option<tokio::sync::OwnedSemaphorePermit>) {
        self.room = room;
    }

    /// Whether the body is outside of the message now.
    fn is_away(&self) -> bool {
        self.waiting.is_away() && self.message.body.is_empty()
    }

    /// Loads the body into the message.
    pub(crate) async fn load(&mut self) -> Result<(), QueueError> {
        if self.is_away()
            && let Some(body) = self.waiting.read().await?
        {
            self.message.body = body;
        }
        Ok(())
    }

    /// Takes the body out of the message again if it is also stored elsewhere, and releases the memory permit.
    pub(crate) fn unload(&mut self) {
        self.room = None;
        if self.waiting.is_away() {
            self.message.body = bytes::Bytes::new();
        }
    }

    /// Acks the message after it was delivered or dead-lettered: the message leaves the queue. The ack takes effect at the latest
    /// when the subscription is next polled, flushed or closed. If the ack is lost before, the message is redelivered.
    pub async fn ack(self) -> Result<(), QueueError> {
        match self.ack_token {
            AckToken::Embedded(ack_token) => ack_token.ack().await,
            AckToken::Rabbit(ack_token) => ack_token.ack().await,
            #[cfg(test)]
            AckToken::Model(ack_token) => ack_token.ack(),
        }
    }
}

/// A consumer of one partition.
#[derive(Debug)]
pub enum Subscription {
    /// See [`embedded`].
    Embedded(embedded::EmbeddedSubscription),
    /// See [`rabbit`].
    Rabbit(Box<rabbit::RabbitSubscription>),
    /// See [`model`].
    #[cfg(test)]
    Model(model::ModelSubscription),
}

impl Subscription {
    /// The next message; `None` after the subscription ended, which also returned its unacked messages. Cancel-safe.
    pub async fn next(&mut self) -> Option<ReceivedMessage> {
        match self {
            Self::Embedded(subscription) => subscription.next().await,
            Self::Rabbit(subscription) => subscription.next().await,
            #[cfg(test)]
            Self::Model(subscription) => subscription.next().await,
        }
    }

    /// Announces that this worker wants the partition permanently, so that a less preferred owner releases it.
    pub fn announce(&mut self) {
        if let Self::Rabbit(subscription) = self {
            subscription.announce();
        }
    }

    /// Whether messages have arrived that [`Self::next`] does not hand out yet. A prefetch window of large bodies takes
    /// a while.
    pub fn is_arriving(&self) -> bool {
        match self {
            Self::Rabbit(subscription) => subscription.is_arriving(),
            _ => false,
        }
    }

    /// Sends the pending acks, even if `next` is not called.
    pub fn flush(&self) {
        if let Self::Rabbit(subscription) = self {
            subscription.flush();
        }
    }

    /// Returns all unacked messages in order. A later ack of one fails without effect.
    pub async fn close(self) {
        match self {
            Self::Embedded(subscription) => subscription.close().await,
            Self::Rabbit(subscription) => subscription.close().await,
            #[cfg(test)]
            Self::Model(subscription) => subscription.close(),
        }
    }
}

/// A session that reads the dead letters of one destination. Letters that are not removed stay in their place.
#[derive(Debug)]
pub enum DeadLetterReader {
    /// See [`embedded`].
    Embedded(embedded::EmbeddedReader),
    /// See [`rabbit`].
    Rabbit(Box<rabbit::RabbitReader>),
}

impl DeadLetterReader {
    /// The next dead letter, oldest first; `None` after the letters that existed when the session began.
    pub async fn next(&mut self) -> Result<Option<DeadLetterEntry>, QueueError> {
        match self {
            Self::Embedded(dead_letter_reader) => dead_letter_reader.next().await,
            Self::Rabbit(dead_letter_reader) => dead_letter_reader.next().await,
        }
    }

    /// Ends the session.
    pub async fn close(self) {
        match self {
            Self::Embedded(dead_letter_reader) => dead_letter_reader.close().await,
            Self::Rabbit(dead_letter_reader) => dead_letter_reader.close().await,
        }
    }
}

/// A dead letter in a session. Dropping it leaves the letter in its place.
#[derive(Debug)]
pub struct DeadLetterEntry {
    /// The dead letter.
    pub dead: DeadLetter,
    pub(crate) ack_token: AckToken,
}

impl DeadLetterEntry {
    /// Removes the letter from the dead-letter queue.
    pub async fn remove(self) -> Result<(), QueueError> {
        match self.ack_token {
            AckToken::Embedded(ack_token) => ack_token.ack().await,
            AckToken::Rabbit(ack_token) => ack_token.ack().await,
            #[cfg(test)]
            AckToken::Model(ack_token) => ack_token.ack(),
        }
    }
}

/// The numbers of waiting messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages that no consumer has, by destination. The embedded engine also counts unacked messages.
    pub waiting: std::collections::BTreeMap<Destination, u64>,
    /// When the oldest message in the queue was accepted, if the engine knows.
    pub oldest: std::collections::BTreeMap<Destination, jiff::Timestamp>,
    /// The number of partitions with a consumer, by destination. Only the destinations whose partitions exist. The embedded
    /// engine leaves this empty.
    pub consumed: std::collections::BTreeMap<Destination, u64>,
    /// Dead letters of all destinations.
    pub dead: u64,
    /// Dead letters by destination.
    pub dead_of: std::collections::BTreeMap<Destination, u64>,
    /// Unroutable messages. Any value but 0 raises an alert.
    pub unroutable: u64,
}
