//! Devices: their names, states, desired and observed states.

use std::{collections::BTreeMap, sync::Arc};

use longshore_controller::{
    replica::ReplicaId,
    store::{
        StoreError,
        devices::{self, Description, Desired, Device, Reported},
        fleets::FleetId,
    },
};
use longshore_protocol::{
    Condition, DeviceId, Digest, Generation,
    api::DeviceState,
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
    a_device_comes_back_as_it_was,
    a_key_and_an_id_belong_to_one_device,
    a_name_is_unique_among_the_living,
    tenants_devices_do_not_mix,
    another_tenants_device_cannot_be_changed,
    an_end_is_an_end,
    bulk_writes_pass_the_chunk_limit,
    devices_swap_their_names,
    a_name_that_a_living_device_has_is_not_given_away,
    a_generation_never_falls_and_keeps_its_digest,
    raising_lifts_a_generation_only_above,
    the_highest_generation_harms_nobody,
    the_last_report_is_kept,
    a_device_is_where_it_came_last,
    what_is_stored_late_is_no_news,
    writers_wait_for_each_other,
);

async fn a_device_comes_back_as_it_was(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let full = Device {
        state: DeviceState::Active,
        state_reason: "says \u{1f6a2}".to_owned(),
        branch_pushed: true,
        folder_to_delete: true,
        facts: BTreeMap::from([("os".to_owned(), "a\u{0}b\"\\'".to_owned())]),
        conditions: vec![Condition::fails("Rendered", "Refused", "why\u{0}not", 9)],
        source_address: "2001:db8::1".to_owned(),
        ..device(&shops, 1)
    };
    insert_devices(&database, [&full, &device(&shops, 2)]).await;

    let mut db = database.read().await;
    let list = devices::list(&mut db, &shops).await.unwrap();
    assert_eq!(list.len(), 2);
    for found in [
        devices::by_id(&mut db, &full.id).await.unwrap().unwrap(),
        devices::by_key(&mut db, &shops, full.public_key)
            .await
            .unwrap()
            .unwrap(),
        devices::find(&mut db, &shops, &full.name)
            .await
            .unwrap()
            .unwrap(),
        list[0].device.clone(),
    ] {
        assert_eq!(format!("{found:?}"), format!("{full:?}"));
    }
    let view = devices::view(&mut db, full.clone()).await.unwrap();
    assert!(view.desired.is_none() && view.observed.is_none() && !view.in_sync());
    drop(db);

    let mut db = database.write().await;
    let id = &full.id;
    let facts = BTreeMap::from([("os".to_owned(), "other".to_owned())]);
    devices::set_facts(&mut db, &[(&full.fleet, id, &facts)])
        .await
        .unwrap();
    devices::set_folder_to_delete(&mut db, &shops, id, false)
        .await
        .unwrap();
    devices::set_branch_pushed(&mut db, &shops, &[device_id(2)])
        .await
        .unwrap();
    let found = devices::by_id(&mut db, id).await.unwrap().unwrap();
    let expected = Device {
        facts,
        folder_to_delete: false,
        ..full
    };
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    let other = devices::by_id(&mut db, &device_id(2))
        .await
        .unwrap()
        .unwrap();
    assert!(other.branch_pushed);
}

async fn a_key_and_an_id_belong_to_one_device(database: Database) {
    two_tenants(&database).await;
    let (shops, boats) = (fleet_id("one", "shops"), fleet_id("one", "boats"));
    let first = Device {
        state: DeviceState::Rejected,
        ..device(&shops, 1)
    };
    insert_devices(&database, [&first]).await;
    let same_key = Device {
        public_key: first.public_key,
        ..device(&shops, 2)
    };
    // Ids are unique across tenants, since a certificate names nothing else.
    let same_id = Device {
        id: first.id.clone(),
        ..device(&fleet_id("two", "shops"), 3)
    };
    for taken in [same_key, same_id] {
        let mut db = database.write().await;
        let error = devices::insert(&mut db, &taken).await.unwrap_err();
        assert!(matches!(error, StoreError::Duplicate(_)), "{error:?}");
    }
    // Another fleet may have a device of the same key.
    let elsewhere = Device {
        public_key: first.public_key,
        ..device(&boats, 4)
    };
    insert_devices(&database, [&elsewhere]).await;
    let mut db = database.read().await;
    for (fleet, id) in [(&shops, &first.id), (&boats, &elsewhere.id)] {
        let found = devices::by_key(&mut db, fleet, first.public_key)
            .await
            .unwrap();
        assert_eq!(&found.unwrap().id, id);
    }
}

async fn a_name_is_unique_among_the_living(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let named = |n: u32, state: DeviceState| Device {
        name: "same".parse().unwrap(),
        state,
        ..device(&shops, n)
    };
    let dead = [
        named(1, DeviceState::Rejected),
        named(2, DeviceState::Decommissioned),
    ];
    insert_devices(&database, &dead).await;
    let name = dead[0].name.clone();
    let mut db = database.read().await;
    let found = devices::find(&mut db, &shops, &name)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.id, dead[1].id, "the one that lived last");
    drop(db);

    let alive = Device {
        created_at: 1,
        ..named(3, DeviceState::Pending)
    };
    insert_devices(&database, [&alive]).await;
    for state in [DeviceState::Pending, DeviceState::Active] {
        let mut db = database.write().await;
        let error = devices::insert(&mut db, &named(4, state))
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Duplicate(_)), "{error:?}");
    }
    let mut db = database.write().await;
    let found = devices::find(&mut db, &shops, &name)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.id, alive.id, "the living one, however old");
    let reason = "its branch was deleted";
    devices::set_state(&mut db, &shops, &[alive.id], DeviceState::Rejected, reason)
        .await
        .unwrap();
    devices::insert(&mut db, &named(4, DeviceState::Active))
        .await
        .unwrap();
}

async fn tenants_devices_do_not_mix(database: Database) {
    two_tenants(&database).await;
    let (ours, theirs) = (fleet_id("one", "shops"), fleet_id("two", "shops"));
    // The same name and the same key in both tenants.
    let our_device = device(&ours, 1);
    let their_device = Device {
        id: device_id(2),
        ..device(&theirs, 1)
    };
    insert_devices(&database, [&our_device, &their_device]).await;
    let mut db = database.write().await;
    for (device, content) in [(&our_device, "ours"), (&their_device, "theirs")] {
        let moves = [(device.id.clone(), desired(1, content))];
        devices::put_desired(&mut db, &device.fleet, &moves)
            .await
            .unwrap();
    }
    for (device, content) in [(&our_device, "ours"), (&their_device, "theirs")] {
        let fleet = &device.fleet;
        let list = devices::list(&mut db, fleet).await.unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].device.id, device.id);
        assert_eq!(list[0].desired, Some(desired(1, content)));
        let key = devices::by_key(&mut db, fleet, device.public_key)
            .await
            .unwrap();
        assert_eq!(key.unwrap().id, device.id);
        let name = devices::find(&mut db, fleet, &device.name).await.unwrap();
        assert_eq!(name.unwrap().id, device.id);
    }
    let crossed = devices::desired(&mut db, &ours.tenant, &their_device.id)
        .await
        .unwrap();
    assert_eq!(crossed, None);
}

async fn another_tenants_device_cannot_be_changed(database: Database) {
    two_tenants(&database).await;
    let theirs = fleet_id("two", "shops");
    let victim = device(&theirs, 1);
    insert_devices(&database, [&victim]).await;
    let mut db = database.write().await;
    let moves = [(victim.id.clone(), desired(3, "theirs"))];
    devices::put_desired(&mut db, &theirs, &moves)
        .await
        .unwrap();
    db.commit().await.unwrap();
    let before = snapshot(&database, &theirs).await;

    let (ours, id) = (fleet_id("one", "shops"), &victim.id);
    let tenant = ours.tenant.clone();
    let mut db = database.write().await;
    let ids = [id.clone()];
    devices::set_state(&mut db, &ours, &ids, DeviceState::Active, "stolen")
        .await
        .unwrap();
    let description = Description {
        id: id.clone(),
        name: "stolen".parse().unwrap(),
        labels: BTreeMap::new(),
        conditions: Vec::new(),
    };
    devices::describe(&mut db, &ours, &[description])
        .await
        .unwrap();
    devices::set_branch_pushed(&mut db, &ours, std::slice::from_ref(id))
        .await
        .unwrap();
    devices::set_folder_to_delete(&mut db, &ours, id, true)
        .await
        .unwrap();
    devices::set_facts(&mut db, &[(&ours, id, &BTreeMap::new())])
        .await
        .unwrap();
    devices::raise_generation(&mut db, &ours, id, Generation::from(9))
        .await
        .unwrap();
    db.commit().await.unwrap();
    // There is no such device in that tenant, so these rows have nothing to hang on.
    let mut db = database.write().await;
    let moves = [(id.clone(), desired(4, "ours"))];
    devices::put_desired(&mut db, &ours, &moves)
        .await
        .unwrap_err();
    drop(db);
    let mut db = database.write().await;
    let report = report(4, "ours", Phase::Applied);
    let stolen = Reported {
        tenant: &tenant,
        device: id,
        observed: &observed(report, 9),
    };
    devices::put_observed(&mut db, &ReplicaId::random(), &[stolen])
        .await
        .unwrap();
    db.commit().await.unwrap();
    assert_eq!(snapshot(&database, &theirs).await, before);
}

async fn snapshot(database: &Database, fleet: &FleetId) -> String {
    let mut db = database.read().await;
    format!("{:?}", devices::list(&mut db, fleet).await.unwrap())
}

async fn an_end_is_an_end(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let end = |n, state| Device {
        state,
        state_reason: "ended".to_owned(),
        ..device(&shops, n)
    };
    let ended = [
        end(1, DeviceState::Rejected),
        end(2, DeviceState::Decommissioned),
    ];
    let living = [device(&shops, 3), end(4, DeviceState::Active)];
    insert_devices(&database, ended.iter().chain(&living)).await;
    let mut db = database.write().await;
    let ids: Vec<_> = ended
        .iter()
        .chain(&living)
        .map(|it| it.id.clone())
        .collect();
    for state in [
        DeviceState::Active,
        DeviceState::Pending,
        DeviceState::Decommissioned,
        DeviceState::Active,
    ] {
        devices::set_state(&mut db, &shops, &ids, state, "moved")
            .await
            .unwrap();
        for before in &ended {
            let now = devices::by_id(&mut db, &before.id).await.unwrap().unwrap();
            assert_eq!((now.state, &*now.state_reason), (before.state, "ended"));
        }
    }
    for before in &living {
        let now = devices::by_id(&mut db, &before.id).await.unwrap().unwrap();
        assert_eq!(
            (now.state, &*now.state_reason),
            (DeviceState::Decommissioned, "moved")
        );
    }
    devices::set_state(&mut db, &shops, &[], DeviceState::Active, "nobody")
        .await
        .unwrap();
}

async fn bulk_writes_pass_the_chunk_limit(database: Database) {
    const MANY: u32 = 2_500;
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let all: Vec<_> = (0..MANY).map(|n| device(&shops, n)).collect();
    insert_devices(&database, &all).await;
    let ids: Vec<_> = all.iter().map(|device| device.id.clone()).collect();

    let mut db = database.write().await;
    devices::set_state(&mut db, &shops, &ids, DeviceState::Active, "approved")
        .await
        .unwrap();
    let descriptions: Vec<_> = (0..MANY)
        .map(|n| Description {
            id: device_id(n),
            name: format!("renamed-{n}").parse().unwrap(),
            labels: BTreeMap::from([("number".to_owned(), n.to_string())]),
            conditions: vec![Condition::holds("Rendered", "Built", n.to_string(), 1)],
        })
        .collect();
    devices::describe(&mut db, &shops, &descriptions)
        .await
        .unwrap();
    let moves: Vec<_> = (0..MANY)
        .map(|n| (device_id(n), desired(1, &n.to_string())))
        .collect();
    let written = devices::put_desired(&mut db, &shops, &moves).await.unwrap();
    assert_eq!(written, u64::from(MANY));
    let again = devices::put_desired(&mut db, &shops, &moves).await.unwrap();
    assert_eq!(again, 0);
    db.commit().await.unwrap();

    let mut db = database.read().await;
    let found = devices::list(&mut db, &shops).await.unwrap();
    let by_id: BTreeMap<_, _> = found.iter().map(|view| (&view.device.id, view)).collect();
    assert_eq!(by_id.len(), all.len());
    for (n, (description, (id, desired))) in (0_u32..).zip(descriptions.iter().zip(&moves)) {
        let view = by_id[id];
        assert_eq!(view.device.state, DeviceState::Active);
        assert_eq!(view.device.name, description.name, "{n}");
        assert_eq!(view.device.labels, description.labels);
        assert_eq!(view.device.conditions, description.conditions);
        assert_eq!(view.desired.as_ref(), Some(desired));
    }
}

async fn describe(
    database: &Database,
    fleet: &FleetId,
    names: &[(u32, &str)],
) -> Result<(), StoreError> {
    let descriptions: Vec<_> = names
        .iter()
        .map(|(n, name)| Description {
            id: device_id(*n),
            name: name.parse().unwrap(),
            labels: BTreeMap::from([("described".to_owned(), "yes".to_owned())]),
            conditions: Vec::new(),
        })
        .collect();
    let mut db = database.write().await;
    devices::describe(&mut db, fleet, &descriptions).await?;
    db.commit().await?;
    Ok(())
}

async fn names(database: &Database, fleet: &FleetId) -> Vec<(DeviceId, String)> {
    let mut db = database.read().await;
    let mut names: Vec<_> = devices::list(&mut db, fleet)
        .await
        .unwrap()
        .into_iter()
        .inspect(|view| assert!(view.device.labels.contains_key("described")))
        .map(|view| (view.device.id, view.device.name.to_string()))
        .collect();
    names.sort();
    names
}

async fn devices_swap_their_names(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    insert_devices(&database, &[1, 2, 3].map(|n| device(&shops, n))).await;
    let circle = [(1, "device-2"), (2, "device-3"), (3, "device-1")];
    describe(&database, &shops, &circle).await.unwrap();
    let expected = circle.map(|(n, name)| (device_id(n), name.to_owned()));
    assert_eq!(names(&database, &shops).await, expected);
}

async fn a_name_that_a_living_device_has_is_not_given_away(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let dead = Device {
        state: DeviceState::Decommissioned,
        labels: BTreeMap::from([("described".to_owned(), "before".to_owned())]),
        ..device(&shops, 4)
    };
    let holder = Device {
        labels: dead.labels.clone(),
        ..device(&shops, 3)
    };
    insert_devices(
        &database,
        [&device(&shops, 1), &device(&shops, 2), &holder, &dead],
    )
    .await;
    // One asks for a living device's name: it keeps its own for now, and the others' changes happen.
    let asked = [(1, "device-3"), (2, "device-4")];
    describe(&database, &shops, &asked).await.unwrap();
    let expected = [
        (1, "device-1"),
        (2, "device-4"),
        (3, "device-3"),
        (4, "device-4"),
    ];
    let expected = expected.map(|(n, name)| (device_id(n), name.to_owned()));
    assert_eq!(names(&database, &shops).await, expected);
}

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

fn report(generation: u64, content: &str, phase: Phase) -> StatusReport {
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
