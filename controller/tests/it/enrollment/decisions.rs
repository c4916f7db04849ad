//! What people decide with a pull request, or without one.

use longshore_controller::forge::{Forge as _, PullRequestState, PullRequestText};
use longshore_protocol::api::DeviceState;

use super::{
    host::Merge,
    world::{World, automatic, branch, device, settings},
};
use crate::reconcile::world::{delete, file};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_becomes_a_pull_request() {
    let enrollment = "{labels: [new-device], reviewers: [ana, nobody, 'team:edge']}";
    let world = World::new([settings(enrollment)]).await;
    world.enroll([device(1)]).await;
    let number = world.opened(1).await;
    world
        .until("reviews are asked for", async || {
            world.host.page(number).reviewers.len() == 2
        })
        .await;
    let page = world.host.page(number);
    assert_eq!(
        (&*page.head, &*page.title),
        (&*branch(1), "Enroll device-1")
    );
    let key = device(1).public_key.to_string();
    assert!(page.body.contains(&key), "{}", page.body);
    assert_eq!(page.labels, ["new-device"]);
    assert_eq!(page.reviewers, ["ana", "team:edge"]);
    // Who is refused blocks nobody, and is named.
    world
        .until("the refusal is told", async || {
            let condition = world.proposed(1).await.unwrap();
            condition.message.contains("nobody: ") && condition.message.contains("collaborator")
        })
        .await;
    let waiting = world.device(1).await.state_reason;
    let url = format!("https://git.example/shops/pulls/{number}");
    assert_eq!(
        waiting,
        format!("waits for pull request {url} to be merged")
    );
    // Nothing happens where nothing changes.
    let calls = |of| world.host.calls(of);
    let before = [
        "find a pull request",
        "read a pull request",
        "edit a pull request",
    ]
    .map(calls);
    let listed = calls("list pull requests");
    for _ in 0..3 {
        world.webhook();
        world.poke();
    }
    world
        .until("the list is read again", async || {
            calls("list pull requests") > listed
        })
        .await;
    let after = [
        "find a pull request",
        "read a pull request",
        "edit a pull request",
    ]
    .map(calls);
    assert_eq!(before, after);
    assert_eq!(calls("open a pull request"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merging_approves_however_it_is_done() {
    let world = World::new([]).await;
    let ways = [Merge::Commit, Merge::Squash, Merge::Rebase];
    world.enroll((1..=6).map(device)).await;
    for n in 1..=6 {
        let number = world.opened(n).await;
        world.host.merge(number, ways[n as usize % 3]);
        // Some hosts delete the branch at once, and some teams forget to.
        if n > 3 {
            world.repo.delete(&branch(n));
        }
        world.webhook();
    }
    for n in 1..=6 {
        world.becomes(n, DeviceState::Active).await;
        world.cleared(&branch(n)).await;
        let device = world.device(n).await;
        assert!(
            device.conditions.iter().all(|it| it.kind != "Proposed"),
            "{device:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_that_goes_before_its_merge_is_seen_rejects_nobody() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    let number = world.opened(1).await;
    world
        .until("the branch was seen", async || {
            world.device(1).await.branch_pushed
        })
        .await;
    // The host merged, and shows the branch as gone, but the tracked branch as it was before.
    let before = world.repo.tip("main").unwrap();
    world.host.merge(number, Merge::Squash);
    let merged = world.repo.tip("main").unwrap();
    world.repo.point("main", before);
    world.repo.delete(&branch(1));
    world.webhook();
    let message = world.awaits(1, "Merged").await;
    assert!(message.contains("is merged"), "{message}");
    world.repo.point("main", merged);
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_rejects_and_says_so() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    let number = world.opened(1).await;
    world.host.close(number);
    world.webhook();
    world.becomes(1, DeviceState::Rejected).await;
    let reason = world.device(1).await.state_reason;
    assert_eq!(
        reason,
        format!(
            "pull request https://git.example/shops/pulls/{number} was closed without being merged"
        )
    );
    world.cleared(&branch(1)).await;
    // It stays so, whatever happens to the pull request.
    world.host.reopen(number);
    world.webhook();
    // The same device name with another key is another enrollment, and another pull request.
    let mut again = device(2);
    again.name = device(1).name;
    world.enroll([again]).await;
    let number = world.opened(2).await;
    assert_eq!(world.host.page(number).head, branch(1));
    assert_eq!(number, 2);
    assert_eq!(world.state(1).await, DeviceState::Rejected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_reopening_in_between_is_nothing() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    let number = world.opened(1).await;
    world.host.close(number);
    world.host.reopen(number);
    world.webhook();
    world.host.merge(number, Merge::Commit);
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_the_branch_rejects() {
    for with_host in [true, false] {
        let world = World::of([], with_host).await;
        world.enroll([device(1)]).await;
        world
            .until("the branch was seen", async || {
                world.device(1).await.branch_pushed
            })
            .await;
        if with_host {
            world.opened(1).await;
        }
        world.repo.delete(&branch(1));
        world.webhook();
        world.becomes(1, DeviceState::Rejected).await;
        let reason = world.device(1).await.state_reason;
        let expected = if with_host {
            "pull request https://git.example/shops/pulls/1 was closed without being merged"
        } else {
            "its enrollment branch was deleted"
        };
        assert_eq!(reason, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_decides_for_the_host_too() {
    let world = World::new([]).await;
    world.enroll([1, 2].map(device)).await;
    let (one, two) = (world.opened(1).await, world.opened(2).await);
    world.branches.merge(&world.device(1).await).await.unwrap();
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
    world.cleared(&branch(1)).await;
    assert_eq!(world.host.page(one).state, PullRequestState::Merged);

    let mut db = world.store.write().await.unwrap();
    let fleet = &device(2).fleet;
    let rejected = [(device(2).id, "an operator rejected it".to_owned())];
    longshore_controller::store::devices::reject(&mut db, fleet, &rejected)
        .await
        .unwrap();
    db.commit().await.unwrap();
    world.poke();
    world.cleared(&branch(2)).await;
    assert_eq!(world.host.page(two).state, PullRequestState::Closed);
    assert_eq!(world.host.calls("close a pull request"), 1);
    let reason = world.device(2).await.state_reason;
    assert_eq!(reason, "an operator rejected it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_request_of_peoples_own_is_taken() {
    let mut world = World::of([], false).await;
    world.enroll([device(1)]).await;
    world.awaits(1, "Branch").await;
    // The branch has a pull request before the controller knows of the host.
    let text = PullRequestText {
        title: "By hand".to_owned(),
        body: "Mine".to_owned(),
    };
    world
        .host
        .create_pull_request(&branch(1), "main", &text)
        .await
        .unwrap();
    world.connect().await;
    let number = world.opened(1).await;
    assert_eq!(world.host.pages().len(), 1);
    assert_eq!(world.host.page(number).title, "By hand");
    world.host.close(number);
    world.webhook();
    world.becomes(1, DeviceState::Rejected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn automatic_tokens_ask_nobody() {
    let world = World::new([]).await;
    world.enroll([1, 2, 3].map(automatic)).await;
    for n in [1, 2, 3] {
        world.becomes(n, DeviceState::Active).await;
    }
    assert_eq!(world.host.calls("open a pull request"), 0);
    // But for what people made.
    world.push(&[file(9, "device-4", Some("kiosk"))]);
    world.enroll([automatic(4)]).await;
    let number = world.opened(4).await;
    assert_eq!(world.host.page(number).head, branch(4));
    world.push(&[delete("devices/device-4")]);
    world.becomes(1, DeviceState::Active).await;
}
