//! Membership: workers announce themselves, and each worker learns which of its partitions a preferred worker is waiting
//! for.
//!
//! The consumer priorities of the broker are not used: 3.10 ignores them, and later versions silently delay a takeover
//! until the old owner has no unacked messages (see also `subscription.rs`). So the owner itself must know when to release
//! a partition. `worker/pump.rs` releases it by closing the channel, which puts this worker behind the waiting consumers.
//! Guarantees: [`Links::wanted`] names a partition only while a preferred worker waits among its consumers and was heard
//! within [`ALIVE`]. Without a waiting consumer the owner would get a released partition straight back.
//! Correctness does not depend on announcements: a lost announcement only delays the move of a partition.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection};
use tokio::time::Instant;

use super::links::Links;
use super::topology::{ANSWER_TIMEOUT, WORKERS};
use super::{RabbitError, within};
use crate::queue::partition::{place_number, rendezvous_weight};
use crate::queue::{PartitionId, QueueTuning};

const EVERY: Duration = Duration::from_secs(2);
const ALIVE: Duration = Duration::from_secs(7);
/// The header with the announced partitions and the subscription number of each, such as `xo.0:7 xo.3:12`.
const H_IN_LINE: &str = "x-causeway-in-line";

/// The announced partitions of this worker, each with the number of its subscription. A newer subscription waits further
/// behind, so a worker that released the partition for the older one has to release it once more.
#[derive(Debug, Default)]
pub(super) struct InLine(Mutex<BTreeMap<PartitionId, u64>>);

/// One announced partition. Dropping it ends the announcement.
pub(super) struct Place {
    links: Arc<Links>,
    partition: PartitionId,
}

impl Place {
    pub(super) fn take(links: &Arc<Links>, partition: PartitionId, subscription: u64) -> Self {
        links.in_line.change(|places| places.insert(partition, subscription));
        Self { links: links.clone(), partition }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.links.in_line.change(|places| places.remove(&self.partition));
    }
}

impl InLine {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<PartitionId, u64>) -> Option<u64>) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn announcement(&self) -> BasicProperties {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places: Vec<String> =
            places.iter().map(|(partition, subscription)| format!("{partition}:{subscription}")).collect();
        let mut headers = FieldTable::default();
        headers.insert(H_IN_LINE.into(), AMQPValue::LongString(places.join(" ").into()));
        BasicProperties::default().with_headers(headers)
    }
}

/// The latest announcement of another worker.
struct Peer {
    at: Instant,
    /// Its subscription numbers by partition name. `None` if its version sends none: the worker then counts for all
    /// partitions.
    in_line: Option<HashMap<String, String>>,
}

impl Peer {
    fn heard(properties: &BasicProperties) -> Self {
        let named = properties.headers().as_ref().and_then(|headers| headers.inner().get(H_IN_LINE));
        let in_line = named.and_then(|named| match named {
            AMQPValue::LongString(places) => {
                let places = String::from_utf8_lossy(places.as_bytes()).into_owned();
                let places = places.split(' ').filter_map(|place| place.split_once(':'));
                Some(places.map(|(name, number)| (name.to_owned(), number.to_owned())).collect())
            }
            _ => None,
        });
        Self { at: Instant::now(), in_line }
    }

    /// The number of its subscription to this partition, if it waits there.
    fn waits_at(&self, partition: PartitionId) -> Option<&str> {
        match &self.in_line {
            Some(places) => places.get(&partition.to_string()).map(String::as_str),
            None => Some(""),
        }
    }
}

/// Announces this worker until cancellation.
pub(super) async fn announce(links: Arc<Links>) {
    tokio::select! {
        () = links.stop.wait() => {}
        () = async {
            loop {
                let connection = links.until_publishing().await;
                if let Err(error) = announce_on(&links, &connection).await {
                    tracing::debug!(%error, "cannot announce this worker");
                }
                tokio::time::sleep(EVERY).await;
            }
        } => {}
    }
}

async fn announce_on(links: &Links, connection: &Connection) -> Result<(), RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    loop {
        // A blocked connection writes nothing. Waiting for the write would pile up abandoned channels.
        if !connection.status().blocked() {
            let name = links.settings.worker.as_bytes();
            let (options, properties) = (BasicPublishOptions::default(), links.in_line.announcement());
            let publish = channel.basic_publish(WORKERS.into(), "".into(), options, name, properties);
            within(ANSWER_TIMEOUT, publish).await?;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Receives the announcements of other workers until cancellation.
pub(super) async fn listen(links: Arc<Links>) {
    tokio::select! {
        () = links.stop.wait() => {}
        () = async {
            loop {
                let connection = links.until_consuming().await;
                if let Err(error) = listen_on(&links, &connection).await {
                    tracing::debug!(%error, "cannot receive the announcements of other workers");
                }
                // Without announcements no preferred worker is known, so no partition is released.
                links.wanted.send_replace(BTreeMap::new());
                tokio::time::sleep(EVERY).await;
            }
        } => {}
    }
}

async fn listen_on(links: &Links, connection: &Connection) -> Result<(), RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    let none = FieldTable::default;
    // The queue is deleted with its consumer, so that a second attempt on the same connection leaves none behind.
    let ears = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::exclusive() };
    let own = within(ANSWER_TIMEOUT, channel.queue_declare("".into(), ears, none())).await?;
    let name = own.name().clone();
    let bind =
        channel.queue_bind(name.clone(), WORKERS.into(), "".into(), QueueBindOptions::default(), none());
    within(ANSWER_TIMEOUT, bind).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut heard =
        within(ANSWER_TIMEOUT, channel.basic_consume(name, "peers".into(), options, none())).await?;
    let mut peers: HashMap<String, Peer> = HashMap::new();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            next = heard.next() => match next {
                Some(delivery) => {
                    let delivery = delivery?;
                    let name = String::from_utf8_lossy(&delivery.data).into_owned();
                    if name != links.settings.worker {
                        peers.insert(name, Peer::heard(&delivery.properties));
                    }
                }
                None => return Ok(()),
            },
            _ = tick.tick() => {}
        }
        peers.retain(|_, peer| peer.at.elapsed() < ALIVE);
        let wanted = wanted(&links.settings.worker, &peers, &links.settings.tuning);
        links.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }
}

/// The partitions with a waiting worker that is preferred to `own`, each with a number for the most preferred one and its
/// subscription.
fn wanted(own: &str, peers: &HashMap<String, Peer>, tuning: &QueueTuning) -> BTreeMap<PartitionId, u64> {
    let all = tuning.destinations.iter().flat_map(|it| PartitionId::all(it, tuning.partitions));
    all.filter_map(|partition| {
        let there = peers.iter().filter_map(|(name, peer)| Some((name, peer.waits_at(partition)?)));
        let (best, place) = there.max_by_key(|(other, _)| rendezvous_weight(other, partition))?;
        let better = rendezvous_weight(best, partition) > rendezvous_weight(own, partition);
        better.then(|| (partition, place_number(best, place)))
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

    fn peers(names: &[&str], in_line: Option<&[(&str, &str)]>) -> HashMap<String, Peer> {
        let own = |(name, number): &(&str, &str)| ((*name).to_owned(), (*number).to_owned());
        let in_line: Option<HashMap<_, _>> = in_line.map(|places| places.iter().map(own).collect());
        let peer = || Peer { at: Instant::now(), in_line: in_line.clone() };
        names.iter().map(|name| ((*name).to_owned(), peer())).collect()
    }

    #[test]
    fn alone_everything_is_mine() {
        assert!(wanted("a", &HashMap::new(), &tuning()).is_empty());
    }

    #[test]
    fn every_partition_is_wanted_by_all_workers_but_one() {
        let names = ["a", "b", "c"];
        let mut wanted_count = 0;
        for own in names {
            let others: Vec<&str> = names.into_iter().filter(|name| *name != own).collect();
            wanted_count += wanted(own, &peers(&others, None), &tuning()).len();
        }
        assert_eq!(wanted_count, 2 * 16);
    }

    #[test]
    fn nobody_yields_to_who_does_not_wait() {
        let everywhere = wanted("a", &peers(&["b"], None), &tuning());
        let some = everywhere.keys().next().unwrap().to_string();
        assert!(wanted("a", &peers(&["b"], Some(&[])), &tuning()).is_empty());
        let there = wanted("a", &peers(&["b"], Some(&[(&some, "1")])), &tuning());
        assert_eq!(there.keys().map(ToString::to_string).collect::<Vec<_>>(), std::slice::from_ref(&some));
        let again = wanted("a", &peers(&["b"], Some(&[(&some, "2")])), &tuning());
        assert_ne!(
            there, again,
            "a worker that subscribed again waits behind us and wants the partition again"
        );
    }

    #[test]
    fn an_announcement_is_read_as_it_was_meant() {
        let in_line = InLine::default();
        let [one, other] = [0, 1].map(|index| PartitionId { destination: Destination::Xo, index });
        in_line.change(|places| places.insert(one, 7));
        let heard = Peer::heard(&in_line.announcement());
        assert_eq!((heard.waits_at(one), heard.waits_at(other)), (Some("7"), None));
        let says_nothing = Peer::heard(&BasicProperties::default());
        assert_eq!((says_nothing.waits_at(one), says_nothing.waits_at(other)), (Some(""), Some("")));
    }
}
