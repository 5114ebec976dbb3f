//! The connections to PostgreSQL.
//!
//! Guarantees: after an answer that the server is read-only, no connection that existed then is used again. The address of
//! the database may lead to the new primary by now, but a connection stays with the demoted one. The same holds after an
//! answer that shows a connection pooler, because an older connection may have statements with names. Every connection
//! ends after [`LIFE_MAX`] anyway. A server that is away when the process starts prepares its tables when it is back; until
//! then every call fails at once.
//! Not responsible for: the statements (`directory.rs`), finding a pooler (`pooler.rs`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPool, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use super::pooler::PoolerDetection;
use super::{DirectoryError, schema};
use crate::live::Live;
use crate::tls;

/// The longest life of a connection.
const LIFE_MAX: Duration = Duration::from_secs(300);
/// The longest wait of a start for the tables. After this time the process starts without the directory.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of the connection that shows why the pool gets none.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The directory on a server.
#[derive(Clone)]
pub struct PostgresDirectory {
    pool: PgPool,
    url: Live<SecretString>,
    /// The URL of the pool's next connection, and its options.
    used: Arc<Mutex<(Arc<SecretString>, Arc<PgConnectOptions>)>>,
    /// No connection that was opened before this time is used again.
    outdated_before: Arc<Mutex<Option<Instant>>>,
    pooler: PoolerDetection,
    tables: Arc<TablesState>,
}

/// Whether the tables have been migrated by this process.
#[derive(Debug, Default)]
struct TablesState {
    are_ready: AtomicBool,
    failure: Mutex<Option<DirectoryError>>,
}

impl std::fmt::Debug for PostgresDirectory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresDirectory")
    }
}

impl PostgresDirectory {
    /// Connects and migrates the tables.
    pub(super) async fn open(url: Live<SecretString>) -> Result<Self, DirectoryError> {
        let server = Self::new(url)?;
        server.migrate(schema::OPEN_TIMEOUT).await?;
        Ok(server)
    }

    /// As [`Self::open`], but an error that can heal without a change of the settings is returned beside the server.
    pub(super) async fn start(
        url: Live<SecretString>,
    ) -> Result<(Self, Option<DirectoryError>), DirectoryError> {
        let server = Self::new(url)?;
        match server.migrate(START_TIMEOUT).await {
            Ok(()) => Ok((server, None)),
            Err(error) if error.can_heal() => Ok((server, Some(error))),
            Err(error) => Err(error),
        }
    }

    fn new(url: Live<SecretString>) -> Result<Self, DirectoryError> {
        let first = url.get();
        let options = schema::postgres_options(first.expose_secret())?;
        let pooler = PoolerDetection::new(first.expose_secret());
        let outdated_before = Arc::new(Mutex::new(None::<Instant>));
        let (known, examined) = (Arc::clone(&outdated_before), pooler.clone());
        let pool = schema::postgres_pool()
            .max_lifetime(LIFE_MAX)
            .after_connect(move |connection, _| {
                let pooler = examined.clone();
                Box::pin(async move { pooler.examine(connection).await })
            })
            .before_acquire(move |_, connection| {
                let outdated = *known.lock().unwrap_or_else(PoisonError::into_inner);
                let is_newer = outdated.is_none_or(|at| connection.age < at.elapsed());
                Box::pin(std::future::ready(Ok(is_newer)))
            });
        let pool = pool.connect_lazy_with(pooler.options(options.clone()));
        let used = Arc::new(Mutex::new((first, Arc::new(options))));
        Ok(Self { pool, url, used, outdated_before, pooler, tables: Arc::default() })
    }

    /// Migrates the tables, unless this process has done so.
    pub(super) async fn migrate(&self, limit: Duration) -> Result<(), DirectoryError> {
        if self.tables.are_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let migrated = schema::migrate_postgres(&self.options(), &self.pooler, limit).await;
        let failure = migrated.as_ref().err().cloned();
        *self.tables.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        migrated?;
        if self.pooler.is_pooled() {
            self.pool.set_connect_options((*self.options()).clone());
        }
        self.tables.are_ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Fails until the tables are migrated, with the reason.
    pub(super) fn has_tables(&self) -> Result<(), DirectoryError> {
        if self.tables.are_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let failure = self.tables.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(failure
            .unwrap_or_else(|| DirectoryError::Unavailable("its tables are being prepared".to_owned())))
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
                self.pool.set_connect_options(self.pooler.options(options.clone()));
                used.1 = Arc::new(options);
            }
            used.0 = current;
        }
        Arc::clone(&used.1)
    }

    /// Whether each query runs in a transaction and has no name on the server. A connection must be acquired before:
    /// opening one may find the pooler.
    pub(super) fn is_pooled(&self) -> bool {
        self.pooler.is_pooled()
    }

    /// Notes an answer that ends the connections. Returns whether the statement was not run and has to be tried again.
    pub(super) fn judge<T>(&self, answer: &Result<T, DirectoryError>) -> bool {
        answer.as_ref().is_err_and(|error| self.note(error))
    }

    /// As [`Self::judge`], for an error.
    pub(super) fn note(&self, error: &DirectoryError) -> bool {
        match error {
            DirectoryError::ReadOnly(_) => self.end_connections(),
            DirectoryError::Pooled(_) => {
                self.pooler.found();
                self.pool.set_connect_options((*self.options()).clone());
                self.end_connections();
                return true;
            }
            _ => {}
        }
        false
    }

    /// Reads the certificate of the server, unless the URL forbids TLS or names a socket.
    pub(super) async fn look_at_certificate(&self) {
        let options = self.options();
        if options.get_socket().is_some()
            || matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow)
        {
            return;
        }
        let look = tls::look_at_postgres(options.get_host(), options.get_port());
        if let Ok(Err(error)) = tokio::time::timeout(CAUSE_TIMEOUT, look).await {
            tracing::debug!(%error, "cannot read the certificate of PostgreSQL");
        }
    }

    /// Connections from before this time are not used again.
    pub(super) fn outdated_before(&self) -> Option<Instant> {
        *self.outdated_before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_connections(&self) {
        *self.outdated_before.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
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
        let directory = PostgresDirectory::new(url.clone()).unwrap();
        assert_eq!(directory.pool().connect_options().get_username(), "first");
        url.set("postgres://second:two@127.0.0.1:1/d".to_owned().into());
        assert_eq!(directory.pool().connect_options().get_username(), "second");
        assert_eq!(directory.options().get_username(), "second");
        url.set("no address".to_owned().into());
        assert_eq!(directory.options().get_username(), "second", "an unusable one changes nothing");
    }
}
