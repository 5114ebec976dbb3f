//! The connection pool, which is replaced from time to time.
//!
//! A pooled connection stays at the address that its name had when the connection was opened. If connections are always in
//! use, the idle timeout never closes them, and a destination that moved would never be followed.
//!
//! Guarantees: no request begins on a connection whose pool is older than [`POOL_AGE_MAX`]. After a failure the limit is
//! [`POOL_AGE_AFTER_FAILURE`]. A request in flight finishes on its old connection. Not responsible for: building a client.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

/// The maximum age of a pool. TLS sessions are resumed, so that new connections stay cheap.
pub(super) const POOL_AGE_MAX: Duration = Duration::from_secs(30);

/// The maximum age after a failure: the old address may be the reason.
pub(super) const POOL_AGE_AFTER_FAILURE: Duration = Duration::from_secs(5);

type Build = Box<dyn Fn() -> Result<reqwest::Client, reqwest::Error> + Send + Sync>;

/// The pool in use.
pub(super) struct ConnectionPool {
    build: Build,
    current: RwLock<(reqwest::Client, Instant)>,
    failed: AtomicBool,
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool").finish_non_exhaustive()
    }
}

impl ConnectionPool {
    pub(super) fn new(
        build: impl Fn() -> Result<reqwest::Client, reqwest::Error> + Send + Sync + 'static,
    ) -> Result<Self, reqwest::Error> {
        let first = (build()?, Instant::now());
        Ok(Self { build: Box::new(build), current: RwLock::new(first), failed: AtomicBool::new(false) })
    }

    /// The client for the next request.
    pub(super) fn client(&self) -> reqwest::Client {
        let now = Instant::now();
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if !self.is_outdated(current.1, now) {
                return current.0.clone();
            }
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if self.is_outdated(current.1, now)
            && let Ok(client) = (self.build)()
        {
            *current = (client, now);
            self.failed.store(false, Ordering::Relaxed);
        }
        current.0.clone()
    }

    /// Builds the client again. If this fails, the old one stays, and the next request tries again.
    pub(super) fn renew(&self) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(client) = (self.build)() {
            *current = (client, Instant::now());
        } else {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    /// Records a failure that a connection to another address may heal.
    pub(super) fn note_failure(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    fn is_outdated(&self, made: Instant, now: Instant) -> bool {
        let failed = self.failed.load(Ordering::Relaxed);
        now.saturating_duration_since(made) >= if failed { POOL_AGE_AFTER_FAILURE } else { POOL_AGE_MAX }
    }
}
