//! Opens the database and migrates its tables.
//!
//! Guarantees: if several processes start at once, one migrates and the others wait. A migration happens completely or not
//! at all. The database of a newer Causeway is refused. An error names the file or the host, never a password.
//!
//! Durability: SQLite runs with `synchronous = FULL`, so a power failure undoes no commit. The assignment of chats to
//! conversations would otherwise be lost after the message that brought it was acked, and no message would bring it again.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::pooler::PoolerDetection;
use super::{DirectoryError, statements};
use crate::data_files;

/// Each step migrates the tables from the version before. Its version is its position in this list, counted from 1.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
    include_str!("schema-6.sql"),
];

/// The longest wait for a connection, or for another writer of the file.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of the first connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for another process that migrates.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
const WRITE_AHEAD_RETRY: Duration = Duration::from_millis(20);
const SQLITE_CONNECTIONS: u32 = 4;
const POSTGRES_CONNECTIONS: u32 = 8;

/// The pools of one file.
#[derive(Debug, Clone)]
pub(super) struct SqlitePools {
    /// For queries.
    pub(super) reader: SqlitePool,
    /// The only connection that writes.
    pub(super) writer: SqlitePool,
}

fn pool<DB: sqlx::Database>(connections: u32) -> PoolOptions<DB> {
    PoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT)
}

/// Opens a file. Creates the file and the folders above if they are missing.
pub(super) async fn open_sqlite(path: &Path) -> Result<SqlitePools, DirectoryError> {
    let place = format!("the directory's file {}", path.display());
    data_files::check_sqlite().map_err(|error| DirectoryError::Mismatch(format!("{place}: {error}")))?;
    if let Some(folder) = path.parent() {
        data_files::create_folder(folder).map_err(|error| {
            DirectoryError::Mismatch(format!("{place}: cannot make the folder {}: {error}", folder.display()))
        })?;
    }
    data_files::prepare_sqlite(path)
        .map_err(|error| DirectoryError::Mismatch(format!("{place}: cannot open it: {error}")))?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .foreign_keys(true)
        // Deleted rows are overwritten with zeros.
        .pragma("secure_delete", "ON")
        .busy_timeout(ACQUIRE_TIMEOUT)
        .disable_statement_logging();
    let migrating = migrate_sqlite(options.clone().busy_timeout(OPEN_TIMEOUT));
    within(OPEN_TIMEOUT, migrating).await.map_err(|error| error.at(&place))?;
    // Connections to a file do not wear out, and closing the last one causes a checkpoint.
    let kept = |connections| pool(connections).idle_timeout(None).max_lifetime(None);
    Ok(SqlitePools {
        reader: kept(SQLITE_CONNECTIONS).connect_lazy_with(options.clone().pragma("query_only", "ON")),
        writer: kept(1).connect_lazy_with(options.synchronous(SqliteSynchronous::Full)),
    })
}

/// Migrates the tables of a server. This connection is made outside of the pool, because the pool would hide the cause of
/// a failure.
pub(super) async fn migrate_postgres(
    options: &PgConnectOptions,
    pooler: &PoolerDetection,
    limit: Duration,
) -> Result<(), DirectoryError> {
    let place = format!("PostgreSQL at {}:{}", options.get_host(), options.get_port());
    within(limit, Box::pin(migrate_server(options, pooler))).await.map_err(|error| error.at(&place))
}

pub(super) fn postgres_pool() -> PgPoolOptions {
    pool(POSTGRES_CONNECTIONS)
}

pub(super) fn postgres_options(url: &str) -> Result<PgConnectOptions, DirectoryError> {
    let form = "expected postgres://user:password@host:port/database";
    // A password with `/`, `?` or `#` would end up in parts of the URL that are not secret.
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    if rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@')) {
        return Err(DirectoryError::Mismatch(format!(
            "directory.url is not a PostgreSQL URL: {form}, with special characters of user and password \
             percent-encoded (/ is %2F, ? is %3F, # is %23, @ is %40)"
        )));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        DirectoryError::Mismatch(format!("directory.url is not a PostgreSQL URL: {form} ({error})"))
    })?;
    // sqlx keeps the brackets of an IPv6 address, and looks the whole up as a name.
    let address = options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let options = match address.map(str::to_owned) {
        Some(address) => options.host(&address),
        None => options,
    };
    // A pooler refuses this startup parameter, and the directory stores no floating-point number.
    let options = options.extra_float_digits(None);
    Ok(options.application_name("causeway").disable_statement_logging())
}

pub(super) async fn within<T, E: Into<DirectoryError>>(
    limit: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, DirectoryError> {
    match tokio::time::timeout(limit, work).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(DirectoryError::Unavailable(format!("no answer within {limit:?}"))),
    }
}

macro_rules! migrate {
    ($transaction:ident) => {{
        // Each statement runs once, so it needs no name on the server.
        sqlx::query(statements::CREATE_VERSION).persistent(false).execute(&mut *$transaction).await?;
        let found: Option<i64> = sqlx::query_scalar(statements::READ_VERSION)
            .persistent(false)
            .fetch_one(&mut *$transaction)
            .await?;
        for (version, sql) in missing(found.unwrap_or(0))? {
            sqlx::raw_sql(sql).execute(&mut *$transaction).await?;
            sqlx::query(statements::WRITE_VERSION)
                .bind(version)
                .persistent(false)
                .execute(&mut *$transaction)
                .await?;
        }
        $transaction.commit().await?;
    }};
}

async fn migrate_sqlite(options: SqliteConnectOptions) -> Result<(), DirectoryError> {
    let mut connection: SqliteConnection = options.connect().await?;
    write_ahead(&mut connection).await?;
    let mut transaction = connection.begin_with(statements::BEGIN_SQLITE).await?;
    migrate!(transaction);
    connection.close().await?;
    Ok(())
}

/// Permanently turns on the file's write-ahead log: readers then never wait for a writer.
///
/// If several processes do this at once, SQLite refuses all but one at once, whatever the busy timeout is. That one
/// finishes soon.
async fn write_ahead(connection: &mut SqliteConnection) -> Result<(), DirectoryError> {
    const BUSY: &str = "5";
    loop {
        match sqlx::query(statements::WRITE_AHEAD_SQLITE).execute(&mut *connection).await {
            Ok(_) => return Ok(()),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(BUSY) => {
                tokio::time::sleep(WRITE_AHEAD_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn migrate_server(options: &PgConnectOptions, pooler: &PoolerDetection) -> Result<(), DirectoryError> {
    let mut connection = within(CONNECT_TIMEOUT, pooler.connect(options)).await?;
    let mut transaction = connection.begin_with(statements::BEGIN_POSTGRES).await?;
    sqlx::query(statements::LOCK_SCHEMA_POSTGRES).persistent(false).execute(&mut *transaction).await?;
    migrate!(transaction);
    connection.close().await?;
    Ok(())
}

/// The steps that a database of version `found` still needs.
fn missing(found: i64) -> Result<impl Iterator<Item = (i64, &'static str)>, DirectoryError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(DirectoryError::Mismatch(format!(
            "its schema has version {found}, this Causeway knows {known}: run the newer Causeway that wrote it"
        )));
    }
    Ok((1..).zip(MIGRATIONS.iter().copied()).filter(move |(version, _)| *version > found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_steps_run() {
        assert_eq!(missing(0).unwrap().map(|(version, _)| version).next(), Some(1));
        let newest = i64::try_from(MIGRATIONS.len()).unwrap();
        assert_eq!(missing(newest).unwrap().count(), 0);
        assert!(matches!(missing(newest + 1), Err(DirectoryError::Mismatch(_))));
    }

    #[test]
    fn an_ipv6_address_is_no_name() {
        let options = postgres_options("postgres://causeway:pw@[::1]:5433/causeway").unwrap();
        assert_eq!((options.get_host(), options.get_port()), ("::1", 5433));
    }

    #[test]
    fn a_wrong_url_is_explained_without_its_password() {
        for url in [
            "postgres://causeway:hunter2@db:port/causeway",
            "postgres://causeway:hunter2/x@db/causeway",
            "postgres://causeway:12/hunter2@db/causeway",
            "postgres://causeway:#hunter2@db/causeway",
            "hunter2",
        ] {
            let error = postgres_options(url).unwrap_err().to_string();
            assert!(error.contains("directory.url") && error.contains("expected postgres://"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
