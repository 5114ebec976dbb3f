//! Makes the exchanges, queues and bindings of a deployment once, for processes whose users may not make them.
//!
//! Guarantees: after [`declare`] these and the exchange of the broker's clock exist. A second run changes nothing. A
//! deployment with another number of partitions is refused.
//! Not responsible for: the arguments (`topology.rs`), users and policies (`definitions.rs`).

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::topology::{self, ANSWER_TIMEOUT, QueueDeclare};
use super::{RabbitError, RabbitSettings, broker_clock, connect, within};
use crate::queue::QueueError;

const AGAIN: Duration = Duration::from_secs(1);

/// Declares everything, and tries again for `limit` while the broker cannot be reached.
pub async fn declare(settings: &RabbitSettings, limit: Duration) -> Result<(), QueueError> {
    let deadline = Instant::now() + limit;
    loop {
        let error = match attempt(settings).await {
            Ok(()) => return Ok(()),
            Err(RabbitError::Fatal(error @ (QueueError::Mismatch(_) | QueueError::Refused(_)))) => {
                return Err(error);
            }
            Err(error) => error,
        };
        if Instant::now() + AGAIN >= deadline {
            return Err(error.into());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn attempt(settings: &RabbitSettings) -> Result<(), RabbitError> {
    let connection = connect::connect(settings, "declare", &Mutex::default()).await?;
    let RabbitSettings { names, tuning, heartbeat, .. } = settings;
    topology::ensure(&connection, names, tuning, QueueDeclare::Make, *heartbeat).await?;
    broker_clock::declare(&connection, names).await?;
    within(ANSWER_TIMEOUT, connection.close(200, "declared".into())).await
}
