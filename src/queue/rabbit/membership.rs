//! Membership: workers announce themselves, and each worker learns which of its partitions a preferred worker is waiting
//! for.
//!
//! The consumer priorities of the broker are not used. RabbitMQ 3.10 ignores priorities, and later versions silently
//! delay a takeover until the old owner has no unacked messages (see also `subscription.rs`). So the owner itself must
//! know when to release a partition. `worker/pump.rs` releases it by closing the channel, which puts this worker behind
//! the waiting consumers.
//! Guarantees: [`BrokerConnections::preferred_elsewhere`] names a partition only while a preferred worker waits among
//! its consumers and was heard within [`PEER_TIMEOUT`]. Without a waiting consumer the owner would get a released
//! partition straight back.
//! Correctness does not depend on announcements: a lost announcement only delays the move of a partition.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use tokio::time::Instant;

use super::connections::BrokerConnections;
use super::names::{Exchange, TopologyNames};
use super::topology::ANSWER_TIMEOUT;
use super::{RabbitError, within};
use crate::queue::partition::{consumer_position, rendezvous_weight};
use crate::queue::{PartitionId, QueueTuning};

const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);
const PEER_TIMEOUT: Duration = Duration::from_secs(7);
/// The header with the announced partitions and the subscription number of each, such as `xo.0:7 xo.3:12`.
const H_WAITING: &str = "x-causeway-in-line";

/// The announced partitions of this worker, each with the number of its subscription. A newer subscription waits further
/// behind, so a worker that released the partition for the older one has to release it once more.
#[derive(Debug, Default)]
pub(super) struct WaitingPartitions(Mutex<BTreeMap<PartitionId, u64>>);

/// One announced partition. Dropping it ends the announcement.
pub(super) struct WaitingEntry {
    connections: Arc<BrokerConnections>,
    partition: PartitionId,
}

impl WaitingEntry {
    pub(super) fn take(
        connections: &Arc<BrokerConnections>,
        partition: PartitionId,
        subscription: u64,
    ) -> Self {
        connections.waiting_partitions.change(|places| places.insert(partition, subscription));
        Self { connections: connections.clone(), partition }
    }
}

impl Drop for WaitingEntry {
    fn drop(&mut self) {
        self.connections.waiting_partitions.change(|places| places.remove(&self.partition));
    }
}

impl WaitingPartitions {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<PartitionId, u64>) -> Option<u64>) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn announcement(&self) -> BasicProperties {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places: Vec<String> =
            places.iter().map(|(partition, subscription)| format!("{partition}:{subscription}")).collect();
        let mut headers = FieldTable::default();
        headers.insert(H_WAITING.into(), AMQPValue::LongString(places.join(" ").into()));
        BasicProperties::default().with_headers(headers)
    }
}

/// The latest announcement of another worker.
struct PeerWorker {
    at: Instant,
    /// Its subscription numbers by partition name. `None` if its version sends none: the worker then counts for all
    /// partitions.
    waiting_partitions: Option<HashMap<String, String>>,
}

impl PeerWorker {
    fn from_announcement(properties: &BasicProperties) -> Self {
        let named = properties.headers().as_ref().and_then(|headers| headers.inner().get(H_WAITING));
        let waiting_partitions = named.and_then(|named| match named {
            AMQPValue::LongString(places) => {
                let places = String::from_utf8_lossy(places.as_bytes()).into_owned();
                let places = places.split(' ').filter_map(|position| position.split_once(':'));
                Some(places.map(|(name, number)| (name.to_owned(), number.to_owned())).collect())
            }
            _ => None,
        });
        Self { at: Instant::now(), waiting_partitions }
    }

    /// The number of its subscription to this partition, if it waits for the partition.
    fn waiting_position(&self, partition: PartitionId) -> Option<&str> {
        match &self.waiting_partitions {
            Some(places) => places.get(&partition.to_string()).map(String::as_str),
            None => Some(""),
        }
    }
}

/// Announces this worker until cancellation.
pub(super) async fn announce(connections: Arc<BrokerConnections>) {
    tokio::select! {
        () = connections.stop.cancelled() => {}
        () = async {
            loop {
                let connection = connections.until_publishing().await;
                if let Err(error) = announce_on(&connections, &connection).await {
                    tracing::debug!(%error, "cannot announce this worker");
                }
                tokio::time::sleep(ANNOUNCE_INTERVAL).await;
            }
        } => {}
    }
}

async fn announce_on(connections: &BrokerConnections, connection: &Connection) -> Result<(), RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    loop {
        // A blocked connection writes nothing. Waiting for the write would pile up abandoned channels.
        if !connection.status().blocked() {
            let name = connections.settings.worker.as_bytes();
            let (options, properties) =
                (BasicPublishOptions::default(), connections.waiting_partitions.announcement());
            let exchange = connections.settings.names.exchange(Exchange::Workers).into();
            let publish = channel.basic_publish(exchange, "".into(), options, name, properties);
            within(ANSWER_TIMEOUT, publish).await?;
        }
        tokio::time::sleep(ANNOUNCE_INTERVAL).await;
    }
}

/// Receives the announcements of other workers until cancellation.
pub(super) async fn listen(connections: Arc<BrokerConnections>) {
    tokio::select! {
        () = connections.stop.cancelled() => {}
        () = async {
            loop {
                let connection = connections.until_consuming().await;
                if let Err(error) = listen_on(&connections, &connection).await {
                    tracing::debug!(%error, "cannot receive the announcements of other workers");
                }
                // Without announcements no preferred worker is known, so no partition is released.
                connections.preferred_elsewhere.send_replace(BTreeMap::new());
                connections.has_peers.store(false, Ordering::Relaxed);
                tokio::time::sleep(ANNOUNCE_INTERVAL).await;
            }
        } => {}
    }
}

async fn listen_on(connections: &BrokerConnections, connection: &Connection) -> Result<(), RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    let mut heard = announcements(&channel, &connections.settings.names).await?;
    let mut peers: HashMap<String, PeerWorker> = HashMap::new();
    let mut tick = tokio::time::interval(ANNOUNCE_INTERVAL);
    loop {
        tokio::select! {
            next = heard.next() => match next {
                Some(delivery) => {
                    let delivery = delivery?;
                    let name = String::from_utf8_lossy(&delivery.data).into_owned();
                    if name != connections.settings.worker {
                        peers.insert(name, PeerWorker::from_announcement(&delivery.properties));
                    }
                }
                None => return Ok(()),
            },
            _ = tick.tick() => {}
        }
        peers.retain(|_, peer| peer.at.elapsed() < PEER_TIMEOUT);
        connections.has_peers.store(!peers.is_empty(), Ordering::Relaxed);
        let preferred_elsewhere =
            preferred_elsewhere(&connections.settings.worker, &peers, &connections.settings.tuning);
        connections.preferred_elsewhere.send_if_modified(|known| {
            let changed = *known != preferred_elsewhere;
            *known = preferred_elsewhere;
            changed
        });
    }
}

/// The number of workers that announce themselves within a bit more than [`ANNOUNCE_INTERVAL`].
pub(super) async fn count(connection: &Connection, topology: &TopologyNames) -> Result<u64, RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    let mut heard = announcements(&channel, topology).await?;
    let mut names = HashSet::new();
    let end = Instant::now() + ANNOUNCE_INTERVAL + ANNOUNCE_INTERVAL / 4;
    while let Ok(Some(delivery)) = tokio::time::timeout_at(end, heard.next()).await {
        names.insert(delivery?.data);
    }
    // If this fails, the end of the connection ends the channel.
    let _ = within(ANSWER_TIMEOUT, channel.close(200, "counted".into())).await;
    Ok(names.len() as u64)
}

/// Subscribes to the announcements of all workers.
async fn announcements(channel: &Channel, names: &TopologyNames) -> Result<Consumer, RabbitError> {
    let none = FieldTable::default;
    // The queue is deleted with its consumer, so that a second attempt on the same connection leaves none behind.
    let ears = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::exclusive() };
    let own = within(ANSWER_TIMEOUT, channel.queue_declare("".into(), ears, none())).await?;
    let name = own.name().clone();
    let exchange = names.exchange(Exchange::Workers).into();
    let bind = channel.queue_bind(name.clone(), exchange, "".into(), QueueBindOptions::default(), none());
    within(ANSWER_TIMEOUT, bind).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    within(ANSWER_TIMEOUT, channel.basic_consume(name, "peers".into(), options, none())).await
}

/// The partitions with a waiting worker that is preferred to `own`, each with a number for the most preferred one and its
/// subscription.
fn preferred_elsewhere(
    own: &str,
    peers: &HashMap<String, PeerWorker>,
    tuning: &QueueTuning,
) -> BTreeMap<PartitionId, u64> {
    let all = tuning.destinations.iter().flat_map(|it| PartitionId::all(it, tuning.partitions));
    all.filter_map(|partition| {
        let there = peers.iter().filter_map(|(name, peer)| Some((name, peer.waiting_position(partition)?)));
        let (best, position) = there.max_by_key(|(other, _)| rendezvous_weight(other, partition))?;
        let better = rendezvous_weight(best, partition) > rendezvous_weight(own, partition);
        better.then(|| (partition, consumer_position(best, position)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Destination, Destinations};

    fn tuning() -> QueueTuning {
        let destinations = Destinations::new([Destination::ServiceNow, Destination::Xo]);
        QueueTuning { destinations, partitions: 8, prefetch: 8, publish_timeout: Duration::from_secs(5) }
    }

    fn peers(names: &[&str], waiting_partitions: Option<&[(&str, &str)]>) -> HashMap<String, PeerWorker> {
        let own = |(name, number): &(&str, &str)| ((*name).to_owned(), (*number).to_owned());
        let waiting_partitions: Option<HashMap<_, _>> =
            waiting_partitions.map(|places| places.iter().map(own).collect());
        let peer = || PeerWorker { at: Instant::now(), waiting_partitions: waiting_partitions.clone() };
        names.iter().map(|name| ((*name).to_owned(), peer())).collect()
    }

    #[test]
    fn alone_everything_is_mine() {
        assert!(preferred_elsewhere("a", &HashMap::new(), &tuning()).is_empty());
    }

    #[test]
    fn every_partition_is_wanted_by_all_workers_but_one() {
        let names = ["a", "b", "c"];
        let mut wanted_count = 0;
        for own in names {
            let others: Vec<&str> = names.into_iter().filter(|name| *name != own).collect();
            wanted_count += preferred_elsewhere(own, &peers(&others, None), &tuning()).len();
        }
        assert_eq!(wanted_count, 2 * 16);
    }

    #[test]
    fn a_worker_yields_only_to_a_waiting_worker() {
        let everywhere = preferred_elsewhere("a", &peers(&["b"], None), &tuning());
        let some = everywhere.keys().next().unwrap().to_string();
        assert!(preferred_elsewhere("a", &peers(&["b"], Some(&[])), &tuning()).is_empty());
        let there = preferred_elsewhere("a", &peers(&["b"], Some(&[(&some, "1")])), &tuning());
        assert_eq!(there.keys().map(ToString::to_string).collect::<Vec<_>>(), std::slice::from_ref(&some));
        let again = preferred_elsewhere("a", &peers(&["b"], Some(&[(&some, "2")])), &tuning());
        assert_ne!(
            there, again,
            "a worker that subscribed again waits behind us and wants the partition again"
        );
    }

    #[test]
    fn an_announcement_is_read_as_it_was_meant() {
        let waiting_partitions = WaitingPartitions::default();
        let [one, other] = [0, 1].map(|index| PartitionId { destination: Destination::Xo, index });
        waiting_partitions.change(|places| places.insert(one, 7));
        let heard = PeerWorker::from_announcement(&waiting_partitions.announcement());
        assert_eq!((heard.waiting_position(one), heard.waiting_position(other)), (Some("7"), None));
        let says_nothing = PeerWorker::from_announcement(&BasicProperties::default());
        assert_eq!(
            (says_nothing.waiting_position(one), says_nothing.waiting_position(other)),
            (Some(""), Some(""))
        );
    }
}
