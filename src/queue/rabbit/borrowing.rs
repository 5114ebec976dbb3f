//! A consumer with a channel of its own, let go of in the only way that keeps the order.
//!
//! Dropping lapin's `Consumer` cancels it, and a consumer that is cancelled while it holds messages lets later ones
//! overtake them. Guarantees: whoever drops this, closes it, or is aborted between two awaits, the channel is closed first
//! and the consumer goes after it.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use lapin::message::{Delivery, DeliveryResult};
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, Consumer};
use tokio::sync::mpsc;

use super::topology::ANSWER_TIMEOUT;
use super::{RabbitError, within};
use crate::queue::QueueError;
use crate::queue::waiting_body::WaitingBody;
use crate::tasks;

const CONDEMN_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker first does everything that this channel asked for before: tens of thousands of acks take their time.
const TURN_TIMEOUT: Duration = Duration::from_secs(120);

/// What to borrow, and how much at a time.
pub(super) struct Wish {
    pub(super) queue: ShortString,
    pub(super) tag: ShortString,
    pub(super) prefetch: u16,
}

/// See the head of this file.
pub(super) struct Borrowing {
    connection: Arc<Connection>,
    channel: Channel,
    /// `None` before the first one, and once it is being let go.
    consumer: Option<Lent>,
    in_a_row: InARow,
    is_let_go: bool,
}

/// A delivery whose body may wait somewhere else.
pub(super) struct Parcel {
    pub(super) delivery: Delivery,
    pub(super) waiting: WaitingBody,
}

impl From<Delivery> for Parcel {
    fn from(mut delivery: Delivery) -> Self {
        let waiting = WaitingBody::keep(&mut delivery.data);
        Self { delivery, waiting }
    }
}

impl Deref for Parcel {
    type Target = Delivery;

    fn deref(&self) -> &Delivery {
        &self.delivery
    }
}

/// A consumer, and what it was lent.
struct Lent {
    consumer: Consumer,
    parcels: mpsc::Receiver<lapin::Result<Option<Parcel>>>,
}

/// The deliveries of a channel, which the broker numbers from 1. After a missing one there is no next.
#[derive(Debug, Default)]
struct InARow(u64);

impl InARow {
    fn next(&mut self, tag: u64) -> Result<(), RabbitError> {
        let expected = self.0 + 1;
        if tag == expected {
            self.0 = tag;
            return Ok(());
        }
        tracing::error!(tag, expected, "a delivery of the broker is missing; everything is given back");
        let missing = format!("delivery {expected} did not arrive before {tag}");
        Err(RabbitError::Fatal(QueueError::Unavailable(missing)))
    }
}

impl Borrowing {
    /// Opens in a task of its own: abandoned halfway, a consumer that the broker has begun to serve would be cancelled.
    pub(super) async fn open(connection: Arc<Connection>, wish: Wish) -> Result<Self, RabbitError> {
        let opened = tasks::spawn(async move {
            let mut borrowing = Self::without_consumer(connection, wish.prefetch).await?;
            borrowing.consumer =
                Some(consume(&borrowing.channel, wish.queue, wish.tag, ANSWER_TIMEOUT).await?);
            Ok(borrowing)
        });
        let gone = |_| RabbitError::Fatal(QueueError::Unavailable("the process is ending".into()));
        opened.await.map_err(gone)?
    }

    /// Only the channel; [`Self::resume`] begins to consume.
    pub(super) async fn without_consumer(
        connection: Arc<Connection>,
        prefetch: u16,
    ) -> Result<Self, RabbitError> {
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        within(ANSWER_TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        Ok(Self { connection, channel, consumer: None, in_a_row: InARow::default(), is_let_go: false })
    }

    pub(super) const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The first message that waits, if any does; held like the others.
    pub(super) async fn get(&mut self, queue: &str) -> Result<Option<Parcel>, RabbitError> {
        let get = self.channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(got) = within(ANSWER_TIMEOUT, get).await? else { return Ok(None) };
        self.in_a_row.next(got.delivery.delivery_tag)?;
        Ok(Some(got.delivery.into()))
    }

    /// `None` when the consumer is over. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<Parcel, RabbitError>> {
        let lent = self.consumer.as_mut()?.parcels.recv().await?.transpose()?;
        Some(lent.map_err(RabbitError::from).and_then(|parcel| {
            self.in_a_row.next(parcel.delivery_tag)?;
            Ok(parcel)
        }))
    }

    /// What has arrived and was not taken yet.
    pub(super) fn arrived(&mut self) -> Option<Parcel> {
        let parcels = &mut self.consumer.as_mut()?.parcels;
        match parcels.try_recv().ok()? {
            Ok(Some(parcel)) => {
                self.in_a_row.next(parcel.delivery_tag).ok()?;
                Some(parcel)
            }
            // That it is over is also to be seen by who asks next.
            Ok(None) | Err(_) => {
                parcels.close();
                None
            }
        }
    }

    /// Takes no more, and keeps what it holds. What is on its way still arrives, and after it [`Self::next`] is over. Only where
    /// nobody else consumes from the queue: another one would be lent later messages at once.
    pub(super) async fn stop(&self) -> Result<(), RabbitError> {
        let Some(lent) = &self.consumer else { return Ok(()) };
        let cancel = self.channel.basic_cancel(lent.consumer.tag(), BasicCancelOptions::default());
        within(TURN_TIMEOUT, cancel).await
    }

    /// Begins to consume, or goes on after [`Self::stop`] with another consumer of the same channel, which is lent as many once more.
    /// To be run to its end: abandoned, it cancels what it was about to begin.
    pub(super) async fn resume(&mut self, queue: ShortString, tag: ShortString) -> Result<(), RabbitError> {
        self.consumer = Some(consume(&self.channel, queue, tag, TURN_TIMEOUT).await?);
        Ok(())
    }

    /// Gives everything back, in order.
    pub(super) async fn close(mut self) {
        if let Some(letting_go) = self.let_go() {
            // Also in a task, which goes on when the caller does not.
            let _ = tasks::spawn(letting_go).await;
        }
    }

    fn let_go(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        if std::mem::replace(&mut self.is_let_go, true) {
            return None;
        }
        let consumer = self.consumer.take();
        let (connection, channel) = (self.connection.clone(), self.channel.clone());
        Some(async move {
            // A channel that is closed already has given everything back.
            if channel.status().connected() {
                let closing = within(ANSWER_TIMEOUT, channel.close(200, "given back".into())).await;
                if matches!(closing, Err(RabbitError::Silent(_))) {
                    condemn(&connection).await;
                }
            }
            drop(consumer);
        })
    }
}

impl Drop for Borrowing {
    fn drop(&mut self) {
        if let Some(letting_go) = self.let_go()
            && tokio::runtime::Handle::try_current().is_ok()
        {
            tasks::spawn(letting_go);
        }
    }
}

async fn consume(
    channel: &Channel,
    queue: ShortString,
    tag: ShortString,
    limit: Duration,
) -> Result<Lent, RabbitError> {
    let consume = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
    let consumer = within(limit, consume).await?;
    // The broker lends no more than the prefetch, which is less; what arrives after the end of this is of no use.
    let (sender, parcels) = mpsc::channel(usize::from(u16::MAX) + 2);
    // Runs in the thread that reads from the broker: nothing more is read until a large body is where it can wait.
    consumer.set_delegate(move |lent: DeliveryResult| {
        let _ = sender.try_send(lent.map(|delivery| delivery.map(Parcel::from)));
        std::future::ready(())
    });
    Ok(Lent { consumer, parcels })
}

/// A channel could not be closed: only the end of its whole connection returns its messages in order.
async fn condemn(connection: &Connection) {
    if connection.status().connected() {
        tracing::warn!("a channel did not close in time; closing its connection");
        let _ = within(CONDEMN_TIMEOUT, connection.close(200, "channel did not close".into())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_delivery_is_an_error() {
        let mut in_a_row = InARow::default();
        assert!(in_a_row.next(1).is_ok() && in_a_row.next(2).is_ok());
        assert!(in_a_row.next(4).is_err(), "3 is missing");
        assert!(in_a_row.next(5).is_err(), "and so it stays, whoever overheard that");
        assert!(InARow::default().next(2).is_err(), "1 is missing");
    }
}
