//! What a commit does to a whole fleet, and what it must not do.

use longshore_controller::store::{devices, fleets};
use longshore_protocol::api::DeviceState;

use super::world::{
    Change, FLEET, World, active, delete, file, fleet_of, kiosk, overlay, shops, write,
};

async fn states(world: &World) -> (usize, usize) {
    let views = world.views().await;
    let count = |state| {
        views
            .iter()
            .filter(|view| view.device.state == state)
            .count()
    };
    (
        count(DeviceState::Active),
        count(DeviceState::Decommissioned),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generations_grow_by_one_with_each_change_of_content() {
    let world = World::new(&fleet_of([kiosk(1)])).await;
    world.enroll([active(&shops(), 1)]).await;
    world.reaches(1, 1).await;
    for generation in 2..=6 {
        // There and back: what was built before is not built again, but is a generation of its own.
        let text = format!("kiosk: {}", generation % 2);
        world.push(&[write("groups/kiosk/kiosk.yaml", text.clone())]);
        world.reaches(1, generation).await;
        assert_eq!(world.content(1).await, ["all: 1".to_owned(), text]);
    }
    assert_eq!(world.builder.count(), 2, "kiosk 0 and 1");
    let mut db = world.store.read().await.unwrap();
    let revisions = fleets::revisions(&mut db, &shops(), 100).await.unwrap();
    let changed: Vec<_> = revisions.iter().map(|it| it.devices_changed).collect();
    assert_eq!(changed, [1; 6]);
    assert_eq!(revisions[0].summary, "Change something");
    assert_eq!(revisions[0].author, "A Person");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_no_device_reads_changes_nothing() {
    let world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.reaches(2, 1).await;
    // The pass that wrote that pokes a little later.
    world.passes().await;
    let session = world
        .hub
        .connect(&crate::store::samples::device_id(1), world.hub.pokes());
    let before = format!("{:?}", world.views().await);
    let builds = world.builder.count();

    let commit = world
        .apply(&[
            write("README.md", "read me"),
            write("groups/gateway/gateway.yaml", "g: 2"),
        ])
        .await;
    world.passes().await;
    assert_eq!(format!("{:?}", world.views().await), before);
    assert_eq!(world.builder.count(), builds);
    let mut db = world.store.read().await.unwrap();
    let newest = fleets::revisions(&mut db, &shops(), 1).await.unwrap();
    assert_eq!(
        (newest[0].commit.clone(), newest[0].devices_changed),
        (commit, 0)
    );
    let poked = tokio::time::timeout(std::time::Duration::ZERO, session.signal()).await;
    poked.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_builds_and_changes_nothing() {
    let mut world = World::new(&fleet_of([kiosk(1), file(2, "device-2", Some("gateway"))])).await;
    let kiosk_file = write("groups/kiosk/kiosk.yaml", "I am ${DEVICE_NAME}");
    world.push(&[kiosk_file]);
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world
        .until("all is done", async || {
            world.content(1).await == ["I am device-1", "all: 1"] && world.generation(2).await == 1
        })
        .await;
    world.stop().await;
    let (before, builds) = (format!("{:?}", world.views().await), world.builder.count());
    world.restart().await;
    // The first commit after it shows that there was a pass.
    let commit = world.push(&[write("README.md", "2")]).to_string();
    world.settled(&commit).await;
    assert_eq!(world.builder.count(), builds);
    assert_eq!(format!("{:?}", world.views().await), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn builds_that_a_stop_cut_off_are_made_after_it() {
    let mut world = World::new(&fleet_of([kiosk(1)])).await;
    world.enroll([active(&shops(), 1)]).await;
    world.reaches(1, 1).await;
    world.stop().await;
    // While nobody looks: history is rewritten.
    let commit = world.repo.make::<String, String>(
        None,
        &fleet_of([kiosk(1), write("groups/kiosk/kiosk.yaml", "kiosk: 9")]),
    );
    world.repo.point("main", commit);
    world.restart().await;
    world.reaches(1, 2).await;
    assert_eq!(world.content(1).await, ["all: 1", "kiosk: 9"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_content_is_built_again_once() {
    let mut world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.reaches(2, 1).await;
    world.stop().await;
    let mut db = world.store.write().await.unwrap();
    sqlx::query("UPDATE objects SET body = x'00'")
        .execute(&mut *db)
        .await
        .unwrap();
    db.commit().await.unwrap();
    world.restart().await;
    world
        .until("it is mended", async || {
            world.builder.count() >= 2 && mended(&world).await
        })
        .await;
    world.push(&[write("README.md", "2")]);
    world.apply(&[write("README.md", "3")]).await;
    assert_eq!(world.builder.count(), 2);
    assert_eq!(world.generation(1).await, 1);
}

async fn mended(world: &World) -> bool {
    let mut db = world.store.read().await.unwrap();
    let rows: Vec<(i64,)> = sqlx::query_as("SELECT LENGTH(body) FROM objects")
        .fetch_all(&mut *db)
        .await
        .unwrap();
    rows.iter().all(|(length,)| *length > 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_fleet_file_or_a_lost_branch_leaves_everything_in_force() {
    let world = World::new(&fleet_of([kiosk(1)])).await;
    world.enroll([active(&shops(), 1)]).await;
    world.reaches(1, 1).await;
    let reason = async |kind: &str| {
        let conditions = world.status().await.conditions;
        let condition = conditions.into_iter().find(|it| it.kind == kind);
        condition.map(|it| it.reason).unwrap_or_default()
    };
    let commit = world.push(&[
        write("fleet.yaml", "kind: Flote"),
        delete("devices/device-1"),
    ]);
    world
        .until("it is told", async || {
            reason("FleetValid").await == "Unreadable"
        })
        .await;
    assert_eq!(world.status().await.revision, Some(commit.to_string()));
    assert_eq!(
        (states(&world).await, world.generation(1).await),
        ((1, 0), 1)
    );

    world.apply(&[write("fleet.yaml", FLEET), kiosk(1)]).await;
    world.repo.delete("main");
    world.fleets.look(&shops());
    world
        .until("it is told", async || {
            reason("SourceReady").await == "BranchMissing"
        })
        .await;
    assert_eq!(
        (states(&world).await, world.generation(1).await),
        ((1, 0), 1)
    );

    let moved = world.repo.path().with_extension("away");
    std::fs::rename(world.repo.path(), &moved).unwrap();
    world.fleets.look(&shops());
    world
        .until("it is told", async || {
            reason("SourceReady").await == "Unreachable"
        })
        .await;
    assert_eq!(
        (states(&world).await, world.generation(1).await),
        ((1, 0), 1)
    );
    std::fs::rename(&moved, world.repo.path()).unwrap();
    world
        .apply(&fleet_of([kiosk(1), write("base/all.yaml", "all: 2")]))
        .await;
    world.reaches(1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_removals_wait_for_an_operator() {
    let world = World::new(&fleet_of((1..=8).map(kiosk))).await;
    world.enroll((1..=8).map(|n| active(&shops(), n))).await;
    for n in 1..=8 {
        world.reaches(n, 1).await;
    }
    let mut changes: Vec<Change> = (1..=6)
        .map(|n| delete(&format!("devices/device-{n}")))
        .collect();
    changes.push(write("base/all.yaml", "all: 2"));
    let commit = world.apply(&changes).await;
    world.reaches(8, 2).await;
    let held = world.status().await.held;
    assert_eq!(held.len(), 6);
    assert!(held.iter().all(|it| it.removal == "Decommission"));
    assert_eq!(states(&world).await, (8, 0));

    let mut db = world.store.write().await.unwrap();
    assert!(
        fleets::confirm_removals(&mut db, &shops(), &commit)
            .await
            .unwrap()
    );
    db.commit().await.unwrap();
    world.fleets.poke(&shops());
    world
        .until("they are gone", async || states(&world).await == (2, 6))
        .await;
    assert!(world.status().await.held.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_is_for_one_commit() {
    let world = World::new(&fleet_of((1..=12).map(kiosk))).await;
    world.enroll((1..=12).map(|n| active(&shops(), n))).await;
    world.reaches(12, 1).await;
    let gone = |from: u32, to: u32| -> Vec<Change> {
        (from..=to)
            .map(|n| delete(&format!("devices/device-{n}")))
            .collect()
    };
    let first = world.apply(&gone(1, 6)).await;
    let mut db = world.store.write().await.unwrap();
    assert!(
        fleets::confirm_removals(&mut db, &shops(), &first)
            .await
            .unwrap()
    );
    db.commit().await.unwrap();
    // Before the confirmation is looked at, another commit takes more away.
    world.apply(&gone(7, 12)).await;
    let (living, gone) = states(&world).await;
    assert!(
        (living, gone) == (12, 0) || (living, gone) == (6, 6),
        "{living} {gone}"
    );
    assert_eq!(world.status().await.held.len(), living);
}

/// Devices with overlays of their own become empty one build after the other; the guard counts them together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removals_are_counted_by_commit_and_not_by_pass() {
    let own = |n: u32| {
        let name = format!("device-{n}");
        [
            file(n, &name, None),
            overlay(&format!("devices/{name}"), &["../../base"]),
        ]
    };
    let world = World::new(&fleet_of((1..=12).flat_map(own))).await;
    world.enroll((1..=12).map(|n| active(&shops(), n))).await;
    for n in 1..=12 {
        world.reaches(n, 1).await;
    }
    for n in 1..=12 {
        world.builder.hang(&format!("devices/device-{n}"));
    }
    let commit = world.push(&[overlay("base", &[])]).to_string();
    let empty = async || {
        let views = world.views().await;
        let desired = views.iter().filter_map(|view| view.desired.as_ref());
        desired.filter(|desired| desired.objects == 0).count()
    };
    world.settled(&commit).await;
    for n in 1..=12 {
        let overlay = format!("devices/device-{n}");
        world
            .until("the build hangs", async || {
                world.builder.count_of(&overlay) == 2
            })
            .await;
        world.builder.release(&overlay);
        world
            .until("the build ends", async || builds(&world).await == 12 + n)
            .await;
        // Whatever can be decided by now, is.
        world.passes().await;
    }
    world.settled(&commit).await;
    assert!(
        empty().await <= 5,
        "{} of 12 were emptied unasked",
        empty().await
    );
    assert!(!world.status().await.held.is_empty());

    let mut db = world.store.write().await.unwrap();
    assert!(
        fleets::confirm_removals(&mut db, &shops(), &commit)
            .await
            .unwrap()
    );
    db.commit().await.unwrap();
    world.fleets.poke(&shops());
    world
        .until("it was confirmed", async || empty().await == 12)
        .await;
}

async fn builds(world: &World) -> i64 {
    let mut db = world.store.read().await.unwrap();
    let (count,): (i64,) = sqlx::query_as("SELECT COUNT(*) FROM renders")
        .fetch_one(&mut *db)
        .await
        .unwrap();
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_ahead_gets_a_higher_generation_next() {
    let world = World::new(&fleet_of([kiosk(1)])).await;
    world.enroll([active(&shops(), 1)]).await;
    world.reaches(1, 1).await;
    let device = world.view(1).await.device;
    let mut db = world.store.write().await.unwrap();
    devices::raise_generation(&mut db, &shops(), &device.id, 41.into())
        .await
        .unwrap();
    db.commit().await.unwrap();
    world.push(&[write("base/all.yaml", "all: 2")]);
    world.reaches(1, 43).await;
}
