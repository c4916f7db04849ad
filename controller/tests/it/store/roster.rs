//! The reconciler's roster: kept up with what changed, it is what reading all devices again would give.

use std::{collections::BTreeMap, slice};

use longshore_controller::{
    reconcile::roster::Roster,
    store::{
        devices::{self, Description, Device, Member, Waiting},
        fleets::{self, FleetId},
        tokens,
    },
};
use longshore_protocol::{
    Condition, DeviceId, Digest,
    api::{DeviceState, Facts},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::AnyConnection;
use tokio::task::JoinSet;

use super::{
    contracts,
    database::Database,
    samples::{self, desired, device, device_id, fleet_id, token, two_tenants},
};

contracts!(
    whatever_happens_the_roster_keeps_up,
    writers_at_the_same_time_hide_nothing,
    another_fleet_of_the_same_name_is_another_roster,
    facts_that_are_no_news_cost_no_write,
);

const DEVICES: u32 = 12;
/// The one fact that rosters want to know.
const WANTED: &str = "arch";

pub(super) fn roster() -> Roster {
    let mut roster = Roster::default();
    assert!(roster.want(&[WANTED.to_owned()].into()));
    assert!(!roster.want(&[WANTED.to_owned()].into()), "it knows");
    roster
}

async fn whatever_happens_the_roster_keeps_up(database: Database) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let shops = fleet_with_a_token(&database).await;
    let mut roster = roster();
    let mut names = 0;
    for _ in 0..60 {
        let mut db = database.write().await;
        for _ in 0..chance.random_range(0..3) {
            operate(&mut db, &shops, &mut chance, &mut names).await;
        }
        if chance.random_bool(0.8) {
            db.commit().await.unwrap();
        } else {
            drop(db);
        }
        if chance.random_bool(0.5) {
            refresh(&mut roster, &database, &shops).await;
            assert_eq!(members(&roster), afresh(&database, &shops).await);
        }
    }
}

async fn writers_at_the_same_time_hide_nothing(database: Database) {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let shops = fleet_with_a_token(&database).await;
    let mut writers = JoinSet::new();
    for n in 0..4 {
        let (database, shops) = (database.clone(), shops.clone());
        writers.spawn(async move {
            let mut chance = StdRng::seed_from_u64(seed.wrapping_add(n));
            let mut names = 1000 * u32::try_from(n).unwrap();
            for _ in 0..15 {
                let mut db = database.write().await;
                operate(&mut db, &shops, &mut chance, &mut names).await;
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

async fn another_fleet_of_the_same_name_is_another_roster(database: Database) {
    let shops = fleet_with_a_token(&database).await;
    let mut db = database.write().await;
    devices::insert(&mut db, &device(&shops, 1)).await.unwrap();
    db.commit().await.unwrap();
    let mut roster = roster();
    refresh(&mut roster, &database, &shops).await;
    assert_eq!(members(&roster).len(), 1);

    let mut db = database.write().await;
    fleets::delete(&mut db, &shops).await.unwrap();
    let anew = fleets::Fleet {
        created_at: 8,
        ..samples::fleet("one", "shops")
    };
    fleets::insert(&mut db, &anew).await.unwrap();
    for n in 2..9 {
        devices::insert(&mut db, &device(&shops, n)).await.unwrap();
    }
    db.commit().await.unwrap();
    refresh(&mut roster, &database, &shops).await;
    assert_eq!(members(&roster), afresh(&database, &shops).await);
}

async fn facts_that_are_no_news_cost_no_write(database: Database) {
    let shops = fleet_with_a_token(&database).await;
    let mut db = database.write().await;
    for n in 0..DEVICES {
        devices::insert(&mut db, &device(&shops, n)).await.unwrap();
    }
    db.commit().await.unwrap();
    let ids: Vec<_> = (0..DEVICES).map(device_id).collect();
    let said = async |fleet: &FleetId, arch: &str| {
        let facts = Facts::from([(WANTED.to_owned(), arch.to_owned())]);
        let facts: Vec<_> = ids.iter().map(|id| (fleet, id, &facts)).collect();
        let mut db = database.write().await;
        let news = devices::set_facts(&mut db, &facts).await.unwrap();
        db.commit().await.unwrap();
        news
    };
    let changes = async || {
        let mut db = database.read().await;
        let row = fleets::find(&mut db, &shops).await.unwrap().unwrap();
        row.changes
    };
    let before = changes().await;
    // It is what they enrolled with.
    assert_eq!(said(&shops, "aarch64").await, []);
    let elsewhere = fleet_id("two", "boats");
    assert_eq!(
        said(&elsewhere, "x86_64").await,
        [],
        "they are another tenant's"
    );
    assert_eq!(changes().await, before);
    assert_eq!(said(&shops, "x86_64").await, slice::from_ref(&shops));
    assert_eq!(changes().await, before + 1, "one change for all");
    let mut roster = roster();
    refresh(&mut roster, &database, &shops).await;
    assert!(
        members(&roster)
            .iter()
            .all(|it| it.facts[WANTED] == "x86_64")
    );
}

async fn fleet_with_a_token(database: &Database) -> FleetId {
    two_tenants(database).await;
    let shops = fleet_id("one", "shops");
    let mut db = database.write().await;
    tokens::insert(&mut db, &token(&shops, 1), Digest::of(b"secret"))
        .await
        .unwrap();
    db.commit().await.unwrap();
    shops
}

/// One write that the reconciler has to learn of, or none.
async fn operate(db: &mut AnyConnection, shops: &FleetId, chance: &mut StdRng, names: &mut u32) {
    let id = device_id(chance.random_range(0..DEVICES));
    let ids = [id.clone()];
    let value = chance.random_range(0..1000_u64);
    let condition = Condition::holds("Rendered", "Built", value.to_string(), 1);
    *names += 1;
    match chance.random_range(0..9) {
        0 | 1 => insert(db, shops, &id, *names).await,
        2 => devices::set_state(db, shops, &ids, DeviceState::Active, "approved")
            .await
            .unwrap(),
        3 if value < 300 => {
            devices::set_state(db, shops, &ids, DeviceState::Decommissioned, "gone")
                .await
                .unwrap();
        }
        4 => {
            let description = Description {
                id,
                name: format!("name-{names}").parse().unwrap(),
                labels: BTreeMap::from([("value".to_owned(), value.to_string())]),
                conditions: vec![condition],
            };
            devices::describe(db, shops, &[description]).await.unwrap();
        }
        5 => {
            if devices::by_id(db, &id).await.unwrap().is_some() {
                let moves = [(id, desired(value + 1, &value.to_string()))];
                devices::put_desired(db, shops, &moves).await.unwrap();
            }
        }
        6 => devices::raise_generation(db, shops, &id, value.into())
            .await
            .unwrap(),
        8 => {
            let said = [("arch", value % 2), ("uptime", value)];
            let said = said.map(|(name, value)| (name.to_owned(), value.to_string()));
            let facts = Facts::from(said);
            devices::set_facts(db, &[(shops, &id, &facts)])
                .await
                .unwrap();
        }
        7 if value < 300 => devices::reject(db, shops, &[(id, "rejected".to_owned())])
            .await
            .unwrap(),
        _ => {
            let waiting = Waiting {
                id,
                reason: "waits".to_owned(),
                conditions: vec![condition],
            };
            devices::put_waiting(db, shops, &[waiting]).await.unwrap();
        }
    }
}

async fn insert(db: &mut AnyConnection, shops: &FleetId, id: &DeviceId, name: u32) {
    if devices::by_id(db, id).await.unwrap().is_some() {
        return;
    }
    // Another writer may be about to insert it, too; then this one is the device with another name and key.
    let new = Device {
        id: id.clone(),
        ..device(shops, 10_000 + name)
    };
    let mut savepoint = sqlx::Connection::begin(db).await.unwrap();
    if devices::insert(&mut savepoint, &new).await.is_ok() {
        savepoint.commit().await.unwrap();
    }
}

pub(super) async fn refresh(roster: &mut Roster, database: &Database, fleet: &FleetId) {
    let mut db = database.read().await;
    let row = fleets::find(&mut db, fleet).await.unwrap().unwrap();
    let before = members(roster);
    let others = roster.refresh(&mut db, &row).await.unwrap();
    let after = members(roster);
    // Who is not named is the same.
    let differs = |member: &&Member| !before.contains(member) || !after.contains(member);
    for member in before.iter().chain(&after).filter(differs) {
        assert!(others.contains(&member.id), "{member:?}");
    }
    for (key, id) in after.iter().map(|member| (&member.public_key, &member.id)) {
        assert_eq!(roster.with_key(key), Some(id));
    }
}

pub(super) fn members(roster: &Roster) -> Vec<Member> {
    assert_eq!(roster.active().count(), roster.active_count());
    let mut members: Vec<_> = roster.active().chain(roster.pending()).collect();
    members.sort_by(|one, other| one.id.cmp(&other.id));
    members
        .into_iter()
        .map(|member| (**member).clone())
        .collect()
}

/// What the list of all devices says, which knows no stamps.
pub(super) async fn afresh(database: &Database, fleet: &FleetId) -> Vec<Member> {
    let mut db = database.read().await;
    let mut members: Vec<_> = devices::list(&mut db, fleet)
        .await
        .unwrap()
        .into_iter()
        .filter(|view| [DeviceState::Pending, DeviceState::Active].contains(&view.device.state))
        .map(|view| Member {
            id: view.device.id,
            name: view.device.name,
            public_key: view.device.public_key,
            state: view.device.state,
            labels: view.device.labels,
            facts: (view.device.facts.into_iter())
                .filter(|(name, _)| name == WANTED)
                .collect(),
            conditions: view.device.conditions,
            target: view.desired.map(|desired| desired.target),
        })
        .collect();
    members.sort_by(|one, other| one.id.cmp(&other.id));
    members
}
