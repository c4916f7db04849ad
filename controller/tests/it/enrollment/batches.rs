//! Devices that share a pull request.

use std::time::Duration;

use longshore_controller::{forge::PullRequestState, source::mirror::BATCH_BRANCHES};
use longshore_protocol::api::DeviceState;

use super::{
    host::Merge,
    world::{World, device, settings},
};
use crate::reconcile::world::{delete, file, write};

async fn batch_of(world: &World, devices: impl IntoIterator<Item = u32>) -> (u64, String) {
    let mut found = None;
    for n in devices {
        let number = world.opened(n).await;
        assert_eq!(*found.get_or_insert(number), number, "one for all");
    }
    let number = found.unwrap();
    let head = world.host.page(number).head;
    assert!(head.starts_with(BATCH_BRANCHES), "{head}");
    (number, head)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_a_token_share_one_pull_request() {
    let world = World::new([settings("{batch: 1h}")]).await;
    world.enroll([1, 2, 3].map(device)).await;
    let (number, head) = batch_of(&world, 1..=3).await;
    assert_eq!(world.host.page(number).title, "Enroll 3 devices");
    let log = world
        .repo
        .git(&["log", "--format=%s", &format!("main..{head}")]);
    assert_eq!(
        log.lines().collect::<Vec<_>>(),
        ["Enroll device-3", "Enroll device-2", "Enroll device-1"]
    );

    // One is taken off, and is rejected alone; another is edited; more come on top of that.
    world
        .until("all were seen", async || {
            world.device(3).await.branch_pushed
        })
        .await;
    let edits = [
        delete("devices/device-2"),
        delete("devices/device-3"),
        file(3, "madrid-7", Some("gateway")),
    ];
    let edited = world.repo.commit(&head, &edits);
    world.webhook();
    world.becomes(2, DeviceState::Rejected).await;
    let reason = world.device(2).await.state_reason;
    assert!(reason.contains("was removed from pull request"), "{reason}");
    world.enroll([device(4)]).await;
    batch_of(&world, [1, 3, 4]).await;
    assert!(
        world
            .repo
            .open()
            .graph_descendant_of(world.repo.tip(&head).unwrap(), edited)
            .unwrap()
    );
    world
        .until("the text is up to date", async || {
            let body = world.host.page(number).body;
            body.contains("device-4") && !body.contains("device-2")
        })
        .await;
    assert_eq!(world.host.pages().len(), 1);

    world.host.merge(number, Merge::Squash);
    world.repo.delete(&head);
    world.webhook();
    for n in [1, 3, 4] {
        world.becomes(n, DeviceState::Active).await;
    }
    assert_eq!(world.device(3).await.name.as_str(), "madrid-7");
    assert_eq!(world.state(2).await, DeviceState::Rejected);
    // The next one opens another.
    world.enroll([device(5)]).await;
    assert_ne!(world.opened(5).await, number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_rejects_all_that_were_asked_about() {
    let world = World::new([settings("{batch: 1h}")]).await;
    world.enroll([1, 2].map(device)).await;
    let (number, head) = batch_of(&world, [1, 2]).await;
    world.host.close(number);
    // One more comes before the controller knows: nobody was asked about it.
    world.enroll([device(3)]).await;
    world
        .until("it has a branch", async || {
            world.device(3).await.enrollment_branch.is_some()
        })
        .await;
    world.webhook();
    for n in [1, 2] {
        world.becomes(n, DeviceState::Rejected).await;
    }
    world.cleared(&head).await;
    world
        .until("it has a pull request of its own", async || {
            let pages = world.host.pages();
            pages.len() == 2 && pages[1].state == PullRequestState::Open
        })
        .await;
    let second = world.opened(3).await;
    assert_eq!(second, 2);
    assert_eq!(world.host.page(second).title, "Enroll device-3");
    assert_eq!(world.state(3).await, DeviceState::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_ends() {
    let world = World::new([settings("{batch: 1s}")]).await;
    world.enroll([device(1)]).await;
    let first = world.opened(1).await;
    assert_eq!(world.host.page(first).title, "Enroll device-1");
    let branch = world.device(1).await.enrollment_branch.unwrap();
    let (_, opened_at) = branch.rsplit_once('-').unwrap();
    let opened_at = Duration::from_millis(opened_at.parse().unwrap());
    world
        .until("the window is over", async || {
            let now = std::time::UNIX_EPOCH.elapsed().unwrap();
            now > opened_at + Duration::from_secs(1)
        })
        .await;
    world.enroll([device(2)]).await;
    assert_ne!(world.opened(2).await, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_approves_and_rejects_single_ones() {
    let world = World::new([settings("{batch: 1h}")]).await;
    world.enroll([1, 2, 3].map(device)).await;
    let (number, head) = batch_of(&world, 1..=3).await;
    world.branches.merge(&world.device(2).await).await.unwrap();
    world.webhook();
    world.becomes(2, DeviceState::Active).await;
    assert_eq!(world.state(1).await, DeviceState::Pending);
    let mut db = world.store.write().await.unwrap();
    let rejected = [(device(3).id, "an operator rejected it".to_owned())];
    let fleet = &device(3).fleet;
    longshore_controller::store::devices::reject(&mut db, fleet, &rejected)
        .await
        .unwrap();
    db.commit().await.unwrap();
    world.poke();
    world
        .until("the branch is about the one that is left", async || {
            let folder = |n| format!("devices/device-{n}/device.yaml");
            world.repo.read(&head, &folder(1)).is_some()
                && world.repo.read(&head, &folder(3)).is_none()
                && world.host.page(number).title == "Enroll device-1"
        })
        .await;
    world.host.merge(number, Merge::Commit);
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
    world.cleared(&head).await;
    assert_eq!(world.state(3).await, DeviceState::Rejected);
    assert!(
        world
            .repo
            .read("main", "devices/device-3/device.yaml")
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_one_leaves_a_branch_that_people_edited() {
    let world = World::new([settings("{batch: 1h}")]).await;
    world.enroll([1, 2].map(device)).await;
    let (_, head) = batch_of(&world, [1, 2]).await;
    let edited = world.repo.commit(&head, &[write("notes", "mine")]);
    world.webhook();
    let mut db = world.store.write().await.unwrap();
    let rejected = [(device(2).id, "an operator rejected it".to_owned())];
    let fleet = &device(2).fleet;
    longshore_controller::store::devices::reject(&mut db, fleet, &rejected)
        .await
        .unwrap();
    db.commit().await.unwrap();
    world.poke();
    world
        .until("its folder is taken off", async || {
            world
                .repo
                .read(&head, "devices/device-2/device.yaml")
                .is_none()
        })
        .await;
    let tip = world.repo.tip(&head).unwrap();
    assert!(world.repo.open().graph_descendant_of(tip, edited).unwrap());
    assert_eq!(world.repo.read(&head, "notes").as_deref(), Some("mine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_at_once_are_one_push_and_one_text() {
    let world = World::new([settings("{batch: 1h}")]).await;
    world.enroll((1..=300).map(device)).await;
    let (number, head) = batch_of(&world, [1, 300]).await;
    assert_eq!(world.host.page(number).title, "Enroll 300 devices");
    let log = world
        .repo
        .git(&["log", "--format=%s", &format!("main..{head}")]);
    assert_eq!(log.lines().count(), 300);
    assert!(world.host.calls("edit a pull request") <= 1);
    world.host.merge(number, Merge::Commit);
    world.webhook();
    for n in [1, 150, 300] {
        world.becomes(n, DeviceState::Active).await;
    }
    world.cleared(&head).await;
}
