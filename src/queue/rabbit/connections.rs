//! The supervisor of both connections: it rebuilds them with backoff and runs the tasks that use them.
//!
//! Guarantees: the watch channels are at most one second behind the state of the connections. The tasks run until
//! [`BrokerConnections::close`].
//! Not responsible for: the messages on the connections.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::BasicQosOptions;
use lapin::{Connection, Event};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::membership::WaitingPartitions;
use super::publisher::{self, PublishRequest};
use super::{RabbitError, RabbitSettings, RabbitUse, connect, membership, topology, within};
use crate::queue::{PartitionId, QueueError};
use crate::tasks::{self, CancellationToken};

/// An abandoned connect leaks a thread and a socket. After this number of abandoned connects the process should restart.
const ABANDONED_MAX: u32 = 30;
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type ConnectionSlot = watch::Sender<Option<Arc<Connection>>>;

/// State shared by all handles of one engine.
#[derive(Debug)]
pub(super) struct BrokerConnections {
    pub(super) settings: RabbitSettings,
    publish: ConnectionSlot,
    consume: ConnectionSlot,
    pub(super) connected: watch::Sender<bool>,
    /// When the newest question that the broker answered was sent.
    pub(super) answered: watch::Sender<Option<Instant>>,
    /// Partitions that a preferred worker is waiting for, each with a number for that worker and its subscription.
    pub(super) preferred_elsewhere: watch::Sender<BTreeMap<PartitionId, u64>>,
    /// Whether another worker was heard lately.
    pub(super) has_peers: AtomicBool,
    pub(super) waiting_partitions: WaitingPartitions,
    broken: watch::Sender<Option<String>>,
    trouble: Mutex<String>,
    pub(super) stop: CancellationToken,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// One of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionPurpose {
    Publish,
    Consume,
}

impl BrokerConnections {
    pub(super) fn start(settings: RabbitSettings, requests: mpsc::Receiver<PublishRequest>) -> Arc<Self> {
        let usage = settings.usage;
        let connections = Arc::new(Self {
            settings,
            publish: watch::Sender::new(None),
            consume: watch::Sender::new(None),
            connected: watch::Sender::new(false),
            answered: watch::Sender::new(None),
            preferred_elsewhere: watch::Sender::new(BTreeMap::new()),
            has_peers: AtomicBool::new(false),
            waiting_partitions: WaitingPartitions::default(),
            broken: watch::Sender::new(None),
            trouble: Mutex::new("still connecting".into()),
            stop: CancellationToken::default(),
            tasks: Mutex::default(),
        });
        connections.task(keep(connections.clone(), ConnectionPurpose::Publish));
        connections.task(publisher::run(connections.clone(), requests));
        if usage != RabbitUse::Publish {
            connections.task(keep(connections.clone(), ConnectionPurpose::Consume));
        }
        if usage == RabbitUse::Work {
            connections.task(renew_lease(connections.clone()));
            connections.task(membership::announce(connections.clone()));
            connections.task(membership::listen(connections.clone()));
        }
        connections
    }

    fn task(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(tasks::spawn(task));
    }

    pub(super) fn publishing(&self) -> Option<Arc<Connection>> {
        self.publish.borrow().clone()
    }

    pub(super) fn consuming(&self) -> Option<Arc<Connection>> {
        self.consume.borrow().clone()
    }

    /// Waits for the publishing connection. Cancel-safe.
    pub(super) async fn until_publishing(&self) -> Arc<Connection> {
        until(&self.publish).await
    }

    /// Waits for the consuming connection. Cancel-safe.
    pub(super) async fn until_consuming(&self) -> Arc<Connection> {
        until(&self.consume).await
    }

    /// Why a publish would fail now; `None` if it may succeed.
    pub(super) fn cannot_publish(&self) -> Option<String> {
        match self.publishing() {
            None => Some(format!("no connection to the broker: {}", self.trouble())),
            Some(connection) if connection.status().blocked() => {
                Some("the broker blocks publishers: its memory or disk alarm is on".into())
            }
            Some(_) => None,
        }
    }

    /// The latest connection error.
    pub(super) fn trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn broken(&self) -> QueueError {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(reason) => QueueError::Mismatch(reason.unwrap_or_default()),
            Err(_) => std::future::pending().await,
        }
    }

    fn slot(&self, purpose: ConnectionPurpose) -> &ConnectionSlot {
        match purpose {
            ConnectionPurpose::Publish => &self.publish,
            ConnectionPurpose::Consume => &self.consume,
        }
    }

    fn update_connected(&self) {
        let consuming = self.settings.usage == RabbitUse::Publish || self.consuming().is_some();
        self.connected.send_replace(self.publishing().is_some() && consuming);
    }

    /// Ends all tasks, then closes both connections.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            if tokio::time::timeout(CLOSE_TIMEOUT, task).await.is_err() {
                tracing::warn!("a task of the broker supervisor did not end in time");
            }
        }
        for link in [&self.consume, &self.publish] {
            if let Some(connection) = link.send_replace(None) {
                let _ = within(CLOSE_TIMEOUT, connection.close(200, "bye".into())).await;
            }
        }
        self.connected.send_replace(false);
    }
}

async fn until(link: &ConnectionSlot) -> Arc<Connection> {
    let mut receiver = link.subscribe();
    match receiver.wait_for(Option::is_some).await.map(|connection| connection.clone()) {
        Ok(Some(connection)) => connection,
        _ => std::future::pending().await,
    }
}

/// Connects, waits until the connection is lost and connects again, until cancellation.
async fn keep(connections: Arc<BrokerConnections>, purpose: ConnectionPurpose) {
    let mut pause = BACKOFF_MIN;
    let mut abandoned = 0;
    while !connections.stop.is_cancelled() {
        let established = tokio::select! {
            established = establish(&connections, purpose) => established,
            // Dropping a running connect leaks a thread and a socket, but at this point the process is ending.
            () = connections.stop.cancelled() => return,
        };
        match established {
            Ok(connection) => {
                pause = BACKOFF_MIN;
                tracing::info!(?purpose, "connected to the broker");
                connections.slot(purpose).send_replace(Some(connection.clone()));
                connections.update_connected();
                tokio::select! {
                    reason = lost(&connection) => report(&connections, purpose, &reason),
                    () = connections.stop.cancelled() => return,
                }
                connections.slot(purpose).send_replace(None);
                connections.update_connected();
            }
            Err(RabbitError::Fatal(QueueError::Mismatch(reason))) => {
                connections.broken.send_replace(Some(reason));
                return;
            }
            Err(RabbitError::Fatal(error @ QueueError::Busy(_))) => tracing::debug!(%error, "waiting"),
            Err(error) => {
                abandoned += u32::from(matches!(error, RabbitError::Silent(_)));
                report(&connections, purpose, &error.to_string());
            }
        }
        if abandoned >= ABANDONED_MAX {
            connections
                .broken
                .send_replace(Some(format!("the broker did not answer {ABANDONED_MAX} attempts to connect")));
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = connections.stop.cancelled() => return,
        }
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Logs a lasting error once, not at each attempt.
fn report(connections: &BrokerConnections, purpose: ConnectionPurpose, reason: &str) {
    let mut trouble = connections.trouble.lock().unwrap_or_else(PoisonError::into_inner);
    if *trouble != reason {
        tracing::warn!(?purpose, reason, "no connection to the broker");
        reason.clone_into(&mut trouble);
    }
}

async fn establish(
    connections: &BrokerConnections,
    purpose: ConnectionPurpose,
) -> Result<Arc<Connection>, RabbitError> {
    match purpose {
        ConnectionPurpose::Publish => {
            let connection = connect::connect(&connections.settings, "publish").await?;
            // An operator waits for a tool, and each declaration costs two round trips for a queue.
            let is_there = connections.settings.usage == RabbitUse::Admin
                && topology::check_partitions(&connection, &connections.settings.reachable()).await?;
            if !is_there {
                topology::ensure(&connection, &connections.settings.tuning).await?;
            }
            Ok(Arc::new(connection))
        }
        // The queues must exist before a consumer starts.
        ConnectionPurpose::Consume => {
            tokio::select! {
                _ = connections.until_publishing() => {}
                () = connections.stop.cancelled() => {
                    return Err(RabbitError::Fatal(QueueError::Unavailable("stopping".into())));
                }
            }
            Ok(Arc::new(connect::connect(&connections.settings, "consume").await?))
        }
    }
}

/// Waits until a connection is unusable and returns the reason.
async fn lost(connection: &Connection) -> String {
    let mut events = std::pin::pin!(connection.events_listener());
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            event = events.next() => match event {
                // A soft error ends one channel only, for example if a queue to be counted does not exist.
                Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                Some(Event::Error(error)) => return error.to_string(),
                Some(Event::ConnectionBlocked(reason)) => tracing::warn!(reason, "the broker blocks publishers"),
                Some(Event::ConnectionUnblocked) => tracing::info!("the broker accepts messages again"),
                Some(_) => {}
                None => return "the connection is gone".into(),
            },
            _ = tick.tick() => if !connection.status().connected() {
                return "the connection is closed".into();
            }
        }
    }
}

/// Renews the lease with a round trip on a spare channel, three times in each heartbeat.
async fn renew_lease(connections: Arc<BrokerConnections>) {
    let every = connections.settings.heartbeat / 3;
    loop {
        let connection = tokio::select! {
            connection = connections.until_consuming() => connection,
            () = connections.stop.cancelled() => return,
        };
        tokio::select! {
            error = probe_until_silent(&connections, &connection, every) => tracing::debug!(%error, "lease not renewed"),
            () = connections.stop.cancelled() => return,
        }
        tokio::time::sleep(BACKOFF_MIN).await;
    }
}

async fn probe_until_silent(
    connections: &BrokerConnections,
    connection: &Connection,
    every: Duration,
) -> RabbitError {
    let channel = match within(every, connection.create_channel()).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    loop {
        let asked = Instant::now();
        if let Err(error) =
            within(connections.settings.heartbeat, channel.basic_qos(1, BasicQosOptions::default())).await
        {
            return error;
        }
        connections.answered.send_replace(Some(asked));
        tokio::time::sleep(every).await;
    }
}
