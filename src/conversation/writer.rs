//! The writer task: collects the writes of all lanes of a process and commits them together.
//!
//! One commit costs the disk or the server as much as hundreds of rows do. So writes that arrive within [`GATHER_TIME`]
//! share one transaction.
//!
//! Guarantees: a write is answered only after the commit of its transaction. The statements of one write are committed
//! together or not at all. A write that the database refuses does not fail the other writes of its batch. At most
//! [`WAITING_MAX`] writes wait; further callers wait for room. No write waits longer than [`STATEMENT_TIMEOUT`]. A write
//! without a caller is not run.
//! Not responsible for: SQL (`statements.rs`), the meaning of a write (`write.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus::Histogram;
use sqlx::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::database::{Database, STATEMENT_TIMEOUT};
use super::schema::within;
use super::statements::{self, ManyText};
use super::write::{ManyRows, SqlValue, Statement};
use super::{DirectoryError, pooler};
use crate::tasks::{self, CancellationToken};

/// How long a batch collects further writes, counted from its first write. The first write after a pause does not wait.
const GATHER_TIME: Duration = Duration::from_millis(3);
/// The largest number of writes in one transaction.
const BATCH_MAX: usize = 256;
/// The largest number of writes that wait for a batch.
const WAITING_MAX: usize = 1_024;

/// The number of rows that the first statement of a write changed; 0 if a batch runs the statement together for all rows.
type Changed = Result<u64, DirectoryError>;

/// A write and its caller.
struct WaitingWrite {
    statements: Vec<Statement>,
    reply: oneshot::Sender<Changed>,
}

/// What the writer has done. Shared by all handles.
#[derive(Debug, Default)]
struct CommitStatistics {
    commits: AtomicU64,
    seconds: OnceLock<Histogram>,
}

/// The sender of writes. Cheap to clone. The task ends when the last sender is dropped.
#[derive(Clone)]
pub(super) struct DirectoryWriter {
    sender: mpsc::Sender<WaitingWrite>,
    statistics: Arc<CommitStatistics>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    stop: CancellationToken,
}

impl DirectoryWriter {
    /// Starts the task.
    pub(super) fn start(database: Database) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let (statistics, stop) = (Arc::<CommitStatistics>::default(), CancellationToken::default());
        let task = WriterTask { database, receiver, statistics: statistics.clone(), shares: false };
        let task = tasks::spawn(task.run(stop.clone()));
        Self { sender, statistics, task: Arc::new(Mutex::new(Some(task))), stop }
    }

    /// Returns after the commit.
    pub(super) async fn write(&self, statements: Vec<Statement>) -> Changed {
        within(STATEMENT_TIMEOUT, async {
            let (reply, answer) = oneshot::channel();
            let write = WaitingWrite { statements, reply };
            self.sender.send(write).await.map_err(|_| DirectoryError::closed())?;
            answer.await.unwrap_or_else(|_| Err(DirectoryError::closed()))
        })
        .await
    }

    /// Every later commit is measured by this histogram.
    pub(super) fn measure(&self, seconds: Histogram) {
        // A second histogram is a mistake of the caller, and the first one stays.
        let _ = self.statistics.seconds.set(seconds);
    }

    pub(super) fn commits(&self) -> u64 {
        self.statistics.commits.load(Ordering::Relaxed)
    }

    /// Commits the waiting writes and ends the task.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // The task has ended in any case.
            let _ = task.await;
        }
    }
}

/// Why a batch was not committed.
struct BatchError {
    error: sqlx::Error,
    /// The database refused a statement, possibly because of its values. The other writes may be fine.
    is_of_one_write: bool,
}

impl From<sqlx::Error> for BatchError {
    fn from(error: sqlx::Error) -> Self {
        Self { error, is_of_one_write: false }
    }
}

fn refused(error: sqlx::Error) -> BatchError {
    let is_lost = matches!(error, sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed | sqlx::Error::PoolClosed);
    BatchError { error, is_of_one_write: !is_lost }
}

struct WriterTask {
    database: Database,
    receiver: mpsc::Receiver<WaitingWrite>,
    statistics: Arc<CommitStatistics>,
    /// The last batch had several writes, so more are likely to come.
    shares: bool,
}

impl WriterTask {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                first = self.receiver.recv() => first,
                () = stop.cancelled() => {
                    // The writes that wait already are still committed.
                    self.receiver.close();
                    self.receiver.recv().await
                }
            };
            let Some(first) = first else { return };
            let batch = self.gather(first).await;
            self.shares = batch.len() > 1;
            self.commit(batch).await;
        }
    }

    /// Collects the writes of one transaction.
    async fn gather(&mut self, first: WaitingWrite) -> Vec<WaitingWrite> {
        let mut batch = vec![first];
        let until = Instant::now() + GATHER_TIME;
        while batch.len() < BATCH_MAX {
            let next = match self.receiver.try_recv() {
                Ok(next) => Some(next),
                Err(_) if !self.shares => None,
                Err(_) => tokio::time::timeout_at(until, self.receiver.recv()).await.ok().flatten(),
            };
            match next {
                Some(next) => batch.push(next),
                None => break,
            }
        }
        // Their callers gave up, for example while the database was away.
        batch.retain(|write| !write.reply.is_closed());
        batch
    }

    async fn commit(&self, batch: Vec<WaitingWrite>) {
        if batch.is_empty() {
            return;
        }
        if let Database::Postgres(server) = &self.database
            && let Err(error) = server.has_tables()
        {
            return answer_all(batch, &error);
        }
        let until = Instant::now() + STATEMENT_TIMEOUT;
        let together: Vec<&[Statement]> = batch.iter().map(|write| write.statements.as_slice()).collect();
        match self.transaction(&together, until).await {
            Ok(changed) => {
                for (write, changed) in batch.into_iter().zip(changed) {
                    // The caller may have gone.
                    let _ = write.reply.send(Ok(changed));
                }
            }
            Err(BatchError { is_of_one_write: true, .. }) if batch.len() > 1 => {
                self.one_by_one(batch, until).await;
            }
            Err(BatchError { error, .. }) => answer_all(batch, &self.noted(error)),
        }
    }

    /// Repeats a refused batch with a transaction for each write, so that only the refused write fails.
    async fn one_by_one(&self, batch: Vec<WaitingWrite>, until: Instant) {
        let mut batch = batch.into_iter();
        while let Some(write) = batch.next() {
            match self.transaction(&[&write.statements], until).await {
                Ok(changed) => {
                    let _ = write.reply.send(Ok(changed.into_iter().sum()));
                }
                Err(BatchError { error, is_of_one_write: true }) => {
                    let _ = write.reply.send(Err(self.noted(error)));
                }
                // The database is away, so the other writes would fail after the same wait.
                Err(BatchError { error, .. }) => {
                    let error = self.noted(error);
                    let _ = write.reply.send(Err(error.clone()));
                    return answer_all(batch.collect(), &error);
                }
            }
        }
    }

    /// The error for the caller. After an answer that the server is read-only its connections are not used again.
    fn noted(&self, error: sqlx::Error) -> DirectoryError {
        let error = error.into();
        if let Database::Postgres(server) = &self.database {
            server.note(&error);
        }
        error
    }

    async fn transaction(&self, writes: &[&[Statement]], until: Instant) -> Result<Vec<u64>, BatchError> {
        let started = Instant::now();
        let mut committed = self.commit_until(writes, until).await;
        if let (Err(BatchError { error: sqlx::Error::Database(answer), .. }), Database::Postgres(server)) =
            (&committed, &self.database)
            && pooler::is_lost_session(&**answer)
        {
            server.note(&DirectoryError::Pooled(String::new()));
            committed = self.commit_until(writes, until).await;
        }
        let changed = committed?;
        self.statistics.commits.fetch_add(1, Ordering::Relaxed);
        if let Some(seconds) = self.statistics.seconds.get() {
            seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(changed)
    }

    async fn commit_until(&self, writes: &[&[Statement]], until: Instant) -> Result<Vec<u64>, BatchError> {
        let committed = tokio::time::timeout_at(until, self.database.commit(writes)).await;
        committed.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
    }
}

fn answer_all(batch: Vec<WaitingWrite>, error: &DirectoryError) {
    for write in batch {
        let _ = write.reply.send(Err(error.clone()));
    }
}

/// Runs one statement on a connection.
macro_rules! execute {
    ($connection:expr, $statement:expr, $is_prepared:expr) => {{
        let statement: &Statement = $statement;
        let mut query = sqlx::query(statement.sql).persistent($is_prepared);
        for value in &statement.values {
            query = match value {
                SqlValue::Text(text) => query.bind(text.as_deref()),
                SqlValue::Integer(number) => query.bind(*number),
            };
        }
        query.execute($connection).await.map_err(refused).map(|done| done.rows_affected())
    }};
}

/// Runs the statements of one write. The value is the number of rows that the first one changed.
macro_rules! execute_write {
    ($transaction:expr, $statements:expr, $is_prepared:expr) => {{
        let mut first = None;
        for statement in $statements {
            if statement.applies(first.unwrap_or(0)) {
                let rows = execute!(&mut *$transaction, statement, $is_prepared)?;
                first.get_or_insert(rows);
            }
        }
        first.unwrap_or(0)
    }};
}

/// Runs the statements of many writes. The value holds the number of changed rows of each write.
macro_rules! execute_batch {
    ($transaction:expr, $writes:expr, $is_prepared:expr, $execute_many:expr) => {{
        let mut changed = Vec::with_capacity($writes.len());
        for write in $writes {
            let single = write.iter().filter(|statement| statement.many.is_none());
            changed.push(execute_write!($transaction, single, $is_prepared));
        }
        for (ManyRows::Insert(sql) | ManyRows::Update(sql), rows) in together($writes, &changed) {
            $execute_many(&mut $transaction, sql, &rows, $is_prepared).await?;
        }
        changed
    }};
}

impl Database {
    /// Commits these writes together. Returns the number of changed rows of each write.
    async fn commit(&self, writes: &[&[Statement]]) -> Result<Vec<u64>, BatchError> {
        match self {
            Self::Sqlite(pools) => {
                let prepared = self.prepares();
                let mut connection = pools.writer.acquire().await?;
                if let [[statement]] = writes {
                    return Ok(vec![execute!(&mut *connection, statement, prepared)?]);
                }
                let mut transaction = connection.begin_with(statements::BEGIN_SQLITE).await?;
                let changed = execute_batch!(transaction, writes, prepared, execute_many_sqlite);
                transaction.commit().await?;
                Ok(changed)
            }
            Self::Postgres(server) => {
                let mut connection = server.pool().acquire().await?;
                let prepared = self.prepares();
                if let ([[statement]], true) = (writes, prepared) {
                    return Ok(vec![execute!(&mut *connection, statement, prepared)?]);
                }
                let mut transaction = connection.begin_with(statements::BEGIN_POSTGRES).await?;
                let changed = execute_batch!(transaction, writes, prepared, execute_many_postgres);
                transaction.commit().await?;
                Ok(changed)
            }
        }
    }
}

/// The rows of each statement that runs once for all rows, in the order of their keys. The order is the same in every
/// process, so that two transactions do not wait for each other.
fn together<'a>(writes: &[&'a [Statement]], changed: &[u64]) -> BTreeMap<ManyRows, Vec<&'a [SqlValue]>> {
    let mut found: BTreeMap<ManyRows, BTreeMap<&str, Vec<&'a [SqlValue]>>> = BTreeMap::new();
    let of_write = |(write, changed): (&&'a [Statement], &u64)| {
        let changed = *changed;
        write.iter().filter(move |statement| statement.applies(changed))
    };
    for statement in writes.iter().zip(changed).flat_map(of_write) {
        let (Some(many), Some(SqlValue::Text(Some(key)))) = (statement.many, statement.values.first()) else {
            continue;
        };
        let rows = found.entry(many).or_default().entry(key).or_default();
        if matches!(many, ManyRows::Update(_)) {
            rows.clear();
        }
        rows.push(&statement.values);
    }
    found.into_iter().map(|(many, rows)| (many, rows.into_values().flatten().collect())).collect()
}

/// Runs one statement for many rows. The rows are one JSON text, because each statement is handed to the thread of the
/// connection and back, which costs more than the row itself.
async fn execute_many_sqlite(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    text: ManyText,
    rows: &[&[SqlValue]],
    prepared: bool,
) -> Result<(), BatchError> {
    let rows = serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let query = sqlx::query(text.sqlite).persistent(prepared).bind(rows);
    query.execute(&mut **transaction).await.map_err(refused)?;
    Ok(())
}

/// Runs one statement for many rows. Each column is an array.
async fn execute_many_postgres(
    transaction: &mut sqlx::Transaction<'_, sqlx::Postgres>,
    text: ManyText,
    rows: &[&[SqlValue]],
    prepared: bool,
) -> Result<(), BatchError> {
    let Some(first) = rows.first() else { return Ok(()) };
    let mut query = sqlx::query(text.postgres).persistent(prepared);
    for (column, kind) in first.iter().enumerate() {
        let values = rows.iter().filter_map(|row| row.get(column));
        query = match kind {
            SqlValue::Text(_) => {
                let texts = values.map(|value| match value {
                    SqlValue::Text(text) => text.clone(),
                    SqlValue::Integer(_) => None,
                });
                query.bind(texts.collect::<Vec<Option<String>>>())
            }
            SqlValue::Integer(_) => {
                let numbers = values.map(|value| match value {
                    SqlValue::Integer(number) => *number,
                    SqlValue::Text(_) => None,
                });
                query.bind(numbers.collect::<Vec<Option<i64>>>())
            }
        };
    }
    query.execute(&mut **transaction).await.map_err(refused)?;
    Ok(())
}
