//! Deletes old rows.
//!
//! Guarantees: a statement deletes at most [`BITE`] rows, so that other writes do not wait long. Without an old row nothing is written.
//! Not responsible for: how long rows are kept (`app/housekeeping.rs`).

use jiff::Timestamp;

use super::database::{Database, STATEMENT_TIMEOUT, run};
use super::directory::Directory;
use super::{DirectoryError, schema, statements};

/// The rows that one statement deletes.
const BITE: i64 = 1_000;

impl Directory {
    /// Deletes facts of [`Self::mark_done`], rows of the journal, and closed conversations whose last change is older than
    /// the given times. Returns the number of deleted rows.
    pub async fn forget(
        &self,
        done_before: Timestamp,
        settled_before: Timestamp,
        closed_before: Timestamp,
    ) -> Result<u64, DirectoryError> {
        let done = self.delete(statements::OLD_DONE, statements::FORGET_DONE, done_before).await?;
        let settled =
            self.delete(statements::OLD_JOURNAL, statements::FORGET_JOURNAL, settled_before).await?;
        let closed = self.delete(statements::OLD_CLOSED, statements::FORGET_CLOSED, closed_before).await?;
        Ok(done + settled + closed)
    }

    async fn delete(
        &self,
        old: &'static str,
        delete: &'static str,
        before: Timestamp,
    ) -> Result<u64, DirectoryError> {
        let mut all = 0;
        loop {
            let found: Option<(i32,)> =
                run!(self, |pool| { self.query_as(old).bind(before.as_millisecond()).fetch_optional(pool) })?;
            if found.is_none() {
                return Ok(all);
            }
            let bite = self.execute(delete, [before.into(), BITE.into()]).await?;
            if bite == 0 {
                return Ok(all);
            }
            all += bite;
        }
    }

    /// Empties the write-ahead log of a SQLite file, which still contains deleted rows. Does nothing for PostgreSQL.
    pub async fn empty_log(&self) -> Result<(), DirectoryError> {
        let Database::Sqlite(pools) = &self.database else { return Ok(()) };
        let emptied = sqlx::query(statements::EMPTY_LOG_SQLITE).execute(&pools.writer);
        schema::within(STATEMENT_TIMEOUT, emptied).await.map(|_| ())
    }
}
