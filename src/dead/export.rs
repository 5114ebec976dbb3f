//! Streams all dead letters that match a filter to a client.
//!
//! Guarantees: only a few dead letters are in memory at a time. An error ends the stream with an error, so the client
//! never takes a part for the whole. A client that takes nothing for 30 s is dropped.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{DeskError, Filter, Visit, document};
use crate::queue::Queue;

/// The time limit for a client that takes nothing. A stalled client would block every other dead-letter reader.
const READER_PATIENCE: Duration = Duration::from_secs(30);

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
    filter: &Filter,
    reader: mpsc::Sender<Result<Bytes, DeskError>>,
) -> Exported {
    let mut exported = Exported::default();
    for destination in filter.destinations(queue) {
        let mut visit = match Visit::reading(queue, destination, filter).await {
            Ok(visit) => visit,
            Err(error) => {
                let _ = reader.send(Err(error.into())).await;
                return exported;
            }
        };
        let mut goes_on = true;
        while goes_on {
            let line = match visit.next().await {
                Ok(Some(held)) => Ok(Bytes::from(format!("{}\n", document::letter(&held.dead, true)))),
                Ok(None) => break,
                Err(error) => Err(error.into()),
            };
            let failed = line.is_err();
            let taken = tokio::time::timeout(READER_PATIENCE, reader.send(line)).await;
            goes_on = !failed && matches!(taken, Ok(Ok(())));
            exported.letters += u64::from(goes_on);
        }
        visit.end().await;
        if !goes_on {
            return exported;
        }
    }
    Exported { complete: true, ..exported }
}
