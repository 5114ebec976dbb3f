//! The broker's clock, by which all processes of a deployment time their messages.
//!
//! AMQP has no request for the time. But the broker writes its time into a message that it dead-letters. So each process
//! publishes a small message to a temporary queue whose messages expire at once, and receives it from a second temporary
//! queue. The time is in whole seconds.
//! Guarantees: no queue of messages is touched. A user without the rights for this gets no correction of its clock, and
//! everything else works.
//! Not responsible for: the use of the difference (`clock.rs`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, ExchangeKind};
use tokio::time::Instant;

use super::connections::BrokerConnections;
use super::names::{Exchange, TopologyNames};
use super::topology::{ANSWER_TIMEOUT, QueueDeclare, code};
use super::{RabbitError, RabbitSettings, RabbitUse, within};
use crate::clock;

const ASK_EVERY: Duration = Duration::from_secs(10);
/// The pause after a refusal.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// The time limit of one comparison. A slower one is not precise enough.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of the first comparison of a connection, before the connection is used.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

/// The two temporary queues of one connection.
struct ClockQueues {
    channel: Channel,
    /// The exchange.
    clock: String,
    answers: Consumer,
    /// The queue whose messages expire at once.
    expiring: ShortString,
}

/// Compares the clocks once, before a new connection is used. An error has no effect.
pub(super) async fn compare_first(connections: &BrokerConnections, connection: &Connection) {
    let compared = tokio::time::timeout(FIRST_TIMEOUT, async {
        let mut queues = ClockQueues::open(connection, &connections.settings).await?;
        record(queues.milliseconds_ahead().await?);
        queues.close().await
    });
    match compared.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "cannot read the broker's clock"),
        Err(_) => tracing::debug!("cannot read the broker's clock in time"),
    }
}

/// Compares the clocks again and again, until cancellation.
pub(super) async fn watch(connections: Arc<BrokerConnections>) {
    tokio::select! {
        () = connections.stop.cancelled() => {}
        () = async {
            loop {
                let connection = match connections.settings.usage {
                    RabbitUse::Work => connections.until_consuming().await,
                    RabbitUse::Publish | RabbitUse::Admin => connections.until_publishing().await,
                };
                let pause = match watch_on(&connections, &connection).await {
                    Err(error) if error.is_refusal() => REFUSED_PAUSE,
                    Err(error) => {
                        tracing::debug!(%error, "cannot read the broker's clock");
                        ASK_EVERY
                    }
                    Ok(()) => ASK_EVERY,
                };
                tokio::time::sleep(pause).await;
            }
        } => {}
    }
}

async fn watch_on(connections: &BrokerConnections, connection: &Connection) -> Result<(), RabbitError> {
    let mut queues = ClockQueues::open(connection, &connections.settings).await?;
    // Only a tool has not compared before.
    let is_first = connections.settings.usage == RabbitUse::Admin;
    let mut pause = if is_first { Duration::ZERO } else { ASK_EVERY };
    loop {
        tokio::time::sleep(pause).await;
        pause = ASK_EVERY;
        // A blocked connection writes nothing, and the answer would be late.
        if connection.status().blocked() {
            continue;
        }
        match queues.milliseconds_ahead().await {
            Ok(ahead) => record(ahead),
            Err(error) => {
                // If the channel has ended, the queues go with the connection.
                let _ = queues.close().await;
                return Err(error);
            }
        }
    }
}

/// Passes the difference on, and logs the begin and the end of a correction.
fn record(ahead_ms: i64) {
    let seconds = ahead_ms / 1_000;
    match clock::follow(ahead_ms) {
        (0, after) if after != 0 => tracing::warn!(
            ahead_seconds = seconds,
            "the clock of this machine differs from the broker's: messages are timed by the broker's clock until an NTP service \
             has set both"
        ),
        (before, 0) if before != 0 => {
            tracing::info!("the clock of this machine agrees with the broker's again")
        }
        _ => {}
    }
}

impl ClockQueues {
    async fn open(connection: &Connection, settings: &RabbitSettings) -> Result<Self, RabbitError> {
        let clock = settings.names.exchange(Exchange::Clock);
        if settings.declare == QueueDeclare::Make {
            declare(connection, &settings.names).await?;
        }
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        let own = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::exclusive() };
        let text = |value: &str| AMQPValue::LongString(value.into());
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("classic"));
        let declared = channel.queue_declare("".into(), own, arguments.clone());
        let receiving = within(ANSWER_TIMEOUT, declared).await?.name().clone();
        arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(0));
        arguments.insert("x-dead-letter-exchange".into(), text(&clock));
        arguments.insert("x-dead-letter-routing-key".into(), text(receiving.as_str()));
        let declared = channel.queue_declare("".into(), own, arguments);
        let expiring = within(ANSWER_TIMEOUT, declared).await?.name().clone();
        for queue in [&receiving, &expiring] {
            let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
            let bound = channel.queue_bind(queue.clone(), clock.as_str().into(), queue.clone(), bind, none);
            within(ANSWER_TIMEOUT, bound).await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consume = channel.basic_consume(receiving, "clock".into(), options, FieldTable::default());
        let answers = within(ANSWER_TIMEOUT, consume).await?;
        Ok(Self { channel, clock, answers, expiring })
    }

    /// How far this machine is ahead of the broker. The precision is about a second.
    async fn milliseconds_ahead(&mut self) -> Result<i64, RabbitError> {
        let (sent, began) = (clock::machine(), Instant::now());
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let publish = self.channel.basic_publish(
            self.clock.as_str().into(),
            self.expiring.clone(),
            options,
            b"",
            properties,
        );
        within(COMPARE_TIMEOUT, publish).await?;
        let Ok(Some(answer)) = tokio::time::timeout(COMPARE_TIMEOUT, self.answers.next()).await else {
            return Err(RabbitError::Silent(COMPARE_TIMEOUT));
        };
        let answer = answer?;
        let half = i64::try_from(began.elapsed().as_millis() / 2).unwrap_or(0);
        let broker = answer.properties.headers().as_ref().and_then(time_of_death);
        // The broker cuts its time to a second, so the true time is half a second later on average.
        let broker = broker.and_then(|seconds| seconds.checked_mul(1_000)?.checked_add(500));
        let broker = broker.ok_or(RabbitError::Silent(COMPARE_TIMEOUT))?;
        Ok(sent.as_millisecond().saturating_add(half).saturating_sub(broker))
    }

    async fn close(self) -> Result<(), RabbitError> {
        let delete = self.channel.queue_delete(self.expiring.clone(), QueueDeleteOptions::default());
        within(ANSWER_TIMEOUT, delete).await?;
        within(ANSWER_TIMEOUT, self.channel.close(200, "compared".into())).await
    }
}

/// Declares the exchange on a channel of its own, because a refusal ends the channel. A user without the right to declare
/// it may use it if an administrator has made it.
pub(super) async fn declare(connection: &Connection, names: &TopologyNames) -> Result<(), RabbitError> {
    let clock = names.exchange(Exchange::Clock);
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declare =
        channel.exchange_declare(clock.into(), ExchangeKind::Direct, durable, FieldTable::default());
    match within(ANSWER_TIMEOUT, declare).await {
        Ok(()) => within(ANSWER_TIMEOUT, channel.close(200, "declared".into())).await,
        Err(RabbitError::Lapin(error)) if code(&error) == Some(403) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The broker's time in seconds, from the header that it adds to a dead-lettered message.
fn time_of_death(headers: &FieldTable) -> Option<i64> {
    let Some(AMQPValue::FieldArray(deaths)) = headers.inner().get("x-death") else { return None };
    let Some(AMQPValue::FieldTable(death)) = deaths.as_slice().first() else { return None };
    match death.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
        _ => None,
    }
}
