//! Tracks the missing rights of the broker's user, and detects when a right is granted again.
//!
//! Guarantees: an exchange that refuses a publish is tested every second until the user may write to it. The test
//! stores nothing.
//! Not responsible for: the answer to the sender of the refused message (`publisher.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};

use super::connections::BrokerConnections;
use super::names::{Exchange, TopologyNames};
use super::topology::{self, ANSWER_TIMEOUT, Presence, QueueStats, code};
use super::{RabbitError, within};
use crate::queue::{PartitionId, QueueTuning};

const ASK_EVERY: Duration = Duration::from_secs(1);

/// The exchanges that refuse publishes, each with the broker's words.
pub(super) type Refusals = BTreeMap<Exchange, String>;

/// The exchanges and queues that do not exist. The broker may not tell a user about a name without any right on it; such
/// names are left out.
pub(super) async fn missing(
    connection: &Connection,
    names: &TopologyNames,
    tuning: &QueueTuning,
) -> Result<Vec<String>, RabbitError> {
    let mut missing = Vec::new();
    for (exchange, kind, _) in topology::exchanges(names) {
        let name = names.exchange(exchange);
        let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
        let passive =
            ExchangeDeclareOptions { passive: true, durable: true, ..ExchangeDeclareOptions::default() };
        let ask = channel.exchange_declare(name.as_str().into(), kind, passive, FieldTable::default());
        match within(ANSWER_TIMEOUT, ask).await {
            Ok(()) => within(ANSWER_TIMEOUT, channel.close(200, "looked".into())).await?,
            Err(RabbitError::Lapin(error)) if code(&error) == Some(404) => missing.push(name),
            Err(RabbitError::Lapin(error)) if code(&error) == Some(403) => {}
            Err(error) => return Err(error),
        }
    }
    let mut stats = QueueStats::new(connection);
    let mut queues = vec![names.unroutable()];
    for destination in tuning.destinations.iter() {
        queues.push(names.dead_letters(destination));
        queues.extend(PartitionId::all(destination, tuning.partitions).map(|it| names.partition(it)));
    }
    for name in queues {
        if stats.presence(&name).await? == Presence::Missing {
            missing.push(name);
        }
    }
    Ok(missing)
}

/// Tests the exchanges that refused a publish, until cancellation.
pub(super) async fn watch_refusals(connections: Arc<BrokerConnections>) {
    let mut refusals = connections.refusals.subscribe();
    loop {
        tokio::select! {
            refused = refusals.wait_for(|refusals| !refusals.is_empty()) => if refused.is_err() { return },
            () = connections.stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = connections.stop.cancelled() => return,
        }
        let refused: Vec<Exchange> = connections.refusals.borrow().keys().copied().collect();
        for exchange in refused {
            let Some(connection) = connections.publishing() else { break };
            let name = connections.settings.names.exchange(exchange);
            if matches!(refusal(&connection, &name).await, Ok(None)) {
                tracing::info!(exchange = name, "the broker takes messages again");
                connections.accepted(exchange);
            }
        }
    }
}

/// Tests a publish to this exchange. Returns the broker's error text, or `None` if the user may publish. The test
/// message has an invalid expiration: after the check of the rights, the broker refuses the message with 406.
pub(super) async fn refusal(connection: &Connection, exchange: &str) -> Result<Option<String>, RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    match within(ANSWER_TIMEOUT, ask(&channel, exchange)).await {
        Err(RabbitError::Lapin(error)) if code(&error) == Some(406) => Ok(None),
        Err(RabbitError::Lapin(error)) if matches!(code(&error), Some(403 | 404)) => {
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error),
        Ok(()) => {
            within(ANSWER_TIMEOUT, channel.close(200, "asked".into())).await?;
            Ok(None)
        }
    }
}

async fn ask(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let invalid = BasicProperties::default().with_expiration("none".into());
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange.into(), "rights".into(), options, b"", invalid).await?;
    confirm.await.map(drop)
}
