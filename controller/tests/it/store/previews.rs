//! What was found of pull requests, and told.

use longshore_controller::store::{
    fleets,
    previews::{self, Reported, Told},
    tenants,
};
use longshore_protocol::api::preview::Preview;

use super::{
    contracts,
    database::Database,
    samples::{fleet, tenant},
};

contracts!(
    a_newer_report_takes_the_place_of_the_older,
    each_fleet_has_its_own,
);

fn reported(number: u64, head: &str) -> Reported {
    Reported {
        number,
        base: "base".to_owned(),
        head: head.to_owned(),
        told: Told::default(),
        at: 7,
    }
}

fn preview(devices: u64) -> Preview {
    Preview {
        devices,
        ..Preview::default()
    }
}

async fn add_fleets(database: &Database) {
    let mut db = database.write().await;
    for name in ["ape", "zebra"] {
        tenants::insert(&mut db, &tenant(name), 1).await.unwrap();
        fleets::insert(&mut db, &fleet(name, "shops"))
            .await
            .unwrap();
    }
    db.commit().await.unwrap();
}

async fn a_newer_report_takes_the_place_of_the_older(database: Database) {
    add_fleets(&database).await;
    let id = fleet("ape", "shops").id;
    let mut db = database.write().await;
    previews::put(&mut db, &id, &reported(7, "one"), Some(&preview(1)))
        .await
        .unwrap();
    let told = Told {
        comment: Some("a digest".to_owned()),
        done: true,
        ..Told::default()
    };
    previews::set_told(&mut db, &id, 7, &told).await.unwrap();
    let known = previews::list(&mut db, &id).await.unwrap();
    assert_eq!(
        known,
        [Reported {
            told,
            ..reported(7, "one")
        }]
    );
    let report = previews::report(&mut db, &id, 7).await.unwrap();
    assert_eq!(report, Some(("one".to_owned(), preview(1))));

    previews::put(&mut db, &id, &reported(7, "two"), None)
        .await
        .unwrap();
    assert_eq!(
        previews::list(&mut db, &id).await.unwrap(),
        [reported(7, "two")]
    );
    assert_eq!(previews::report(&mut db, &id, 7).await.unwrap(), None);
    previews::delete(&mut db, &id, 7).await.unwrap();
    assert!(previews::list(&mut db, &id).await.unwrap().is_empty());
}

async fn each_fleet_has_its_own(database: Database) {
    add_fleets(&database).await;
    let (ape, zebra) = (fleet("ape", "shops").id, fleet("zebra", "shops").id);
    let mut db = database.write().await;
    for (id, devices) in [(&ape, 1), (&zebra, 2)] {
        previews::put(&mut db, id, &reported(7, "head"), Some(&preview(devices)))
            .await
            .unwrap();
    }
    previews::delete(&mut db, &ape, 7).await.unwrap();
    assert_eq!(previews::report(&mut db, &ape, 7).await.unwrap(), None);
    let theirs = previews::report(&mut db, &zebra, 7).await.unwrap();
    assert_eq!(theirs, Some(("head".to_owned(), preview(2))));
    fleets::delete(&mut db, &zebra).await.unwrap();
    assert!(previews::list(&mut db, &zebra).await.unwrap().is_empty());
}
