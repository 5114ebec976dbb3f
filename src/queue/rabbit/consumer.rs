//! A consumer with a channel of its own that returns its messages in order.
//!
//! Dropping lapin's `Consumer` cancels the consumer. If a consumer is cancelled while it has unacked messages, later
//! messages overtake them.
//! Guarantees: the channel is closed before the consumer is dropped, whether this type is closed, dropped, or aborted
//! between two awaits.

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

const CLOSE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The broker first handles every earlier command of this channel. Tens of thousands of acks take a while.
const TURN_TIMEOUT: Duration = Duration::from_secs(120);

/// The queue to consume from, the consumer tag, and the prefetch.
pub(super) struct ConsumerOptions {
    pub(super) queue: ShortString,
    pub(super) tag: ShortString,
    pub(super) prefetch: u16,
}

/// A consumer and its channel. See the file header.
pub(super) struct OrderedConsumer {
    connection: Arc<Connection>,
    channel: Channel,
    /// `None` before the first consumer starts, and after the channel began to close.
    consumer: Option<RunningConsumer>,
    tags: TagSequence,
    is_released: bool,
}

/// A delivery whose body may be stored outside of memory.
pub(super) struct BrokerDelivery {
    pub(super) delivery: Delivery,
    pub(super) waiting: WaitingBody,
}

impl From<Delivery> for BrokerDelivery {
    fn from(mut delivery: Delivery) -> Self {
        let waiting = WaitingBody::keep(&mut delivery.data);
        Self { delivery, waiting }
    }
}

impl Deref for BrokerDelivery {
    type Target = Delivery;

    fn deref(&self) -> &Delivery {
        &self.delivery
    }
}

/// A running consumer and its incoming deliveries.
struct RunningConsumer {
    consumer: Consumer,
    deliveries: mpsc::Receiver<lapin::Result<Option<BrokerDelivery>>>,
}

/// Checks that the delivery tags of a channel have no gap. The broker counts from 1. After a gap every tag fails.
#[derive(Debug, Default)]
struct TagSequence(u64);

impl TagSequence {
    fn next(&mut self, tag: u64) -> Result<(), RabbitError> {
        let expected = self.0 + 1;
        if tag == expected {
            self.0 = tag;
            return Ok(());
        }
        tracing::error!(
            tag,
            expected,
            "a delivery from the broker is missing; returning all messages of this channel"
        );
        let missing = format!("delivery {expected} did not arrive before {tag}");
        Err(RabbitError::Fatal(QueueError::Unavailable(missing)))
    }
}

impl OrderedConsumer {
    /// Runs in its own task: if the caller gave up halfway, dropping a started consumer would cancel it.
    pub(super) async fn open(
        connection: Arc<Connection>,
        options: ConsumerOptions,
    ) -> Result<Self, RabbitError> {
        let opened = tasks::spawn(async move {
            let mut opened_consumer = Self::without_consumer(connection, options.prefetch).await?;
            opened_consumer.consumer =
                Some(consume(&opened_consumer.channel, options.queue, options.tag, ANSWER_TIMEOUT).await?);
            Ok(opened_consumer)
        });
        let gone = |_| RabbitError::Fatal(QueueError::Unavailable("the process is ending".into()));
        opened.await.map_err(gone)?
    }

    /// Opens only the channel; [`Self::resume`] starts the consumer.
    pub(super) async fn without_consumer(
        connection: Arc<Connection>,
        prefetch: u16,
    ) -> Result<Self, RabbitError> {
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        within(ANSWER_TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        Ok(Self { connection, channel, consumer: None, tags: TagSequence::default(), is_released: false })
    }

    pub(super) const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Takes the first waiting message, if there is one. The message stays unacked like the others.
    pub(super) async fn get(&mut self, queue: &str) -> Result<Option<BrokerDelivery>, RabbitError> {
        let get = self.channel.basic_get(queue.into(), BasicGetOptions::default());
        let Some(got) = within(ANSWER_TIMEOUT, get).await? else { return Ok(None) };
        self.tags.next(got.delivery.delivery_tag)?;
        Ok(Some(got.delivery.into()))
    }

    /// Returns `None` when the consumer has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<BrokerDelivery, RabbitError>> {
        let running = self.consumer.as_mut()?.deliveries.recv().await?.transpose()?;
        Some(running.map_err(RabbitError::from).and_then(|parcel| {
            self.tags.next(parcel.delivery_tag)?;
            Ok(parcel)
        }))
    }

    /// Returns a delivery that has already arrived, without waiting.
    pub(super) fn arrived(&mut self) -> Option<BrokerDelivery> {
        let deliveries = &mut self.consumer.as_mut()?.deliveries;
        match deliveries.try_recv().ok()? {
            Ok(Some(parcel)) => {
                self.tags.next(parcel.delivery_tag).ok()?;
                Some(parcel)
            }
            // The next call of `next` must see the end of the consumer, too.
            Ok(None) | Err(_) => {
                deliveries.close();
                None
            }
        }
    }

    /// Cancels the consumer but keeps its unacked messages. Deliveries on their way still arrive; after them [`Self::next`]
    /// returns `None`. Allowed only if the queue has no other consumer: another consumer would get later messages at once.
    pub(super) async fn stop(&self) -> Result<(), RabbitError> {
        let Some(running) = &self.consumer else { return Ok(()) };
        let cancel = self.channel.basic_cancel(running.consumer.tag(), BasicCancelOptions::default());
        within(TURN_TIMEOUT, cancel).await
    }

    /// Starts a consumer, or another one on the same channel after [`Self::stop`]. The new consumer has a full prefetch of
    /// its own. The caller must not abort this call: an abort cancels the consumer that is starting.
    pub(super) async fn resume(&mut self, queue: ShortString, tag: ShortString) -> Result<(), RabbitError> {
        self.consumer = Some(consume(&self.channel, queue, tag, TURN_TIMEOUT).await?);
        Ok(())
    }

    /// Returns all unacked messages in order.
    pub(super) async fn close(mut self) {
        if let Some(letting_go) = self.release() {
            // The task goes on if the caller stops waiting.
            let _ = tasks::spawn(letting_go).await;
        }
    }

    fn release(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        if std::mem::replace(&mut self.is_released, true) {
            return None;
        }
        let consumer = self.consumer.take();
        let (connection, channel) = (self.connection.clone(), self.channel.clone());
        Some(async move {
            // A closed channel has already returned its messages.
            if channel.status().connected() {
                let closing = within(ANSWER_TIMEOUT, channel.close(200, "given back".into())).await;
                if matches!(closing, Err(RabbitError::Silent(_))) {
                    close_connection(&connection).await;
                }
            }
            drop(consumer);
        })
    }
}

impl Drop for OrderedConsumer {
    fn drop(&mut self) {
        if let Some(letting_go) = self.release()
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
) -> Result<RunningConsumer, RabbitError> {
    let consume = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default());
    let consumer = within(limit, consume).await?;
    // The capacity is above any prefetch, so `try_send` fails only if the receiver is gone.
    let (sender, deliveries) = mpsc::channel(usize::from(u16::MAX) + 2);
    // Runs on the thread that reads from the broker: the thread reads no further before a large body is stored.
    consumer.set_delegate(move |running: DeliveryResult| {
        let _ = sender.try_send(running.map(|delivery| delivery.map(BrokerDelivery::from)));
        std::future::ready(())
    });
    Ok(RunningConsumer { consumer, deliveries })
}

/// Closes the whole connection after a channel did not close in time. Only the end of the connection returns the messages
/// in order then.
async fn close_connection(connection: &Connection) {
    if connection.status().connected() {
        tracing::warn!("a channel did not close in time; closing its connection");
        let _ = within(CLOSE_CONNECTION_TIMEOUT, connection.close(200, "channel did not close".into())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_delivery_is_an_error() {
        let mut tags = TagSequence::default();
        assert!(tags.next(1).is_ok() && tags.next(2).is_ok());
        assert!(tags.next(4).is_err(), "3 is missing");
        assert!(tags.next(5).is_err(), "every tag after a gap fails");
        assert!(TagSequence::default().next(2).is_err(), "1 is missing");
    }
}
