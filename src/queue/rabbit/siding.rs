//! A visit to the dead letters of one destination.
//!
//! The visitor consumes exclusively, so that two visitors never see half of the letters each; what is not removed goes
//! back in its place when the channel closes.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::links::Links;
use super::subscription::Receipt;
use super::topology::{ANSWER_TIMEOUT, dead_queue, ready_count};
use super::{RabbitError, wire, within};
use crate::message::Destination;
use crate::queue::{Held, QueueError};

/// Everything that was there when the visit began.
pub struct Siding {
    destination: Destination,
    channel: Channel,
    consumer: Consumer,
    left: u64,
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
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await.map_err(QueueError::from)?;
        // No bound: a visitor must be able to hold everything, to give it back in its order.
        within(ANSWER_TIMEOUT, channel.basic_qos(0, BasicQosOptions::default()))
            .await
            .map_err(QueueError::from)?;
        let queue = dead_queue(destination);
        let left = ready_count(&connection, &queue).await.map_err(QueueError::from)?.unwrap_or(0);
        let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(queue.into(), "siding".into(), options, FieldTable::default());
        let consumer = within(ANSWER_TIMEOUT, consume).await.map_err(|error| taken(error, destination))?;
        Ok(Self { destination, channel, consumer, left })
    }

    pub(in crate::queue) async fn next(&mut self) -> Result<Option<Held>, QueueError> {
        if self.left == 0 {
            return Ok(None);
        }
        let next = tokio::time::timeout(ANSWER_TIMEOUT, self.consumer.next()).await;
        let mut delivery = match next {
            Ok(Some(Ok(delivery))) => delivery,
            Ok(Some(Err(error))) => return Err(QueueError::Unavailable(error.to_string())),
            Ok(None) => return Err(QueueError::Unavailable("the visit was ended by the broker".into())),
            Err(_) => {
                return Err(QueueError::Unavailable("the broker does not hand out what it counted".into()));
            }
        };
        self.left -= 1;
        let receipt = Receipt { channel: self.channel.clone(), tag: delivery.delivery_tag };
        let dead = wire::decode_dead(&mut delivery, self.destination);
        Ok(Some(Held { dead, receipt: crate::queue::Receipt::Rabbit(receipt) }))
    }

    pub(in crate::queue) async fn close(self) {
        let _ = within(ANSWER_TIMEOUT, self.channel.close(200, "visit over".into())).await;
    }
}

fn taken(error: RabbitError, destination: Destination) -> QueueError {
    match error {
        RabbitError::Lapin(error) if error.is_amqp_soft_error() => QueueError::Busy(format!(
            "somebody else is looking at the dead letters of {destination} (dead list, replay, ...): wait until they are done"
        )),
        other => other.into(),
    }
}
