//! A database of each test's own, on either engine.

use std::{
    env,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
};

use futures_util::FutureExt as _;
use longshore_controller::store::{Engine, Store};
use sqlx::{Any, AssertSqlSafe, Connection as _, Executor as _, PgConnection, Transaction};
use tempfile::TempDir;

/// Where the PostgreSQL for tests is: a URL with the right to make databases.
const VARIABLE: &str = "LONGSHORE_TEST_POSTGRES_URL";

/// An open store, and where it is.
#[derive(Clone, Debug)]
pub struct Database {
    /// The store.
    pub store: Store,
    /// What it was opened with.
    pub url: String,
    _directory: Option<Arc<TempDir>>,
}

impl Database {
    /// A transaction of the store.
    pub async fn write(&self) -> Transaction<'static, Any> {
        self.store.write().await.unwrap()
    }

    /// A connection of the store.
    pub async fn read(&self) -> sqlx::pool::PoolConnection<Any> {
        self.store.read().await.unwrap()
    }

    /// Runs SQL that the store itself would never run, to damage what it keeps.
    pub async fn damage(&self, sql: &str) {
        let mut db = self.write().await;
        db.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
        db.commit().await.unwrap();
    }
}

/// Runs a contract on a new, empty database, which is gone afterwards.
pub async fn with(engine: Engine, contract: impl AsyncFnOnce(Database)) {
    let (url, directory, server) = match engine {
        Engine::Sqlite => {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}/test.db?mode=rwc", directory.path().display());
            (url, Some(Arc::new(directory)), None)
        }
        Engine::Postgres => {
            let (url, server) = new_database().await;
            (url, None, Some(server))
        }
    };
    let store = Store::open(&url).await.unwrap();
    let database = Database {
        store: store.clone(),
        url,
        _directory: directory,
    };
    // The database goes even where the contract is broken.
    let outcome = AssertUnwindSafe(contract(database)).catch_unwind().await;
    store.close().await;
    if let Some((mut server, name)) = server {
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        server.execute(AssertSqlSafe(drop)).await.unwrap();
    }
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
}

async fn new_database() -> (String, (PgConnection, String)) {
    let server = env::var(VARIABLE)
        .unwrap_or_else(|_| panic!("{VARIABLE} is not set; run the tests with scripts/test"));
    let name = format!("store_{:016x}", rand::random::<u64>());
    let mut connection = PgConnection::connect(&server).await.unwrap();
    // A copy of the one that nobody ever connects to, which therefore never is in use.
    let create = format!("CREATE DATABASE {name} TEMPLATE template0");
    connection.execute(AssertSqlSafe(create)).await.unwrap();
    let mut url = url::Url::parse(&server).unwrap();
    url.set_path(&name);
    (url.into(), (connection, name))
}
