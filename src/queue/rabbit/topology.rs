//! The broker's exchanges and queues. A serving process declares and checks them; a tool declares them only if they are
//! missing. A user without the right to configure finds them made by an administrator.
//!
//! Guarantees: after [`ensure`] every exchange and every queue exists, and the number of partitions is that of the
//! first start. If this process declared them, they and their bindings have exactly these arguments. Everything is
//! declared before any traffic: a quorum queue younger than about one second loses confirmed messages if the broker is
//! killed.
//! An existing partition may have another [`DISCONNECTED_TIMEOUT`], because this argument only shortens a wait.
//! Reasons for the arguments: the delivery limit is a million. The value -1 destroys messages on 3.10, and the default
//! of 4.x dead-letters a message after 20 returns. With `reject-publish` a full queue refuses messages instead of
//! dropping them. The broker's own dead-letter exchange is a safety net that should never be used: its dead letters
//! have no history, and their detail says so.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::names::{Exchange, TopologyNames};
use super::{RabbitError, rights, within};
use crate::message::Destination;
use crate::queue::{PartitionId, QueueError, QueueTuning};

/// The time limit for one answer of the broker.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Every queue refuses messages when it is full, also under a policy of another administrator that sets only a length.
fn keeping() -> FieldTable {
    quorum(&[("x-overflow", text("reject-publish"))])
}

/// The argument for the time in ms for which RabbitMQ 4.3 keeps the unacked messages of consumers on a lost node. The
/// partition waits for this time. Older versions do not know the argument and wait less than a second.
const DISCONNECTED_TIMEOUT: &str = "x-consumer-disconnected-timeout";

/// The value of [`DISCONNECTED_TIMEOUT`]. A worker that lost its node sends nothing after one heartbeat, so the next
/// worker repeats nothing if it gets the messages later than that. The broker's default is a minute.
pub(super) fn disconnected_timeout(heartbeat: Duration) -> Duration {
    const LEAST: Duration = Duration::from_secs(20);
    LEAST.max(heartbeat + Duration::from_secs(5))
}

fn partition_arguments(
    names: &TopologyNames,
    destination: Destination,
    disconnected: Duration,
) -> FieldTable {
    let disconnected = i32::try_from(disconnected.as_millis()).unwrap_or(i32::MAX);
    quorum(&[
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text(&names.exchange(Exchange::DeadLetters))),
        ("x-dead-letter-routing-key", text(destination.as_str())),
        ("x-dead-letter-strategy", text("at-least-once")),
        (DISCONNECTED_TIMEOUT, AMQPValue::LongInt(disconnected)),
    ])
}

/// `queue.declare`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueDeclare {
    /// Exchanges, queues and bindings are declared. A user without the right to configure only checks that they exist.
    Make,
    /// Exchanges and queues are only checked: an administrator has made them and their bindings.
    Check,
}

impl QueueDeclare {
    /// All values.
    pub const ALL: &[Self] = &[Self::Make, Self::Check];

    /// The value in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Make => "true",
            Self::Check => "check",
        }
    }
}

/// Makes sure that all exchanges and queues exist. Fails if the deployment has another number of partitions.
pub(super) async fn ensure(
    connection: &Connection,
    names: &TopologyNames,
    tuning: &QueueTuning,
    declare: QueueDeclare,
    heartbeat: Duration,
) -> Result<(), RabbitError> {
    check_partitions(connection, names, tuning).await?;
    let refused = match declare {
        QueueDeclare::Check => None,
        QueueDeclare::Make => match make(connection, names, tuning, disconnected_timeout(heartbeat)).await {
            // Another process with another number may have started at the same time.
            Ok(()) => return check_partitions(connection, names, tuning).await.map(drop),
            Err(RabbitError::Lapin(error)) if code(&error) == Some(403) => Some(error),
            Err(error) => return Err(explain(error)),
        },
    };
    let missing = rights::missing(connection, names, tuning).await?;
    if missing.is_empty() {
        if let Some(error) = refused {
            let reason = error.to_string();
            tracing::info!(
                reason,
                "all queues exist, but this user may not declare them: set queue.declare = \"check\""
            );
        }
        return Ok(());
    }
    let why = match refused {
        Some(error) => {
            let any = names.any();
            format!("its user may not make them ({error}): it needs the right to configure {any}")
        }
        None => {
            "queue.declare is check, so `causeway broker declare` or an administrator makes them".to_owned()
        }
    };
    let (first, more) = (missing.iter().take(3).cloned().collect::<Vec<_>>().join(", "), missing.len());
    Err(RabbitError::Fatal(QueueError::Refused(format!(
        "the broker lacks {more} of Causeway's exchanges and queues ({first}{}), and {why}",
        if more > 3 { ", ..." } else { "" }
    ))))
}

/// A queue with its binding.
pub(super) struct DeclaredQueue {
    pub(super) name: String,
    pub(super) arguments: FieldTable,
    /// The exchange and the routing key of the binding.
    pub(super) exchange: Exchange,
    pub(super) key: String,
}

/// All exchanges, in the order of their declaration.
pub(super) fn exchanges(names: &TopologyNames) -> [(Exchange, ExchangeKind, FieldTable); 4] {
    let alternate = arguments(&[("alternate-exchange", text(&names.exchange(Exchange::Unroutable)))]);
    [
        (Exchange::Unroutable, ExchangeKind::Fanout, FieldTable::default()),
        (Exchange::Messages, ExchangeKind::Direct, alternate.clone()),
        (Exchange::DeadLetters, ExchangeKind::Direct, alternate),
        (Exchange::Workers, ExchangeKind::Fanout, FieldTable::default()),
    ]
}

/// All queues, in the order of their declaration. The first partition of a destination is the last one, so its existence
/// proves that all partitions exist. Another process then counts them correctly meanwhile, and also after an interrupted
/// start. The queue of unroutable messages is the last of all: until it is bound, the broker returns a message whose
/// partition does not exist yet, and the sender keeps this message.
pub(super) fn queues(
    names: &TopologyNames,
    tuning: &QueueTuning,
    disconnected: Duration,
) -> Vec<DeclaredQueue> {
    let unroutable = DeclaredQueue {
        name: names.unroutable(),
        arguments: keeping(),
        exchange: Exchange::Unroutable,
        key: String::new(),
    };
    let mut queues = Vec::new();
    for destination in tuning.destinations.iter() {
        queues.push(DeclaredQueue {
            name: names.dead_letters(destination),
            arguments: keeping(),
            exchange: Exchange::DeadLetters,
            key: destination.as_str().to_owned(),
        });
        let partitions: Vec<_> = PartitionId::all(destination, tuning.partitions).collect();
        queues.extend(partitions.into_iter().rev().map(|partition| DeclaredQueue {
            name: names.partition(partition),
            arguments: partition_arguments(names, destination, disconnected),
            exchange: Exchange::Messages,
            key: partition.to_string(),
        }));
    }
    queues.push(unroutable);
    queues
}

/// Declares all exchanges, queues and bindings.
async fn make(
    connection: &Connection,
    names: &TopologyNames,
    tuning: &QueueTuning,
    disconnected: Duration,
) -> Result<(), RabbitError> {
    let channel = within(Duration::from_secs(60), async {
        let mut channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        for (exchange, kind, arguments) in exchanges(names) {
            channel.exchange_declare(names.exchange(exchange).into(), kind, durable, arguments).await?;
        }
        let mut has_timeout = true;
        for queue in queues(names, tuning, disconnected) {
            // The dead letters come before the partitions of their destination.
            has_timeout |= !queue.arguments.contains_key(DISCONNECTED_TIMEOUT);
            channel = declare_queue(connection, channel, &queue, &mut has_timeout).await?;
            let DeclaredQueue { name, exchange, key, .. } = queue;
            let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
            channel.queue_bind(name.into(), names.exchange(exchange).into(), key.into(), bind, none).await?;
        }
        Ok(channel)
    })
    .await?;
    within(ANSWER_TIMEOUT, channel.close(200, "declared".into())).await
}

/// Declares one queue. If the existing queue has another [`DISCONNECTED_TIMEOUT`] or none, it stays as it is. Returns the
/// channel for the next queue, because the broker closes the channel with its refusal. `has_timeout` is false if a queue of
/// this destination has no such argument: the others have none either.
async fn declare_queue(
    connection: &Connection,
    mut channel: Channel,
    queue: &DeclaredQueue,
    has_timeout: &mut bool,
) -> lapin::Result<Channel> {
    let name = || queue.name.as_str().into();
    let durable = QueueDeclareOptions::durable();
    if *has_timeout {
        match channel.queue_declare(name(), durable, queue.arguments.clone()).await {
            Ok(_) => return Ok(channel),
            Err(error) if !has_other_timeout(&error) => return Err(error),
            Err(_) => channel = connection.create_channel().await?,
        }
    }
    let mut arguments = FieldTable::default();
    for (name, value) in
        queue.arguments.inner().iter().filter(|(name, _)| name.as_str() != DISCONNECTED_TIMEOUT)
    {
        arguments.insert(name.clone(), value.clone());
    }
    match channel.queue_declare(name(), durable, arguments).await {
        Ok(_) => *has_timeout = false,
        Err(error) if !has_other_timeout(&error) => return Err(error),
        Err(error) => {
            tell_other_timeout(queue, &error);
            channel = connection.create_channel().await?;
            channel.queue_declare(name(), durable.passive(), FieldTable::default()).await?;
        }
    }
    Ok(channel)
}

/// A time below the wanted one may end before the lease of a lost worker.
fn tell_other_timeout(queue: &DeclaredQueue, error: &lapin::Error) {
    let Some(AMQPValue::LongInt(wanted)) = queue.arguments.inner().get(DISCONNECTED_TIMEOUT) else { return };
    if existing_timeout(&error.to_string()).is_some_and(|existing| existing < i64::from(*wanted)) {
        tracing::warn!(
            queue = queue.name,
            "the queue was made for a shorter queue.heartbeat: if a node of the broker is lost, its messages may be \
             delivered twice. Delete the queue while it is empty, and restart the process"
        );
    }
}

/// The value in "received the value '45000' of type 'signedint' but current is the value '20000' of type 'signedint'".
fn existing_timeout(text: &str) -> Option<i64> {
    text.rsplit_once("current is the value '")
        .or_else(|| text.rsplit_once("current is '"))?
        .1
        .split('\'')
        .next()?
        .parse()
        .ok()
}

/// Whether the broker refused a queue because of [`DISCONNECTED_TIMEOUT`].
fn has_other_timeout(error: &lapin::Error) -> bool {
    code(error) == Some(406) && error.to_string().contains(DISCONNECTED_TIMEOUT)
}

/// Checks the number of partitions. The hash of a lane selects its partition, so with another number later messages of a
/// conversation would go to another queue. The existing queues show the number; returns `false` if there are none.
pub(super) async fn check_partitions(
    connection: &Connection,
    names: &TopologyNames,
    tuning: &QueueTuning,
) -> Result<bool, RabbitError> {
    let mut stats = QueueStats::new(connection);
    let mut found = false;
    for destination in tuning.destinations.iter() {
        found |= check_destination(&mut stats, names, destination, tuning.partitions).await?;
    }
    Ok(found)
}

async fn check_destination(
    stats: &mut QueueStats<'_>,
    names: &TopologyNames,
    destination: Destination,
    partitions: u16,
) -> Result<bool, RabbitError> {
    let first = PartitionId { destination, index: 0 };
    match stats.presence(&names.partition(first)).await? {
        Presence::There => {}
        Presence::Missing => return Ok(false),
        Presence::Unknown => return Ok(true),
    }
    let last = PartitionId { index: partitions.saturating_sub(1), ..first };
    let beyond = PartitionId { index: partitions, ..first };
    let missing = stats.presence(&names.partition(last)).await? == Presence::Missing;
    let more = stats.presence(&names.partition(beyond)).await? == Presence::There;
    if !missing && !more {
        return Ok(true);
    }
    let found = if missing { "fewer" } else { "more" };
    Err(RabbitError::Fatal(QueueError::Mismatch(format!(
        "queue.partitions is {partitions}, but the broker holds the queues of a deployment with {found}: conversations \
         would be reordered. Set the old number, or follow \"Changing the number of partitions\" in deploy/README.md"
    ))))
}

/// Reads queue statistics on a channel of its own, because the broker closes the channel if a queue is missing.
pub(super) struct QueueStats<'a> {
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl<'a> QueueStats<'a> {
    pub(super) const fn new(connection: &'a Connection) -> Self {
        Self { connection, channel: None }
    }

    /// The number of waiting messages; `None` if the queue does not exist.
    pub(super) async fn waiting(&mut self, name: &str) -> Result<Option<u64>, RabbitError> {
        Ok(self.count_of(name).await?.map(|queue| queue.waiting))
    }

    /// Whether the queue exists.
    pub(super) async fn presence(&mut self, name: &str) -> Result<Presence, RabbitError> {
        match self.count_of(name).await {
            Ok(Some(_)) => Ok(Presence::There),
            Ok(None) => Ok(Presence::Missing),
            Err(RabbitError::Lapin(error)) if code(&error) == Some(403) => Ok(Presence::Unknown),
            Err(error) => Err(error),
        }
    }

    /// `None` if the queue does not exist.
    pub(super) async fn count_of(&mut self, name: &str) -> Result<Option<QueueCount>, RabbitError> {
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

/// Reads the statistics of one queue. If the queue does not exist, the broker closes the channel.
pub(super) async fn count(channel: &Channel, name: &str) -> Result<QueueCount, RabbitError> {
    let passive = QueueDeclareOptions::durable().passive();
    let ask = channel.queue_declare(name.into(), passive, FieldTable::default());
    let queue = within(ANSWER_TIMEOUT, ask).await?;
    Ok(QueueCount { waiting: queue.message_count().into(), consumers: queue.consumer_count() })
}

/// The statistics of a queue. If both are 0, the statistics may be missing. The broker also reports 0 for a queue that
/// has no leader or does not answer within 250 ms (`rabbit_quorum_queue:stat` of 3.10 to 4.3).
pub(super) struct QueueCount {
    /// Messages that no consumer has.
    pub(super) waiting: u64,
    /// The active consumer, and other consumers with unacked messages.
    pub(super) consumers: u32,
}

/// Whether an exchange or a queue exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    There,
    Missing,
    /// The broker hides the answer from this user.
    Unknown,
}

/// The broker's reply code.
pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(amqp) => Some(amqp.get_id()),
        _ => None,
    }
}

/// Arguments that differ from the existing ones cannot heal by themselves: an operator must act.
fn explain(error: RabbitError) -> RabbitError {
    match error {
        RabbitError::Lapin(error) if code(&error) == Some(406) => {
            RabbitError::Fatal(QueueError::Mismatch(format!("the broker refuses Causeway's queues: {error}")))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_node_gives_its_messages_back_after_the_lease_of_its_worker() {
        for (heartbeat, expected) in [(2, 20), (15, 20), (16, 21), (600, 605)] {
            let found = disconnected_timeout(Duration::from_secs(heartbeat));
            assert_eq!(found, Duration::from_secs(expected));
            assert!(found.as_secs() > heartbeat);
        }
    }

    #[test]
    fn the_existing_timeout_is_read_from_the_refusal() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-consumer-disconnected-timeout' for queue 'w.xo.0' in vhost \
                    'v': received the value '45000' of type 'signedint' but current is the value '20000' of type 'signedint'";
        assert_eq!(existing_timeout(text), Some(20_000));
        assert_eq!(existing_timeout("received the value '20000' but current is none"), None);
    }
}
