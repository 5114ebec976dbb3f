//! All dead letters that are meant, poured out to a reader elsewhere.
//!
//! Guarantees: memory holds a few at a time; a reader never takes a part for the whole; one who stalls is given up.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{DeskError, Filter, Visit, document};
use crate::queue::Queue;

/// A reader of an export that takes nothing for this long holds up everybody else's visit, and is given up.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// Writes all that is meant with their texts, a line of JSON each, to a reader who may be slow or go away. An error goes
/// the same way, so that a reader never takes a part for the whole.
pub(crate) async fn export(queue: &Queue, filter: &Filter, reader: mpsc::Sender<Result<Bytes, DeskError>>) {
    for destination in filter.destinations(queue) {
        let mut visit = match Visit::reading(queue, destination, filter).await {
            Ok(visit) => visit,
            Err(error) => return drop(reader.send(Err(error.into())).await),
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
        }
        visit.end().await;
        if !goes_on {
            return;
        }
    }
}
