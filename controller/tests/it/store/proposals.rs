//! Enrollment branches, and the devices that wait on them.

use longshore_controller::store::{
    devices::{self, Assignment, Waiting},
    fleets,
    proposals::{self, Proposal},
};
use longshore_protocol::{Condition, Digest, TokenId, api::DeviceState};

use super::{
    contracts,
    database::Database,
    samples::{device, device_id, fleet_id, insert_devices, two_tenants},
};

contracts!(
    a_proposal_comes_back_as_it_was,
    tenants_proposals_do_not_mix,
    devices_are_put_on_branches_and_taken_off,
    only_who_waits_is_rejected,
    another_tenants_waiting_devices_cannot_be_changed,
);

fn proposal(branch: &str) -> Proposal {
    let token = TokenId::from_random([1; 16]);
    Proposal::new(branch.to_owned(), token, 1_700_000_000_000)
}

fn commit(n: u8) -> git2::Oid {
    git2::Oid::from_bytes(&[n; 20]).unwrap()
}

async fn a_proposal_comes_back_as_it_was(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let bare = proposal("longshore/enroll/a");
    let full = Proposal {
        base: Some(commit(1)),
        pushed: Some(commit(2)),
        pushed_before: Some(commit(3)),
        edited: true,
        number: Some(u64::from(u32::MAX) + 1),
        url: Some("https://git.example/pulls/1".to_owned()),
        written: Some(Digest::of(b"text")),
        dressed: true,
        warning: Some("`nobody` \u{1f6a2}".to_owned()),
        ..proposal("longshore/enroll/b")
    };
    let mut db = database.write().await;
    proposals::put(&mut db, &shops, &[bare.clone(), full.clone()])
        .await
        .unwrap();
    db.commit().await.unwrap();
    let mut db = database.write().await;
    let all = proposals::list(&mut db, &shops).await.unwrap();
    assert_eq!(all, [bare.clone(), full.clone()]);
    // What is known already is written over, and nothing is left of it.
    let emptied = proposal("longshore/enroll/b");
    proposals::put(&mut db, &shops, std::slice::from_ref(&emptied))
        .await
        .unwrap();
    let all = proposals::list(&mut db, &shops).await.unwrap();
    assert_eq!(all, [bare, emptied.clone()]);
    proposals::delete(&mut db, &shops, "longshore/enroll/a")
        .await
        .unwrap();
    let all = proposals::list(&mut db, &shops).await.unwrap();
    assert_eq!(all, [emptied]);
    fleets::delete(&mut db, &shops).await.unwrap();
    assert!(proposals::list(&mut db, &shops).await.unwrap().is_empty());
}

async fn tenants_proposals_do_not_mix(database: Database) {
    two_tenants(&database).await;
    let fleets = [("one", "shops"), ("one", "boats"), ("two", "shops")];
    let fleets = fleets.map(|(tenant, name)| fleet_id(tenant, name));
    let mut db = database.write().await;
    for (number, fleet) in (1..).zip(&fleets) {
        let of_fleet = Proposal {
            number: Some(number),
            ..proposal("longshore/enroll/a")
        };
        proposals::put(&mut db, fleet, &[of_fleet]).await.unwrap();
    }
    proposals::delete(&mut db, &fleets[0], "longshore/enroll/a")
        .await
        .unwrap();
    let mut numbers = Vec::new();
    for fleet in &fleets {
        let all = proposals::list(&mut db, fleet).await.unwrap();
        numbers.push(all.first().and_then(|it| it.number));
    }
    assert_eq!(numbers, [None, Some(2), Some(3)]);
}

async fn devices_are_put_on_branches_and_taken_off(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    // More than one statement has room for.
    let all: Vec<_> = (0..1500).map(|n| device(&shops, n)).collect();
    insert_devices(&database, &all).await;
    let ids: Vec<_> = all.iter().map(|device| device.id.clone()).collect();
    let on = |id: &longshore_protocol::DeviceId| Assignment {
        id: id.clone(),
        branch: Some("longshore/enroll-batch/x".to_owned()),
        commit: Some(commit(1)),
    };
    let assignments: Vec<_> = ids.iter().map(on).collect();
    let mut db = database.write().await;
    devices::assign(&mut db, &shops, &assignments)
        .await
        .unwrap();
    devices::set_branch_pushed(&mut db, &shops, &ids)
        .await
        .unwrap();
    let waiting: Vec<_> = ids
        .iter()
        .map(|id| Waiting {
            id: id.clone(),
            reason: "waits".to_owned(),
            conditions: vec![Condition::holds("Proposed", "PullRequest", "waits", 1)],
        })
        .collect();
    devices::put_waiting(&mut db, &shops, &waiting)
        .await
        .unwrap();
    for view in devices::list(&mut db, &shops).await.unwrap() {
        let device = view.device;
        assert!(device.branch_pushed);
        assert_eq!(device.enrollment_commit, Some(commit(1)));
        assert_eq!(device.state_reason, "waits");
        assert_eq!(device.conditions.len(), 1);
    }
    // Another commit changes nothing about what was seen; another branch is to be seen first.
    let moved = Assignment {
        commit: Some(commit(2)),
        ..on(&ids[1])
    };
    let off = Assignment::none(ids[2].clone());
    devices::assign(&mut db, &shops, &[moved, off])
        .await
        .unwrap();
    let mut found = Vec::new();
    for id in &ids[1..3] {
        let device = devices::by_id(&mut db, id).await.unwrap().unwrap();
        let is_on = device.enrollment_branch.is_some();
        found.push((is_on, device.enrollment_commit, device.branch_pushed));
    }
    assert_eq!(found, [(true, Some(commit(2)), true), (false, None, false)]);
}

async fn only_who_waits_is_rejected(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    let active = devices::Device {
        state: DeviceState::Active,
        ..device(&shops, 2)
    };
    insert_devices(&database, [&device(&shops, 1), &active]).await;
    let rejected = [1, 2].map(|n| (device_id(n), format!("reason {n}")));
    let mut db = database.write().await;
    devices::reject(&mut db, &shops, &rejected).await.unwrap();
    let waiting = Waiting {
        id: device_id(1),
        reason: "too late".to_owned(),
        conditions: Vec::new(),
    };
    devices::put_waiting(&mut db, &shops, &[waiting])
        .await
        .unwrap();
    let mut states = Vec::new();
    for n in [1, 2] {
        let device = devices::by_id(&mut db, &device_id(n))
            .await
            .unwrap()
            .unwrap();
        states.push((device.state, device.state_reason));
    }
    assert_eq!(states[0], (DeviceState::Rejected, "reason 1".to_owned()));
    assert_eq!(states[1], (DeviceState::Active, active.state_reason));
}

async fn another_tenants_waiting_devices_cannot_be_changed(database: Database) {
    two_tenants(&database).await;
    let shops = fleet_id("one", "shops");
    insert_devices(&database, [&device(&shops, 1)]).await;
    let strangers = fleet_id("two", "shops");
    let mut db = database.write().await;
    let before = devices::by_id(&mut db, &device_id(1)).await.unwrap();
    let id = device_id(1);
    let rejected = [(id.clone(), "stolen".to_owned())];
    devices::reject(&mut db, &strangers, &rejected)
        .await
        .unwrap();
    let assignment = Assignment {
        id: id.clone(),
        branch: Some("stolen".to_owned()),
        commit: None,
    };
    devices::assign(&mut db, &strangers, &[assignment])
        .await
        .unwrap();
    devices::set_branch_pushed(&mut db, &strangers, std::slice::from_ref(&id))
        .await
        .unwrap();
    let waiting = Waiting {
        id: id.clone(),
        reason: "stolen".to_owned(),
        conditions: Vec::new(),
    };
    devices::put_waiting(&mut db, &strangers, &[waiting])
        .await
        .unwrap();
    let after = devices::by_id(&mut db, &id).await.unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}
