//! Devices: their names, and the states of their lives.

use std::collections::BTreeMap;

use longshore_controller::{
    replica::ReplicaId,
    store::{
        StoreError,
        devices::{self, Description, Device, Reported},
        fleets::FleetId,
    },
};
use longshore_protocol::{Condition, DeviceId, Generation, api::DeviceState, message::Phase};

use super::{
    contracts,
    database::Database,
    samples::{desired, device, device_id, fleet_id, insert_devices, observed, two_tenants},
    states::report,
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
