//! A subscription to one partition with a channel of its own, so that one partition can be released without the others.
//!
//! Guarantees: every consumer of every worker has the same prefetch, and received messages go back only by closing the
//! channel. With both, the broker redelivers messages in order; otherwise it does not (measured on 3.10, 4.0 and 4.3). No
//! message is handed out while another consumer has unacked messages of the partition (`fence.rs`).
//! No consumer has a priority: `peers.rs` moves partitions without priorities. With priorities, 4.3.6 may keep a consumer
//! that closed its channel while a better one waited, make it active later, and deliver the messages of the partition to no
//! consumer (`scale_out.rs`).

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapin::Channel;
use lapin::options::BasicAckOptions;
use tokio::time::Instant;

use super::acks::{Acks, Teller};
use super::borrowing::{Borrowing, Parcel, Wish};
use super::fence::Fence;
use super::links::Links;
use super::peers::Place;
use super::topology::{ANSWER_TIMEOUT, partition_queue};
use super::{RabbitError, wire, within};
use crate::queue::{Loan, PartitionId, QueueError};

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// One consumer of a partition. The broker delivers to one of the consumers at a time.
pub struct Subscription {
    partition: PartitionId,
    // The fields are dropped in this order.
    acks: Teller,
    borrowing: Borrowing,
    fence: Fence,
    links: Arc<Links>,
    number: u64,
    place: Option<Place>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({})", self.partition)
    }
}

impl Subscription {
    pub(super) async fn open(links: &Arc<Links>, partition: PartitionId) -> Result<Self, RabbitError> {
        let connection = links.until_consuming().await;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (queue, prefetch) = (partition_queue(partition), links.settings.tuning.prefetch);
        let tag = format!("{}-{number}", links.settings.worker).into();
        let wish = Wish { queue: queue.as_str().into(), tag, prefetch };
        let borrowing = Borrowing::open(connection, wish).await?;
        let fence = Fence::new(borrowing.channel().clone(), queue, prefetch);
        let acks = Teller(Arc::new(Acks::new(borrowing.channel().clone())));
        Ok(Self { partition, acks, borrowing, fence, links: links.clone(), number, place: None })
    }

    /// Announces to the other workers that this worker wants the partition.
    pub(in crate::queue) fn announce(&mut self) {
        self.place.get_or_insert_with(|| Place::take(&self.links, self.partition, self.number));
    }

    pub(in crate::queue) async fn next(&mut self) -> Option<Loan> {
        let acks = self.acks.0.clone();
        let Parcel { mut delivery, waiting } = loop {
            if let Some(delivery) = self.fence.next() {
                break delivery;
            }
            let due = acks.due();
            tokio::select! {
                biased;
                () = at(due) => acks.tell(),
                () = at(self.fence.gives_up_at()) => {
                    tracing::warn!(
                        partition = %self.partition,
                        "the broker did not redeliver all requeued messages in time; resubscribing"
                    );
                    return None;
                }
                alone = self.fence.alone(), if self.fence.asks() => {
                    let others = self.or_lost(alone)?;
                    // If the subscription is lost, the other deliveries do not matter.
                    let arrived = std::iter::from_fn(|| self.borrowing.arrived());
                    self.fence.open(others, arrived);
                }
                lent = self.borrowing.next() => {
                    let lent = self.or_lost(lent?)?;
                    self.fence.keep(lent);
                }
            }
        };
        let earlier = wire::earlier(&delivery);
        acks.lent(delivery.delivery_tag);
        let receipt = Receipt(Way::Grouped(acks, delivery.delivery_tag));
        let (message, unreadable) = wire::decode(&mut delivery, self.partition.destination);
        Some(Loan {
            message,
            earlier,
            unreadable,
            receipt: crate::queue::Receipt::Rabbit(receipt),
            waiting,
            room: None,
        })
    }

    pub(in crate::queue) fn is_arriving(&self) -> bool {
        self.fence.asks()
    }

    fn or_lost<T>(&self, result: Result<T, impl Display>) -> Option<T> {
        let lost = |error| tracing::debug!(partition = %self.partition, %error, "subscription lost");
        result.map_err(lost).ok()
    }

    pub(in crate::queue) fn flush(&self) {
        self.acks.0.tell();
    }

    pub(in crate::queue) async fn close(self) {
        self.acks.0.tell();
        self.borrowing.close().await;
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) if due > Instant::now() => tokio::time::sleep_until(due).await,
        Some(_) => {}
        None => std::future::pending().await,
    }
}

/// Acks one delivery on its own channel.
#[derive(Debug)]
pub(crate) struct Receipt(Way);

#[derive(Debug)]
enum Way {
    /// Acked in the next ack batch.
    Grouped(Arc<Acks>, u64),
    /// Acked at once; the call returns after the ack is written.
    Single(Channel, u64),
}

impl Receipt {
    pub(super) const fn single(channel: Channel, tag: u64) -> Self {
        Self(Way::Single(channel, tag))
    }

    pub(in crate::queue) async fn done(self) -> Result<(), QueueError> {
        match self.0 {
            Way::Grouped(acks, tag) if acks.settle(tag) => Ok(()),
            Way::Grouped(..) => Err(QueueError::Unavailable("its subscription has ended".into())),
            Way::Single(channel, tag) => {
                let ack = channel.basic_ack(tag, BasicAckOptions::default());
                within(ANSWER_TIMEOUT, ack).await.map_err(QueueError::from)
            }
        }
    }
}
