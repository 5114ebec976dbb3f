//! The connections to PostgreSQL.
//!
//! Guarantees: after an answer that the server is read-only, no connection that existed then is used again. The address of
//! the database may lead to the new primary by now, but a connection stays with the demoted one. Every connection ends
//! after [`LIFE_MAX`] anyway.
//! Not responsible for: the statements (`directory.rs`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use super::{DirectoryError, schema};
use crate::live::Live;

/// The longest life of a connection.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// The time limit of the connection that shows why the pool gets none.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The directory on a server.
#[derive(Clone)]
pub struct PostgresDirectory {
    pool: PgPool,
    url: Live<SecretString>,
    /// The URL of the pool's next connection, and its options.
    used: Arc<Mutex<(Arc<SecretString>, Arc<PgConnectOptions>)>>,
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
    pub(super) async fn open(url: Live<SecretString>) -> Result<Self, DirectoryError> {
        let first = url.get();
        let options = schema::open_postgres(first.expose_secret()).await?;
        let read_only_at = Arc::new(Mutex::new(None::<Instant>));
        let known = Arc::clone(&read_only_at);
        let pool = schema::postgres_pool().max_lifetime(LIFE_MAX).before_acquire(move |_, connection| {
            let refused = *known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_newer = refused.is_none_or(|at| connection.age < at.elapsed());
            Box::pin(std::future::ready(Ok(is_newer)))
        });
        let pool = pool.connect_lazy_with(options.clone());
        let is_pooled = schema::is_pooled(first.expose_secret());
        let used = Arc::new(Mutex::new((first, Arc::new(options))));
        Ok(Self { pool, url, used, read_only_at, is_pooled })
    }

    pub(super) fn pool(&self) -> &PgPool {
        self.options();
        &self.pool
    }

    /// The options of the next connection. A URL that has changed is used from now on.
    fn options(&self) -> Arc<PgConnectOptions> {
        let current = self.url.get();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&used.0, &current) {
            if let Ok(options) = schema::postgres_options(current.expose_secret()) {
                self.pool.set_connect_options(options.clone());
                used.1 = Arc::new(options);
            }
            used.0 = current;
        }
        Arc::clone(&used.1)
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
        let options = self.options();
        match schema::within(CAUSE_TIMEOUT, options.connect()).await {
            Ok(connection) => {
                let _ = connection.close().await;
                error
            }
            Err(cause) => {
                let place = format!("PostgreSQL at {}:{}", options.get_host(), options.get_port());
                cause.at(&place)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_connection_has_the_changed_login() {
        let url: Live<SecretString> = "postgres://first:one@127.0.0.1:1/d".to_owned().into();
        let options = schema::postgres_options(url.get().expose_secret()).unwrap();
        let pool = schema::postgres_pool().connect_lazy_with(options.clone());
        let used = Arc::new(Mutex::new((url.get(), Arc::new(options))));
        let directory = PostgresDirectory {
            pool,
            url: url.clone(),
            used,
            read_only_at: Arc::default(),
            is_pooled: false,
        };
        assert_eq!(directory.pool().connect_options().get_username(), "first");
        url.set("postgres://second:two@127.0.0.1:1/d".to_owned().into());
        assert_eq!(directory.pool().connect_options().get_username(), "second");
        assert_eq!(directory.options().get_username(), "second");
        url.set("no address".to_owned().into());
        assert_eq!(directory.options().get_username(), "second", "an unusable one changes nothing");
    }
}
