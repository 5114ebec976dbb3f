//! Who else works here: workers announce themselves, and each learns which of its partitions a better-ranked one waits for.
//!
//! The broker's own way, consumer priorities, is not used: 3.10 ignores them, and later versions let a take-over wait,
//! silently, until the old owner holds nothing (`subscription.rs` tells what else). So the owner must know by itself when
//! to yield (`worker/pump.rs` does it, by closing the channel, which puts it at the end of the line).
//! Guarantees: [`Links::wanted`] names a partition only while a better-ranked worker was heard within [`ALIVE`].
//! Not required for correctness: a lost announcement only delays the move of a partition.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection};
use tokio::time::Instant;

use super::links::Links;
use super::topology::{ANSWER_TIMEOUT, WORKERS};
use super::{RabbitError, within};
use crate::message::Destination;
use crate::queue::PartitionId;
use crate::queue::partition::{rendezvous_weight, worker_number};

const EVERY: Duration = Duration::from_secs(2);
const ALIVE: Duration = Duration::from_secs(7);
/// A worker first subscribes everywhere, then makes itself known: who yields to it must find it waiting.
const FIRST_AFTER: Duration = Duration::from_secs(2);

/// Announces this worker until the stop.
pub(super) async fn announce(links: Arc<Links>) {
    tokio::select! {
        () = links.stop.wait() => {}
        () = async {
            links.until_consuming().await;
            tokio::time::sleep(FIRST_AFTER).await;
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
        // A blocked connection writes nothing: waiting for it here would pile up abandoned channels.
        if !connection.status().blocked() {
            let name = links.settings.worker.as_bytes();
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let publish = channel.basic_publish(WORKERS.into(), "".into(), options, name, properties);
            within(ANSWER_TIMEOUT, publish).await?;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Hears the others until the stop.
pub(super) async fn listen(links: Arc<Links>) {
    tokio::select! {
        () = links.stop.wait() => {}
        () = async {
            loop {
                let connection = links.until_consuming().await;
                if let Err(error) = listen_on(&links, &connection).await {
                    tracing::debug!(%error, "cannot hear the other workers");
                }
                // Not heard means not known: nobody yields to a rumour.
                links.wanted.send_replace(BTreeMap::new());
                tokio::time::sleep(EVERY).await;
            }
        } => {}
    }
}

async fn listen_on(links: &Links, connection: &Connection) -> Result<(), RabbitError> {
    let channel = within(ANSWER_TIMEOUT, connection.create_channel()).await?;
    let none = FieldTable::default;
    // Gone with its consumer, so that a second try on the same connection leaves nothing behind.
    let ears = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::exclusive() };
    let own = within(ANSWER_TIMEOUT, channel.queue_declare("".into(), ears, none())).await?;
    let name = own.name().clone();
    let bind =
        channel.queue_bind(name.clone(), WORKERS.into(), "".into(), QueueBindOptions::default(), none());
    within(ANSWER_TIMEOUT, bind).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut heard =
        within(ANSWER_TIMEOUT, channel.basic_consume(name, "peers".into(), options, none())).await?;
    let mut alive: HashMap<String, Instant> = HashMap::new();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            next = heard.next() => match next {
                Some(delivery) => {
                    let name = String::from_utf8_lossy(&delivery?.data).into_owned();
                    if name != links.settings.worker {
                        alive.insert(name, Instant::now());
                    }
                }
                None => return Ok(()),
            },
            _ = tick.tick() => {}
        }
        alive.retain(|_, at| at.elapsed() < ALIVE);
        let wanted = wanted(&links.settings.worker, alive.keys(), links.settings.tuning.partitions);
        links.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
    }
}

/// For each partition that another should have: the number of the best of them.
fn wanted<'a>(
    own: &str,
    others: impl Iterator<Item = &'a String> + Clone,
    partitions: u16,
) -> BTreeMap<PartitionId, u64> {
    let all = Destination::ALL.iter().flat_map(|destination| PartitionId::all(*destination, partitions));
    all.filter_map(|partition| {
        let best = others.clone().max_by_key(|other| rendezvous_weight(other, partition))?;
        let better = rendezvous_weight(best, partition) > rendezvous_weight(own, partition);
        better.then(|| (partition, worker_number(best)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_everything_is_mine() {
        assert!(wanted("a", std::iter::empty(), 8).is_empty());
    }

    #[test]
    fn every_partition_is_wanted_by_all_workers_but_one() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let mut wanted_count = 0;
        for own in &names {
            wanted_count += wanted(own, names.iter().filter(|name| *name != own), 8).len();
        }
        assert_eq!(wanted_count, 2 * 16);
    }
}
