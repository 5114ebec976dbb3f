//! Discards the dead letters that are older than `dead.kept`. Each worker runs this task.
//!
//! Guarantees: a dead letter that is younger than `dead.kept` stays. Each round that discards dead letters writes one line to the audit log.
//! A round waits for no other reader: if an operator reads the dead letters of a destination, the next round discards them.
//! Not responsible for: discarding by an operator (`cli/dead/`, `ingress/console/`).

use std::time::Duration;

use jiff::Timestamp;

use super::{DeadLetterFilter, FilteredReader};
use crate::clock;
use crate::message::Destination;
use crate::queue::{Queue, QueueError};
use crate::tasks::CancellationToken;
use crate::telemetry::{Act, Ending, Operator, audit};

/// The longest time between two rounds. A short `dead.kept` shortens this time.
const INTERVAL_MAX: Duration = Duration::from_secs(600);
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Discards until the worker stops.
pub(crate) async fn run(queue: Queue, kept: Duration, stop: CancellationToken) -> Result<(), String> {
    let interval = (kept / 10).clamp(INTERVAL_MIN, INTERVAL_MAX);
    loop {
        for destination in queue.destinations().iter() {
            let until = clock::now().checked_sub(kept).map_err(|_| "the clock is before 1970".to_owned())?;
            discard(&queue, destination, until).await;
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn discard(queue: &Queue, destination: Destination, until: Timestamp) {
    let filter = DeadLetterFilter {
        destination: Some(destination),
        until: Some(until),
        ..DeadLetterFilter::default()
    };
    let mut discarded = 0;
    let done = discard_until(queue, destination, &filter, &mut discarded).await;
    if let Err(error) = &done {
        tracing::debug!(%error, %destination, "old dead letters were not discarded");
    }
    if discarded > 0 {
        let by = Operator { name: "dead.kept".to_owned(), from: "worker".to_owned() };
        let ending = if done.is_ok() { Ending::Done(None) } else { Ending::Failed("not all were discarded") };
        audit(Act::Discard, &by, filter.for_audit(), discarded, ending);
    }
}

async fn discard_until(
    queue: &Queue,
    destination: Destination,
    filter: &DeadLetterFilter,
    discarded: &mut u64,
) -> Result<(), QueueError> {
    let mut filtered = FilteredReader::begin(queue, destination, filter).await?;
    let done = remove_oldest(&mut filtered, filter, discarded).await;
    filtered.end().await;
    done
}

/// Dead letters are read in the order of death, so the first younger one ends the round.
async fn remove_oldest(
    filtered: &mut FilteredReader<'_>,
    filter: &DeadLetterFilter,
    discarded: &mut u64,
) -> Result<(), QueueError> {
    while let Some(held) = filtered.dead_letter_reader.next().await? {
        if !filter.matches(&held.dead) {
            break;
        }
        held.remove().await?;
        *discarded += 1;
    }
    Ok(())
}
