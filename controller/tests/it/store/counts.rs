//! What the database counts is what listing every device and counting gives.

use std::collections::BTreeMap;

use longshore_controller::{
    replica::ReplicaId,
    store::{
        Store,
        devices::{self, Description, Device, DeviceView, Spread, Waiting},
        fleets::FleetId,
        replicas,
    },
};
use longshore_protocol::{
    Condition, DeviceName, Generation,
    api::{DeviceCounts, DeviceState},
    message::{Held, Phase, StatusReport},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use sqlx::AnyConnection;

use super::{
    contracts,
    database::Database,
    samples::{
        coming, desired, device, device_id, fleet_id, insert_devices, observed, reported,
        two_tenants,
    },
};

contracts!(
    whatever_happens_counts_are_exact,
    a_database_of_before_counts_the_same,
    only_the_first_that_fail_are_named,
);

const DEVICES: u32 = 30;
const MOST: u32 = 3;

async fn whatever_happens_counts_are_exact(database: Database) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    two_tenants(&database).await;
    let fleets = [("one", "shops"), ("one", "boats"), ("two", "shops")]
        .map(|(tenant, name)| fleet_id(tenant, name));
    let all: Vec<Device> = (0..DEVICES)
        .map(|n| Device {
            state: if n % 3 == 0 {
                DeviceState::Pending
            } else {
                DeviceState::Active
            },
            conditions: vec![rendered(n % 7)],
            ..device(&fleets[n as usize % fleets.len()], n)
        })
        .collect();
    insert_devices(&database, &all).await;
    let here = ReplicaId::random();
    let mut db = database.write().await;
    replicas::alone(&mut db, &here).await.unwrap();
    db.commit().await.unwrap();

    for _ in 0..40 {
        let mut db = database.write().await;
        for _ in 0..chance.random_range(1..8) {
            let device = all.choose(&mut chance).unwrap();
            operate(&mut db, &here, device, &mut chance).await;
        }
        if chance.random_bool(0.9) {
            db.commit().await.unwrap();
        } else {
            drop(db);
        }
        for fleet in &fleets {
            compare(&database.store, fleet).await;
        }
    }
}

/// One write that counts may depend on.
async fn operate(db: &mut AnyConnection, here: &ReplicaId, device: &Device, chance: &mut StdRng) {
    let fleet = &device.fleet;
    let id = device.id.clone();
    let value = chance.random_range(0..12_u32);
    let generation = u64::from(chance.random_range(1..4_u32));
    match chance.random_range(0..7) {
        0 => {
            let state = if value > 1 {
                DeviceState::Active
            } else {
                DeviceState::Decommissioned
            };
            devices::set_state(db, fleet, &[id], state, "")
                .await
                .unwrap();
        }
        1 => {
            let description = Description {
                id,
                name: device.name.clone(),
                labels: BTreeMap::new(),
                conditions: conditions(value),
            };
            devices::describe(db, fleet, &[description]).await.unwrap();
        }
        2 => {
            let waiting = Waiting {
                id,
                reason: "waits".to_owned(),
                conditions: conditions(value),
            };
            devices::put_waiting(db, fleet, &[waiting]).await.unwrap();
        }
        3 => {
            let moves = [(id, desired(generation, &value.to_string()))];
            devices::put_desired(db, fleet, &moves).await.unwrap();
        }
        4 => {
            let elsewhere = ReplicaId::random();
            let replica = if value < 2 { &elsewhere } else { here };
            let came = value % 3 > 0;
            let coming = coming(device, came, u64::from(value) * 60_000);
            devices::put_connections(db, replica, &[coming])
                .await
                .unwrap();
        }
        5 if value == 0 => devices::reject(db, fleet, &[(id, "no".to_owned())])
            .await
            .unwrap(),
        _ => report(db, here, device, generation, chance).await,
    }
}

/// The device reports what it should run, or something else.
async fn report(
    db: &mut AnyConnection,
    here: &ReplicaId,
    device: &Device,
    generation: u64,
    chance: &mut StdRng,
) {
    let wanted = devices::desired(db, &device.fleet.tenant, &device.id)
        .await
        .unwrap();
    let held = match wanted {
        Some(wanted) if chance.random_bool(0.7) => wanted.target,
        _ => Held {
            generation: Generation::from(generation),
            digest: desired(1, "other").target.digest,
        },
    };
    let phases = [
        Phase::Applied,
        Phase::Applied,
        Phase::Failed,
        Phase::Applying,
    ];
    let report = StatusReport {
        held,
        phase: *phases.choose(chance).unwrap(),
        conditions: Vec::new(),
    };
    let observed = observed(report, 1);
    devices::put_observed(db, here, &[reported(device, &observed)])
        .await
        .unwrap();
}

fn rendered(value: u32) -> Condition {
    // As a message may quote it.
    let message = r#"{"type":"Rendered","status":"False","reason":"Invalid","message":""}"#;
    match value {
        0 => Condition::fails("Rendered", "BuildFailed", message, 1),
        1 => Condition::fails("Rendered", "Building", message, 1),
        2 => Condition::fails("Other", "Rendered", message, 1),
        _ => Condition::holds("Rendered", "Built", message, 1),
    }
}

fn conditions(value: u32) -> Vec<Condition> {
    let other = Condition::fails("Approved", "Waits", "for \"people\"", 1);
    vec![other, rendered(value)]
}

async fn compare(store: &Store, fleet: &FleetId) {
    let mut db = store.read().await.unwrap();
    let list = devices::list(&mut db, fleet).await.unwrap();
    let expected = by_listing(&list);
    assert_eq!(devices::counts(&mut db, fleet).await.unwrap(), expected);
    let mut all = devices::counts_by_fleet(&mut db, &fleet.tenant)
        .await
        .unwrap();
    assert_eq!(all.remove(&fleet.name).unwrap_or_default(), expected);
    let spread = devices::spread(&mut db, fleet, MOST).await.unwrap();
    assert_eq!(spread, spread_by_listing(&list));
}

fn by_listing(list: &[DeviceView]) -> DeviceCounts {
    let mut counts = DeviceCounts::default();
    for view in list {
        match view.device.state {
            DeviceState::Pending => counts.pending += 1,
            DeviceState::Active => counts.active += 1,
            DeviceState::Rejected | DeviceState::Decommissioned => continue,
        }
        counts.total += 1;
        counts.connected += u64::from(view.connection.connected);
        counts.in_sync += u64::from(view.in_sync());
        counts.failing += u64::from(view.is_failing());
    }
    counts
}

fn spread_by_listing(list: &[DeviceView]) -> Spread {
    let is_active = |view: &&DeviceView| view.device.state == DeviceState::Active;
    let is_outdated = |view: &DeviceView| match (&view.desired, &view.observed) {
        (Some(desired), Some(observed)) => observed.report.held != desired.target,
        _ => false,
    };
    let active: Vec<_> = list.iter().filter(is_active).collect();
    let failing: Vec<_> = active
        .iter()
        .filter(|view| view.is_unbuilt() || view.is_failing() && !is_outdated(view))
        .map(|view| view.device.name.clone())
        .collect();
    Spread {
        devices: active.len() as u64,
        in_sync: active.iter().filter(|view| view.in_sync()).count() as u64,
        failing: failing.len() as u64,
        failing_first: failing.into_iter().take(MOST as usize).collect(),
    }
}

async fn a_database_of_before_counts_the_same(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let all: Vec<Device> = (0..5)
        .map(|n| Device {
            state: DeviceState::Active,
            conditions: conditions(n),
            ..device(&shops, n)
        })
        .collect();
    insert_devices(&database, &all).await;
    database
        .damage("ALTER TABLE devices DROP COLUMN unbuilt")
        .await;
    database
        .damage("DELETE FROM _sqlx_migrations WHERE version = 9")
        .await;

    let store = Store::open(&database.url).await.unwrap();
    compare(&store, &shops).await;
    let mut db = store.read().await.unwrap();
    let counts = devices::counts(&mut db, &shops).await.unwrap();
    assert_eq!((counts.active, counts.failing), (5, 1));
    drop(db);
    store.close().await;
}

async fn only_the_first_that_fail_are_named(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let all: Vec<Device> = (0..6)
        .map(|n| Device {
            name: format!("device-{}", 9 - n).parse().unwrap(),
            state: DeviceState::Active,
            conditions: conditions(0),
            ..device(&shops, n)
        })
        .collect();
    insert_devices(&database, &all).await;
    let mut db = database.read().await;
    let spread = devices::spread(&mut db, &shops, 2).await.unwrap();
    assert_eq!((spread.devices, spread.failing), (6, 6));
    let names: Vec<_> = spread
        .failing_first
        .iter()
        .map(DeviceName::as_str)
        .collect();
    assert_eq!(names, ["device-4", "device-5"]);
    let other = devices::spread(&mut db, &fleet_id("one", "boats"), 2)
        .await
        .unwrap();
    assert_eq!(other, Spread::default());
    let gone = devices::ids(&mut db, &shops).await.unwrap();
    assert!(gone.contains(&device_id(5)) && gone.len() == 6);
}
