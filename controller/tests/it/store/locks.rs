//! Writers lock in one order: leases, fleets, devices, what devices have. So none waits for another in a circle, and no
//! stamp comes after one that is above it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longshore_controller::{
    replica::ReplicaId,
    store::{
        Engine, StoreError,
        devices::{self, Assignment, Description, Device},
        fleets::{self, FleetId},
        replicas, tokens,
    },
};
use longshore_protocol::{
    Condition, DeviceId, Digest,
    api::DeviceState,
    message::{Phase, StatusReport},
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use sqlx::AnyConnection;
use tokio::{sync::Barrier, task::JoinSet};

use super::{
    contracts,
    database::{self, Database},
    roster::{afresh, members, refresh, roster},
    samples::{
        coming, desired, device, fleet_id, insert_devices, observed, reported, token, two_tenants,
    },
};

contracts!(whoever_writes_at_once_nobody_fails_and_no_stamp_is_missed);

const DEVICES: u32 = 40;
const ROUNDS: usize = 12;

/// The fleet's devices in some order.
type Shuffled<'a> = &'a [Device];
type Write = for<'a> fn(
    &'a mut AnyConnection,
    &'a FleetId,
    Shuffled<'a>,
    u64,
) -> futures_util::future::BoxFuture<'a, Result<(), StoreError>>;

/// What the reconciler, the enrollment, the API and the edge write, each in its own order of devices.
const WRITES: [(&str, Write); 8] = [
    ("assign", |db, fleet, devices, round| {
        Box::pin(async move {
            let branch = (round % 2 == 0).then(|| format!("longshore/enroll/{round}"));
            let assignments: Vec<_> = devices
                .iter()
                .map(|device| Assignment {
                    id: device.id.clone(),
                    branch: branch.clone(),
                    commit: None,
                })
                .collect();
            devices::assign(db, fleet, &assignments).await
        })
    }),
    ("set_branch_pushed", |db, fleet, devices, _| {
        Box::pin(async move { devices::set_branch_pushed(db, fleet, &ids(devices)).await })
    }),
    ("set_folder_to_delete", |db, fleet, devices, round| {
        Box::pin(async move {
            for device in devices {
                devices::set_folder_to_delete(db, fleet, &device.id, round % 2 == 0).await?;
            }
            Ok(())
        })
    }),
    ("set_state", |db, fleet, devices, _| {
        Box::pin(async move {
            devices::set_state(db, fleet, &ids(devices), DeviceState::Active, "approved").await
        })
    }),
    ("put_desired", |db, fleet, devices, round| {
        Box::pin(async move {
            let moves: Vec<_> = devices
                .iter()
                .map(|device| (device.id.clone(), desired(round + 1, &round.to_string())))
                .collect();
            devices::put_desired(db, fleet, &moves).await.map(drop)
        })
    }),
    ("describe", |db, fleet, devices, round| {
        Box::pin(async move {
            let descriptions: Vec<_> = devices
                .iter()
                .map(|device| Description {
                    id: device.id.clone(),
                    name: device.name.clone(),
                    labels: BTreeMap::new(),
                    conditions: vec![Condition::holds("Rendered", "Built", round.to_string(), 1)],
                })
                .collect();
            devices::describe(db, fleet, &descriptions).await
        })
    }),
    ("raise_generation", |db, fleet, devices, round| {
        Box::pin(async move {
            for device in devices {
                devices::raise_generation(db, fleet, &device.id, round.into()).await?;
            }
            Ok(())
        })
    }),
    ("set_facts", |db, fleet, devices, round| {
        Box::pin(async move {
            let facts = BTreeMap::from([("round".to_owned(), round.to_string())]);
            let facts: Vec<_> = devices
                .iter()
                .map(|device| (fleet, &device.id, &facts))
                .collect();
            devices::set_facts(db, &facts).await.map(drop)
        })
    }),
];

fn ids(devices: &[Device]) -> Vec<DeviceId> {
    devices.iter().map(|device| device.id.clone()).collect()
}

async fn whoever_writes_at_once_nobody_fails_and_no_stamp_is_missed(database: Database) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let all: Vec<_> = (0..DEVICES).map(|n| device(&shops, n)).collect();
    insert_devices(&database, &all).await;
    let start = Arc::new(Barrier::new(WRITES.len()));
    let mut writers = JoinSet::new();
    for (number, (name, write)) in WRITES.into_iter().enumerate() {
        let (database, shops, start) = (database.clone(), shops.clone(), start.clone());
        let mut devices = all.clone();
        let mut chance = StdRng::seed_from_u64(seed.wrapping_add(number as u64));
        writers.spawn(async move {
            start.wait().await;
            for round in 0..ROUNDS {
                devices.shuffle(&mut chance);
                let mut db = database.write().await;
                write(&mut db, &shops, &devices, round as u64)
                    .await
                    .unwrap_or_else(|error| panic!("{name}: {error:?}"));
                db.commit().await.unwrap();
            }
        });
    }
    let mut roster = roster();
    while !writers.is_empty() {
        refresh(&mut roster, &database, &shops).await;
        while let Some(ended) = writers.try_join_next() {
            ended.unwrap();
        }
        tokio::task::yield_now().await;
    }
    refresh(&mut roster, &database, &shops).await;
    assert_eq!(members(&roster), afresh(&database, &shops).await);
}

/// Lets `first` write, then deletes the fleet beside it, then lets `second` write in the first one's transaction. The
/// fleet's lease is the holder's.
async fn delete_in_the_middle(
    holder: &ReplicaId,
    first: impl AsyncFn(&mut AnyConnection, &FleetId, &[Device]),
    second: impl AsyncFn(&mut AnyConnection, &FleetId, &[Device]),
) {
    database::with(Engine::Postgres, async |database: Database| {
        two_tenants(&database).await;
        let shops = fleet_id("one", "shops");
        let all: Vec<_> = (0..6).map(|n| device(&shops, n)).collect();
        insert_devices(&database, &all).await;
        let mut db = database.write().await;
        tokens::insert(&mut db, &token(&shops, 1), Digest::of(b"secret"))
            .await
            .unwrap();
        db.commit().await.unwrap();
        let peers = database.store.peers().unwrap();
        let life = Duration::from_mins(1);
        peers.beat(holder, 1, life).await.unwrap();
        peers
            .take(
                holder,
                std::slice::from_ref(&shops),
                1,
                Duration::ZERO,
                life,
            )
            .await
            .unwrap();

        let mut db = database.write().await;
        first(&mut db, &shops, &all).await;
        let deletion = tokio::spawn({
            let (database, shops) = (database.clone(), shops.clone());
            async move {
                let mut db = database.write().await;
                assert!(fleets::delete(&mut db, &shops).await.unwrap());
                db.commit().await.unwrap();
            }
        });
        until_somebody_waits(&database).await;
        second(&mut db, &shops, &all).await;
        db.commit().await.unwrap();
        deletion.await.unwrap();
        let mut db = database.read().await;
        assert!(fleets::find(&mut db, &shops).await.unwrap().is_none());
    })
    .await;
}

async fn until_somebody_waits(database: &Database) {
    let mut db = database.read().await;
    for _ in 0..600 {
        let (waiting,): (i64,) = sqlx::query_as(
            "SELECT COUNT(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *db)
        .await
        .unwrap();
        if waiting > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody waits for the first writer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_deleted_while_its_devices_report() {
    let replica = ReplicaId::random();
    // As the edge's recorder does.
    delete_in_the_middle(
        &replica,
        async |db, fleet, devices| {
            fleets::keep(db, [fleet]).await.unwrap();
            devices::put_connections(db, &replica, &[coming(&devices[5], true, 1)])
                .await
                .unwrap();
        },
        async |db, _, devices| {
            let report = StatusReport {
                held: desired(1, "one").target,
                phase: Phase::Applied,
                conditions: Vec::new(),
            };
            let observed = observed(report, 1);
            let reports: Vec<_> = devices
                .iter()
                .map(|device| reported(device, &observed))
                .collect();
            devices::put_observed(db, &replica, &reports).await.unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_deleted_while_its_reconciler_writes() {
    let holder = ReplicaId::random();
    delete_in_the_middle(
        &holder,
        async |db, fleet, _| replicas::check(db, &holder, fleet, 1).await.unwrap(),
        async |db, fleet, devices| {
            devices::set_state(db, fleet, &ids(devices), DeviceState::Active, "")
                .await
                .unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_deleted_while_a_device_enrolls() {
    delete_in_the_middle(
        &ReplicaId::random(),
        async |db, fleet, _| {
            assert!(tokens::take_use(db, &token(fleet, 1), 1).await.unwrap());
        },
        async |db, fleet, _| {
            devices::insert(db, &device(fleet, 7)).await.unwrap();
        },
    )
    .await;
}
