//! The PostgreSQL that two-way systems use, with a separate database for each job. Measures its processor time and its commits.

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use url::Url;

use super::account::{self, Usage};

/// The address of the server.
#[derive(Debug)]
pub(crate) struct Postgres {
    url: Url,
    pid: Option<u32>,
}

impl Postgres {
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let url = Url::parse(url).context("the URL of PostgreSQL")?;
        let pid = account::listener(url.port().unwrap_or(5432));
        Ok(Self { url, pid })
    }

    fn database(&self, name: &str) -> String {
        let mut url = self.url.clone();
        url.set_path(name);
        url.into()
    }

    async fn run(&self, sql: String) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.database("postgres")).await?;
        connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
        Ok(connection.close().await?)
    }

    /// Creates an empty database and returns its URL.
    pub(crate) async fn fresh(&self, name: &str) -> anyhow::Result<String> {
        self.forget(name).await?;
        self.run(format!("CREATE DATABASE \"{name}\"")).await?;
        Ok(self.database(name))
    }

    pub(crate) async fn forget(&self, name: &str) -> anyhow::Result<()> {
        self.run(format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await
    }

    /// The commits in a database so far. A connection reports its last commits when it ends.
    pub(crate) async fn commits(&self, name: &str) -> anyhow::Result<i64> {
        let mut connection = PgConnection::connect(&self.database("postgres")).await?;
        let count = sqlx::query("SELECT xact_commit FROM pg_stat_database WHERE datname = $1").bind(name);
        Ok(count.fetch_one(&mut connection).await?.get(0))
    }

    pub(crate) fn usage(&self) -> Usage {
        self.pid.map(|pid| account::usage(&[pid])).unwrap_or_default()
    }
}
