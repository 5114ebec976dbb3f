//! A visit to the dead letters of one destination.
//!
//! Two visitors would each see half of the letters, and quorum queues know no exclusive consumer; so a visitor first takes
//! a lock: a queue exclusive to its connection, with a consumer exclusive to its channel. What is not removed goes back in
//! its place when the channel closes, and only then is the lock given away.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::Instant;

use super::borrowing::{Borrowing, Wish};
use super::links::Links;
use super::subscription::Receipt;
use super::topology::{ANSWER_TIMEOUT, Census, dead_queue, visit_lock};
use super::{RabbitError, wire, within};
use crate::message::Destination;
use crate::queue::{Held, QueueError};
use crate::tasks;

/// A visitor holds everything, to give it back in its order: what goes back goes behind what others gave back before, so that a
/// part would change its place. But a consumer of a quorum queue holds no more than this (and without a bound, 0, no more than
/// 2,000). The next consumer goes on where it stopped, and up to 32 of them are given back in the order of their tags. A visitor that
/// is killed before it holds all of more than this many changes their order in the list, though not in a replay.
const HELD_MAX: u16 = u16::MAX;
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Everything that was there when the visit began.
pub struct Siding {
    destination: Destination,
    /// `None` once the visit is over.
    visit: Option<Visit>,
    left: u64,
}

struct Visit {
    borrowing: Borrowing,
    lock: Lock,
    /// There is more than one consumer can hold.
    takes_several: bool,
    /// The consumers before this one.
    full: u32,
    /// What this one may still be lent.
    room: u16,
}

impl std::fmt::Debug for Siding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Siding({}, {} left)", self.destination, self.left)
    }
}

impl Siding {
    pub(super) async fn open(links: &Links, destination: Destination) -> Result<Self, QueueError> {
        let limit = Duration::from_secs(10);
        let connection = tokio::time::timeout(limit, links.until_consuming())
            .await
            .map_err(|_| QueueError::Unavailable(format!("no connection to the broker within {limit:?}")))?;
        let lock = Lock::take(&connection, destination).await?;
        let opened = async {
            let left = settled_count(&connection, destination).await?;
            let wish =
                Wish { queue: dead_queue(destination).into(), tag: consumer_tag(0), prefetch: HELD_MAX };
            Ok::<_, QueueError>((left, Borrowing::open(connection.clone(), wish).await?))
        };
        match opened.await {
            Ok((left, borrowing)) => {
                let takes_several = left > u64::from(HELD_MAX);
                let visit = Visit { borrowing, lock, takes_several, full: 0, room: HELD_MAX };
                Ok(Self { destination, visit: Some(visit), left })
            }
            Err(error) => {
                lock.release().await;
                Err(error)
            }
        }
    }

    pub(in crate::queue) async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        let Some(visit) = self.visit.as_mut().filter(|_| self.left > 0) else { return Ok(None) };
        let mut delivery = visit.next(self.destination).await?;
        self.left -= 1;
        let receipt = Receipt::single(visit.borrowing.channel().clone(), delivery.delivery_tag);
        let dead = wire::decode_dead(&mut delivery, self.destination);
        Ok(Some(Held { dead, receipt: crate::queue::Receipt::Rabbit(receipt) }))
    }

    pub(in crate::queue) async fn close(mut self) {
        if let Some(visit) = self.visit.take() {
            // In a task, which goes on when the caller does not.
            let _ = tasks::spawn(visit.end(self.destination, self.left)).await;
        }
    }
}

impl Drop for Siding {
    fn drop(&mut self) {
        if let Some(visit) = self.visit.take()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            tasks::spawn(visit.end(self.destination, self.left));
        }
    }
}

impl Visit {
    async fn next(&mut self, destination: Destination) -> Result<Delivery, QueueError> {
        loop {
            let next = tokio::time::timeout(ANSWER_TIMEOUT, self.borrowing.next()).await;
            match next {
                Ok(Some(Ok(delivery))) => {
                    if let Some(room) = self.room.checked_sub(1) {
                        self.room = room;
                        if room == 0 {
                            self.borrowing.stop().await?;
                        }
                    }
                    return Ok(delivery);
                }
                Ok(None) if self.room == 0 => {
                    self.full += 1;
                    self.borrowing.resume(dead_queue(destination).into(), consumer_tag(self.full)).await?;
                    self.room = HELD_MAX;
                }
                Ok(Some(Err(error))) => return Err(QueueError::Unavailable(error.to_string())),
                Ok(None) => return Err(QueueError::Unavailable("the visit was ended by the broker".into())),
                Err(_) => {
                    let why = format!("the broker handed out no dead letter within {ANSWER_TIMEOUT:?}");
                    return Err(QueueError::Unavailable(why));
                }
            }
        }
    }

    /// Ends the visit; so many letters were not looked at.
    async fn end(mut self, destination: Destination, unseen: u64) {
        let mut unseen = if self.takes_several { unseen } else { 0 };
        while unseen > 0 && self.next(destination).await.is_ok() {
            unseen -= 1;
        }
        self.borrowing.close().await;
        self.lock.release().await;
    }
}

fn consumer_tag(number: u32) -> ShortString {
    format!("siding-{number:03}").into()
}

/// The right to be the only visitor.
struct Lock {
    destination: Destination,
    channel: Channel,
    // Gives the lock away when it is dropped.
    consumer: Consumer,
}

impl Lock {
    async fn take(connection: &Arc<Connection>, destination: Destination) -> Result<Self, QueueError> {
        let busy = |error| match error {
            RabbitError::Lapin(error) if error.is_amqp_soft_error() => QueueError::Busy(format!(
                "somebody else is looking at the dead letters of {destination} (dead list, replay, ...): wait until they are done"
            )),
            other => other.into(),
        };
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await.map_err(QueueError::from)?;
        let name = visit_lock(destination);
        // Another connection's is refused here, ...
        let declare = channel.queue_declare(
            name.clone().into(),
            QueueDeclareOptions::exclusive(),
            FieldTable::default(),
        );
        within(ANSWER_TIMEOUT, declare).await.map_err(busy)?;
        // ... and another visitor's of the same connection here.
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(name.into(), "visitor".into(), options, FieldTable::default());
        let consumer = within(ANSWER_TIMEOUT, consume).await.map_err(busy)?;
        Ok(Self { destination, channel, consumer })
    }

    async fn release(mut self) {
        // Deleted rather than left to the broker, which would do it some time after we were told that it is done.
        let delete =
            self.channel.queue_delete(visit_lock(self.destination).into(), QueueDeleteOptions::default());
        if let Err(error) = within(ANSWER_TIMEOUT, delete).await {
            tracing::debug!(%error, "the lock of a visit goes with its connection");
            return;
        }
        // The broker has ended the consumer with its queue. One that is dropped before it knows cancels itself, and where that
        // comes after the channel's end, the broker ends the whole connection.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.consumer.next()).await;
    }
}

/// How many dead letters wait, once the visitor before us has given back all of his: the broker takes his consumer away
/// and puts his letters back in one step, but some time after it told him that his channel is closed.
async fn settled_count(connection: &Connection, destination: Destination) -> Result<u64, QueueError> {
    let begun = Instant::now();
    let mut census = Census::new(connection);
    loop {
        match census.ask(&dead_queue(destination)).await? {
            None => return Ok(0),
            Some(queue) if queue.consumers == 0 && queue.waiting > 0 => return Ok(queue.waiting),
            Some(queue) if queue.consumers == 0 && is_empty(connection, destination).await? => return Ok(0),
            Some(_) if begun.elapsed() > ANSWER_TIMEOUT => {
                return Err(QueueError::Busy(format!("somebody consumes from {}", dead_queue(destination))));
            }
            Some(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Whether it is really empty. A quorum queue without a leader, as in the first moments of a broker, says 0 of everything;
/// only its leader can say that there is nothing to get.
async fn is_empty(connection: &Connection, destination: Destination) -> Result<bool, QueueError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await.map_err(QueueError::from)?;
    let get = channel.basic_get(dead_queue(destination).into(), BasicGetOptions::default());
    let got = within(ANSWER_TIMEOUT, get).await.map_err(QueueError::from)?;
    // Closing puts what was got back in its place.
    within(ANSWER_TIMEOUT, channel.close(200, "looked".into())).await.map_err(QueueError::from)?;
    Ok(got.is_none())
}
