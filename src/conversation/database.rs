//! The connections to the database, and the one way to run a query on either database.
//!
//! Guarantees: no try of a query takes longer than [`STATEMENT_TIMEOUT`]. A query that found a connection pooler runs once more.
//! Not responsible for: SQL (`statements.rs`), transactions of several statements (`writer.rs`).

use std::time::Duration;

use super::postgres::PostgresDirectory;
use super::schema::SqlitePools;

/// The time limit of one statement, including the wait for a connection. After this the directory counts as unavailable.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections to the database.
#[derive(Clone)]
pub(super) enum Database {
    /// A file.
    Sqlite(SqlitePools),
    /// A server.
    Postgres(PostgresDirectory),
}

impl Database {
    /// Whether statements keep a name on the server, so that they are prepared once for each connection. The connection
    /// must be acquired before.
    pub(super) fn prepares(&self) -> bool {
        !matches!(self, Self::Postgres(server) if server.is_pooled())
    }
}

/// Runs one query on the configured database. SQLite has a pool for queries, `reader`, and one for writes, `writer`. With
/// `kept` the connection is kept for the next query of the same task.
macro_rules! run {
    (@timed $statement:expr) => {{
        let limit = $crate::conversation::database::STATEMENT_TIMEOUT;
        $crate::conversation::schema::within(limit, $statement).await
    }};
    (@sqlite $pool:expr, $kept:expr, |$connection:ident| $query:expr) => {{
        let statement = async {
            let mut acquired = $kept.acquire($pool, None).await?;
            let $connection = &mut *acquired;
            let answer = $query.await?;
            $kept.keep(acquired);
            Ok::<_, sqlx::Error>(answer)
        };
        run!(@timed statement)
    }};
    (@postgres $server:ident, $kept:expr, |$connection:ident| $query:expr) => {{
        let statement = async {
            let mut acquired = $kept.acquire($server.pool(), $server.outdated_before()).await?;
            let answer = if $server.is_pooled() {
                let begin = $crate::conversation::statements::BEGIN_POSTGRES;
                let mut transaction = sqlx::Connection::begin_with(&mut *acquired, begin).await?;
                let $connection = &mut *transaction;
                let answer = $query.await?;
                transaction.commit().await?;
                answer
            } else {
                let $connection = &mut *acquired;
                $query.await?
            };
            $kept.keep(acquired);
            Ok::<_, sqlx::Error>(answer)
        };
        run!(@timed statement)
    }};
    ($directory:expr, |$connection:ident| $query:expr) => {
        run!($directory, reader, |$connection| $query)
    };
    ($directory:expr, $pool:ident, |$connection:ident| $query:expr) => {{
        let mut kept = $crate::conversation::kept_connection::KeptConnections::default();
        run!($directory, $pool, kept kept, |$connection| $query)
    }};
    ($directory:expr, $pool:ident, kept $kept:expr, |$connection:ident| $query:expr) => {
        match &$directory.database {
            $crate::conversation::database::Database::Sqlite(pools) => {
                run!(@sqlite &pools.$pool, $kept.sqlite, |$connection| $query)
            }
            $crate::conversation::database::Database::Postgres(server) => match server.has_tables() {
                Ok(()) => {
                    let mut answer = run!(@postgres server, $kept.postgres, |$connection| $query);
                    if server.judge(&answer) {
                        answer = run!(@postgres server, $kept.postgres, |$connection| $query);
                    }
                    answer
                }
                Err(error) => Err(error),
            },
        }
    };
}

pub(super) use run;
