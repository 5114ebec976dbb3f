//! The broker's exchanges and queues, as data; declared and checked by whoever serves, and only looked for by a desk where they are.
//!
//! Guarantees: after [`ensure`] every exchange, queue and binding exists with exactly these arguments, and the number of
//! partitions is the one the deployment began with. Declared before any traffic: a quorum queue younger than about a
//! second loses confirmed messages when the broker is killed.
//! Why each argument: a delivery limit of a million, because -1 destroys messages on 3.10 and the default of 4.x buries
//! after 20 returns; `reject-publish`, so that a full queue is an answer and not a loss; the broker's own dead-letter
//! exchange only as a safety net that should never be used: what comes that way has no story, and says so.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::{RabbitError, within};
use crate::message::Destination;
use crate::queue::{PartitionId, QueueError, QueueTuning};

/// Where messages are published; the routing key is the partition.
pub(super) const IN: &str = "in";
/// Catches what no partition took.
const UNROUTED_EXCHANGE: &str = "in.unrouted";
pub(super) const UNROUTED: &str = "unrouted";
/// Where dead letters are published; the routing key is the destination.
pub(super) const DLX: &str = "dlx";
/// Where workers announce themselves.
pub(super) const WORKERS: &str = "workers";

/// How long one question to the broker may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn partition_queue(partition: PartitionId) -> String {
    format!("w.{}.{}", partition.destination, partition.index)
}

pub(super) fn dead_queue(destination: Destination) -> String {
    format!("dlq.{destination}")
}

/// Held by whoever looks at the dead letters of a destination; not part of the topology.
pub(super) fn visit_lock(destination: Destination) -> String {
    format!("visit.{destination}")
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn arguments(pairs: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn quorum(more: &[(&str, AMQPValue)]) -> FieldTable {
    let mut all = vec![("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(1_000_000))];
    all.extend_from_slice(more);
    arguments(&all)
}

fn partition_arguments(destination: Destination) -> FieldTable {
    quorum(&[
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text(DLX)),
        ("x-dead-letter-routing-key", text(destination.as_str())),
        ("x-dead-letter-strategy", text("at-least-once")),
    ])
}

/// Declares everything, and refuses a number of partitions other than the deployment's.
pub(super) async fn ensure(connection: &Connection, tuning: &QueueTuning) -> Result<(), RabbitError> {
    let (destinations, partitions) = (&tuning.destinations, tuning.partitions);
    check_partitions(connection, tuning).await?;
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    within(Duration::from_secs(60), async {
        exchanges(&channel).await?;
        queue(&channel, UNROUTED, quorum(&[]), UNROUTED_EXCHANGE, "").await?;
        for destination in destinations.iter() {
            queue(&channel, &dead_queue(destination), quorum(&[]), DLX, destination.as_str()).await?;
            // The first one last: where it exists all of them do, so that whoever looks meanwhile, or after a start that
            // broke off, is not misled about their number.
            for partition in PartitionId::all(destination, partitions).collect::<Vec<_>>().into_iter().rev() {
                let name = partition_queue(partition);
                queue(&channel, &name, partition_arguments(destination), IN, &partition.to_string()).await?;
            }
        }
        Ok(())
    })
    .await
    .map_err(explain)?;
    within(ANSWER_TIMEOUT, channel.close(200, "declared".into())).await?;
    // Somebody with another number may have begun at the same time.
    check_partitions(connection, tuning).await.map(drop)
}

async fn exchanges(channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let none = FieldTable::default();
    channel.exchange_declare(UNROUTED_EXCHANGE.into(), ExchangeKind::Fanout, durable, none.clone()).await?;
    let alternate = arguments(&[("alternate-exchange", text(UNROUTED_EXCHANGE))]);
    channel.exchange_declare(IN.into(), ExchangeKind::Direct, durable, alternate.clone()).await?;
    channel.exchange_declare(DLX.into(), ExchangeKind::Direct, durable, alternate).await?;
    channel.exchange_declare(WORKERS.into(), ExchangeKind::Fanout, durable, none).await
}

async fn queue(
    channel: &Channel,
    name: &str,
    arguments: FieldTable,
    exchange: &str,
    key: &str,
) -> lapin::Result<()> {
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(name.into(), exchange.into(), key.into(), bind, FieldTable::default()).await
}

/// A lane lives in the partition that its hash says; with another number of partitions later messages would stand in
/// another queue than earlier ones. The existing queues tell what the number was; `false` if there are none.
pub(super) async fn check_partitions(
    connection: &Connection,
    tuning: &QueueTuning,
) -> Result<bool, RabbitError> {
    let mut census = Census::new(connection);
    let mut found = false;
    for destination in tuning.destinations.iter() {
        found |= check_destination(&mut census, destination, tuning.partitions).await?;
    }
    Ok(found)
}

async fn check_destination(
    census: &mut Census<'_>,
    destination: Destination,
    partitions: u16,
) -> Result<bool, RabbitError> {
    let first = PartitionId { destination, index: 0 };
    if census.waiting(&partition_queue(first)).await?.is_none() {
        return Ok(false);
    }
    let last = PartitionId { index: partitions.saturating_sub(1), ..first };
    let beyond = PartitionId { index: partitions, ..first };
    let missing = census.waiting(&partition_queue(last)).await?.is_none();
    let more = census.waiting(&partition_queue(beyond)).await?.is_some();
    if !missing && !more {
        return Ok(true);
    }
    let found = if missing { "fewer" } else { "more" };
    Err(RabbitError::Fatal(QueueError::Mismatch(format!(
        "queue.partitions is {partitions}, but the broker holds the queues of a deployment with {found}: conversations \
         would be reordered. Set the old number, or follow \"Changing the number of partitions\" in deploy/README.md"
    ))))
}

/// Asks queues how they are, on a channel of its own: a missing queue closes the channel that asks for it.
pub(super) struct Census<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl<'a> Census<'a> {
    pub(super) const fn new(connection: &'a Connection) -> Self {
        Self { connection, channel: None }
    }

    /// How many messages wait; `None` where there is no such queue.
    pub(super) async fn waiting(&mut self, name: &str) -> Result<Option<u64>, RabbitError> {
        Ok(self.ask(name).await?.map(|queue| queue.waiting))
    }

    /// `None` where there is no such queue.
    pub(super) async fn ask(&mut self, name: &str) -> Result<Option<Counted>, RabbitError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => within(ANSWER_TIMEOUT, self.connection.create_channel()).await?,
        };
        match count(&channel, name).await {
            Ok(counted) => {
                self.channel = Some(channel);
                Ok(Some(counted))
            }
            Err(RabbitError::Lapin(error)) if error.is_amqp_soft_error() && code(&error) == Some(404) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Asks one queue; where there is none, the channel is closed.
pub(super) async fn count(channel: &Channel, name: &str) -> Result<Counted, RabbitError> {
    let passive = QueueDeclareOptions::durable().passive();
    let ask = channel.queue_declare(name.into(), passive, FieldTable::default());
    let queue = within(ANSWER_TIMEOUT, ask).await?;
    Ok(Counted { waiting: queue.message_count().into(), consumers: queue.consumer_count() })
}

/// What a queue says of itself. 0 of both may be no answer at all: of a queue that has no leader, or does not speak within
/// 250 ms, the broker says the same (`rabbit_quorum_queue:stat` of 3.10 to 4.3).
pub(super) struct Counted {
    /// Those that nobody holds.
    pub(super) waiting: u64,
    /// Those that hold something, and the one that is lent what comes.
    pub(super) consumers: u32,
}

fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(amqp) => Some(amqp.get_id()),
        _ => None,
    }
}

/// An argument that differs from what exists cannot heal by itself: an operator must look.
fn explain(error: RabbitError) -> RabbitError {
    match error {
        RabbitError::Lapin(error) if matches!(code(&error), Some(406 | 403)) => {
            RabbitError::Fatal(QueueError::Mismatch(format!("the broker refuses Causeway's queues: {error}")))
        }
        other => other,
    }
}
