//! Counts conversations for the metrics, and deletes old records of the directory.
//!
//! Guarantees: an error only delays the work. Not responsible for: what is old (`directory.kept`, `journal.kept`).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock;
use crate::conversation::{ConversationState, Directory};
use crate::tasks::CancellationToken;
use crate::telemetry::Metrics;

/// How often the write-ahead log of the directory is emptied, which still contains deleted rows.
const EMPTY_LOG_EVERY: Duration = Duration::from_secs(60);
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);
/// How long a deduplication key is kept, which is no row of the journal.
const KEYS_KEPT: Duration = Duration::from_secs(3 * 24 * 3600);

/// Counts conversations for the metrics and deletes old records.
pub(super) async fn run(
    directory: Directory,
    (journal_kept, closed_kept): (Duration, Duration),
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut emptied = Instant::now();
    loop {
        if let Ok(counts) = directory.counts().await {
            for state in ConversationState::ALL {
                let count = counts.get(state).copied().unwrap_or(0);
                metrics
                    .conversations
                    .with_label_values(&[state.as_str()])
                    .set(i64::try_from(count).unwrap_or(0));
            }
        }
        let now = clock::now();
        let before = |kept: Duration| now.checked_sub(kept).map_err(|_| "the clock is before 1970");
        let (keys, settled, closed) = (before(KEYS_KEPT)?, before(journal_kept)?, before(closed_kept)?);
        if let Err(error) = directory.forget(keys, settled, closed).await {
            tracing::debug!(%error, "cannot delete old records of the directory");
        }
        if emptied.elapsed() >= EMPTY_LOG_EVERY {
            emptied = Instant::now();
            if let Err(error) = directory.empty_log().await {
                tracing::debug!(%error, "cannot empty the write-ahead log of the directory");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(HOUSEKEEPING_EVERY) => {}
        }
    }
}
