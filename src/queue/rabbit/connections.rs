//! Supervises both connections: rebuilds a connection with backoff, and runs the tasks that use the connections.
//!
//! Guarantees: the watch channels are at most one second behind the state of the connections. The tasks run until
//! [`BrokerConnections::close`].
//! Not responsible for: the messages on the connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::BasicQosOptions;
use lapin::{Connection, Event};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::majority::SilentQueues;
use super::membership::WaitingPartitions;
use super::names::Exchange;
use super::publisher::{self, PublishRequest};
use super::rights::{self, Refusals};
use super::{
    RabbitError, RabbitSettings, RabbitUse, broker_clock, connect, majority, membership, topology, within,
};
use crate::queue::{PartitionId, QueueError};
use crate::tasks::{self, CancellationToken};

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const STILL_CONNECTING: &str = "still connecting";
const STILL_DECLARING: &str = "connected, but the broker has not confirmed the exchanges and queues yet: does a majority of its nodes run?";
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which the broker's reported message limit is trusted. An operator may raise the limit.
const LIMIT_KEPT: Duration = Duration::from_secs(60);

pub(super) type ConnectionSlot = watch::Sender<Option<Arc<Connection>>>;

/// State shared by all handles of one engine.
#[derive(Debug)]
pub(super) struct BrokerConnections {
    pub(super) settings: RabbitSettings,
    publish: ConnectionSlot,
    consume: ConnectionSlot,
    pub(super) connected: watch::Sender<bool>,
    /// The time at which the newest request was sent that the broker answered.
    pub(super) answered: watch::Sender<Option<Instant>>,
    /// The partitions for which a preferred worker waits, each with a number for the worker and its subscription.
    pub(super) preferred_elsewhere: watch::Sender<BTreeMap<PartitionId, u64>>,
    /// Whether announcements of another worker arrived lately.
    pub(super) has_peers: AtomicBool,
    pub(super) waiting_partitions: WaitingPartitions,
    pub(super) silent_queues: Arc<SilentQueues>,
    broken: watch::Sender<Option<String>>,
    /// The reason why the broker refuses the exchanges and queues of this process at present.
    refused: watch::Sender<Option<String>>,
    pub(super) refusals: watch::Sender<Refusals>,
    /// The partitions that this user may not read, each with the broker's error text.
    unreadable: Mutex<BTreeMap<PartitionId, String>>,
    /// Whether the broker has had all exchanges and queues before. Later errors then heal without a restart.
    was_ready: AtomicBool,
    /// Whether the broker is asked for the exchanges and queues now.
    is_declaring: AtomicBool,
    last_address: Mutex<Option<SocketAddr>>,
    /// The largest message that the broker takes, and when the broker said so.
    message_limit: Mutex<Option<(usize, Instant)>>,
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
            silent_queues: Arc::default(),
            broken: watch::Sender::new(None),
            refused: watch::Sender::new(None),
            refusals: watch::Sender::new(Refusals::new()),
            unreadable: Mutex::default(),
            was_ready: AtomicBool::new(false),
            is_declaring: AtomicBool::new(false),
            last_address: Mutex::default(),
            message_limit: Mutex::default(),
            trouble: Mutex::new(STILL_CONNECTING.into()),
            stop: CancellationToken::default(),
            tasks: Mutex::default(),
        });
        connections.task(keep(connections.clone(), ConnectionPurpose::Publish));
        connections.task(publisher::run(connections.clone(), requests));
        connections.task(rights::watch_refusals(connections.clone()));
        connections.task(broker_clock::watch(connections.clone()));
        connections.task(majority::watch(connections.clone()));
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

    /// The error that a publish of this size to this exchange would get now.
    pub(super) fn may_publish(&self, exchange: Exchange, bytes: usize) -> Result<(), QueueError> {
        let connection = self.publishing().ok_or_else(|| {
            QueueError::Unavailable(format!("no connection to the broker: {}", self.trouble()))
        })?;
        if connection.status().blocked() {
            let alarm = "the broker blocks publishers: its memory or disk alarm is on";
            return Err(QueueError::Unavailable(alarm.into()));
        }
        if let Some(reason) = self.refusals.borrow().get(&exchange) {
            return Err(QueueError::Refused(reason.clone()));
        }
        let limit = *self.message_limit.lock().unwrap_or_else(PoisonError::into_inner);
        match limit {
            Some((limit, at)) if bytes > limit && at.elapsed() < LIMIT_KEPT => {
                Err(QueueError::TooLarge(limit))
            }
            _ => Ok(()),
        }
    }

    /// The largest frame of the publishing connection. All headers of a message must fit into one frame.
    pub(super) fn frame_bytes(&self) -> Option<usize> {
        let frame = self.publishing()?.configuration().frame_max();
        usize::try_from(frame).ok()
    }

    /// Remembers the broker's limit, so that larger messages are refused before they end a channel.
    pub(super) fn takes_at_most(&self, bytes: usize) {
        let mut limit = self.message_limit.lock().unwrap_or_else(PoisonError::into_inner);
        *limit = Some((bytes, Instant::now()));
    }

    /// Records that the user may not publish to this exchange. `rights.rs` detects when the right is back.
    pub(super) fn refuses(&self, exchange: Exchange, reason: &str) {
        let is_new = self.refusals.borrow().get(&exchange).is_none_or(|known| known != reason);
        if is_new {
            let name = self.settings.names.exchange(exchange);
            tracing::warn!(exchange = name, reason, "the broker refuses messages");
            self.refusals.send_modify(|refusals| drop(refusals.insert(exchange, reason.to_owned())));
            self.update_connected();
        }
    }

    /// Records that the user may publish to this exchange again.
    pub(super) fn accepted(&self, exchange: Exchange) {
        self.refusals.send_modify(|refusals| drop(refusals.remove(&exchange)));
        self.update_connected();
    }

    /// Records whether the user may read this partition.
    pub(super) fn reads(&self, partition: PartitionId, refusal: Option<String>) {
        let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        match refusal {
            None if unreadable.remove(&partition).is_none() => return,
            None => {}
            Some(reason) => {
                if unreadable.is_empty() {
                    tracing::warn!(%partition, reason, "the broker refuses to deliver messages");
                }
                unreadable.insert(partition, reason);
            }
        }
        drop(unreadable);
        self.update_connected();
    }

    /// The reason why this process cannot work at present; `None` if it can.
    pub(super) fn unready(&self) -> Option<String> {
        if let Some(refusal) = self.own_refusal() {
            return Some(format!("the broker refuses messages: {refusal}"));
        }
        if *self.connected.borrow() { None } else { Some(self.trouble()) }
    }

    /// An ingress rarely writes a dead letter, so only the exchange for messages counts.
    fn own_refusal(&self) -> Option<String> {
        let refusals = self.refusals.borrow();
        if self.settings.usage == RabbitUse::Publish {
            return refusals.get(&Exchange::Messages).cloned();
        }
        let unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.values().chain(unreadable.values()).next().cloned()
    }

    /// Waits until the broker refuses the exchanges and queues, and returns the reason.
    pub(super) async fn refused(&self) -> QueueError {
        let mut refused = self.refused.subscribe();
        match refused.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(reason) => QueueError::Refused(reason.unwrap_or_default()),
            Err(_) => std::future::pending().await,
        }
    }

    /// The latest connection error.
    pub(super) fn trouble(&self) -> String {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_declaring = trouble == STILL_CONNECTING && self.is_declaring.load(Ordering::Relaxed);
        if is_declaring { STILL_DECLARING.to_owned() } else { trouble }
    }

    pub(super) async fn broken(&self) -> QueueError {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(reason) => QueueError::Mismatch(reason.unwrap_or_default()),
            Err(_) => std::future::pending().await,
        }
    }

    /// Clears the errors of the previous connection, so that they are logged again if they come back.
    fn well(&self, purpose: ConnectionPurpose) {
        if purpose == ConnectionPurpose::Publish {
            self.was_ready.store(true, Ordering::Relaxed);
            self.refused.send_replace(None);
            self.refusals.send_replace(Refusals::new());
            *self.message_limit.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        STILL_CONNECTING.clone_into(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn slot(&self, purpose: ConnectionPurpose) -> &ConnectionSlot {
        match purpose {
            ConnectionPurpose::Publish => &self.publish,
            ConnectionPurpose::Consume => &self.consume,
        }
    }

    fn update_connected(&self) {
        let consuming = self.settings.usage == RabbitUse::Publish || self.consuming().is_some();
        let connected = self.publishing().is_some() && consuming && self.own_refusal().is_none();
        self.connected.send_if_modified(|known| std::mem::replace(known, connected) != connected);
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
    while !connections.stop.is_cancelled() {
        let established = tokio::select! {
            established = establish(&connections, purpose) => established,
            () = connections.stop.cancelled() => return,
        };
        match established {
            Ok(connection) => {
                pause = BACKOFF_MIN;
                tracing::info!(?purpose, "connected to the broker");
                connections.well(purpose);
                connections.slot(purpose).send_replace(Some(connection.clone()));
                connections.update_connected();
                tokio::select! {
                    reason = lost(&connection) => report(&connections, purpose, &reason),
                    () = connections.stop.cancelled() => return,
                }
                connections.slot(purpose).send_replace(None);
                connections.update_connected();
            }
            Err(RabbitError::Fatal(QueueError::Mismatch(reason)))
                if !connections.was_ready.load(Ordering::Relaxed) =>
            {
                connections.broken.send_replace(Some(reason));
                return;
            }
            Err(RabbitError::Fatal(error @ QueueError::Busy(_))) => tracing::debug!(%error, "waiting"),
            Err(error) => {
                let reason = error.to_string();
                report(&connections, purpose, &reason);
                if let RabbitError::Fatal(QueueError::Refused(_)) = error {
                    connections.refused.send_replace(Some(reason));
                }
            }
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
            let (last, names) = (&connections.last_address, &connections.settings.names);
            let connection = connect::connect(&connections.settings, "publish", last).await?;
            // An operator waits for the tool, and each declaration costs two round trips for each queue.
            let is_there = connections.settings.usage == RabbitUse::Admin
                && topology::check_partitions(&connection, names, &connections.settings.reachable()).await?;
            if !is_there {
                let RabbitSettings { tuning, declare, heartbeat, .. } = &connections.settings;
                connections.is_declaring.store(true, Ordering::Relaxed);
                let ensured = topology::ensure(&connection, names, tuning, *declare, *heartbeat).await;
                connections.is_declaring.store(false, Ordering::Relaxed);
                ensured?;
            }
            // A worker compares before it receives the first message. A tool does not wait for the comparison.
            if connections.settings.usage != RabbitUse::Admin {
                broker_clock::compare_first(connections, &connection).await;
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
            let last = &connections.last_address;
            Ok(Arc::new(connect::connect(&connections.settings, "consume", last).await?))
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
