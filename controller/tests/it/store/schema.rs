//! Opening: a new database, one that is up to date, one of a newer controller.

use std::{error::Error, fs};

use longshore_controller::store::{Store, StoreError, tenants};
use tokio::task::JoinSet;

use super::{contracts, database::Database, samples::tenant};

contracts!(
    opening_again_keeps_everything,
    replicas_open_at_once,
    a_newer_schema_is_refused,
);

async fn opening_again_keeps_everything(database: Database) {
    let mut db = database.write().await;
    tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
    db.commit().await.unwrap();
    let again = Store::open(&database.url).await.unwrap();
    assert_eq!(again.engine(), database.store.engine());
    let mut db = again.read().await.unwrap();
    assert!(tenants::exists(&mut db, &tenant("ape")).await.unwrap());
    drop(db);
    again.close().await;
    again.read().await.unwrap_err();
}

async fn replicas_open_at_once(database: Database) {
    let mut opening = JoinSet::new();
    for _ in 0..4 {
        let url = database.url.clone();
        opening.spawn(async move { Store::open(&url).await.unwrap() });
    }
    for store in opening.join_all().await {
        store.close().await;
    }
}

async fn a_newer_schema_is_refused(database: Database) {
    let truth = match database.store.engine() {
        longshore_controller::store::Engine::Sqlite => "1",
        longshore_controller::store::Engine::Postgres => "true",
    };
    database
        .damage(&format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             SELECT 9000, 'from the future', {truth}, checksum, 1 FROM _sqlx_migrations WHERE version = 1"
        ))
        .await;
    let error = Store::open(&database.url).await.unwrap_err();
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    assert!(message.contains("9000"), "{message}");
    assert!(message.contains("newer"), "{message}");
}

#[tokio::test]
async fn the_embedded_store_lives_in_any_directory() {
    let parent = tempfile::tempdir().unwrap();
    for name in [
        "plain",
        "with space",
        "50%20",
        "what?mode=ro",
        "hash#tag",
        "åäö",
    ] {
        let directory = parent.path().join(name);
        fs::create_dir(&directory).unwrap();
        let store = Store::embedded(&directory).await.unwrap();
        let mut db = store.write().await.unwrap();
        tenants::insert(&mut db, &tenant("ape"), 10).await.unwrap();
        db.commit().await.unwrap();
        store.close().await;
        assert!(directory.join("longshore.db").is_file(), "{name}");
    }
}

#[tokio::test]
async fn another_kind_of_database_is_refused() {
    for url in ["mysql://localhost/x", "longshore.db", ""] {
        let error = Store::open(url).await.unwrap_err();
        assert!(matches!(error, StoreError::UnknownEngine), "{error:?}");
    }
}
