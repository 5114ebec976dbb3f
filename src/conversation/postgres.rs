//! The connections to PostgreSQL.
//!
//! Guarantees: after an answer that the server is read-only, no connection that existed then is used again. The address of
//! the database may lead to the new primary by now, but a connection stays with the demoted one. Every connection ends
//! after [`LIFE_MAX`] anyway.
//! Not responsible for: the statements (`directory.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use super::{DirectoryError, schema};

/// The longest life of a connection.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// The time limit of the connection that shows why the pool gets none.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The directory on a server.
#[derive(Clone)]
pub struct PostgresDirectory {
    pool: PgPool,
    options: Arc<PgConnectOptions>,
    read_only_at: Arc<Mutex<Option<Instant>>>,
    /// Each query runs in a transaction and has no name on the server, as a connection pooler in transaction mode demands.
    is_pooled: bool,
}

impl std::fmt::Debug for PostgresDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresDirectory")
    }
}

impl PostgresDirectory {
    pub(super) async fn open(url: &str) -> Result<Self, DirectoryError> {
        let options = schema::open_postgres(url).await?;
        let read_only_at = Arc::new(Mutex::new(None::<Instant>));
        let known = Arc::clone(&read_only_at);
        let pool = schema::postgres_pool().max_lifetime(LIFE_MAX).before_acquire(move |_, connection| {
            let refused = *known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_newer = refused.is_none_or(|at| connection.age < at.elapsed());
            Box::pin(std::future::ready(Ok(is_newer)))
        });
        let pool = pool.connect_lazy_with(options.clone());
        Ok(Self { pool, options: Arc::new(options), read_only_at, is_pooled: schema::is_pooled(url) })
    }

    pub(super) const fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) const fn is_pooled(&self) -> bool {
        self.is_pooled
    }

    /// Notes an answer that the server is read-only.
    pub(super) fn judge<T>(&self, answer: &Result<T, DirectoryError>) {
        if let Err(error) = answer {
            self.note(error);
        }
    }

    /// As [`Self::judge`], for an error.
    pub(super) fn note(&self, error: &DirectoryError) {
        if matches!(error, DirectoryError::ReadOnly(_)) {
            *self.read_only_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Replaces the error of a pool without a connection by the reason that the server gives.
    pub(super) async fn cause(&self, error: DirectoryError) -> DirectoryError {
        match schema::within(CAUSE_TIMEOUT, self.options.connect()).await {
            Ok(connection) => {
                let _ = connection.close().await;
                error
            }
            Err(cause) => {
                let place = format!("PostgreSQL at {}:{}", self.options.get_host(), self.options.get_port());
                cause.at(&place)
            }
        }
    }
}
