//! A PostgreSQL server for tests, and a fresh database for each test that needs one.
//!
//! `tests/run` provides the server; otherwise the first test that needs one starts it for this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::leash::Leash;
use super::ports::free_address;
use super::told;
use super::wait::eventually;

const LENT_AS: &str = "CAUSEWAY_TEST_POSTGRES";

#[derive(Debug)]
struct Server {
    /// `postgres://causeway@127.0.0.1:5432`, without a database.
    url: String,
    _process: Option<Leash>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| told(LENT_AS).map_or_else(start, |url| Server { url, _process: None }))
}

fn start() -> Server {
    let installed = Path::new("/usr/lib/postgresql").exists();
    assert!(installed, "PostgreSQL is not installed (tests/run installs it)");
    let address: SocketAddr = free_address();
    let process = Leash::start("private-postgres", "INT", &[address.port().to_string()]);
    Server { url: format!("postgres://causeway@{address}"), _process: Some(process) }
}

/// A new, empty database. It is deleted when the value is dropped.
#[derive(Debug)]
pub(crate) struct Database {
    server: &'static str,
    name: String,
}

impl Database {
    /// Creates a database. Fails the test if PostgreSQL is not installed.
    pub(crate) async fn create() -> Self {
        let server = &server().url;
        let name = format!("test_{}", Uuid::new_v4().simple());
        eventually("PostgreSQL to make a database", Duration::from_secs(60), async || {
            admin(server, &format!("CREATE DATABASE {name}")).await.map_err(|error| error.to_string())
        })
        .await;
        Self { server, name }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.server, self.name)
    }

    /// The URL of the database through a proxy.
    pub(crate) fn url_through(&self, address: SocketAddr) -> String {
        format!("postgres://causeway@{address}/{}", self.name)
    }

    /// The address of the server, for a proxy.
    pub(crate) fn address(&self) -> SocketAddr {
        self.server
            .rsplit('@')
            .next()
            .and_then(|address| address.parse().ok())
            .expect("a URL that ends in an address")
    }
}

/// A table or a row that is locked for all other connections.
pub(crate) struct Locked {
    connection: PgConnection,
}

impl Database {
    pub(crate) async fn lock(&self, table: &str) -> Locked {
        self.locked(format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await
    }

    /// Locks one row for writes. Other connections can read the row.
    pub(crate) async fn lock_row(&self, table: &str, id: &str) -> Locked {
        self.locked(format!("BEGIN; SELECT 1 FROM {table} WHERE id = '{id}' FOR UPDATE")).await
    }

    async fn locked(&self, lock: String) -> Locked {
        let mut connection = PgConnection::connect(&self.url()).await.expect("the database is there");
        connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(lock))).await.expect("it is locked");
        Locked { connection }
    }
}

impl Locked {
    /// Waits until a statement of this form (as in `LIKE`) waits for the lock.
    pub(crate) async fn keeps_waiting(&mut self, statement: &str) {
        eventually("a connection to wait for the lock", Duration::from_secs(60), async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                           AND wait_event_type = 'Lock' AND query LIKE $1";
            // Within a transaction the activity is read only once.
            let anew = self.connection.execute("SELECT pg_stat_clear_snapshot()").await;
            anew.map_err(|error| error.to_string())?;
            match sqlx::query_scalar(waiting).bind(statement).fetch_one(&mut self.connection).await {
                Ok(0_i64) => Err("nobody".to_owned()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }

    pub(crate) async fn release(mut self) {
        self.connection.execute("COMMIT").await.expect("the lock is given back");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // On a separate thread, because a runtime cannot block inside another. Open connections are closed by the
        // server.
        let (server, sql) = (self.server, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(admin(server, &sql)))
        });
        let _ = dropping.join();
    }
}

async fn admin(server: &str, sql: &str) -> sqlx::Result<()> {
    let mut connection = PgConnection::connect(&format!("{server}/postgres")).await?;
    connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))).await?;
    connection.close().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn databases_are_apart_and_go_with_their_test() {
    let one = Database::create().await;
    let two = Database::create().await;
    let mut in_one = PgConnection::connect(&one.url()).await.unwrap();
    in_one.execute("CREATE TABLE only_here (id INT)").await.unwrap();
    let mut in_two = PgConnection::connect(&two.url()).await.unwrap();
    assert!(in_two.execute("SELECT * FROM only_here").await.is_err());
    let url = one.url();
    drop(one);
    assert!(PgConnection::connect(&url).await.is_err(), "a dropped database is still there");
}
