//! What a device is to run, and what it must not wait for.

use longshore_controller::{hub::Signal, store::devices::Device};
use longshore_protocol::api::DeviceState;

use super::{
    render::Failure,
    world::{World, active, delete, file, fleet_of, kiosk, overlay, shops, write},
};
use crate::store::samples::{device, fleet_id};

fn rendered(view: &longshore_controller::store::devices::DeviceView) -> (String, String) {
    let conditions = &view.device.conditions;
    let rendered = conditions.iter().find(|it| it.kind == "Rendered").unwrap();
    (rendered.reason.clone(), rendered.message.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_build_serves_all_devices_of_an_overlay() {
    let world = World::new(&fleet_of([1, 2, 3].map(kiosk))).await;
    world.enroll([1, 2, 3].map(|n| active(&shops(), n))).await;
    for n in 1..=3 {
        world.reaches(n, 1).await;
        assert_eq!(world.content(n).await, ["all: 1", "kiosk: 1"]);
    }
    assert_eq!(world.builder.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_hangs_delays_nobody_else() {
    let files = fleet_of([kiosk(1), file(2, "device-2", Some("gateway"))]);
    let world = World::new(&files).await;
    world.builder.hang("groups/kiosk");
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(2, 1).await;
    // Later commits reach the others as well.
    for generation in 2..=4 {
        let text = format!("gateway: {generation}");
        world.push(&[write("groups/gateway/gateway.yaml", text)]);
        world.reaches(2, generation).await;
    }
    assert_eq!(world.generation(1).await, 0);
    assert_eq!(rendered(&world.view(1).await).0, "Building");
    world.builder.release("groups/kiosk");
    world.reaches(1, 1).await;
    assert_eq!(world.builder.count_of("groups/kiosk"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_hangs_does_not_hold_up_the_end() {
    let world = World::new(&fleet_of([kiosk(1)])).await;
    world.builder.hang("groups/kiosk");
    world.enroll([active(&shops(), 1)]).await;
    world
        .until("the build hangs", async || world.builder.count() == 1)
        .await;
    // The next fix does not wait for it either.
    world.push(&[
        overlay("groups/kiosk", &["../../base"]),
        file(1, "device-1", Some("gateway")),
    ]);
    world.reaches(1, 1).await;
    world.builder.release("groups/kiosk");
    world.stop().await;
    assert_eq!(world.content(1).await, ["all: 1", "gateway: 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_built_once_for_all_fleets_of_a_tenant() {
    let (boats, foreign) = (fleet_id("default", "boats"), fleet_id("other", "shops"));
    let mut world = World::new(&fleet_of([1, 2, 3].map(kiosk))).await;
    world.add(&boats).await;
    world.add(&foreign).await;
    world.builder.hang("groups/kiosk");
    let named = |fleet, n| Device {
        // The files' ids are those of the first fleet's devices.
        id: crate::store::samples::device_id(n),
        ..active(fleet, n)
    };
    world
        .enroll([named(&shops(), 1), named(&boats, 2), named(&foreign, 3)])
        .await;
    world
        .until("both tenants build", async || world.builder.count() == 2)
        .await;
    world.builder.release("groups/kiosk");
    for n in 1..=3 {
        world.reaches(n, 1).await;
    }
    assert_eq!(world.builder.count(), 2, "one for each tenant");
    assert_eq!(world.content(1).await, world.content(3).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_overlay_leaves_the_last_good_state_in_force() {
    let files = fleet_of([kiosk(1), file(2, "device-2", Some("gateway"))]);
    let world = World::new(&files).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.reaches(2, 1).await;

    world.builder.fail("groups/kiosk", Some(Failure::Lasting));
    world.apply(&[write("base/all.yaml", "all: 2")]).await;
    world.reaches(2, 2).await;
    world
        .until("the failure is told", async || {
            rendered(&world.view(1).await).0 == "BuildFailed"
        })
        .await;
    let (_, message) = rendered(&world.view(1).await);
    assert!(
        message.contains("groups/kiosk") && message.contains("it is broken"),
        "{message}"
    );
    assert_eq!(world.status().await.problems, [message]);
    assert_eq!(
        (world.generation(1).await, world.content(1).await.len()),
        (1, 2)
    );
    assert_eq!(world.content(1).await, ["all: 1", "kiosk: 1"]);

    // It is broken for good: only a change of what it reads builds it again.
    let before = world.builder.count_of("groups/kiosk");
    world.apply(&[write("README.md", "unrelated")]).await;
    assert_eq!(world.builder.count_of("groups/kiosk"), before);
    world.builder.fail("groups/kiosk", None);
    world.push(&[write("base/all.yaml", "all: 3")]);
    world.reaches(1, 2).await;
    world
        .until("nothing is left to say", async || {
            world.status().await.problems.is_empty()
        })
        .await;
    assert_eq!(world.content(1).await, ["all: 3", "kiosk: 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_that_may_pass_is_tried_again() {
    let world = World::new(&fleet_of([kiosk(1)])).await;
    world.builder.fail("groups/kiosk", Some(Failure::Passing));
    world.enroll([active(&shops(), 1)]).await;
    world
        .until("the failure is told", async || {
            let view = world.view(1).await;
            !view.device.conditions.is_empty() && rendered(&view).1.contains("it is full")
        })
        .await;
    world.builder.fail("groups/kiosk", None);
    // However often it is poked, not before a pause.
    for _ in 0..5 {
        world.fleets.poke(&shops());
    }
    world.reaches(1, 1).await;
    assert_eq!(world.builder.count(), 2);
    world
        .until("nothing is left to say", async || {
            world.status().await.problems.is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_device_file_holds_up_only_its_device() {
    let world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.reaches(2, 1).await;
    let broken = [
        write("devices/device-1/device.yaml", "kind: [not, a, device"),
        write("groups/kiosk/kiosk.yaml", "kiosk: 2"),
    ];
    world.push(&broken);
    world.reaches(2, 2).await;
    let view = world.view(1).await;
    assert_eq!(view.device.state, DeviceState::Active);
    assert_eq!(world.generation(1).await, 1);
    assert_eq!(rendered(&view).0, "Invalid");
    let problems = world.status().await.problems;
    assert!(
        problems[0].starts_with("devices/device-1/device.yaml:"),
        "{problems:?}"
    );
    world.push(&[kiosk(1)]);
    world.reaches(1, 2).await;
    assert_eq!(world.generation(2).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_files_with_one_key_take_nobody_away() {
    let world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.apply(&[file(1, "copy", Some("gateway"))]).await;
    assert_eq!(world.view(1).await.device.state, DeviceState::Active);
    assert_eq!(world.content(1).await, ["all: 1", "kiosk: 1"]);
    assert!(!world.status().await.problems.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_are_each_devices_own() {
    let files = fleet_of([1, 2, 3].map(kiosk));
    let world = World::new(&files).await;
    world.repo.commit(
        "main",
        &[write(
            "groups/kiosk/kiosk.yaml",
            "I am ${DEVICE_NAME} of ${TOWN:=nowhere}",
        )],
    );
    let (path, text) = kiosk(2);
    let text = text.unwrap() + "  variables:\n    TOWN: Bilbao\n";
    world.push(&[(path, Some(text))]);
    world.enroll([1, 2, 3].map(|n| active(&shops(), n))).await;
    world
        .until("all have their own", async || {
            world.content(1).await == ["I am device-1 of nowhere", "all: 1"]
                && world.content(2).await == ["I am device-2 of Bilbao", "all: 1"]
        })
        .await;
    let builds = world.builder.count();
    // What is undefined for one is its own problem.
    world.push(&[write("groups/kiosk/kiosk.yaml", "In ${TOWN}")]);
    world
        .until("one has it", async || {
            world.content(2).await == ["In Bilbao", "all: 1"]
        })
        .await;
    assert_eq!(
        world.content(1).await,
        ["I am device-1 of nowhere", "all: 1"]
    );
    let (reason, message) = rendered(&world.view(1).await);
    assert_eq!(reason, "Variables");
    assert!(
        message.starts_with("devices/device-1/device.yaml"),
        "{message}"
    );
    assert_eq!(world.builder.count(), builds + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_the_tracked_branch_approves_its_key_under_whatever_name() {
    let world = World::new(&fleet_of([])).await;
    world.enroll([1, 2].map(|n| device(&shops(), n))).await;
    let mut changes = world.fleets.changes(&shops()).unwrap();
    // Somebody renames the device while approving it.
    world.push(&[file(1, "madrid-7", Some("kiosk"))]);
    world.reaches(1, 1).await;
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let view = world.view(1).await;
    assert_eq!(view.device.state, DeviceState::Active);
    assert_eq!(view.device.name.as_str(), "madrid-7");
    let waiting = world.view(2).await;
    assert_eq!(waiting.device.state, DeviceState::Pending);
    assert!(waiting.desired.is_none(), "nothing for who is not approved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_somebody_waits_with_stops_no_fleet() {
    let world = World::new(&fleet_of([])).await;
    // The second waits with the very name that the first is approved under.
    world.enroll([1, 2].map(|n| device(&shops(), n))).await;
    world.push(&[file(1, "device-2", Some("kiosk"))]);
    world.reaches(1, 1).await;
    // And the fleet goes on.
    world.push(&[write("base/all.yaml", "all: 2")]);
    world.reaches(1, 2).await;
    assert_eq!(world.view(1).await.device.state, DeviceState::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn folders_may_swap_their_names() {
    let world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.reaches(2, 1).await;
    world.push(&[
        file(1, "device-2", Some("kiosk")),
        file(2, "device-1", Some("gateway")),
    ]);
    world.reaches(2, 2).await;
    let names = [world.view(1).await, world.view(2).await].map(|it| it.device.name.to_string());
    assert_eq!(names, ["device-2", "device-1"]);
    assert_eq!(world.generation(1).await, 1, "it is the same device");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrollment_branch_approves_by_merge_and_rejects_by_deletion() {
    let world = World::new(&fleet_of([])).await;
    // A device whose files cannot be committed, since its folder is a file, holds up nobody.
    world.push(&[write("devices/device-0", "a file")]);
    world.enroll([0, 1, 2].map(|n| device(&shops(), n))).await;
    let branch = |n: u32| format!("longshore/enroll/device-{n}");
    for n in [1, 2] {
        world
            .until("the branch is pushed", async || {
                world.repo.tip(&branch(n)).is_some()
            })
            .await;
        world
            .until("it is known to be there", async || {
                world.view(n).await.device.branch_pushed
            })
            .await;
    }
    world.repo.delete(&branch(2));
    world.fleets.look(&shops());
    world
        .until("it is rejected", async || {
            world.view(2).await.device.state == DeviceState::Rejected
        })
        .await;

    let text = world
        .repo
        .read(&branch(1), "devices/device-1/device.yaml")
        .unwrap();
    assert!(text.contains("overlay: ../../groups/kiosk"), "{text}");
    let tip = world.repo.tip(&branch(1)).unwrap();
    world.repo.point("main", tip);
    world.fleets.look(&shops());
    world.reaches(1, 1).await;
    world
        .until("the branch is cleared away", async || {
            world.repo.tip(&branch(1)).is_none()
        })
        .await;
    assert_eq!(world.content(1).await, ["all: 1", "kiosk: 1"]);
    assert_eq!(world.view(0).await.device.state, DeviceState::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_folder_decommissions_for_good() {
    let world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    let session = world
        .hub
        .connect(&crate::store::samples::device_id(1), world.hub.pokes());
    world.apply(&[delete("devices/device-1")]).await;
    let view = world.view(1).await;
    assert_eq!(view.device.state, DeviceState::Decommissioned);
    let told = tokio::time::timeout(std::time::Duration::from_secs(5), session.signal());
    assert_eq!(told.await.expect("its session is told"), Signal::Look);
    world.apply(&[kiosk(1)]).await;
    assert_eq!(
        world.view(1).await.device.state,
        DeviceState::Decommissioned
    );
    assert_eq!(world.view(2).await.device.state, DeviceState::Active);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_in_a_devices_folder_takes_it_away() {
    let world = World::new(&fleet_of([1, 2].map(kiosk))).await;
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    world.reaches(1, 1).await;
    world.apply(&[file(9, "device-1", Some("kiosk"))]).await;
    assert_eq!(
        world.view(1).await.device.state,
        DeviceState::Decommissioned
    );
}
