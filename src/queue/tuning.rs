//! The settings that both engines of the queue have in common.

use std::time::Duration;

use crate::message::Destinations;

/// The settings that both engines share.
#[derive(Debug, Clone)]
pub struct QueueTuning {
    /// The destinations that have partitions and a dead-letter queue.
    pub destinations: Destinations,
    /// Partitions for each destination.
    pub partitions: u16,
    /// The limit of unacked messages of each partition.
    pub prefetch: u16,
    /// The time limit of a publish.
    pub publish_timeout: Duration,
}
