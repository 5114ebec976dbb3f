//! The connections to the database, and the one way to run a query on either database.
//!
//! Guarantees: no query takes longer than [`STATEMENT_TIMEOUT`]. After an answer that ends the connections of a server the query
//! runs once more.
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
    (@server $server:ident, $kept:expr, |$pool:ident| $query:expr) => {{
        let statement = async {
            let mut connection = $kept.acquire($server.pool(), $server.outdated_before()).await?;
            let answer = if $server.is_pooled() {
                let begin = $crate::conversation::statements::BEGIN_POSTGRES;
                let mut transaction = sqlx::Connection::begin_with(&mut *connection, begin).await?;
                let $pool = &mut *transaction;
                let answer = $query.await?;
                transaction.commit().await?;
                answer
            } else {
                let $pool = &mut *connection;
                $query.await?
            };
            $kept.keep(connection);
            Ok::<_, sqlx::Error>(answer)
        };
        $crate::conversation::schema::within($crate::conversation::database::STATEMENT_TIMEOUT, statement)
            .await
    }};
    (@postgres $server:ident, $kept:expr, |$pool:ident| $query:expr) => {
        match $server.has_tables() {
            Ok(()) => {
                let mut answer = run!(@server $server, $kept, |$pool| $query);
                if $server.judge(&answer) {
                    answer = run!(@server $server, $kept, |$pool| $query);
                }
                answer
            }
            Err(error) => Err(error),
        }
    };
    ($directory:expr, |$pool:ident| $query:expr) => {
        run!($directory, reader, |$pool| $query)
    };
    ($directory:expr, kept $kept:expr, |$pool:ident| $query:expr) => {
        match &$directory.database {
            $crate::conversation::database::Database::Sqlite(pools) => {
                let statement = async {
                    let mut connection = $kept.sqlite.acquire(&pools.reader, None).await?;
                    let $pool = &mut *connection;
                    let answer = $query.await?;
                    $kept.sqlite.keep(connection);
                    Ok::<_, sqlx::Error>(answer)
                };
                let limit = $crate::conversation::database::STATEMENT_TIMEOUT;
                $crate::conversation::schema::within(limit, statement).await
            }
            $crate::conversation::database::Database::Postgres(server) => {
                run!(@postgres server, $kept.postgres, |$pool| $query)
            }
        }
    };
    ($directory:expr, $which:ident, |$pool:ident| $query:expr) => {
        match &$directory.database {
            $crate::conversation::database::Database::Sqlite(pools) => {
                let $pool = &pools.$which;
                let limit = $crate::conversation::database::STATEMENT_TIMEOUT;
                $crate::conversation::schema::within(limit, $query).await
            }
            $crate::conversation::database::Database::Postgres(server) => {
                let mut kept = $crate::conversation::kept_connection::KeptConnection::default();
                run!(@postgres server, kept, |$pool| $query)
            }
        }
    };
}

pub(super) use run;
