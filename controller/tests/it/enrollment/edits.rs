//! Branches that people edit, and branches that the tracked branch overtakes.

use longshore_controller::forge::PullRequestState;
use longshore_protocol::api::DeviceState;

use super::{
    host::Merge,
    world::{World, branch, device},
};
use crate::reconcile::world::{delete, file, write};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_merged_is_what_counts() {
    for way in [Merge::Commit, Merge::Squash] {
        let world = World::new([]).await;
        world.enroll([device(1)]).await;
        let number = world.opened(1).await;
        // Another name, other labels, another overlay.
        let (path, text) = file(1, "madrid-7", Some("gateway"));
        let text = text
            .unwrap()
            .replace("spec:", "  labels: {row: \"3\"}\nspec:");
        let renamed = [delete("devices/device-1"), write(&path, text)];
        world.repo.commit(&branch(1), &renamed);
        world.webhook();
        // A pass that sees the edit leaves it alone.
        world.enroll([device(2)]).await;
        world.opened(2).await;
        assert_eq!(world.state(1).await, DeviceState::Pending);
        assert!(
            world
                .repo
                .read(&branch(1), "devices/madrid-7/device.yaml")
                .is_some()
        );
        world.host.merge(number, way);
        world.webhook();
        world.becomes(1, DeviceState::Active).await;
        let device = world.device(1).await;
        assert_eq!(device.name.as_str(), "madrid-7");
        assert_eq!(device.labels["row"], "3");
        world.cleared(&branch(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_approves_what_people_edited() {
    let world = World::of([], false).await;
    world.enroll([device(1)]).await;
    world.awaits(1, "Branch").await;
    let edit = [
        delete("devices/device-1"),
        file(1, "madrid-7", Some("gateway")),
    ];
    world.repo.commit(&branch(1), &edit);
    world.webhook();
    world.branches.merge(&world.device(1).await).await.unwrap();
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
    assert_eq!(world.device(1).await.name.as_str(), "madrid-7");
    world.cleared(&branch(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_the_device_off_its_branch_rejects_it() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    let number = world.opened(1).await;
    world
        .until("the branch was seen", async || {
            world.device(1).await.branch_pushed
        })
        .await;
    world.repo.commit(&branch(1), &[delete("devices/device-1")]);
    world.webhook();
    world.becomes(1, DeviceState::Rejected).await;
    let reason = world.device(1).await.state_reason;
    assert!(
        reason.starts_with("its folder was removed from"),
        "{reason}"
    );
    world.cleared(&branch(1)).await;
    assert_eq!(world.host.page(number).state, PullRequestState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_conflicts_is_made_anew() {
    let world = World::new([]).await;
    world.enroll([1, 2].map(device)).await;
    let number = world.opened(1).await;
    world.opened(2).await;
    let (before, other) = (world.repo.tip(&branch(1)), world.repo.tip(&branch(2)));
    // Somebody prepares an overlay of the device's own: a shared one is none of its business then.
    world.push(&[
        write("devices/device-1/device.yaml", "kind: Mistake"),
        write(
            "devices/device-1/kustomization.yaml",
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: []\n",
        ),
    ]);
    world
        .until("the branch is made anew", async || {
            world.repo.tip(&branch(1)) != before
        })
        .await;
    let text = world
        .repo
        .read(&branch(1), "devices/device-1/device.yaml")
        .unwrap();
    assert!(!text.contains("overlay"), "{text}");
    assert_eq!(
        world.repo.tip(&branch(2)),
        other,
        "what the change is not about stays"
    );
    world.host.merge(number, Merge::Commit);
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
    assert_eq!(world.host.pages().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_with_peoples_edits_is_left_to_them() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    world.opened(1).await;
    let (path, text) = file(1, "device-1", Some("gateway"));
    let edited = world
        .repo
        .commit(&branch(1), &[write(&path, text.unwrap())]);
    world.webhook();
    world.push(&[write("devices/device-1/device.yaml", "kind: Mistake")]);
    world
        .until("the conflict is told", async || {
            let condition = world.proposed(1).await.unwrap();
            condition
                .message
                .contains("conflicts with the tracked branch")
        })
        .await;
    assert_eq!(world.repo.tip(&branch(1)), Some(edited));
    assert_eq!(world.state(1).await, DeviceState::Pending);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleets_of_one_repo_leave_each_other_alone() {
    let world = World::of([], false).await;
    world.enroll([device(1)]).await;
    world.awaits(1, "Branch").await;
    let other = world.beside("boats").await;
    // The same name, another key.
    let mut namesake = device(2);
    namesake.name = device(1).name;
    other.enroll([namesake]).await;
    other.awaits(2, "Branch").await;
    let second = other.device(2).await.enrollment_branch.unwrap();
    assert_eq!(second, "longshore/enroll/device-1.default.boats");
    let tip = world.repo.tip(&branch(1)).unwrap();
    other
        .until("the branch was seen", async || {
            other.device(2).await.branch_pushed
        })
        .await;
    other.repo.delete(&second);
    other.webhook();
    world.webhook();
    other.becomes(2, DeviceState::Rejected).await;
    assert_eq!(world.repo.tip(&branch(1)), Some(tip));
    assert_eq!(world.state(1).await, DeviceState::Pending);
}
