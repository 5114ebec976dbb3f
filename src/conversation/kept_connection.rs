//! The connection that a reader task keeps from one query to the next.
//!
//! A pool tests a connection when the connection is taken and when it is returned. Each test is a round trip to the server or to
//! another thread, so a busy reader would spend two of three round trips on tests.
//!
//! Guarantees: a connection is kept for [`KEPT_FOR`] at most, and only after a query that succeeded. After an answer that ends
//! the connections of the pool (`postgres.rs`) a kept connection is not used again.
//! Not responsible for: repeating a query whose connection was lost (`reader.rs`).

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Pool, Postgres, Sqlite};
use tokio::time::Instant;

/// Afterwards the rules of the pool decide again, for example about the longest life of a connection.
const KEPT_FOR: Duration = Duration::from_millis(100);

/// The kept connection of a task: the one to its database.
#[derive(Default)]
pub(super) struct KeptConnections {
    pub(super) sqlite: KeptConnection<Sqlite>,
    pub(super) postgres: KeptConnection<Postgres>,
}

impl KeptConnections {
    /// Returns the connection to the pool.
    pub(super) fn release(&mut self) {
        *self = Self::default();
    }
}

/// The place of a kept connection.
pub(super) struct KeptConnection<DB: sqlx::Database>(Option<AcquiredConnection<DB>>);

/// A connection, and when it was taken from the pool.
pub(super) struct AcquiredConnection<DB: sqlx::Database> {
    connection: PoolConnection<DB>,
    since: Instant,
}

impl<DB: sqlx::Database> Default for KeptConnection<DB> {
    fn default() -> Self {
        Self(None)
    }
}

impl<DB: sqlx::Database> KeptConnection<DB> {
    /// Takes the kept connection, or one of the pool. No connection from before `outdated` is used.
    pub(super) async fn acquire(
        &mut self,
        pool: &Pool<DB>,
        outdated: Option<Instant>,
    ) -> Result<AcquiredConnection<DB>, sqlx::Error> {
        if let Some(kept) = self.0.take()
            && kept.since.elapsed() < KEPT_FOR
            && outdated.is_none_or(|outdated| outdated < kept.since)
        {
            return Ok(kept);
        }
        Ok(AcquiredConnection { connection: pool.acquire().await?, since: Instant::now() })
    }

    /// Keeps the connection after a query that succeeded.
    pub(super) fn keep(&mut self, connection: AcquiredConnection<DB>) {
        self.0 = Some(connection);
    }
}

impl<DB: sqlx::Database> Deref for AcquiredConnection<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        &self.connection
    }
}

impl<DB: sqlx::Database> DerefMut for AcquiredConnection<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::sqlite::SqlitePoolOptions;

    #[tokio::test]
    async fn a_kept_connection_is_used_for_a_limited_time_and_not_after_an_outdating_answer() {
        let pool = SqlitePoolOptions::new().max_connections(2).connect_lazy("sqlite::memory:").unwrap();
        let mut kept = KeptConnection::<Sqlite>::default();
        let first = kept.acquire(&pool, None).await.unwrap();
        let since = first.since;
        kept.keep(first);
        let second = kept.acquire(&pool, Some(since.checked_sub(KEPT_FOR).unwrap())).await.unwrap();
        assert_eq!(second.since, since, "the same connection");
        kept.keep(second);
        let third = kept.acquire(&pool, Some(Instant::now())).await.unwrap();
        assert!(third.since > since, "an answer outdated the connection");
        let old = AcquiredConnection { since: third.since.checked_sub(KEPT_FOR).unwrap(), ..third };
        let since = old.since;
        kept.keep(old);
        let fourth = kept.acquire(&pool, None).await.unwrap();
        assert!(fourth.since > since + KEPT_FOR, "the time is over");
        assert!(kept.0.is_none(), "a query that fails keeps nothing");
        kept.keep(fourth);
        drop(kept);
        assert_eq!(pool.size(), 2, "each connection is one of the pool");
    }
}
