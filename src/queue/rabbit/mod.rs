//! The distributed engine: RabbitMQ 3.10 and later, through lapin.
//!
//! Guarantees: the clauses of [`super`]. Each process has two connections, because the broker also stops reading acks from
//! the connection of a blocked publisher. lapin's auto-recovery stays off, so that lanes see every failover. Every await on
//! the broker has a timeout. Messages go back to a queue by closing a channel, because `nack`, `reject` and `basic.cancel`
//! change the order. There are two exceptions: the takeover guard uses `nack` to restore the order (`takeover.rs`), and the
//! dead-letter reader cancels a full consumer and keeps its messages (`dead_letters.rs`).
//! Not responsible for: which messages stay unacked and for how long (`worker/`).

mod ack_batch;
mod broker_clock;
mod broker_url;
mod connect;
mod connections;
mod consumer;
mod dead_letters;
mod declare;
mod definitions;
mod majority;
mod membership;
mod names;
mod publish_end;
mod publish_limit;
mod publisher;
mod rights;
mod self_test;
mod subscription;
mod takeover;
mod topology;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{BrokerLease, PartitionId, QueueDepth, QueueError, QueueTuning};
use crate::message::{DeadLetter, Destination, Destinations, Message};
use crate::tls::TlsFiles;
pub use broker_url::BrokerUrl;
use connections::BrokerConnections;
pub use dead_letters::RabbitReader;
pub use declare::declare;
pub use definitions::{DefinitionSettings, definitions};
pub use names::TopologyNames;
use publisher::PublishRequest;
pub use self_test::{GreetingError, version};
pub(crate) use subscription::RabbitAck;
pub use subscription::RabbitSubscription;
pub use topology::QueueDeclare;
use topology::QueueStats;

/// The role of this process. An ingress needs no consuming connection, and a tool announces nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RabbitUse {
    /// Only publishes.
    Publish,
    /// Publishes, consumes, and announces itself to the other workers.
    Work,
    /// Publishes and reads dead letters.
    Admin,
}

impl RabbitUse {
    /// The role in the names of connections.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "ingress",
            Self::Work => "worker",
            Self::Admin => "tool",
        }
    }
}

/// The settings of the connection to the broker.
#[derive(Debug, Clone)]
pub struct RabbitSettings {
    /// The hosts, with user and vhost.
    pub url: BrokerUrl,
    /// The authorities and the client certificate for `amqps://`.
    pub tls: TlsFiles,
    /// The names of exchanges and queues.
    pub names: TopologyNames,
    /// Whether this process declares exchanges and queues.
    pub declare: QueueDeclare,
    /// The heartbeat that we request. The lower of this value and the broker's applies.
    pub heartbeat: Duration,
    /// The settings that both engines share.
    pub tuning: QueueTuning,
    /// The role of this process.
    pub usage: RabbitUse,
    /// The name of this worker for rendezvous hashing, unique to each process.
    pub worker: String,
}

impl RabbitSettings {
    /// An operator's tool may run without the settings of the deployment. So a tool also reaches all destinations with a
    /// fixed name.
    fn reachable(&self) -> QueueTuning {
        let fixed = [Destination::ServiceNow, Destination::Xo, Destination::Events, Destination::Callbacks];
        let more = if self.usage == RabbitUse::Admin { fixed.as_slice() } else { &[] };
        let destinations = self.tuning.destinations.iter().chain(more.iter().copied());
        QueueTuning { destinations: Destinations::new(destinations), ..self.tuning.clone() }
    }
}

/// The reason why an exchange with the broker failed. Used only inside this engine.
#[derive(Debug, thiserror::Error)]
enum RabbitError {
    #[error(transparent)]
    Lapin(#[from] lapin::Error),
    #[error("the broker did not answer within {0:?}")]
    Silent(Duration),
    #[error("{0}")]
    Fatal(QueueError),
}

impl RabbitError {
    /// Whether the user lacks a right.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Lapin(error) if topology::code(error) == Some(403))
    }
}

impl From<RabbitError> for QueueError {
    fn from(error: RabbitError) -> Self {
        match error {
            RabbitError::Fatal(error) => error,
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// Sets a time limit for an await on the broker.
async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, RabbitError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(RabbitError::Lapin),
        Err(_) => Err(RabbitError::Silent(limit)),
    }
}

/// A handle to the engine. Clones share one engine.
#[derive(Debug, Clone)]
pub struct RabbitQueue {
    destinations: Destinations,
    connections: Arc<BrokerConnections>,
    requests: mpsc::Sender<PublishRequest>,
}

impl RabbitQueue {
    /// Starts to connect and returns at once. [`Self::connected`] shows whether the engine is usable.
    pub fn open(settings: RabbitSettings) -> Self {
        let (requests, taken) = mpsc::channel(publisher::CAPACITY);
        let destinations = settings.reachable().destinations;
        let connections = BrokerConnections::start(settings, taken);
        Self { destinations, connections, requests }
    }

    /// Waits at most `limit` until the engine is usable. For commands of the CLI, which must not wait for ever.
    pub async fn ready(&self, limit: Duration) -> Result<(), QueueError> {
        let mut connected = self.connected();
        let wait = connected.wait_for(|connected| *connected);
        tokio::select! {
            error = self.broken() => Err(error),
            error = self.connections.refused() => Err(error),
            waited = tokio::time::timeout(limit, wait) => match waited {
                Ok(Ok(_)) => Ok(()),
                _ => Err(QueueError::Unavailable(format!("no connection to the broker within {limit:?}: {}", self.connections.trouble()))),
            },
        }
    }

    /// Waits for an error that needs an operator. The process should end with this error.
    pub async fn broken(&self) -> QueueError {
        self.connections.broken().await
    }

    fn names(&self) -> &TopologyNames {
        &self.connections.settings.names
    }

    pub(super) fn partitions(&self) -> u16 {
        self.connections.settings.tuning.partitions
    }

    pub(super) fn destinations(&self) -> &Destinations {
        &self.destinations
    }

    pub(super) fn connected(&self) -> watch::Receiver<bool> {
        self.connections.connected.subscribe()
    }

    /// The reason why this process cannot work at present; `None` if it can.
    pub(super) fn unready(&self) -> Option<String> {
        self.connections.unready()
    }

    pub(super) fn lease(&self) -> BrokerLease {
        BrokerLease::For {
            answered: self.connections.answered.subscribe(),
            term: self.connections.settings.heartbeat,
        }
    }

    pub(super) fn has_other_workers(&self) -> bool {
        self.connections.has_peers.load(Ordering::Relaxed)
    }

    pub(super) fn preferred_elsewhere(&self) -> watch::Receiver<BTreeMap<PartitionId, u64>> {
        self.connections.preferred_elsewhere.subscribe()
    }

    pub(super) async fn publish(&self, message: &Message) -> Result<(), QueueError> {
        let partition = PartitionId::of(message.destination, &message.lane, self.partitions());
        self.place(PublishRequest::of_message(partition.to_string(), message)).await
    }

    pub(super) async fn dead_letter(&self, dead: &DeadLetter) -> Result<(), QueueError> {
        let frame = self.connections.frame_bytes().unwrap_or(wire::FRAME_BYTES_MIN);
        self.place(PublishRequest::of_dead_letter(dead, frame)).await
    }

    async fn place(
        &self,
        (request, answer): (PublishRequest, publisher::ConfirmReceiver),
    ) -> Result<(), QueueError> {
        self.connections.may_publish(request.exchange(), request.body_bytes())?;
        let limit = self.connections.settings.tuning.publish_timeout;
        let (exchange, key) = (request.exchange(), request.key());
        let deadline = Instant::now() + limit;
        let late = || QueueError::Unavailable(format!("the broker did not confirm within {limit:?}"));
        tokio::time::timeout_at(deadline, self.requests.send(request))
            .await
            .map_err(|_| late())?
            .map_err(|_| QueueError::Unavailable("the queue is closed".into()))?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                Err(QueueError::Unavailable("the connection broke before the broker confirmed".into()))
            }
            Err(_) => {
                self.connections.silent_queues.late(exchange, &key);
                Err(late())
            }
        }
    }

    /// The queues of which too few nodes run.
    pub(super) fn without_majority(&self) -> BTreeSet<String> {
        self.connections.silent_queues.names()
    }

    /// Records the queues without a majority that the management API shows.
    pub(super) fn note_without_majority(&self, queues: &[String]) {
        self.connections.silent_queues.set_managed(queues.iter().cloned());
    }

    pub(super) async fn subscribe(&self, partition: PartitionId) -> Result<RabbitSubscription, QueueError> {
        RabbitSubscription::open(&self.connections, partition).await.map_err(QueueError::from)
    }

    pub(super) async fn dlq_reader(&self, destination: Destination) -> Result<RabbitReader, QueueError> {
        RabbitReader::open(&self.connections, destination).await
    }

    /// Whether the queue for dead letters of a destination exists.
    pub(super) async fn keeps_dead_letters(&self, destination: Destination) -> Result<bool, QueueError> {
        let connection = self.connections.publishing();
        let connection =
            connection.ok_or_else(|| QueueError::Unavailable("no connection to the broker".into()))?;
        Ok(QueueStats::new(&connection).waiting(&self.names().dead_letters(destination)).await?.is_some())
    }

    pub(super) async fn depth(&self) -> Result<QueueDepth, QueueError> {
        let connection = self.connections.consuming().or_else(|| self.connections.publishing());
        let connection =
            connection.ok_or_else(|| QueueError::Unavailable("no connection to the broker".into()))?;
        let mut stats = QueueStats::new(&connection);
        let mut depth = QueueDepth {
            unroutable: count(&mut stats, &self.names().unroutable()).await?,
            ..QueueDepth::default()
        };
        for destination in self.destinations().iter() {
            let dead = count(&mut stats, &self.names().dead_letters(destination)).await?;
            depth.dead += dead;
            depth.dead_of.insert(destination, dead);
            let mut sum = 0;
            for partition in PartitionId::all(destination, self.partitions()) {
                if let Some(queue) = visible(stats.count_of(&self.names().partition(partition)).await)? {
                    sum += queue.waiting;
                    self.connections.silent_queues.counted(partition, queue.consumers.into());
                    *depth.consumed.entry(destination).or_default() += u64::from(queue.consumers > 0);
                }
            }
            depth.waiting.insert(destination, sum);
        }
        Ok(depth)
    }

    /// Counts the workers that announce themselves now.
    pub(super) async fn count_workers(&self) -> Result<u64, QueueError> {
        let connection = self.connections.publishing();
        let connection =
            connection.ok_or_else(|| QueueError::Unavailable("no connection to the broker".into()))?;
        Ok(membership::count(&connection, self.names()).await?)
    }

    pub(super) async fn close(&self) {
        self.connections.close().await;
    }
}

async fn count(stats: &mut QueueStats<'_>, name: &str) -> Result<u64, QueueError> {
    Ok(visible(stats.waiting(name).await)?.unwrap_or_default())
}

/// A queue that this user may not see counts as absent.
fn visible<T>(counted: Result<Option<T>, RabbitError>) -> Result<Option<T>, QueueError> {
    match counted {
        Err(error) if error.is_refusal() => Ok(None),
        counted => Ok(counted?),
    }
}
