//! SQLite's writers stand in a line: who asks first is let first, and nobody tries again and again.

use std::sync::{Arc, Mutex};

use longshore_controller::store::{Engine, Store, tenants};
use sqlx::Executor as _;
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    contracts,
    database::{self, Database},
    samples::tenant,
};

contracts!(many_writers_at_once_all_write);

const WRITERS: u32 = 64;
const WRITES: u32 = 5;

async fn write(store: &Store, writer: u32) {
    for n in 0..WRITES {
        let mut db = store.write().await.unwrap();
        // Read, then write: a transaction that only then asks to write could be refused.
        let name = tenant(&format!("tenant-{writer}-{n}"));
        assert!(!tenants::exists(&mut db, &name).await.unwrap());
        tenants::insert(&mut db, &name, 1).await.unwrap();
        db.commit().await.unwrap();
    }
}

async fn many_writers_at_once_all_write(database: Database) {
    let start = Arc::new(Barrier::new(WRITERS as usize));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, start) = (database.store.clone(), start.clone());
        writers.spawn(async move {
            start.wait().await;
            write(&store, writer).await;
        });
    }
    writers.join_all().await;
    let mut db = database.read().await;
    let all = tenants::list(&mut db).await.unwrap();
    assert_eq!(all.len(), (WRITERS * WRITES) as usize);
}

/// SQLite waits for another writer by trying again after a while. Forbidden to, it fails at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_writer_finds_another_in_its_way() {
    database::with(Engine::Sqlite, async |database: Database| {
        let mut db = database.write().await;
        db.execute("PRAGMA busy_timeout = 0").await.unwrap();
        // Readers do not keep anybody from writing.
        let mut reader = database.read().await;
        reader.execute("BEGIN").await.unwrap();
        tenants::list(&mut reader).await.unwrap();
        db.commit().await.unwrap();
        many_writers_at_once_all_write(database.clone()).await;
        reader.execute("COMMIT").await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn who_asks_first_writes_first() {
    database::with(Engine::Sqlite, async |database: Database| {
        let first = database.write().await;
        let turns = Arc::new(Mutex::new(Vec::new()));
        let mut writers = JoinSet::new();
        for writer in 0..20 {
            let (store, turns) = (database.store.clone(), turns.clone());
            writers.spawn(async move {
                let db = store.write().await.unwrap();
                turns.lock().unwrap().push(writer);
                db.commit().await.unwrap();
            });
            // Only one task runs at a time, and it has just got into the line.
            tokio::task::yield_now().await;
        }
        assert!(turns.lock().unwrap().is_empty());
        first.commit().await.unwrap();
        writers.join_all().await;
        assert_eq!(*turns.lock().unwrap(), (0..20).collect::<Vec<_>>());
    })
    .await;
}

/// What does not stand in the line cannot get in anybody's way.
#[tokio::test]
async fn who_only_reads_cannot_write() {
    database::with(Engine::Sqlite, async |database: Database| {
        let mut db = database.read().await;
        let refused = tenants::insert(&mut db, &tenant("ape"), 1).await;
        assert!(format!("{refused:?}").contains("readonly"), "{refused:?}");
    })
    .await;
}
