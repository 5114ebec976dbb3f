//! The worker: delivers messages in order within each conversation and in parallel across conversations.
//!
//! Guarantees: message n+1 of a lane never starts before message n is delivered or dead-lettered. A stuck lane does not
//! hold up another. On shutdown the attempts in flight finish, and all other messages go back in order.
//! Not responsible for: the attempt itself (`bridge/`), the durable queue (`queue/`).

mod deduplication;
mod lane;
mod policy;
mod process;
mod pump;
#[cfg(test)]
mod simulation;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use crate::bridge::Deliverer;
use crate::clock;
use crate::conversation::{Directory, DirectorySettings};
use crate::delivery::Gates;
use crate::delivery::backoff::RetrySettings;
use crate::queue::{PartitionId, Queue, QueueDepth};
use crate::tasks::{CancellationToken, TaskSet};
use crate::telemetry::Metrics;
use deduplication::{Deduplication, SettledStore};
pub use policy::MessageDeadlines;
use process::MessageProcessor;
use pump::MessagePump;
use stats::WorkerStats;

/// The settings of a worker.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// `delivery.retry.*`
    pub retry: RetrySettings,
    /// `delivery.deadline.*`
    pub deadlines: MessageDeadlines,
    /// `delivery.hold`
    pub hold: Duration,
    /// `queue.prefetch`
    pub prefetch: u16,
}

/// The parts that a worker is built from.
#[derive(Debug, Clone)]
pub struct WorkerParts {
    /// The queue that the worker consumes.
    pub queue: Queue,
    /// Makes the attempts.
    pub deliverer: Arc<Deliverer>,
    /// The gates of the destinations.
    pub gates: Arc<Gates>,
    /// The directory that holds the settled messages; `None` in the pure callback relay.
    pub directory: Option<Directory>,
    /// The store for the results of replays, if there is no `directory`.
    pub replay_notes: Option<DirectorySettings>,
    /// The metrics of the worker.
    pub metrics: Arc<Metrics>,
}

/// The pumps of all partitions.
#[derive(Debug, Clone)]
pub struct Worker {
    queue: Queue,
    gates: Arc<Gates>,
    metrics: Arc<Metrics>,
    stats: Arc<WorkerStats>,
}

const GAUGES_EVERY: Duration = Duration::from_secs(1);
const DEPTH_EVERY: Duration = Duration::from_secs(5);

impl Worker {
    /// Starts a pump for each partition, and the gauges.
    pub fn start(
        tasks: &mut TaskSet,
        stop: &CancellationToken,
        parts: WorkerParts,
        settings: &WorkerSettings,
    ) -> Self {
        let WorkerParts { queue, deliverer, gates, directory, replay_notes, metrics } = parts;
        let store = SettledStore::new(directory, replay_notes);
        let worker = Self { queue, gates, metrics, stats: Arc::default() };
        for destination in worker.queue.destinations().iter() {
            for partition in PartitionId::all(destination, worker.queue.partitions()) {
                let processor = Arc::new(MessageProcessor {
                    queue: worker.queue.clone(),
                    deliverer: deliverer.clone(),
                    gates: worker.gates.clone(),
                    settings: settings.clone(),
                    metrics: worker.metrics.clone(),
                    deduplication: Deduplication::new(store.clone()),
                });
                let pump = MessagePump::new(partition, processor, worker.stats.clone(), stop.clone());
                tasks.start("pump", pump.run());
            }
        }
        tasks.start("gauges", worker.clone().keep_gauges(stop.clone()));
        worker
    }

    /// Whether this worker consumes from every destination whose breaker passes.
    pub fn ready(&self) -> Result<(), String> {
        let consuming = self.queue.destinations().iter().all(|destination| {
            self.stats.sum(destination).subscribed > 0 || !self.gates.gate(destination).breaker().passes()
        });
        if consuming { Ok(()) } else { Err("the worker has not subscribed to its partitions yet".into()) }
    }

    async fn keep_gauges(self, stop: CancellationToken) -> Result<(), String> {
        let mut depth = QueueDepth::default();
        let mut ask = tokio::time::Instant::now();
        loop {
            if ask.elapsed() >= DEPTH_EVERY || depth.waiting.is_empty() {
                ask = tokio::time::Instant::now();
                match self.queue.depth().await {
                    Ok(now) => depth = now,
                    Err(error) => tracing::debug!(%error, "cannot read the depth of the queue"),
                }
            }
            self.set_gauges(&depth);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(GAUGES_EVERY) => {}
            }
        }
    }

    fn set_gauges(&self, depth: &QueueDepth) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for destination in self.queue.destinations().iter() {
            let name = destination.as_str();
            let sum = self.stats.sum(destination);
            let waiting = depth.waiting.get(&destination).copied().unwrap_or(0);
            // The embedded engine already counts unacked messages as waiting.
            let held = if self.queue.shared() { gauge(sum.held) } else { 0 };
            self.metrics.queue_messages.with_label_values(&[name]).set(count(waiting) + held);
            let oldest = [sum.oldest, depth.oldest.get(&destination).copied()].into_iter().flatten().min();
            let age = oldest.map_or(0.0, |oldest| clock::since(oldest).as_secs_f64());
            self.metrics.oldest_age.with_label_values(&[name]).set(age);
            for (state, lanes) in [
                ("waiting", sum.lanes.waiting),
                ("in_flight", sum.lanes.in_flight),
                ("backing_off", sum.lanes.backing_off),
            ] {
                self.metrics.lanes.with_label_values(&[name, state]).set(gauge(lanes));
            }
            self.metrics.partitions_owned.with_label_values(&[name]).set(gauge(sum.owned));
        }
        self.metrics.dead_letter_messages.set(count(depth.dead));
        self.metrics.unroutable.set(count(depth.unroutable));
    }
}
