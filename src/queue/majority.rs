//! Whether the queues store anything: a quorum queue needs a majority of its nodes.
//!
//! Guarantees: the embedded engine is one file, so it never lacks a majority.
//! Not responsible for: how the distributed engine finds out (`rabbit/majority.rs`), the log and the metrics (`app/watch.rs`).

use std::collections::BTreeSet;

use super::{Queue, QueueError};

impl Queue {
    /// The queues that store and deliver nothing because too few of their nodes run. Empty for the embedded engine.
    pub fn without_majority(&self) -> BTreeSet<String> {
        match self {
            Self::Rabbit(queue) => queue.without_majority(),
            _ => BTreeSet::new(),
        }
    }

    /// Records the queues without a majority of their nodes that the broker's management API shows.
    pub fn note_without_majority(&self, queues: &[String]) {
        if let Self::Rabbit(queue) = self {
            queue.note_without_majority(queues);
        }
    }

    /// Whether the broker stores a change of a queue now. `None` if the user has not the right to ask. For operators.
    pub async fn commits(&self) -> Result<Option<bool>, QueueError> {
        match self {
            Self::Rabbit(queue) => queue.commits().await,
            _ => Ok(Some(true)),
        }
    }
}
