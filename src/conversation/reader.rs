//! The reader tasks: look up the messages of all lanes of a process together.
//!
//! A query goes to another thread or to the server and back, whatever the number of its messages. So the lookups that arrive
//! while the readers are busy share the next query. A lookup that finds a reader idle runs at once. A busy reader keeps its
//! connection (`kept_connection.rs`).
//!
//! Guarantees: at most [`WAITING_MAX`] lookups wait; further callers wait for room. No lookup waits longer than
//! [`STATEMENT_TIMEOUT`]. A row that cannot be read does not fail the other lookups of its query. A lookup without a caller
//! is not run.
//! Not responsible for: SQL (`statements.rs`), the meaning of a row (`snapshot.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use super::database::{Database, STATEMENT_TIMEOUT, run};
use super::kept_connection::KeptConnections;
use super::schema::within;
use super::snapshot::LookupRow;
use super::{DirectoryError, statements};
use crate::tasks;

/// The number of queries at the same time.
const READERS: usize = 2;
/// The largest number of lookups in one query.
const BATCH_MAX: usize = 64;
/// The largest number of lookups that wait for a query.
const WAITING_MAX: usize = 1_024;
/// A reader without a lookup for this time returns its connection to the pool.
const IDLE_AFTER: Duration = Duration::from_millis(10);
/// A query that fails within this time is repeated, because its connection may have been lost before the query.
const LOST_WITHIN: Duration = Duration::from_secs(1);

/// What is asked about one message.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Lookup {
    /// The id of the conversation, or the group of its chat.
    pub(super) name: String,
    #[serde(serialize_with = "number")]
    pub(super) by_group: bool,
    #[serde(serialize_with = "number")]
    pub(super) with_reply: bool,
    /// The id of the message.
    pub(super) message: String,
}

/// Both databases read a number from JSON in the same way, but not a truth value.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn number<S: serde::Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(u8::from(*value))
}

#[derive(Serialize)]
struct Placed<'a> {
    place: usize,
    #[serde(flatten)]
    lookup: &'a Lookup,
}

type Found = Result<LookupRow, DirectoryError>;

/// A lookup and its caller.
struct WaitingLookup {
    lookup: Lookup,
    reply: oneshot::Sender<Found>,
}

/// The sender of lookups. Cheap to clone. The tasks end when the last sender is dropped.
#[derive(Clone)]
pub(super) struct DirectoryReader {
    sender: mpsc::Sender<WaitingLookup>,
}

impl DirectoryReader {
    /// Starts the tasks.
    pub(super) fn start(database: &Database) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..READERS {
            let (database, receiver) = (database.clone(), Arc::clone(&receiver));
            let task = ReaderTask { database, receiver, kept: KeptConnections::default() };
            tasks::spawn(task.run());
        }
        Self { sender }
    }

    /// Returns the row of one message.
    pub(super) async fn look_up(&self, lookup: Lookup) -> Found {
        within(STATEMENT_TIMEOUT, async {
            let (reply, answer) = oneshot::channel();
            self.sender.send(WaitingLookup { lookup, reply }).await.map_err(|_| DirectoryError::closed())?;
            answer.await.unwrap_or_else(|_| Err(DirectoryError::closed()))
        })
        .await
    }
}

struct ReaderTask {
    database: Database,
    receiver: Arc<Mutex<mpsc::Receiver<WaitingLookup>>>,
    kept: KeptConnections,
}

impl ReaderTask {
    async fn run(mut self) {
        while let Some(batch) = self.gather().await {
            self.answer(batch).await;
        }
    }

    /// Waits for a lookup, and takes all others that wait. `None` if there is no sender any more.
    async fn gather(&mut self) -> Option<Vec<WaitingLookup>> {
        let next = async {
            let mut receiver = self.receiver.lock().await;
            let first = receiver.recv().await;
            (receiver, first)
        };
        tokio::pin!(next);
        let (mut receiver, first) = match tokio::time::timeout(IDLE_AFTER, &mut next).await {
            Ok(next) => next,
            Err(_) => {
                self.kept.release();
                next.await
            }
        };
        let mut batch = vec![first?];
        while batch.len() < BATCH_MAX
            && let Ok(next) = receiver.try_recv()
        {
            batch.push(next);
        }
        drop(receiver);
        batch.retain(|waiting| !waiting.reply.is_closed());
        Some(batch)
    }

    async fn answer(&mut self, batch: Vec<WaitingLookup>) {
        match self.query(batch.iter().map(|waiting| &waiting.lookup)).await {
            Ok(mut rows) => {
                for (place, waiting) in batch.into_iter().enumerate() {
                    let missing = || DirectoryError::Mismatch("a lookup has no row".to_owned());
                    // The caller may have gone.
                    let _ = waiting.reply.send(rows.remove(&place).ok_or_else(missing));
                }
            }
            Err(DirectoryError::Mismatch(_)) if batch.len() > 1 => {
                for waiting in batch {
                    Box::pin(self.answer(vec![waiting])).await;
                }
            }
            Err(error) => {
                for waiting in batch {
                    let _ = waiting.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// The row of each lookup, by its place.
    async fn query(
        &mut self,
        lookups: impl Iterator<Item = &Lookup>,
    ) -> Result<HashMap<usize, LookupRow>, DirectoryError> {
        let list: Vec<Placed<'_>> =
            lookups.enumerate().map(|(place, lookup)| Placed { place, lookup }).collect();
        if list.is_empty() {
            return Ok(HashMap::new());
        }
        let list =
            serde_json::to_string(&list).map_err(|error| DirectoryError::Mismatch(error.to_string()))?;
        let started = Instant::now();
        let mut rows = self.rows(&list).await;
        if rows.is_err() && started.elapsed() < LOST_WITHIN {
            rows = self.rows(&list).await;
        }
        let placed = rows?.into_iter().filter_map(|row| Some((usize::try_from(row.place).ok()?, row)));
        Ok(placed.collect())
    }

    async fn rows(&mut self, list: &str) -> Result<Vec<LookupRow>, DirectoryError> {
        let sql = match self.database {
            Database::Sqlite(_) => statements::LOOK_UP_SQLITE,
            Database::Postgres(_) => statements::LOOK_UP_POSTGRES,
        };
        run!(self, reader, kept self.kept, |connection| {
            sqlx::query_as(sql).persistent(self.database.prepares()).bind(list).fetch_all(connection)
        })
    }
}
