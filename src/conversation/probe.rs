//! A test whether the directory can be used, and what stands between this process and the server, for the health of a
//! process.
//!
//! Guarantees: the test reads every table and writes one row, so that it fails as the statements of the service would:
//! server away, login refused, disk full, read-only, a table gone. The row is the same for the life of a process. The test
//! migrates the tables if the server was away at the start.
//! Not responsible for: the reaction (`app/watch.rs`).

use super::database::{Database, run};
use super::directory::Directory;
use super::schema::OPEN_TIMEOUT;
use super::{DedupKey, DirectoryError, statements};
use crate::clock;

impl Directory {
    /// Reads and writes. `key` must be a [`DedupKey::SelfTest`].
    pub async fn probe(&self, key: DedupKey) -> Result<(), DirectoryError> {
        if let Database::Postgres(server) = &self.database {
            server.migrate(OPEN_TIMEOUT).await?;
        }
        match (self.read_and_write(key).await, &self.database) {
            // The pool waits for a connection and does not say why it gets none.
            (Err(error @ DirectoryError::Unavailable(_)), Database::Postgres(server)) => {
                Err(server.cause(error).await)
            }
            (answer, _) => answer,
        }
    }

    async fn read_and_write(&self, key: DedupKey) -> Result<(), DirectoryError> {
        let _: Option<(i32,)> =
            run!(self, |pool| self.query_as(statements::READ_TABLES).fetch_optional(pool))?;
        let key = key.stored();
        self.execute(statements::WRITE_TEST, [key.as_str().into(), clock::now().into()]).await.map(|_| ())
    }

    /// Whether a connection pooler stands before the server.
    pub fn is_pooled(&self) -> bool {
        matches!(&self.database, Database::Postgres(server) if server.is_pooled())
    }

    /// Reads the certificate of the server, for `tls::seen`. A failure is that of the directory and is found by
    /// [`Self::probe`].
    pub async fn look_at_certificate(&self) {
        if let Database::Postgres(server) = &self.database {
            server.look_at_certificate().await;
        }
    }
}
