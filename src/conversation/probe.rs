//! A test whether the directory can be used, for the health of a process.
//!
//! Guarantees: the test reads every table and writes one row, so that it fails as the statements of the service would:
//! server away, login refused, disk full, read-only, a table gone. The row is the same for the life of a process.
//! Not responsible for: the reaction (`app/watch.rs`).

use super::directory::{Directory, SqliteDirectory, run};
use super::{DedupKey, DirectoryError, statements};
use crate::clock;

impl Directory {
    /// Reads and writes. `key` must be a [`DedupKey::SelfTest`].
    pub async fn probe(&self, key: DedupKey) -> Result<(), DirectoryError> {
        match (self.read_and_write(key).await, self) {
            // The pool waits for a connection and does not say why it gets none.
            (Err(error @ DirectoryError::Unavailable(_)), Self::Postgres(server)) => {
                Err(server.cause(error).await)
            }
            (answer, _) => answer,
        }
    }

    async fn read_and_write(&self, key: DedupKey) -> Result<(), DirectoryError> {
        run!(self, state, changed by |pool| sqlx::query(statements::READ_TABLES).execute(pool))?;
        run!(self, done, changed by |pool| {
            sqlx::query(statements::WRITE_TEST)
                .bind(key.stored())
                .bind(clock::now().as_millisecond())
                .execute(pool)
        })?;
        Ok(())
    }
}
