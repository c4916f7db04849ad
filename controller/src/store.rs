//! What the controller remembers: one schema on SQLite and PostgreSQL.
//!
//! All SQL of the controller is below this module, one file per aggregate. Functions take a connection; the
//! caller owns the transaction. Every query is scoped by tenant, except where an outside credential (a token's
//! hash, a certificate's device id) is what says which tenant it is.
//!
//! The statements are common SQL with `$1` placeholders, which both engines accept. Rows that come in bulk are
//! written with one statement per [`ROWS_PER_STATEMENT`] rows.

pub mod cache;
pub mod content;
pub mod devices;
pub mod fleets;
pub mod peers;
pub mod previews;
pub mod proposals;
pub mod replicas;
pub mod shared;
pub mod tenants;
pub mod tokens;

use std::{
    fmt::Write as _,
    path::Path,
    str::FromStr,
    sync::{Arc, Once},
    time::Duration,
};

use longshore_protocol::Generation;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Any, AnyConnection, AnyPool, SqlSafeStr, Transaction,
    any::{AnyPoolOptions, install_default_drivers},
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use self::{cache::Cache, peers::Peers};

/// How many rows one bulk statement writes: with at most sixteen columns, within both engines' limits.
const ROWS_PER_STATEMENT: usize = 1000;

/// How long to wait for a connection.
const WAIT: Duration = Duration::from_secs(10);
/// How long to wait in SQLite's line of writers.
const WAIT_TO_WRITE: Duration = Duration::from_secs(30);

const SQLITE: &[&str] = &[
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA busy_timeout = 20000",
    "PRAGMA foreign_keys = ON",
];
const POSTGRES: &[&str] = &[
    // A replica that stands still in a transaction must not keep its leases from others.
    "SET idle_in_transaction_session_timeout = 10000",
];

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (
        2,
        "git_hosts",
        include_str!("../migrations/0002_git_hosts.sql"),
    ),
    (
        3,
        "proposals",
        include_str!("../migrations/0003_proposals.sql"),
    ),
    (
        4,
        "previews",
        include_str!("../migrations/0004_previews.sql"),
    ),
    (
        5,
        "fleets_at_scale",
        include_str!("../migrations/0005_fleets_at_scale.sql"),
    ),
    (
        8,
        "replicas",
        include_str!("../migrations/0008_replicas.sql"),
    ),
    (9, "counts", include_str!("../migrations/0009_counts.sql")),
];

/// Which database answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file in the data directory.
    Sqlite,
    /// A server, for several replicas.
    Postgres,
}

impl Engine {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names neither engine.
    #[error("the database URL must start with `sqlite:` or `postgres:`")]
    UnknownEngine,
    /// The database does not answer, or refuses.
    #[error("the database failed")]
    Database(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be migrated")]
    Migration(#[from] MigrateError),
    /// A newer controller has had the database.
    #[error(
        "the database has schema version {version}, which is newer than this controller; start that newer one"
    )]
    NewerSchema {
        /// The version that this controller does not know.
        version: i64,
    },
    /// A row holds what this version cannot read.
    #[error("column `{column}` holds `{value}`, which is not valid")]
    Corrupt {
        /// The column.
        column: &'static str,
        /// Its value, cut.
        value: String,
    },
    /// No honest device counted so far.
    #[error("generation {0} is out of range")]
    GenerationOutOfRange(Generation),
    /// Another replica works for the fleet by now.
    #[error("another replica works for the fleet by now")]
    LeaseLost,
    /// A unique value is taken.
    #[error("it exists already")]
    Duplicate(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let duplicate = error.as_database_error().is_some_and(|error| {
            // The two engines' codes for a broken unique constraint.
            error.is_unique_violation()
                || matches!(error.code().as_deref(), Some("23505" | "2067" | "1555"))
        });
        if duplicate {
            Self::Duplicate(error)
        } else {
            Self::Database(error)
        }
    }
}

/// A handle on the store; clones share the connections.
#[derive(Clone, Debug)]
pub struct Store {
    /// For reading; on PostgreSQL for writing, too.
    pool: AnyPool,
    /// SQLite has one writer at a time, so there is one connection for it, and a line in front of it.
    writer: Option<AnyPool>,
    engine: Engine,
    peers: Option<Arc<Peers>>,
    cache: Arc<Cache>,
}

impl Store {
    /// The embedded store in `directory`, which exists.
    pub async fn embedded(directory: &Path) -> Result<Self, StoreError> {
        // In a URL, a relative path's first folder would be a host, and dots would be resolved by text.
        let directory = match tokio::fs::canonicalize(directory).await {
            Ok(directory) => directory,
            Err(error) => return Err(StoreError::Database(error.into())),
        };
        let file = directory.join("longshore.db");
        Self::open(&format!("sqlite://{}?mode=rwc", in_url(&file))).await
    }

    /// The store at `url`, with its schema brought up to date.
    ///
    /// # Errors
    /// Where the database does not answer within ten seconds, or its schema is from a newer version.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(install_default_drivers);
        let engine = match url.split(':').next() {
            Some("sqlite") => Engine::Sqlite,
            Some("postgres" | "postgresql") => Engine::Postgres,
            _ => return Err(StoreError::UnknownEngine),
        };
        match engine {
            Engine::Sqlite => {
                let writer = connect(url, 1, WAIT_TO_WRITE, SQLITE).await?;
                migrate(engine, &writer).await?;
                let only_reads = [SQLITE, &["PRAGMA query_only = ON"]].concat();
                let pool = connect(url, 4, WAIT, &only_reads).await?;
                Ok(Self {
                    pool,
                    writer: Some(writer),
                    engine,
                    peers: None,
                    cache: Arc::default(),
                })
            }
            Engine::Postgres => {
                let pool = connect(url, 16, WAIT, POSTGRES).await?;
                migrate(engine, &pool).await?;
                Ok(Self {
                    pool,
                    writer: None,
                    engine,
                    peers: Some(Arc::new(Peers::open(url)?)),
                    cache: Arc::default(),
                })
            }
        }
    }

    /// Which database it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// The way to other controllers with this store, where the engine can have any.
    pub fn peers(&self) -> Option<&Arc<Peers>> {
        self.peers.as_ref()
    }

    /// Sets and objects in memory.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A connection, for reading.
    pub async fn read(&self) -> Result<sqlx::pool::PoolConnection<Any>, StoreError> {
        self.pool.acquire().await.map_err(StoreError::Database)
    }

    /// A transaction that may write. With SQLite, who asks first is let first, and whoever has one must not ask for
    /// another before it has ended.
    pub async fn write(&self) -> Result<Transaction<'static, Any>, StoreError> {
        match &self.writer {
            // Another process may read the file, or copy it: asking at once waits for that, asking in the middle
            // would fail.
            Some(writer) => Ok(writer.begin_with("BEGIN IMMEDIATE").await?),
            None => Ok(self.pool.begin().await?),
        }
    }

    /// Waits for what is under way and closes the connections.
    pub async fn close(&self) {
        if let Some(peers) = &self.peers {
            peers.close().await;
        }
        self.pool.close().await;
        // The last one to close tidies the file up.
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }
}

/// Connections to `url`, each prepared with these statements.
async fn connect(
    url: &str,
    most: u32,
    wait: Duration,
    prepare: &[&'static str],
) -> Result<AnyPool, StoreError> {
    let prepare: Arc<[&'static str]> = prepare.into();
    AnyPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(wait)
        .after_connect(move |connection, _| {
            let prepare = prepare.clone();
            Box::pin(async move {
                for statement in &*prepare {
                    sqlx::query(*statement).execute(&mut *connection).await?;
                }
                Ok(())
            })
        })
        .connect(url)
        .await
        .map_err(StoreError::Database)
}

/// Brings the schema up to date.
async fn migrate(engine: Engine, pool: &AnyPool) -> Result<(), StoreError> {
    match migrator(engine).run(pool).await {
        Err(MigrateError::VersionMissing(version)) => Err(StoreError::NewerSchema { version }),
        done => Ok(done?),
    }
}

fn migrator(engine: Engine) -> Migrator {
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, sql)| {
            let sql = match engine {
                Engine::Sqlite => (*sql).to_owned(),
                Engine::Postgres => sql.replace(" BLOB", " BYTEA"),
            };
            Migration::new(
                *version,
                (*name).into(),
                MigrationType::Simple,
                sqlx::AssertSqlSafe(sql).into_sql_str(),
                false,
            )
        })
        .collect();
    Migrator {
        migrations,
        ..Migrator::DEFAULT
    }
}

/// A path as it stands in a URL.
fn in_url(path: &Path) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        if is_plain(*byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ok = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// `($1, $2), ($3, $4), …`: placeholders for that many rows of that many columns.
fn placeholders(rows: usize, columns: usize) -> String {
    let row = |row: usize| {
        let cells: Vec<_> = (1..=columns)
            .map(|cell| format!("${}", row * columns + cell))
            .collect();
        format!("({})", cells.join(", "))
    };
    (0..rows).map(row).collect::<Vec<_>>().join(", ")
}

fn json<T: Serialize + ?Sized>(value: &T) -> String {
    // What is written here are our own types, with text keys: that cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

fn from_json<T: DeserializeOwned>(text: &str, column: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_detail| corrupt(column, text))
}

fn parse<T: FromStr>(text: &str, column: &'static str) -> Result<T, StoreError> {
    text.parse().map_err(|_detail| corrupt(column, text))
}

fn corrupt(column: &'static str, value: &str) -> StoreError {
    StoreError::Corrupt {
        column,
        value: value.chars().take(80).collect(),
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Runs a statement that is written once per chunk of rows.
async fn in_chunks<T, F>(
    connection: &mut AnyConnection,
    rows: &[T],
    columns: usize,
    statement: impl Fn(&str) -> String,
    bind: F,
) -> Result<u64, StoreError>
where
    F: for<'q> Fn(Bulk<'q>, &'q T) -> Bulk<'q>,
{
    let mut affected = 0;
    for chunk in rows.chunks(ROWS_PER_STATEMENT) {
        let sql = statement(&placeholders(chunk.len(), columns));
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(is_common(chunk.len()));
        for row in chunk {
            query = bind(query, row);
        }
        affected += query.execute(&mut *connection).await?.rows_affected();
    }
    Ok(affected)
}

/// Whether a bulk statement of that many rows is worth remembering: those of other sizes would push it and all
/// other statements out of the connection's memory.
fn is_common(rows: usize) -> bool {
    rows == 1 || rows == ROWS_PER_STATEMENT
}

type Bulk<'q> = sqlx::query::Query<'q, Any, sqlx::any::AnyArguments>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_placeholders() {
        assert_eq!(placeholders(2, 2), "($1, $2), ($3, $4)");
    }
}
