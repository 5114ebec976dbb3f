//! The lease of a worker on its partitions: clause 10 of the queue.
//!
//! Not responsible for: renewing the lease (`rabbit/connections.rs`).

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The right to start a request to a platform.
///
/// RabbitMQ's single active consumer is not a lock. A worker that the broker takes for dead continues for seconds,
/// while the next worker has already started. So a worker starts a request only if the broker answered within the last
/// heartbeat.
#[derive(Debug, Clone)]
pub enum BrokerLease {
    /// Always valid: no other process can have the partitions.
    Always,
    /// Valid for `term` after the newest request that the broker answered.
    For {
        /// The time at which the newest answered request was sent.
        answered: watch::Receiver<Option<Instant>>,
        /// One heartbeat.
        term: Duration,
    },
}

impl BrokerLease {
    /// Whether the lease is valid at `now`.
    pub fn holds(&self, now: Instant) -> bool {
        match self {
            Self::Always => true,
            Self::For { answered, term } => {
                answered.borrow().is_some_and(|asked| now.saturating_duration_since(asked) < *term)
            }
        }
    }

    /// Waits until the broker answers again.
    pub async fn renewed(&mut self) {
        match self {
            Self::Always => {}
            Self::For { answered, .. } => {
                if answered.changed().await.is_err() {
                    // The queue is closed: no renewal will come, and the waiting task is being cancelled.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
