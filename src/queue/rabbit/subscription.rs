//! One channel for each partition, so that one partition can be given back without touching the others.
//!
//! Guarantees: every consumer of every worker has the same prefetch, and messages go back only by closing the channel;
//! with both the broker lends them again in order. Without them it does not (measured on 3.10, 4.0 and 4.3).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};

use super::links::Links;
use super::topology::{ANSWER_TIMEOUT, partition_queue};
use super::{RabbitError, wire, within};
use crate::queue::partition::rendezvous_weight;
use crate::queue::{Loan, PartitionId, QueueError};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A place in the line of consumers of a partition; the broker lends to one of them at a time.
pub struct Subscription {
    links: Arc<Links>,
    partition: PartitionId,
    channel: Channel,
    consumer: Consumer,
    number: u64,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({})", self.partition)
    }
}

impl Subscription {
    pub(super) async fn open(links: &Arc<Links>, partition: PartitionId) -> Result<Self, RabbitError> {
        let connection = links.until_consuming().await;
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        let prefetch = links.settings.tuning.prefetch;
        within(ANSWER_TIMEOUT, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{}-{number}", links.settings.worker);
        let mut arguments = FieldTable::default();
        let weight = rendezvous_weight(&links.settings.worker, partition);
        arguments.insert("x-priority".into(), AMQPValue::LongInt(weight));
        let queue = partition_queue(partition);
        let consume =
            channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), arguments);
        let consumer = within(ANSWER_TIMEOUT, consume).await?;
        links.keep_consumer(number, consumer.clone());
        Ok(Self { links: links.clone(), partition, channel, consumer, number })
    }

    pub(in crate::queue) async fn next(&mut self) -> Option<Loan> {
        let mut delivery = match self.consumer.next().await? {
            Ok(delivery) => delivery,
            Err(error) => {
                tracing::debug!(partition = %self.partition, %error, "subscription lost");
                return None;
            }
        };
        let earlier = wire::earlier(&delivery);
        let receipt = Receipt { channel: self.channel.clone(), tag: delivery.delivery_tag };
        let (message, unreadable) = wire::decode(&mut delivery, self.partition.destination);
        Some(Loan { message, earlier, unreadable, receipt: crate::queue::Receipt::Rabbit(receipt) })
    }

    pub(in crate::queue) async fn close(self) {
        // A channel that is closed already has given everything back.
        if self.channel.status().connected() {
            let closing = within(ANSWER_TIMEOUT, self.channel.close(200, "given back".into())).await;
            if matches!(closing, Err(RabbitError::Silent(_))) {
                self.links.condemn_consuming().await;
            }
        }
        self.links.drop_consumer(self.number);
    }
}

/// Recognises one delivery on the channel that it came by.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(super) channel: Channel,
    pub(super) tag: u64,
}

impl Receipt {
    pub(in crate::queue) async fn done(self) -> Result<(), QueueError> {
        let ack = self.channel.basic_ack(self.tag, BasicAckOptions::default());
        within(ANSWER_TIMEOUT, ack).await.map_err(QueueError::from)
    }
}
