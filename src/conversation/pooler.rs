//! Finds out whether a connection pooler, such as PgBouncer, stands between Causeway and PostgreSQL.
//!
//! In transaction mode a pooler gives each transaction another session of the server. The name of a prepared statement
//! belongs to a session: in another session the name is unknown, or another process has prepared another statement under
//! this name, and the server would run that one. So a statement gets a name only in a session that is proven to be our
//! own.
//!
//! Guarantees: each new connection sets a parameter of its session at the login and reads it back before the first
//! statement. A pooler refuses the parameter or does not pass it on. From then on, and after the server's answer that a
//! name is unknown or taken, no statement gets a name. A nonzero `statement-cache-capacity` in the URL switches off the
//! reading back only.
//! Not responsible for: the end of the connections that have names (`postgres.rs`).

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row};
use url::Url;
use uuid::Uuid;

const PARAMETER: &str = "causeway.session";
const READ_PARAMETER: &str = "SELECT current_setting('causeway.session', true)";

/// What is known about a pooler. Clones share the knowledge.
#[derive(Debug, Clone)]
pub(super) struct PoolerDetection(Arc<PoolerFacts>);

#[derive(Debug)]
struct PoolerFacts {
    is_pooled: AtomicBool,
    /// The value of the session's parameter. `None` if the URL decides.
    mark: Option<String>,
}

impl PoolerDetection {
    pub(super) fn new(url: &str) -> Self {
        let capacity = statement_capacity(url);
        let mark = capacity.is_none().then(|| Uuid::new_v4().simple().to_string());
        Self(Arc::new(PoolerFacts { is_pooled: AtomicBool::new(capacity == Some(0)), mark }))
    }

    /// Whether a statement may have no name and each query needs a transaction.
    pub(super) fn is_pooled(&self) -> bool {
        self.0.is_pooled.load(Ordering::Relaxed)
    }

    /// The mark, as long as it has to be read back.
    fn mark(&self) -> Option<&str> {
        self.0.mark.as_deref().filter(|_| !self.is_pooled())
    }

    /// The options for a new connection.
    pub(super) fn options(&self, options: PgConnectOptions) -> PgConnectOptions {
        match self.mark() {
            Some(mark) => options.options([(PARAMETER, mark)]),
            None => options,
        }
    }

    /// Opens a connection, also through a pooler that refuses the parameter.
    pub(super) async fn connect(&self, options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        match self.options(options.clone()).connect().await {
            Ok(mut connection) => {
                self.examine(&mut connection).await?;
                Ok(connection)
            }
            Err(error) if self.mark().is_some() && may_be_of_a_pooler(&error) => {
                let connection = options.connect().await?;
                self.found();
                Ok(connection)
            }
            Err(error) => Err(error),
        }
    }

    /// Examines the session of a new connection. The simple query needs no name on the server.
    pub(super) async fn examine(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let Some(mark) = self.mark() else { return Ok(()) };
        let row = sqlx::raw_sql(READ_PARAMETER).fetch_one(connection).await?;
        if row.try_get::<Option<String>, _>(0)?.as_deref() != Some(mark) {
            self.found();
        }
        Ok(())
    }

    /// Records that a pooler is there.
    pub(super) fn found(&self) {
        if !self.0.is_pooled.swap(true, Ordering::Relaxed) {
            tracing::info!(
                "a connection pooler stands before PostgreSQL: statements get no names, and each query has a transaction"
            );
        }
    }
}

/// The value of `statement-cache-capacity` in the URL.
fn statement_capacity(url: &str) -> Option<u32> {
    let value = |(name, value): (Cow<'_, str>, Cow<'_, str>)| {
        (name == "statement-cache-capacity").then(|| value.parse().ok()).flatten()
    };
    Url::parse(url).ok()?.query_pairs().find_map(value)
}

/// Whether the login may have failed because of the parameter. A server that refuses the user or is not ready answers with
/// one of these classes of SQLSTATE.
fn may_be_of_a_pooler(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(answer) = error else { return false };
    let code = answer.code().unwrap_or_default();
    !["28", "3D", "53", "57"].iter().any(|class| code.starts_with(class))
}

/// Whether the server answered that the name of a statement is unknown or taken, or a pooler answered that it does not
/// pass the parameter on. The statement was not run.
pub(super) fn is_lost_session(answer: &dyn sqlx::error::DatabaseError) -> bool {
    match answer.code().as_deref() {
        Some("26000" | "42P05") => true,
        Some("08P01") => answer.message().contains("startup parameter"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_can_decide() {
        let of = |query: &str| {
            let found = PoolerDetection::new(&format!("postgres://causeway:pw@db/causeway{query}"));
            (found.is_pooled(), found.mark().is_some())
        };
        assert_eq!(of(""), (false, true));
        assert_eq!(of("?sslmode=require"), (false, true));
        assert_eq!(of("?statement-cache-capacity=0"), (true, false));
        assert_eq!(of("?sslmode=require&statement-cache-capacity=100"), (false, false));
    }
}
