//! Finds queues of which too few nodes run. A quorum queue without a majority of its nodes confirms no message and delivers
//! none, while the broker answers everything else. AMQP does not report this state.
//!
//! Guarantees: a queue is reported in each of these cases, and no longer than the case lasts.
//! - A publish was not confirmed within `queue.publish_timeout`, no other publish to the queue was confirmed since, and the
//!   broker answered another request [`DOUBT_TIME`] later. So a broker that is slow or silent as a whole is not meant. If no
//!   publish to the queue is late again, the report ends after [`LATE_COUNTS_FOR`].
//! - This process has subscribed to the partition, and the broker counted no consumer [`COUNTS_NEEDED`] times in a row: the
//!   queue has no leader.
//! - The management API shows that no majority of the members is online.
//!
//! Not responsible for: the log and the metrics (`app/watch.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::Connection;
use tokio::time::Instant;

use super::connections::BrokerConnections;
use super::names::Exchange;
use super::within;
use crate::queue::PartitionId;

/// How long a late publish may still be confirmed before its queue is reported.
const DOUBT_TIME: Duration = Duration::from_secs(3);
/// A subscription younger than this may not be counted yet.
const SUBSCRIBED_TIME: Duration = Duration::from_secs(5);
/// The number of counts without a consumer. The broker also counts 0 if the queue does not answer within 250 ms.
const COUNTS_NEEDED: u32 = 2;
/// How long a late publish counts. A caller publishes again within seconds, so a queue without late publishes has no
/// publishes or has recovered.
const LATE_COUNTS_FOR: Duration = Duration::from_secs(300);
const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The silent queues of one process.
#[derive(Debug, Default)]
pub(super) struct SilentQueues {
    /// Whether `unconfirmed` has entries. A confirm reads only this.
    has_unconfirmed: AtomicBool,
    next_subscription: AtomicU64,
    state: Mutex<SilenceState>,
}

#[derive(Debug, Default)]
struct SilenceState {
    unconfirmed: BTreeMap<String, UnconfirmedQueue>,
    subscriptions: BTreeMap<u64, (PartitionId, Instant)>,
    /// The number of counts without a consumer.
    unled: BTreeMap<PartitionId, u32>,
    managed: BTreeSet<String>,
}

#[derive(Debug)]
struct UnconfirmedQueue {
    since: Instant,
    last_late: Instant,
    /// The broker answered another request long enough after the publish was late.
    is_certain: bool,
}

/// The name of a queue in a report.
fn name(exchange: Exchange, key: &str) -> String {
    if exchange == Exchange::DeadLetters { format!("dead letters of {key}") } else { key.to_owned() }
}

impl SilentQueues {
    fn state(&self) -> MutexGuard<'_, SilenceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A publish with this exchange and key was not confirmed in time.
    pub(super) fn late(&self, exchange: Exchange, key: &str) {
        let now = Instant::now();
        let first = UnconfirmedQueue { since: now, last_late: now, is_certain: false };
        self.state().unconfirmed.entry(name(exchange, key)).or_insert(first).last_late = now;
        self.has_unconfirmed.store(true, Ordering::Release);
    }

    /// A publish with this exchange and key was confirmed.
    pub(super) fn confirmed(&self, exchange: Exchange, key: &str) {
        if self.has_unconfirmed.load(Ordering::Acquire) {
            let mut state = self.state();
            state.unconfirmed.remove(&name(exchange, key));
            self.has_unconfirmed.store(!state.unconfirmed.is_empty(), Ordering::Release);
        }
    }

    /// The channel has ended, so its publishes are not confirmed any more.
    pub(super) fn forget_unconfirmed(&self) {
        self.state().unconfirmed.clear();
        self.has_unconfirmed.store(false, Ordering::Release);
    }

    /// The broker answered a request that was sent at this time.
    fn answered(&self, asked: Instant) {
        for queue in self.state().unconfirmed.values_mut() {
            queue.is_certain |= asked.saturating_duration_since(queue.since) >= DOUBT_TIME;
        }
    }

    fn has_doubt(&self) -> bool {
        self.has_unconfirmed.load(Ordering::Acquire)
            && self.state().unconfirmed.values().any(|queue| !queue.is_certain)
    }

    /// Records a subscription until the returned value is dropped.
    pub(super) fn subscribed(self: &Arc<Self>, partition: PartitionId) -> SubscribedPartition {
        let number = self.next_subscription.fetch_add(1, Ordering::Relaxed);
        self.state().subscriptions.insert(number, (partition, Instant::now()));
        SubscribedPartition { queues: Arc::clone(self), number }
    }

    /// The broker counted the consumers of this partition.
    pub(super) fn counted(&self, partition: PartitionId, consumers: u64) {
        let mut state = self.state();
        let is_ours =
            |(of, since): &(PartitionId, Instant)| *of == partition && since.elapsed() >= SUBSCRIBED_TIME;
        if consumers == 0 && state.subscriptions.values().any(is_ours) {
            *state.unled.entry(partition).or_default() += 1;
        } else {
            state.unled.remove(&partition);
        }
    }

    /// The queues without a majority, as the management API shows them.
    pub(super) fn set_managed(&self, queues: impl IntoIterator<Item = String>) {
        self.state().managed = queues.into_iter().collect();
    }

    /// The names of the silent queues. Partitions and dead letters have no name of the broker here.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let mut state = self.state();
        state.unconfirmed.retain(|_, queue| queue.last_late.elapsed() < LATE_COUNTS_FOR);
        if !state.managed.is_empty() {
            return state.managed.clone();
        }
        let unconfirmed = state.unconfirmed.iter().filter(|(_, queue)| queue.is_certain);
        let unled = state.unled.iter().filter(|(_, counts)| **counts >= COUNTS_NEEDED);
        let unled = unled.map(|(partition, _)| partition.to_string());
        unconfirmed.map(|(name, _)| name.clone()).chain(unled).collect()
    }
}

/// A subscription of this process.
#[derive(Debug)]
pub(super) struct SubscribedPartition {
    queues: Arc<SilentQueues>,
    number: u64,
}

impl Drop for SubscribedPartition {
    fn drop(&mut self) {
        let mut state = self.queues.state();
        if let Some((partition, _)) = state.subscriptions.remove(&self.number) {
            state.unled.remove(&partition);
        }
    }
}

/// While a queue is in doubt, asks the broker something that needs no queue.
pub(super) async fn watch(connections: Arc<BrokerConnections>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = connections.stop.cancelled() => return,
        }
        if !connections.silent_queues.has_doubt() {
            continue;
        }
        let Some(connection) = connections.publishing().filter(|it| !it.status().blocked()) else { continue };
        let asked = Instant::now();
        if answers(&connection).await {
            connections.silent_queues.answered(asked);
        }
    }
}

async fn answers(connection: &Connection) -> bool {
    match within(ANSWER_TIMEOUT, connection.create_channel()).await {
        Ok(channel) => within(ANSWER_TIMEOUT, channel.close(200, "asked".into())).await.is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::Exchange;
    use super::*;
    use crate::message::Destination;

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    fn names(queues: &SilentQueues) -> Vec<String> {
        queues.names().into_iter().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_silent_if_the_broker_answers_something_else() {
        let queues = SilentQueues::default();
        queues.late(Exchange::Messages, "xo.3");
        assert!(queues.has_doubt());
        queues.answered(Instant::now());
        assert!(names(&queues).is_empty(), "the confirm may still come");
        pass(DOUBT_TIME).await;
        assert!(names(&queues).is_empty(), "the broker may be silent as a whole");
        queues.answered(Instant::now());
        assert_eq!(names(&queues), ["xo.3"]);
        assert!(!queues.has_doubt());
        queues.confirmed(Exchange::Messages, "xo.4");
        queues.confirmed(Exchange::DeadLetters, "xo.3");
        assert_eq!(names(&queues), ["xo.3"]);
        queues.confirmed(Exchange::Messages, "xo.3");
        assert!(names(&queues).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_ends_if_no_publish_is_late_again() {
        let queues = SilentQueues::default();
        queues.late(Exchange::Messages, "xo.3");
        pass(LATE_COUNTS_FOR / 2).await;
        queues.answered(Instant::now());
        queues.late(Exchange::Messages, "xo.3");
        pass(LATE_COUNTS_FOR / 2).await;
        assert_eq!(names(&queues), ["xo.3"], "the second publish still counts");
        pass(LATE_COUNTS_FOR / 2).await;
        assert!(names(&queues).is_empty() && !queues.has_doubt());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_channel_begins_without_doubt() {
        let queues = SilentQueues::default();
        queues.late(Exchange::DeadLetters, "xo");
        pass(DOUBT_TIME).await;
        queues.answered(Instant::now());
        assert_eq!(names(&queues), ["dead letters of xo"]);
        queues.forget_unconfirmed();
        assert!(names(&queues).is_empty() && !queues.has_doubt());
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscribed_partition_without_a_consumer_has_no_leader() {
        let queues = Arc::new(SilentQueues::default());
        let partition = PartitionId { destination: Destination::Xo, index: 1 };
        queues.counted(partition, 0);
        queues.counted(partition, 0);
        assert!(names(&queues).is_empty(), "this process has not subscribed");
        let subscription = queues.subscribed(partition);
        queues.counted(partition, 0);
        pass(SUBSCRIBED_TIME).await;
        queues.counted(partition, 0);
        assert!(names(&queues).is_empty(), "one count may be missing");
        queues.counted(partition, 0);
        assert_eq!(names(&queues), ["xo.1"]);
        queues.counted(partition, 1);
        assert!(names(&queues).is_empty());
        queues.counted(partition, 0);
        queues.counted(partition, 0);
        drop(subscription);
        assert!(names(&queues).is_empty());
    }

    #[test]
    fn the_management_api_knows_better() {
        let queues = SilentQueues::default();
        queues.set_managed(["w.xo.0".to_owned(), "dlq.xo".to_owned()]);
        assert_eq!(names(&queues), ["dlq.xo", "w.xo.0"]);
        queues.set_managed([]);
        assert!(names(&queues).is_empty());
    }
}
