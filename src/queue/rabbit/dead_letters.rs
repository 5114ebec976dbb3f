//! The dead-letter reader: an exclusive session that reads the dead letters of one destination.
//!
//! Two readers at once would each get half of the letters, and quorum queues have no exclusive consumers. So a reader first
//! takes a lock: a queue that is exclusive to its connection, with a consumer that is exclusive to its channel. Letters
//! that were not removed go back to their place when the channel closes. The lock is released after that.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::Instant;

use super::connections::BrokerConnections;
use super::consumer::{BrokerDelivery, OrderedConsumer};
use super::subscription::RabbitAck;
use super::topology::{ANSWER_TIMEOUT, QueueCount, QueueStats};
use super::{RabbitError, wire, within};
use crate::message::Destination;
use crate::queue::{DeadLetterEntry, QueueError};
use crate::tasks;

/// The largest prefetch of one consumer. With 0 (no limit) a quorum queue gives a consumer at most 2,000 messages.
///
/// The reader keeps every letter unacked until it closes. RabbitMQ requeues returned messages behind those returned
/// earlier, so returning only some letters would change the order. When a consumer is full, the next one continues on
/// the same channel. RabbitMQ requeues the letters of up to 32 such consumers in the order of their tags. With more
/// letters than this, the order of the list changes if the process is killed before the reader has all of them. The
/// order of a replay does not change.
const UNACKED_MAX: u16 = u16::MAX;
const RECHECK_DELAY: Duration = Duration::from_millis(20);
/// A count that arrives sooner than this is real: the broker gives up an unresponsive queue only after 250 ms.
const PROMPT_ANSWER: Duration = Duration::from_millis(200);

/// The dead letters that existed when the session began.
pub struct RabbitReader {
    destination: Destination,
    /// `None` after the end of the session, or if the destination has no queue.
    session: Option<ReadSession>,
    left: u64,
}

struct ReadSession {
    queue: String,
    consumer: OrderedConsumer,
    lock: ReaderLock,
    /// The first letter, if it was taken to find out whether the queue is empty.
    first: Option<BrokerDelivery>,
    /// There are more letters than one consumer can have.
    takes_several: bool,
    /// The number of consumers before this one.
    full: u32,
    /// How many more letters this consumer can receive.
    room: u16,
}

impl std::fmt::Debug for RabbitReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeadLetterReader({}, {} left)", self.destination, self.left)
    }
}

impl RabbitReader {
    pub(super) async fn open(
        connections: &BrokerConnections,
        destination: Destination,
    ) -> Result<Self, QueueError> {
        let limit = Duration::from_secs(10);
        let connection = tokio::time::timeout(limit, connections.until_consuming())
            .await
            .map_err(|_| QueueError::Unavailable(format!("no connection to the broker within {limit:?}")))?;
        let names = &connections.settings.names;
        let (queue, lock) = (names.dead_letters(destination), names.reader_lock(destination));
        // The task goes on if the caller stops waiting, so that a started session is ended properly.
        let opened = tasks::spawn(async move {
            // An operator may name a destination that this deployment never had.
            if QueueStats::new(&connection).waiting(&queue).await?.is_none() {
                return Ok(Self { destination, session: None, left: 0 });
            }
            let lock = ReaderLock::take(&connection, lock, destination).await?;
            match begin(connection, &queue).await {
                Ok((consumer, QueueHead { waiting, first })) => {
                    let left = waiting + u64::from(first.is_some());
                    let takes_several = waiting > u64::from(UNACKED_MAX);
                    let session = ReadSession {
                        queue,
                        consumer,
                        lock,
                        first,
                        takes_several,
                        full: 0,
                        room: UNACKED_MAX,
                    };
                    Ok(Self { destination, session: Some(session), left })
                }
                Err(error) => {
                    lock.release().await;
                    Err(error)
                }
            }
        });
        opened.await.map_err(|_| QueueError::Unavailable("the process is ending".into()))?
    }

    pub(in crate::queue) async fn next(&mut self) -> Result<Option<DeadLetterEntry>, QueueError> {
        let Some(session) = self.session.as_mut().filter(|_| self.left > 0) else { return Ok(None) };
        // Memory holds the body of the current letter only, not of all unacked ones.
        let BrokerDelivery { mut delivery, waiting } = session.next().await?;
        if let Some(body) = waiting.read().await? {
            delivery.data = body.into();
        }
        self.left -= 1;
        let ack_token = RabbitAck::single(session.consumer.channel().clone(), delivery.delivery_tag);
        let dead = wire::decode_dead(&mut delivery, self.destination);
        Ok(Some(DeadLetterEntry { dead, ack_token: crate::queue::AckToken::Rabbit(ack_token) }))
    }

    pub(in crate::queue) async fn close(mut self) {
        if let Some(session) = self.session.take() {
            // The task goes on if the caller stops waiting.
            let _ = tasks::spawn(session.end(self.left)).await;
        }
    }
}

impl Drop for RabbitReader {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            tasks::spawn(session.end(self.left));
        }
    }
}

/// Opens a channel that receives all letters, and counts the letters.
async fn begin(connection: Arc<Connection>, queue: &str) -> Result<(OrderedConsumer, QueueHead), QueueError> {
    let mut consumer = OrderedConsumer::without_consumer(connection.clone(), UNACKED_MAX).await?;
    let found = look(&connection, &mut consumer, queue).await?;
    consumer.resume(queue.into(), consumer_tag(0)).await?;
    Ok((consumer, found))
}

impl ReadSession {
    async fn next(&mut self) -> Result<BrokerDelivery, QueueError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        loop {
            let next = tokio::time::timeout(ANSWER_TIMEOUT, self.consumer.next()).await;
            match next {
                Ok(Some(Ok(delivery))) => {
                    if let Some(room) = self.room.checked_sub(1) {
                        self.room = room;
                        if room == 0 {
                            self.consumer.stop().await?;
                        }
                    }
                    return Ok(delivery);
                }
                Ok(None) if self.room == 0 => {
                    self.full += 1;
                    self.consumer.resume(self.queue.as_str().into(), consumer_tag(self.full)).await?;
                    self.room = UNACKED_MAX;
                }
                Ok(Some(Err(error))) => return Err(QueueError::Unavailable(error.to_string())),
                Ok(None) => return Err(QueueError::Unavailable("the broker ended the session".into())),
                Err(_) => {
                    let why = format!("the broker delivered no dead letter within {ANSWER_TIMEOUT:?}");
                    return Err(QueueError::Unavailable(why));
                }
            }
        }
    }

    /// Ends the session; `unseen` is the number of letters that were not read.
    async fn end(mut self, unseen: u64) {
        let mut unseen = if self.takes_several { unseen } else { 0 };
        while unseen > 0 && self.next().await.is_ok() {
            unseen -= 1;
        }
        self.consumer.close().await;
        self.lock.release().await;
    }
}

fn consumer_tag(number: u32) -> ShortString {
    format!("dead-letters-{number:03}").into()
}

/// The right to be the only reader of a destination.
struct ReaderLock {
    name: String,
    channel: Channel,
    // Dropping the consumer releases the lock.
    consumer: Consumer,
}

impl ReaderLock {
    async fn take(
        connection: &Arc<Connection>,
        name: String,
        destination: Destination,
    ) -> Result<Self, QueueError> {
        let busy = |error| match error {
            RabbitError::Lapin(error) if error.is_amqp_soft_error() => QueueError::Busy(format!(
                "another session is reading the dead letters of {destination} (dead list, replay, ...): wait until it is done"
            )),
            other => other.into(),
        };
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await.map_err(QueueError::from)?;
        // A reader on another connection is refused here, ...
        let (exclusive, none) = (QueueDeclareOptions::exclusive(), FieldTable::default());
        let declare = channel.queue_declare(name.as_str().into(), exclusive, none);
        within(ANSWER_TIMEOUT, declare).await.map_err(busy)?;
        // ... and another reader on the same connection here.
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consume =
            channel.basic_consume(name.as_str().into(), "reader".into(), options, FieldTable::default());
        let consumer = within(ANSWER_TIMEOUT, consume).await.map_err(busy)?;
        Ok(Self { name, channel, consumer })
    }

    async fn release(mut self) {
        // The broker itself would delete the queue only some time after it reported the end of the channel.
        let delete = self.channel.queue_delete(self.name.as_str().into(), QueueDeleteOptions::default());
        if let Err(error) = within(ANSWER_TIMEOUT, delete).await {
            tracing::debug!(%error, "could not release the lock of the dead-letter reader; it ends with its connection");
            return;
        }
        // The broker has ended the consumer with its queue. A consumer that is dropped before lapin knows this cancels
        // itself. If that cancel comes after the end of the channel, the broker closes the whole connection.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.consumer.next()).await;
    }
}

/// The letters that a new reader finds.
struct QueueHead {
    waiting: u64,
    /// A letter that this reader already has, in front of the waiting ones.
    first: Option<BrokerDelivery>,
}

/// Counts the dead letters after the previous reader has returned all of its letters. The broker removes the previous
/// consumer and requeues its letters in one step, but some time after it reported the end of the channel.
///
/// A count of 0 messages and 0 consumers is not reliable: the broker reports the same if a quorum queue does not answer
/// within 250 ms. A queue does not answer while it takes back thousands of letters, or while it has no leader, as right
/// after the start of a broker. Only the leader knows whether the queue is empty, so this function asks for one letter.
/// The reader keeps that letter, because a returned letter would become the last one. The unacked letter makes the
/// reader a counted consumer. From then on, a count of 0 messages and 0 consumers is known to be wrong.
async fn look(
    connection: &Connection,
    consumer: &mut OrderedConsumer,
    queue: &str,
) -> Result<QueueHead, QueueError> {
    let begun = Instant::now();
    let mut stats = QueueStats::new(connection);
    let (mut first, mut none_found) = (None, false);
    loop {
        let asked = Instant::now();
        let Some(QueueCount { waiting, consumers }) = stats.count_of(queue).await? else {
            return Ok(QueueHead { waiting: 0, first });
        };
        let too_long = begun.elapsed() > ANSWER_TIMEOUT;
        let prompt = asked.elapsed() < PROMPT_ANSWER;
        match (&first, consumers, waiting) {
            (Some(_), 1, _) | (None, 0, 1..) => return Ok(QueueHead { waiting, first }),
            (None, 0, 0) if none_found && (prompt || too_long) => return Ok(QueueHead { waiting, first }),
            (None, 0, 0) => {
                first = consumer.get(queue).await?;
                none_found = first.is_none();
            }
            _ if too_long => return Err(QueueError::Busy(format!("{queue} has another consumer"))),
            _ => tokio::time::sleep(RECHECK_DELAY).await,
        }
    }
}
