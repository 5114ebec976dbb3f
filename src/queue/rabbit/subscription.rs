//! One channel for each partition, so that one partition can be given back without touching the others.
//!
//! Guarantees: every consumer of every worker has the same prefetch, and messages go back only by closing the channel;
//! with both the broker lends them again in order. Without them it does not (measured on 3.10, 4.0 and 4.3).
//! No consumer has a priority: `peers.rs` moves partitions without, and 4.3.6 may keep a consumer that closed its channel
//! while a better one waited, make it the active one later, and lend a partition's messages to nobody (`scale_out.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions};
use lapin::types::FieldTable;

use super::borrowing::{Borrowing, Wish};
use super::links::Links;
use super::topology::{ANSWER_TIMEOUT, partition_queue};
use super::{RabbitError, wire, within};
use crate::queue::{Loan, PartitionId, QueueError};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A place in the line of consumers of a partition; the broker lends to one of them at a time.
pub struct Subscription {
    partition: PartitionId,
    borrowing: Borrowing,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({})", self.partition)
    }
}

impl Subscription {
    pub(super) async fn open(links: &Arc<Links>, partition: PartitionId) -> Result<Self, RabbitError> {
        let connection = links.until_consuming().await;
        let wish = Wish {
            queue: partition_queue(partition).into(),
            tag: format!("{}-{}", links.settings.worker, NUMBER.fetch_add(1, Ordering::Relaxed)).into(),
            prefetch: links.settings.tuning.prefetch,
            options: BasicConsumeOptions::default(),
            arguments: FieldTable::default(),
        };
        Ok(Self { partition, borrowing: Borrowing::open(connection, wish).await? })
    }

    pub(in crate::queue) async fn next(&mut self) -> Option<Loan> {
        let mut delivery = match self.borrowing.next().await? {
            Ok(delivery) => delivery,
            Err(error) => {
                tracing::debug!(partition = %self.partition, %error, "subscription lost");
                return None;
            }
        };
        let earlier = wire::earlier(&delivery);
        let receipt = Receipt { channel: self.borrowing.channel().clone(), tag: delivery.delivery_tag };
        let (message, unreadable) = wire::decode(&mut delivery, self.partition.destination);
        Some(Loan { message, earlier, unreadable, receipt: crate::queue::Receipt::Rabbit(receipt) })
    }

    pub(in crate::queue) async fn close(self) {
        self.borrowing.close().await;
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
