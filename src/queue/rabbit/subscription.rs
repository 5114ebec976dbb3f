//! A subscription to one partition with a channel of its own, so that one partition can be released without the others.
//!
//! Guarantees: every consumer of every worker has the same prefetch, and received messages go back only by closing the
//! channel. With both, the broker redelivers messages in order; otherwise it does not (measured on 3.10, 4.0 and 4.3). No
//! message is handed out while another consumer has unacked messages of the partition (`takeover.rs`).
//! No consumer has a priority: `membership.rs` moves partitions without priorities. With priorities, RabbitMQ 4.3.6 may
//! keep a consumer that closed its channel while a better one waited. It may make this consumer active later, so that
//! no worker gets the messages of the partition (`scale_out.rs`).

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::time::Instant;

use super::ack_batch::{AckBatcher, FlushOnDrop};
use super::connections::BrokerConnections;
use super::consumer::{BrokerDelivery, ConsumerOptions, OrderedConsumer};
use super::majority::SubscribedPartition;
use super::membership::WaitingEntry;
use super::takeover::TakeoverGuard;
use super::topology::ANSWER_TIMEOUT;
use super::{RabbitError, wire, within};
use crate::queue::{PartitionId, QueueError, ReceivedMessage};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// One consumer of a partition. The broker delivers to one of the consumers at a time.
pub struct RabbitSubscription {
    partition: PartitionId,
    // The fields are dropped in this order.
    acks: FlushOnDrop,
    consumer: OrderedConsumer,
    takeover: TakeoverGuard,
    connections: Arc<BrokerConnections>,
    number: u64,
    waiting: Option<WaitingEntry>,
    _subscribed: SubscribedPartition,
}

impl std::fmt::Debug for RabbitSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({})", self.partition)
    }
}

impl RabbitSubscription {
    pub(super) async fn open(
        connections: &Arc<BrokerConnections>,
        partition: PartitionId,
    ) -> Result<Self, RabbitError> {
        let connection = connections.until_consuming().await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let settings = &connections.settings;
        let (queue, prefetch) = (settings.names.partition(partition), settings.tuning.prefetch);
        let tag = format!("{}-{number}", connections.settings.worker).into();
        let options = ConsumerOptions { queue: queue.as_str().into(), tag, prefetch };
        let consumer = OrderedConsumer::open(connection, options).await;
        connections
            .reads(partition, consumer.as_ref().err().filter(|it| it.is_refusal()).map(ToString::to_string));
        let consumer = consumer?;
        let takeover = TakeoverGuard::new(consumer.channel().clone(), queue, prefetch);
        let acks = FlushOnDrop(Arc::new(AckBatcher::new(consumer.channel().clone())));
        Ok(Self {
            partition,
            acks,
            consumer,
            takeover,
            connections: connections.clone(),
            number,
            waiting: None,
            _subscribed: connections.silent_queues.subscribed(partition),
        })
    }

    /// Announces to the other workers that this worker wants the partition.
    pub(in crate::queue) fn announce(&mut self) {
        self.waiting
            .get_or_insert_with(|| WaitingEntry::take(&self.connections, self.partition, self.number));
    }

    pub(in crate::queue) async fn next(&mut self) -> Option<ReceivedMessage> {
        let acks = self.acks.0.clone();
        let BrokerDelivery { mut delivery, waiting } = loop {
            if let Some(delivery) = self.takeover.next() {
                break delivery;
            }
            let due = acks.due();
            tokio::select! {
                biased;
                () = sleep_until_due(due) => acks.flush(),
                () = sleep_until_due(self.takeover.gives_up_at()) => {
                    tracing::warn!(
                        partition = %self.partition,
                        "the broker did not redeliver all requeued messages in time; resubscribing"
                    );
                    return None;
                }
                alone = self.takeover.sole_consumer(), if self.takeover.is_checking() => {
                    let others = self.or_lost(alone)?;
                    // If the subscription is lost, the other deliveries do not matter.
                    let arrived = std::iter::from_fn(|| self.consumer.arrived());
                    self.takeover.open(others, arrived);
                }
                lent = self.consumer.next() => {
                    let lent = self.or_lost(lent?)?;
                    self.takeover.keep(lent);
                }
            }
        };
        let redeliveries = wire::redeliveries(&delivery);
        acks.delivered(delivery.delivery_tag);
        let ack_token = RabbitAck(AckMethod::Grouped(acks, delivery.delivery_tag));
        let (message, unreadable) = wire::decode(&mut delivery, self.partition.destination);
        Some(ReceivedMessage {
            message,
            redeliveries,
            unreadable,
            ack_token: crate::queue::AckToken::Rabbit(ack_token),
            waiting,
            room: None,
        })
    }

    pub(in crate::queue) fn is_arriving(&self) -> bool {
        self.takeover.is_checking()
    }

    fn or_lost<T>(&self, result: Result<T, impl Display>) -> Option<T> {
        let lost = |error| tracing::debug!(partition = %self.partition, %error, "subscription lost");
        result.map_err(lost).ok()
    }

    pub(in crate::queue) fn flush(&self) {
        self.acks.0.flush();
    }

    pub(in crate::queue) async fn close(self) {
        self.acks.0.flush();
        self.consumer.close().await;
    }
}

async fn sleep_until_due(due: Option<Instant>) {
    match due {
        Some(due) if due > Instant::now() => tokio::time::sleep_until(due).await,
        Some(_) => {}
        None => std::future::pending().await,
    }
}

/// Acks one delivery on its own channel.
#[derive(Debug)]
pub(crate) struct RabbitAck(AckMethod);

#[derive(Debug)]
enum AckMethod {
    /// Acked in the next ack batch.
    Grouped(Arc<AckBatcher>, u64),
    /// Acked at once; the call returns after the ack is written.
    Single(Channel, u64),
}

impl RabbitAck {
    pub(super) const fn single(channel: Channel, tag: u64) -> Self {
        Self(AckMethod::Single(channel, tag))
    }

    pub(in crate::queue) async fn ack(self) -> Result<(), QueueError> {
        match self.0 {
            AckMethod::Grouped(acks, tag) if acks.ack(tag) => Ok(()),
            AckMethod::Grouped(..) => Err(QueueError::Unavailable("its subscription has ended".into())),
            AckMethod::Single(channel, tag) => {
                let ack = channel.basic_ack(tag, BasicAckOptions::default());
                within(ANSWER_TIMEOUT, ack).await.map_err(QueueError::from)
            }
        }
    }
}
