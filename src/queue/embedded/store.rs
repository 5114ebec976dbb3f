//! The file of the embedded queue: every SQL statement, one function each.
//!
//! Guarantees: when [`MessageStore::write`] returns `Ok`, the transaction is on disk (WAL with `synchronous = FULL`). Counters and
//! rows change together. No statement takes longer because more messages wait.
//! Not responsible for: when to write and which caller to answer (`writer.rs`), which consumer has which message
//! (`dispatcher.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, named_params, params};

use super::dead_reasons;
use super::row::{self, StoredRow};
use super::stream::{SequenceNumber, StreamId, StreamNumbers};
use crate::data_files;
use crate::message::{DeadLetter, Destination, Destinations, Message, TraceParent};
use crate::queue::waiting_body::SMALL_BYTES;
use crate::queue::{PartitionId, QueueDepth, QueueError, QueueTuning};

/// The schema version of `schema.sql`.
pub(super) const SCHEMA: i64 = 3;
/// How long a write waits for the write of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection to the file.
#[derive(Debug)]
pub(super) struct MessageStore {
    pub(super) connection: Connection,
    numbers: StreamNumbers,
}

/// The counters of one line.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamState {
    pub(super) stream: StreamId,
    pub(super) next: i64,
    /// See `schema.sql`.
    pub(super) in_flight: Option<SequenceNumber>,
}

impl MessageStore {
    /// Opens the file. Creates the file if it is missing.
    pub(super) fn open(path: &Path, tuning: &QueueTuning) -> Result<Self, QueueError> {
        data_files::check_sqlite().map_err(QueueError::Mismatch)?;
        let partitions = tuning.partitions.max(1);
        data_files::prepare_sqlite(path).map_err(|error| {
            let text = format!("the queue's file {} cannot be opened: {error}", path.display());
            QueueError::Unavailable(text)
        })?;
        let opened = Connection::open(path).and_then(|connection| {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.set_prepared_statement_cache_capacity(64);
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "fullfsync", true)?;
            // Deleted messages are overwritten with zeros, because they hold texts of users.
            connection.pragma_update(None, "secure_delete", true)?;
            // The write-ahead log holds 16 MiB between two checkpoints: most messages are acked before a checkpoint copies
            // them.
            connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
            connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
            // 16 MiB, however many messages wait.
            connection.pragma_update(None, "cache_size", -16_384)?;
            Ok(Self { connection, numbers: StreamNumbers::default() })
        });
        let unusable = |error| unusable(path, &error);
        let mut store = opened.map_err(unusable)?;
        store.make(partitions).map_err(unusable)?;
        store.check(path, partitions)?;
        store.add(&tuning.destinations, partitions).map_err(unusable)?;
        store.numbers = store.read_numbers().map_err(unusable)?;
        if let Some(left_out) =
            tuning.destinations.iter().find(|it| store.numbers.dead_letter_stream(*it).is_none())
        {
            return Err(QueueError::Mismatch(format!(
                "the queue in {} has no room for the destination {left_out}: it holds {} destinations of this and earlier settings",
                path.display(),
                StreamNumbers::MAX
            )));
        }
        Ok(store)
    }

    /// Creates the tables in a new file, or upgrades a file of the version before. Another process that opens the file at
    /// the same time waits.
    fn make(&mut self, partitions: u16) -> rusqlite::Result<()> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            tx.execute_batch(include_str!("schema.sql"))?;
            tx.execute("INSERT INTO about VALUES (1, ?, 0, 1)", [partitions])?;
            tx.pragma_update(None, "user_version", SCHEMA)?;
        } else if version == 2 {
            tx.execute_batch(include_str!("schema_2_to_3.sql"))?;
            tx.pragma_update(None, "user_version", SCHEMA)?;
        }
        if version == 0 || version == 2 || version == SCHEMA {
            tx.execute_batch(dead_reasons::INDEX)?;
        }
        tx.commit()
    }

    fn check(&self, path: &Path, partitions: u16) -> Result<(), QueueError> {
        let unusable = |error| unusable(path, &error);
        let connection = &self.connection;
        let version: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unusable)?;
        if version != SCHEMA {
            return Err(QueueError::Mismatch(format!(
                "the queue in {} has schema version {version}, but this program knows version {SCHEMA}: \
                 run the version of causeway that wrote it",
                path.display()
            )));
        }
        let made: u16 =
            connection.query_row("SELECT partitions FROM about", [], |row| row.get(0)).map_err(unusable)?;
        if made != partitions {
            return Err(QueueError::Mismatch(format!(
                "the queue in {} was made with {made} partitions, but queue.partitions is {partitions}: later \
                 messages of a conversation could overtake earlier ones. Set queue.partitions to {made}, or let the \
                 queue run empty, stop, and move the file away",
                path.display()
            )));
        }
        Ok(())
    }

    /// Adds lines for the destinations that the file does not know yet.
    fn add(&mut self, destinations: &Destinations, partitions: u16) -> rusqlite::Result<()> {
        let known = self.read_numbers()?;
        let new: Vec<Destination> =
            destinations.iter().filter(|it| known.dead_letter_stream(*it).is_none()).collect();
        if new.is_empty() {
            return Ok(());
        }
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for destination in new {
            tx.execute(
                "INSERT OR IGNORE INTO destination (number, name)
                 SELECT coalesce(max(number), 0) + 1, ?1 FROM destination HAVING coalesce(max(number), 0) < ?2",
                params![destination.as_str(), StreamNumbers::MAX],
            )?;
            let number = "SELECT number FROM destination WHERE name = ?";
            let number = tx.query_row(number, [destination.as_str()], |row| row.get(0)).optional()?;
            let Some(number) = number else { break };
            for stream in StreamNumbers::new([(destination, number)].into()).all(partitions) {
                tx.execute("INSERT OR IGNORE INTO line (line) VALUES (?)", [stream.0])?;
            }
        }
        tx.commit()
    }

    fn read_numbers(&self) -> rusqlite::Result<StreamNumbers> {
        let mut numbers = BTreeMap::new();
        let mut rows = self.connection.prepare("SELECT name, number FROM destination")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(destination) = Destination::parse(&row.get::<_, String>(0)?) {
                numbers.insert(destination, row.get(1)?);
            }
        }
        Ok(StreamNumbers::new(numbers))
    }

    /// The numbers of the destinations in this file.
    pub(super) fn numbers(&self) -> &StreamNumbers {
        &self.numbers
    }

    /// Copies the write-ahead log into the file and empties the log, which still holds the texts of deleted messages.
    /// Returns `false` at once if another connection is in the way.
    pub(super) fn empty_log(&mut self) -> rusqlite::Result<bool> {
        self.connection.busy_timeout(Duration::ZERO)?;
        let busy =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        self.connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(busy? == 0)
    }

    /// Starts to serve. A crash before [`MessageStore::stopped`] leaves the file marked as not cleanly stopped. Returns the lines,
    /// and how many messages of a partition the last server may have had in flight if it left no note.
    pub(super) fn started(&mut self, prefetch: u16) -> rusqlite::Result<(Vec<StreamState>, u16)> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute("UPDATE line SET lent = NULL WHERE (SELECT clean FROM about) = 0", [])?;
        let out = tx.query_row("SELECT prefetch FROM about", [], |row| row.get(0))?;
        // A line without a consumer since the crash stays unknown, so the larger prefetch must stay recorded.
        tx.execute(
            "UPDATE about SET clean = 0,
             prefetch = iif(EXISTS (SELECT 1 FROM line WHERE lent IS NULL), max(prefetch, ?1), ?1)",
            [prefetch],
        )?;
        let streams = tx
            .prepare("SELECT line, next, lent FROM line")?
            .query_map([], |row| {
                let in_flight: Option<i64> = row.get(2)?;
                Ok(StreamState {
                    stream: StreamId(row.get(0)?),
                    next: row.get(1)?,
                    in_flight: in_flight.map(SequenceNumber),
                })
            })?
            .collect::<Result<_, _>>()?;
        tx.commit()?;
        Ok((streams, out))
    }

    /// Stops serving cleanly, with a note of the last delivered messages.
    pub(super) fn stopped(
        &mut self,
        in_flight: &[(StreamId, Option<SequenceNumber>)],
    ) -> rusqlite::Result<()> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (stream, in_flight) in in_flight {
            tx.execute(
                "UPDATE line SET lent = ?2 WHERE line = ?1",
                params![stream.0, in_flight.map(|seq| seq.0)],
            )?;
        }
        tx.execute("UPDATE about SET clean = 1", [])?;
        tx.commit()
    }

    /// Runs `work` in one transaction, and returns after it is on disk. After an error nothing of the transaction is there.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&mut WriteTransaction<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut writing =
            WriteTransaction { connection: &tx, numbers: &self.numbers, streams: BTreeMap::new() };
        let done = work(&mut writing)?;
        writing.count()?;
        tx.commit()?;
        Ok(done)
    }

    /// Up to `limit` messages of a partition after `after`, each with the size of its body. Bodies above [`SMALL_BYTES`]
    /// are left out.
    pub(super) fn window(
        &self,
        stream: StreamId,
        after: SequenceNumber,
        limit: u16,
    ) -> rusqlite::Result<Vec<(StoredRow<Message>, usize)>> {
        self.connection
            .prepare_cached(
                "SELECT seq, id, kind, lane, accepted_at, replays, digest, iif(length(body) <= ?4, body, x''),
                 request_id, traceparent, length(body)
                 FROM message WHERE seq > ?1 AND seq < ?2 ORDER BY seq LIMIT ?3",
            )?
            .query_map(params![after.0, stream.end().0, limit, SMALL_BYTES as i64], |row| {
                Ok((row::message(row, &self.numbers)?, row.get(10)?))
            })?
            .collect()
    }

    /// The body of a message that is not acked yet.
    pub(super) fn body(&self, seq: SequenceNumber) -> rusqlite::Result<Vec<u8>> {
        self.connection
            .prepare_cached("SELECT body FROM message WHERE seq = ?")?
            .query_row([seq.0], |row| row.get(0))
    }

    /// The last of the first `count` messages of a partition before `before`.
    pub(super) fn nth(
        &self,
        stream: StreamId,
        before: SequenceNumber,
        count: u16,
    ) -> rusqlite::Result<Option<SequenceNumber>> {
        let last: Option<i64> = self.connection.query_row(
            "SELECT max(seq) FROM (SELECT seq FROM message WHERE seq > ? AND seq < ? ORDER BY seq LIMIT ?)",
            params![stream.start().0, before.0, count],
            |row| row.get(0),
        )?;
        Ok(last.map(SequenceNumber))
    }

    /// The first dead letter between `after` and `before`.
    pub(super) fn dead_letter(
        &self,
        after: SequenceNumber,
        before: SequenceNumber,
    ) -> rusqlite::Result<Option<StoredRow<DeadLetter>>> {
        self.connection
            .prepare_cached(
                "SELECT seq, id, kind, lane, accepted_at, replays, digest, body, request_id, traceparent,
                 reason, detail, died_at, story
                 FROM dead_letter WHERE seq > ? AND seq < ? ORDER BY seq LIMIT 1",
            )?
            .query_row(params![after.0, before.0], |row| row::dead_letter(row, &self.numbers))
            .optional()
    }

    /// The position of the next entry of a line.
    pub(super) fn next(&self, stream: StreamId) -> rusqlite::Result<SequenceNumber> {
        let next = self
            .connection
            .prepare_cached("SELECT next FROM line WHERE line = ?")?
            .query_row([stream.0], |row| row.get(0))?;
        Ok(stream.seq(next))
    }

    /// A number that changes when another process has written.
    pub(super) fn others_wrote(&self) -> rusqlite::Result<i64> {
        self.connection
            .prepare_cached("SELECT data_version FROM pragma_data_version")?
            .query_row([], |row| row.get(0))
    }

    /// The messages and dead letters in the file, handed out or not.
    pub(super) fn depth(&self, partitions: u16) -> rusqlite::Result<QueueDepth> {
        let mut depth = QueueDepth::default();
        let mut counters = self.connection.prepare_cached("SELECT line, held FROM line")?;
        let mut rows = counters.query([])?;
        while let Some(row) = rows.next()? {
            let (stream, held) = (StreamId(row.get(0)?), row.get::<_, u64>(1)?);
            match self.numbers.destination(stream) {
                destination if stream.is_dead_letter() => {
                    depth.dead += held;
                    depth.dead_of.extend(destination.map(|destination| (destination, held)));
                }
                Some(destination) => *depth.waiting.entry(destination).or_default() += held,
                None => {}
            }
        }
        let mut head = self.connection.prepare_cached(
            "SELECT accepted_at FROM message WHERE seq > ? AND seq < ? ORDER BY seq LIMIT 1",
        )?;
        for destination in self.numbers.destinations() {
            for partition in PartitionId::all(destination, partitions) {
                let Some(stream) = self.numbers.partition(partition) else { continue };
                let at = head
                    .query_row([stream.start().0, stream.end().0], |row| row.get(0))
                    .optional()?
                    .and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
                if let Some(at) = at {
                    depth
                        .oldest
                        .entry(destination)
                        .and_modify(|oldest| *oldest = at.min(*oldest))
                        .or_insert(at);
                }
            }
        }
        Ok(depth)
    }
}

/// A transaction in progress.
#[derive(Debug)]
pub(super) struct WriteTransaction<'a> {
    connection: &'a Connection,
    numbers: &'a StreamNumbers,
    /// Counters of the changed lines, written once at the end.
    streams: BTreeMap<StreamId, StreamCounters>,
}

#[derive(Debug, Default)]
struct StreamCounters {
    /// Read when needed: another process may have written since the last transaction.
    next: Option<i64>,
    change: i64,
}

impl WriteTransaction<'_> {
    /// The number of messages that are not acked.
    pub(super) fn messages(&self) -> rusqlite::Result<u64> {
        let mut statement = self.connection.prepare_cached("SELECT line, held FROM line")?;
        let mut rows = statement.query([])?;
        let mut held = 0;
        while let Some(row) = rows.next()? {
            if !StreamId(row.get(0)?).is_dead_letter() {
                held += row.get::<_, u64>(1)?;
            }
        }
        Ok(held)
    }

    fn append(&mut self, stream: StreamId) -> rusqlite::Result<SequenceNumber> {
        let counters = self.streams.entry(stream).or_default();
        let next = match counters.next {
            Some(next) => next,
            None => self
                .connection
                .prepare_cached("SELECT next FROM line WHERE line = ?")?
                .query_row([stream.0], |row| row.get(0))?,
        };
        counters.next = Some(next + 1);
        counters.change += 1;
        Ok(stream.seq(next))
    }

    /// `false` if the file knows no such destination.
    pub(super) fn publish(&mut self, partitions: u16, message: &Message) -> rusqlite::Result<bool> {
        let partition = PartitionId::of(message.destination, &message.lane, partitions);
        let Some(stream) = self.numbers.partition(partition) else { return Ok(false) };
        let seq = self.append(stream)?;
        self.connection
            .prepare_cached(
                "INSERT INTO message (seq, id, kind, lane, accepted_at, replays, digest, body, request_id, traceparent)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                seq.0,
                message.id.to_string(),
                message.kind.as_str(),
                message.lane.as_str(),
                message.accepted_at.as_millisecond(),
                message.replays,
                message.digest.map(|digest| digest.to_string()),
                &message.body[..],
                message.trace.request_id.as_deref(),
                message.trace.parent.as_ref().map(TraceParent::as_str),
            ])?;
        Ok(true)
    }

    /// `false` if the file knows no such destination.
    pub(super) fn dead_letter(&mut self, dead: &DeadLetter) -> rusqlite::Result<bool> {
        let message = &dead.message;
        let Some(stream) = self.numbers.dead_letter_stream(message.destination) else { return Ok(false) };
        let seq = self.append(stream)?;
        let story = serde_json::to_string(&dead.story)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        self.connection
            .prepare_cached(
                "INSERT INTO dead_letter
                 (seq, id, kind, lane, accepted_at, replays, digest, body, reason, detail, died_at, story,
                 request_id, traceparent)
                 VALUES (:seq, :id, :kind, :lane, :accepted_at, :replays, :digest, :body, :reason, :detail, :died_at, :story,
                 :request_id, :traceparent)",
            )?
            .execute(named_params! {
                ":seq": seq.0,
                ":id": message.id.to_string(),
                ":kind": message.kind.as_str(),
                ":lane": message.lane.as_str(),
                ":accepted_at": message.accepted_at.as_millisecond(),
                ":replays": message.replays,
                ":digest": message.digest.map(|digest| digest.to_string()),
                ":body": &message.body[..],
                ":reason": dead.reason.as_str(),
                ":detail": dead.detail,
                ":died_at": dead.died_at.as_millisecond(),
                ":story": story,
                ":request_id": message.trace.request_id.as_deref(),
                ":traceparent": message.trace.parent.as_ref().map(TraceParent::as_str),
            })?;
        Ok(true)
    }

    /// Deletes a message or a dead letter.
    pub(super) fn remove(&mut self, seq: SequenceNumber) -> rusqlite::Result<()> {
        let stream = seq.stream();
        let sql = if stream.is_dead_letter() {
            "DELETE FROM dead_letter WHERE seq = ?"
        } else {
            "DELETE FROM message WHERE seq = ?"
        };
        let removed = self.connection.prepare_cached(sql)?.execute([seq.0])?;
        if removed > 0 {
            self.streams.entry(stream).or_default().change -= 1;
        }
        Ok(())
    }

    /// Changes nothing, but must reach the disk, to test whether the file can be written.
    pub(super) fn probe(&mut self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("UPDATE about SET one = 1")?.execute([])?;
        Ok(())
    }

    fn count(&mut self) -> rusqlite::Result<()> {
        let mut update = self
            .connection
            .prepare_cached("UPDATE line SET next = coalesce(?2, next), held = held + ?3 WHERE line = ?1")?;
        for (stream, counters) in &self.streams {
            update.execute(params![stream.0, counters.next, counters.change])?;
        }
        Ok(())
    }
}

/// The error for a file that cannot be opened: a mismatch if an operator must act, otherwise temporary.
fn unusable(path: &Path, error: &rusqlite::Error) -> QueueError {
    let text = format!("the queue's file {} cannot be opened: {error}", path.display());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => QueueError::Mismatch(format!(
            "{text}. It is not a file of this program, or it is damaged: move it away and restore a copy"
        )),
        _ => QueueError::Unavailable(text),
    }
}
