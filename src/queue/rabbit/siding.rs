//! A visit to the dead letters of one destination.
//!
//! Two visitors would each see half of the letters, and quorum queues know no exclusive consumer; so a visitor first takes
//! a lock: a queue exclusive to its connection, with a consumer exclusive to its channel. What is not removed goes back in
//! its place when the channel closes, and only then is the lock given away.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::Instant;

use super::borrowing::{Borrowing, Parcel};
use super::links::Links;
use super::subscription::Receipt;
use super::topology::{ANSWER_TIMEOUT, Census, Counted, dead_queue, visit_lock};
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
/// A count that came sooner was not given up by the broker.
const PROMPT: Duration = Duration::from_millis(200);

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
    /// The first letter, where it was taken to see whether there is any.
    first: Option<Parcel>,
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
        // In a task, which goes on when the caller does not: what is begun is ended properly then.
        let opened = tasks::spawn(async move {
            // An operator may ask for a destination that this deployment never had.
            if Census::new(&connection).waiting(&dead_queue(destination)).await?.is_none() {
                return Ok(Self { destination, visit: None, left: 0 });
            }
            let lock = Lock::take(&connection, destination).await?;
            match begin(connection, destination).await {
                Ok((borrowing, Found { waiting, first })) => {
                    let left = waiting + u64::from(first.is_some());
                    let takes_several = waiting > u64::from(HELD_MAX);
                    let visit = Visit { borrowing, lock, first, takes_several, full: 0, room: HELD_MAX };
                    Ok(Self { destination, visit: Some(visit), left })
                }
                Err(error) => {
                    lock.release().await;
                    Err(error)
                }
            }
        });
        opened.await.map_err(|_| QueueError::Unavailable("the process is ending".into()))?
    }

    pub(in crate::queue) async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        let Some(visit) = self.visit.as_mut().filter(|_| self.left > 0) else { return Ok(None) };
        // Of all that the broker lends, memory holds the body of the one that is looked at.
        let Parcel { mut delivery, waiting } = visit.next(self.destination).await?;
        if let Some(body) = waiting.read().await? {
            delivery.data = body.into();
        }
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

/// A channel that is lent everything, and what it will see.
async fn begin(
    connection: Arc<Connection>,
    destination: Destination,
) -> Result<(Borrowing, Found), QueueError> {
    let mut borrowing = Borrowing::without_consumer(connection.clone(), HELD_MAX).await?;
    let found = look(&connection, &mut borrowing, destination).await?;
    borrowing.resume(dead_queue(destination).into(), consumer_tag(0)).await?;
    Ok((borrowing, found))
}

impl Visit {
    async fn next(&mut self, destination: Destination) -> Result<Parcel, QueueError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
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

/// What waits for a visitor.
struct Found {
    waiting: u64,
    /// Before those, and already his.
    first: Option<Parcel>,
}

/// Counts the dead letters once the visitor before us has given back all of his: the broker takes his consumer away and puts
/// his letters back in one step, but some time after it told him that his channel is closed.
///
/// The count cannot be trusted when it is 0 of everything: the broker says so, too, of a quorum queue that does not answer it
/// within 250 ms, as one that takes back thousands of letters, or that has no leader, as in the first moments of a broker.
/// Whether it is empty only its leader can say, who is asked for a letter. One that he has is kept: given back, it would be
/// the last. It counts as a consumer, so that from then on 0 of everything is known to be no answer.
async fn look(
    connection: &Connection,
    borrowing: &mut Borrowing,
    destination: Destination,
) -> Result<Found, QueueError> {
    let queue = dead_queue(destination);
    let begun = Instant::now();
    let mut census = Census::new(connection);
    let (mut first, mut none_found) = (None, false);
    loop {
        let asked = Instant::now();
        let Some(Counted { waiting, consumers }) = census.ask(&queue).await? else {
            return Ok(Found { waiting: 0, first });
        };
        let too_long = begun.elapsed() > ANSWER_TIMEOUT;
        let prompt = asked.elapsed() < PROMPT;
        match (&first, consumers, waiting) {
            (Some(_), 1, _) | (None, 0, 1..) => return Ok(Found { waiting, first }),
            (None, 0, 0) if none_found && (prompt || too_long) => return Ok(Found { waiting, first }),
            (None, 0, 0) => {
                first = borrowing.get(&queue).await?;
                none_found = first.is_none();
            }
            _ if too_long => return Err(QueueError::Busy(format!("somebody consumes from {queue}"))),
            _ => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}
