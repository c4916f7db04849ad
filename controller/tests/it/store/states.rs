//! What devices should run, and what they say that they run.

use std::sync::Arc;

use longshore_controller::{
    replica::ReplicaId,
    store::{
        StoreError,
        devices::{self, Desired, Device},
        fleets::FleetId,
    },
};
use longshore_protocol::{
    Condition, Digest, Generation,
    message::{Held, Phase, StatusReport},
};
use sqlx::AnyConnection;
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    contracts,
    database::Database,
    samples::{
        coming, desired, device, device_id, fleet_id, insert_devices, observed, reported,
        two_tenants,
    },
};

contracts!(
    a_generation_never_falls_and_keeps_its_digest,
    raising_lifts_a_generation_only_above,
    the_highest_generation_harms_nobody,
    the_last_report_is_kept,
    a_device_is_where_it_came_last,
    what_is_stored_late_is_no_news,
    writers_wait_for_each_other,
);

async fn put(database: &Database, fleet: &FleetId, moves: &[(u32, Desired)]) -> u64 {
    let moves: Vec<_> = moves
        .iter()
        .map(|(n, desired)| (device_id(*n), desired.clone()))
        .collect();
    let mut db = database.write().await;
    let written = devices::put_desired(&mut db, fleet, &moves).await.unwrap();
    db.commit().await.unwrap();
    written
}

async fn stored(database: &Database, fleet: &FleetId, n: u32) -> Option<Desired> {
    let mut db = database.read().await;
    devices::desired(&mut db, &fleet.tenant, &device_id(n))
        .await
        .unwrap()
}

async fn a_generation_never_falls_and_keeps_its_digest(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    insert_devices(&database, &[1, 2].map(|n| device(&shops, n))).await;
    assert_eq!(stored(&database, &shops, 1).await, None);
    assert_eq!(put(&database, &shops, &[(1, desired(4, "four"))]).await, 1);
    assert_eq!(put(&database, &shops, &[(1, desired(3, "three"))]).await, 0);
    assert_eq!(put(&database, &shops, &[(1, desired(4, "other"))]).await, 0);
    assert_eq!(stored(&database, &shops, 1).await, Some(desired(4, "four")));
    // One that is refused holds up none of the others.
    let mixed = [(1, desired(4, "other")), (2, desired(1, "one"))];
    assert_eq!(put(&database, &shops, &mixed).await, 1);
    assert_eq!(stored(&database, &shops, 2).await, Some(desired(1, "one")));
    assert_eq!(put(&database, &shops, &[(1, desired(5, "five"))]).await, 1);
    assert_eq!(stored(&database, &shops, 1).await, Some(desired(5, "five")));
    assert_eq!(put(&database, &shops, &[]).await, 0);
}

async fn raising_lifts_a_generation_only_above(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    insert_devices(&database, &[1, 2].map(|n| device(&shops, n))).await;
    let moves = [(1, desired(4, "one")), (2, desired(4, "two"))];
    put(&database, &shops, &moves).await;
    let raise = async |above: u64| {
        let mut db = database.write().await;
        let above = Generation::from(above);
        devices::raise_generation(&mut db, &shops, &device_id(1), above)
            .await
            .unwrap();
        db.commit().await.unwrap();
        stored(&database, &shops, 1).await.unwrap()
    };
    assert_eq!(raise(3).await, desired(4, "one"));
    let raised = Desired {
        target: Held {
            generation: Generation::from(5),
            ..desired(4, "one").target
        },
        ..desired(4, "one")
    };
    assert_eq!(raise(4).await, raised);
    assert_eq!(raise(4).await, raised);
    assert_eq!(raise(90).await.target.generation, Generation::from(91));
    assert_eq!(stored(&database, &shops, 2).await, Some(desired(4, "two")));
}

async fn the_highest_generation_harms_nobody(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    insert_devices(&database, &[1, 2].map(|n| device(&shops, n))).await;
    let moves = [(1, desired(4, "one")), (2, desired(4, "two"))];
    put(&database, &shops, &moves).await;
    for hostile in [i64::MAX as u64 - 1, i64::MAX as u64, u64::MAX] {
        let mut db = database.write().await;
        let above = Generation::from(hostile);
        let error = devices::raise_generation(&mut db, &shops, &device_id(1), above)
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::GenerationOutOfRange(_)),
            "{error:?}"
        );
        drop(db);
        let mut db = database.write().await;
        let report = report(hostile, "one", Phase::Applied);
        let report = observed(report, 1);
        devices::put_observed(
            &mut db,
            &ReplicaId::random(),
            &[reported(&device(&shops, 1), &report)],
        )
        .await
        .unwrap();
        db.commit().await.unwrap();
    }
    let mut db = database.read().await;
    let list = devices::list(&mut db, &shops).await.unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].desired, Some(desired(4, "one")));
    assert_eq!(list[1].desired, Some(desired(4, "two")));
}

/// What a device says of a set.
pub fn report(generation: u64, content: &str, phase: Phase) -> StatusReport {
    StatusReport {
        held: Held {
            generation: Generation::from(generation),
            digest: Digest::of(content.as_bytes()),
        },
        phase,
        conditions: vec![Condition::fails("Applied", "DiskFull", "no\u{0}space", 3)],
    }
}

async fn the_last_report_is_kept(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let only = device(&shops, 1);
    insert_devices(&database, [&only]).await;
    put(&database, &shops, &[(1, desired(2, "two"))]).await;
    let mut db = database.write().await;
    // Also one that goes back: a device that lost its ledger says so.
    for (generation, phase) in [
        (1, Phase::Pending),
        (2, Phase::Applying),
        (2, Phase::Failed),
        (1, Phase::Applied),
        (2, Phase::Applied),
    ] {
        let content = if generation == 1 { "one" } else { "two" };
        let sent = report(generation, content, phase);
        let sent = observed(sent, 50 + generation);
        devices::put_observed(&mut db, &ReplicaId::random(), &[reported(&only, &sent)])
            .await
            .unwrap();
        let view = devices::view(&mut db, only.clone()).await.unwrap();
        assert_eq!(view.observed.as_ref(), Some(&sent));
        let in_sync = generation == 2 && phase == Phase::Applied;
        assert_eq!(view.in_sync(), in_sync, "{generation} {phase:?}");
        let list = devices::list(&mut db, &shops).await.unwrap();
        assert_eq!(list[0].observed, view.observed);
    }
}

/// A device went to another replica while the first one could not reach the store.
async fn what_is_stored_late_is_no_news(database: Database) {
    two_tenants(&database).await;
    let only = device(&fleet_id("one", "shops"), 1);
    insert_devices(&database, [&only]).await;
    let (first, second) = (ReplicaId::random(), ReplicaId::random());
    let minute = 60_000;
    let mut db = database.write().await;
    for replica in [&first, &second] {
        sqlx::query("INSERT INTO replicas (id, alive_until, wants) VALUES ($1, 0, 0)")
            .bind(replica.as_str())
            .execute(&mut *db)
            .await
            .unwrap();
    }
    let (old, new) = (
        observed(report(1, "one", Phase::Applied), minute),
        observed(report(2, "two", Phase::Applied), 3 * minute),
    );
    let put = async |db: &mut AnyConnection, replica, at, report| {
        devices::put_connections(&mut *db, replica, &[coming(&only, true, at)])
            .await
            .unwrap();
        devices::put_observed(db, replica, &[reported(&only, report)])
            .await
            .unwrap();
    };
    let stored = async |db: &mut AnyConnection| {
        let view = devices::view(db, only.clone()).await.unwrap();
        (view.connection, view.observed.unwrap())
    };
    put(&mut db, &second, 2 * minute, &new).await;
    let right = stored(&mut db).await;
    put(&mut db, &first, minute, &old).await;
    devices::put_connections(&mut db, &first, &[coming(&only, false, 4 * minute)])
        .await
        .unwrap();
    assert_eq!(stored(&mut db).await, right);
    assert_eq!(right.1, new);
    // Clocks differ a little, and a replica that is no longer alive has no devices.
    put(&mut db, &first, 2 * minute - 1000, &old).await;
    assert_eq!(stored(&mut db).await.1, old);
    sqlx::query("DELETE FROM replicas")
        .execute(&mut *db)
        .await
        .unwrap();
    put(&mut db, &second, minute, &new).await;
    assert_eq!(stored(&mut db).await.1, new);
}

async fn a_device_is_where_it_came_last(database: Database) {
    two_tenants(&database).await;
    let (here, there) = (ReplicaId::random(), ReplicaId::random());
    let both =
        ["one", "two"].map(|tenant| device(&fleet_id(tenant, "shops"), u32::from(tenant == "two")));
    insert_devices(&database, &both).await;
    let [one, two] = &both;
    let mut db = database.write().await;
    let at = async |db: &mut AnyConnection, device: &Device| {
        let view = devices::view(&mut *db, device.clone()).await.unwrap();
        let list = devices::list(&mut *db, &device.fleet).await.unwrap();
        assert_eq!(list[0].connection, view.connection);
        (view.connection.connected, view.connection.seen_at)
    };
    assert_eq!(at(&mut db, one).await, (false, None));
    let came = [coming(one, true, 5), coming(two, true, 6)];
    devices::put_connections(&mut db, &here, &came)
        .await
        .unwrap();
    assert_eq!(at(&mut db, one).await, (false, Some(5)), "not alive");
    longshore_controller::store::replicas::alone(&mut db, &here)
        .await
        .unwrap();
    assert_eq!(at(&mut db, one).await, (true, Some(5)));
    devices::put_connections(&mut db, &there, &[coming(one, true, 7)])
        .await
        .unwrap();
    longshore_controller::store::replicas::alone(&mut db, &there)
        .await
        .unwrap();
    let went = [coming(one, false, 8), coming(two, false, 9)];
    devices::put_connections(&mut db, &here, &went)
        .await
        .unwrap();
    assert_eq!(at(&mut db, one).await, (true, Some(7)));
    assert_eq!(at(&mut db, two).await, (false, Some(9)));
    longshore_controller::store::replicas::alone(&mut db, &here)
        .await
        .unwrap();
    assert_eq!(at(&mut db, one).await, (false, Some(7)));
}

async fn writers_wait_for_each_other(database: Database) {
    const WRITERS: u32 = 24;
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    insert_devices(&database, &[0, 1].map(|n| device(&shops, n))).await;
    put(
        &database,
        &shops,
        &[(0, desired(1, "0")), (1, desired(1, "0"))],
    )
    .await;

    let start = Arc::new(Barrier::new(WRITERS as usize));
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (database, shops, start) = (database.clone(), shops.clone(), start.clone());
        let replica = ReplicaId::random();
        tasks.spawn(async move {
            start.wait().await;
            for round in 0..5 {
                // Read, then write: a transaction that only then asks to write could be refused.
                let mut db = database.write().await;
                let list = devices::list(&mut db, &shops).await.unwrap();
                let seen = u64::from(writer) + round;
                let comings: Vec<_> = list
                    .iter()
                    .map(|view| coming(&view.device, true, seen))
                    .collect();
                devices::put_connections(&mut db, &replica, &comings)
                    .await
                    .unwrap();
                db.commit().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}
