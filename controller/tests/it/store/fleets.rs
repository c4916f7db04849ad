//! Fleets and their revisions.

use longshore_controller::store::{
    StoreError, devices,
    fleets::{self, Fleet, FleetStatus, Revision},
};
use longshore_protocol::{Condition, api::HeldRemoval};

use super::{
    contracts,
    database::Database,
    samples::{desired, device, fleet, fleet_id, insert_devices, tenant, two_tenants},
};

contracts!(
    a_fleet_comes_back_as_it_was,
    a_tenant_has_a_fleets_name_once,
    tenants_fleets_do_not_mix,
    a_fleet_of_no_tenant_is_refused,
    a_new_webhook_secret_leaves_the_one_before_in_force_for_a_while,
    removals_are_confirmed_only_for_the_revision_in_force,
    revisions_come_newest_first,
    a_revision_recorded_again_adds_up,
    a_commit_that_comes_back_is_a_revision_again,
    everything_goes_with_the_fleet_and_nothing_else,
);

fn status(revision: &str) -> FleetStatus {
    FleetStatus {
        revision: Some(revision.to_owned()),
        conditions: vec![Condition::holds("SourceReady", "Fetched", "", 4)],
        problems: vec!["devices/x/device.yaml:3: `nmae` is unknown".to_owned()],
        held: vec![HeldRemoval {
            device: "device-1".parse().unwrap(),
            removal: "Decommission".to_owned(),
        }],
    }
}

async fn a_fleet_comes_back_as_it_was(database: Database) {
    two_tenants(&database).await;
    let full = Fleet {
        repo: "/srv/git/a b'c.git".to_owned(),
        branch: "release/2026".to_owned(),
        path: "fleets/eu".to_owned(),
        trusted: true,
        webhook_secret: (0..=255).collect(),
        webhook_secret_before: Some((vec![3, 2, 1], 40)),
        connection: Some(vec![9]),
        hosted: true,
        status: status("abc"),
        confirmed_revision: Some("abc".to_owned()),
        created_at: 1_700_000_000_000,
        ..fleet("one", "full")
    };
    let mut db = database.write().await;
    fleets::insert(&mut db, &full).await.unwrap();
    db.commit().await.unwrap();

    let mut db = database.write().await;
    let found = fleets::find(&mut db, &full.id).await.unwrap().unwrap();
    assert_eq!(format!("{found:?}"), format!("{full:?}"));
    fleets::set_status(&mut db, &full.id, &FleetStatus::default())
        .await
        .unwrap();
    let found = fleets::find(&mut db, &full.id).await.unwrap().unwrap();
    assert_eq!(found.status, FleetStatus::default());
    assert_eq!(found.confirmed_revision, full.confirmed_revision);
}

async fn a_new_webhook_secret_leaves_the_one_before_in_force_for_a_while(database: Database) {
    two_tenants(&database).await;
    let mut db = database.write().await;
    for tenant in ["one", "two"] {
        let fleet = Fleet {
            webhook_secret: vec![1],
            ..fleet(tenant, "fleet")
        };
        fleets::insert(&mut db, &fleet).await.unwrap();
    }
    let (mine, theirs) = (fleet_id("one", "fleet"), fleet_id("two", "fleet"));
    for (secret, until) in [(2, 1000), (3, 2000)] {
        fleets::rotate_webhook_secret(&mut db, &mine, &[secret], until)
            .await
            .unwrap();
        let found = fleets::webhook_secrets(&mut db, &mine).await.unwrap();
        let found = found.unwrap();
        assert_eq!(found.current, [secret]);
        assert_eq!(found.before, Some((vec![secret - 1], until)));
    }
    let found = fleets::webhook_secrets(&mut db, &theirs).await.unwrap();
    let found = found.unwrap();
    assert_eq!((found.current, found.before), (vec![1], None));
    let nobody = fleet_id("one", "other");
    assert!(
        fleets::webhook_secrets(&mut db, &nobody)
            .await
            .unwrap()
            .is_none()
    );
}

async fn a_tenant_has_a_fleets_name_once(database: Database) {
    two_tenants(&database).await;
    let mut db = database.write().await;
    let error = fleets::insert(&mut db, &fleet("one", "shops"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Duplicate(_)), "{error:?}");
}

async fn tenants_fleets_do_not_mix(database: Database) {
    two_tenants(&database).await;
    let (ours, theirs) = (fleet_id("one", "shops"), fleet_id("two", "shops"));
    let mut db = database.write().await;
    fleets::insert(&mut db, &fleet("two", "only-theirs"))
        .await
        .unwrap();
    fleets::set_status(&mut db, &ours, &status("abc"))
        .await
        .unwrap();
    let revision = revision("abc", 1, 0);
    fleets::record_revision(&mut db, &ours, &revision)
        .await
        .unwrap();
    assert!(
        fleets::confirm_removals(&mut db, &ours, "abc")
            .await
            .unwrap()
    );
    assert!(
        !fleets::confirm_removals(&mut db, &theirs, "abc")
            .await
            .unwrap()
    );
    db.commit().await.unwrap();

    let mut db = database.read().await;
    let ids = |fleets: Vec<Fleet>| -> Vec<String> {
        fleets.iter().map(|fleet| fleet.id.to_string()).collect()
    };
    let listed = fleets::list(&mut db, &tenant("one")).await.unwrap();
    assert_eq!(ids(listed), ["one/boats", "one/shops"]);
    let listed = fleets::list(&mut db, &tenant("nobody")).await.unwrap();
    assert!(listed.is_empty());
    let all = fleets::links(&mut db).await.unwrap();
    let all: Vec<_> = all.keys().map(ToString::to_string).collect();
    let expected = [
        "one/boats",
        "one/shops",
        "two/boats",
        "two/only-theirs",
        "two/shops",
    ];
    assert_eq!(all, expected);
    let elsewhere = fleet_id("one", "only-theirs");
    assert!(fleets::find(&mut db, &elsewhere).await.unwrap().is_none());
    let other = fleets::find(&mut db, &theirs).await.unwrap().unwrap();
    assert_eq!(other.status, FleetStatus::default());
    assert!(
        fleets::revisions(&mut db, &theirs, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn a_fleet_of_no_tenant_is_refused(database: Database) {
    let mut db = database.write().await;
    let error = fleets::insert(&mut db, &fleet("nobody", "shops"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Database(_)), "{error:?}");
}

async fn removals_are_confirmed_only_for_the_revision_in_force(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let mut db = database.write().await;
    assert!(
        !fleets::confirm_removals(&mut db, &shops, "abc")
            .await
            .unwrap()
    );
    fleets::set_status(&mut db, &shops, &status("abc"))
        .await
        .unwrap();
    assert!(
        !fleets::confirm_removals(&mut db, &shops, "abd")
            .await
            .unwrap()
    );
    assert!(
        fleets::confirm_removals(&mut db, &shops, "abc")
            .await
            .unwrap()
    );
    let found = fleets::find(&mut db, &shops).await.unwrap().unwrap();
    assert_eq!(found.confirmed_revision.as_deref(), Some("abc"));
}

fn revision(commit: &str, devices_changed: u64, problems: u64) -> Revision {
    Revision {
        commit: commit.to_owned(),
        summary: format!("Change {commit} — \u{1f6a2}"),
        author: "Åsa".to_owned(),
        observed_at: 40,
        devices_changed,
        problems,
    }
}

async fn revisions_come_newest_first(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let recorded: Vec<_> = (0..12).map(|n| revision(&format!("c{n}"), n, 0)).collect();
    let mut db = database.write().await;
    for revision in &recorded {
        fleets::record_revision(&mut db, &shops, revision)
            .await
            .unwrap();
    }
    let found = fleets::revisions(&mut db, &shops, 5).await.unwrap();
    let newest: Vec<_> = recorded.into_iter().rev().take(5).collect();
    assert_eq!(found, newest);
    assert_eq!(
        fleets::revisions(&mut db, &shops, 100).await.unwrap().len(),
        12
    );
}

async fn a_revision_recorded_again_adds_up(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let mut db = database.write().await;
    for (changed, problems) in [(2, 5), (3, 1)] {
        let again = Revision {
            observed_at: 40 + changed,
            ..revision("abc", changed, problems)
        };
        fleets::record_revision(&mut db, &shops, &again)
            .await
            .unwrap();
    }
    let expected = Revision {
        observed_at: 42,
        ..revision("abc", 5, 1)
    };
    let found = fleets::revisions(&mut db, &shops, 10).await.unwrap();
    assert_eq!(found, [expected]);
}

async fn a_commit_that_comes_back_is_a_revision_again(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let mut db = database.write().await;
    for commit in ["a", "b", "a"] {
        fleets::record_revision(&mut db, &shops, &revision(commit, 1, 0))
            .await
            .unwrap();
    }
    let found = fleets::revisions(&mut db, &shops, 10).await.unwrap();
    let commits: Vec<_> = found
        .iter()
        .map(|it| (it.commit.as_str(), it.devices_changed))
        .collect();
    assert_eq!(commits, [("a", 1), ("b", 1), ("a", 1)]);
}

async fn everything_goes_with_the_fleet_and_nothing_else(database: Database) {
    two_tenants(&database).await;
    let (shops, boats) = (fleet_id("one", "shops"), fleet_id("one", "boats"));
    let (gone, stays) = (device(&shops, 1), device(&boats, 2));
    insert_devices(&database, [&gone, &stays]).await;
    let mut db = database.write().await;
    for (device, fleet) in [(&gone, &shops), (&stays, &boats)] {
        let desired = [(device.id.clone(), desired(1, "a"))];
        devices::put_desired(&mut db, fleet, &desired)
            .await
            .unwrap();
        fleets::record_revision(&mut db, fleet, &revision("a", 1, 0))
            .await
            .unwrap();
    }
    db.commit().await.unwrap();

    let mut db = database.write().await;
    assert!(fleets::delete(&mut db, &shops).await.unwrap());
    assert!(!fleets::delete(&mut db, &shops).await.unwrap());
    db.commit().await.unwrap();

    let mut db = database.read().await;
    let tenant = &shops.tenant;
    assert!(fleets::find(&mut db, &shops).await.unwrap().is_none());
    assert!(devices::by_id(&mut db, &gone.id).await.unwrap().is_none());
    let desired = devices::desired(&mut db, tenant, &gone.id).await.unwrap();
    assert!(desired.is_none());
    assert!(
        fleets::revisions(&mut db, &shops, 9)
            .await
            .unwrap()
            .is_empty()
    );

    assert!(fleets::find(&mut db, &boats).await.unwrap().is_some());
    let stays = devices::list(&mut db, &boats).await.unwrap();
    assert!(stays.len() == 1 && stays[0].desired.is_some());
    assert_eq!(
        fleets::revisions(&mut db, &boats, 9).await.unwrap().len(),
        1
    );
    // The name is free again.
    drop(db);
    let mut db = database.write().await;
    fleets::insert(&mut db, &fleet("one", "shops"))
        .await
        .unwrap();
    assert!(devices::list(&mut db, &shops).await.unwrap().is_empty());
}
