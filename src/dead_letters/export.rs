//! Streams all dead letters that match a filter to a client.
//!
//! Guarantees: only a few dead letters are in memory at a time. An error ends the stream with an error, so the client
//! never takes a part for the whole. A client that takes nothing for 30 s is dropped.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{DeadLetterError, DeadLetterFilter, FilteredReader, json};
use crate::queue::Queue;

/// The time limit for a client that takes nothing. A stalled client would block every other dead-letter reader.
const READER_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of an export its client has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Exported {
    /// The number of dead letters.
    pub(crate) letters: u64,
    /// The client has taken all of them.
    pub(crate) complete: bool,
}

/// Writes all matching dead letters with their texts as lines of JSON to a client, which may be slow or disconnect. An
/// error is sent on the same channel.
pub(crate) async fn export(
    queue: &Queue,
    filter: &DeadLetterFilter,
    reader: mpsc::Sender<Result<Bytes, DeadLetterError>>,
) -> Exported {
    let mut exported = Exported::default();
    for destination in filter.destinations(queue) {
        let mut filtered = match FilteredReader::reading(queue, destination, filter).await {
            Ok(filtered) => filtered,
            Err(error) => {
                let _ = reader.send(Err(error.into())).await;
                return exported;
            }
        };
        let mut goes_on = true;
        while goes_on {
            let line = match filtered.next().await {
                Ok(Some(held)) => Ok(Bytes::from(format!("{}\n", json::letter(&held.dead, true)))),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            let failed = line.is_err();
            let taken = tokio::time::timeout(READER_TIMEOUT, reader.send(line)).await;
            goes_on = !failed && matches!(taken, Ok(Ok(())));
            exported.letters += u64::from(goes_on);
        }
        filtered.end().await;
        if !goes_on {
            return exported;
        }
    }
    Exported { complete: true, ..exported }
}
