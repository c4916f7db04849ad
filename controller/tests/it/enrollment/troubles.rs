//! Hosts that are down, slow, strict or forgetful, and crashes.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use longshore_protocol::api::DeviceState;

use super::{
    host::{Merge, Trouble},
    world::{World, automatic, branch, device, settings},
};
use crate::reconcile::world::write;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_lost_makes_no_second_one() {
    let mut world = World::new([]).await;
    world.host.trouble(Some(Trouble::LosesCreated));
    world.enroll([device(1)]).await;
    world
        .until("one is opened, and nobody knows", async || {
            world.host.pages().len() == 1
        })
        .await;
    // And a crash on top.
    world.restart().await;
    world.host.trouble(None);
    world.webhook();
    let number = world.opened(1).await;
    assert_eq!(world.host.pages().len(), 1);
    assert_eq!(world.host.calls("open a pull request"), 1);
    world.host.merge(number, Merge::Commit);
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_down_delays_and_loses_nothing() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    world.opened(1).await;
    world.host.trouble(Some(Trouble::Down));
    world.enroll([device(2)]).await;
    let message = world.awaits(2, "ForgeRefused").await;
    assert!(message.contains("connection refused"), "{message}");
    let told = world.device(2).await.state_reason;
    assert!(told.contains("cannot be opened"), "{told}");
    assert!(world.repo.tip(&branch(2)).is_some(), "Git works");
    // Approving needs no host.
    let tip = world.repo.tip(&branch(1)).unwrap();
    world.repo.point("main", tip);
    world.webhook();
    world.becomes(1, DeviceState::Active).await;
    // And others are committed.
    world.enroll([automatic(3)]).await;
    world.becomes(3, DeviceState::Active).await;
    world.host.trouble(None);
    world.opened(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_rejected_while_the_host_says_nothing() {
    let world = World::new([]).await;
    world.enroll([device(1)]).await;
    let number = world.opened(1).await;
    world
        .until("the branch was seen", async || {
            world.device(1).await.branch_pushed
        })
        .await;
    let before = world.repo.tip("main").unwrap();
    world.host.merge(number, Merge::Squash);
    let merged = world.repo.tip("main").unwrap();
    world.repo.point("main", before);
    world.host.trouble(Some(Trouble::Down));
    world.repo.delete(&branch(1));
    let asked = world.host.calls("read a pull request");
    world.webhook();
    world
        .until("the host is asked", async || {
            world.host.calls("read a pull request") > asked
        })
        .await;
    world.enroll([automatic(2)]).await;
    world.becomes(2, DeviceState::Active).await;
    assert_eq!(world.state(1).await, DeviceState::Pending);
    let now = world.repo.tip("main").unwrap();
    world.host.trouble(None);
    // What was merged shows after all, with what came since.
    let text = world.repo.open();
    let merged = text.find_commit(merged).unwrap();
    let path = "devices/device-1/device.yaml";
    let entry = merged.tree().unwrap().get_path(path.as_ref()).unwrap();
    let blob = text.find_blob(entry.id()).unwrap();
    let content = String::from_utf8(blob.content().to_vec()).unwrap();
    assert_ne!(now, before);
    world.push(&[write(path, content)]);
    world.becomes(1, DeviceState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_wants_no_calls_gets_none() {
    let world = World::new([]).await;
    world
        .until("the list is read", async || {
            world.host.calls("list pull requests") > 0
        })
        .await;
    let pause = Duration::from_mins(1);
    world.host.trouble(Some(Trouble::RateLimited(pause)));
    world.enroll([device(1)]).await;
    let message = world.awaits(1, "ForgeRefused").await;
    assert!(
        message.contains("wants no more calls for 60 s"),
        "{message}"
    );
    let calls = world.host.calls("find a pull request");
    assert_eq!(calls, 1);
    world.host.trouble(None);
    // Neither pokes nor other devices shorten what it asked for.
    world.enroll([device(2)]).await;
    let message = world.awaits(2, "ForgeRefused").await;
    assert!(
        message.contains("wants no more calls for 60 s"),
        "{message}"
    );
    assert_eq!(world.host.calls("find a pull request"), calls);
    assert_eq!(world.host.pages().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_pull_request_is_told_and_tried_again() {
    let world = World::new([]).await;
    world.host.trouble(Some(Trouble::Refuses));
    world.enroll([device(1)]).await;
    let message = world.awaits(1, "ForgeRefused").await;
    assert!(message.contains("switched off"), "{message}");
    world.host.trouble(None);
    world.opened(1).await;
    assert_eq!(world.host.pages().len(), 1);
}

fn protect(world: &World) {
    let hook = world.repo.path().join("hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    let script = "#!/bin/sh\nwhile read old new ref; do\n  if [ $ref = refs/heads/main ]; then\n    \
                  echo 'error: GH006: Protected branch update failed for refs/heads/main.' >&2\n    \
                  exit 1\n  fi\ndone\n";
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protected_branch_makes_automatic_devices_wait_for_people() {
    for (with_host, settings) in [
        (true, None),
        (true, Some(settings("{batch: 1h}"))),
        (false, None),
    ] {
        let world = World::of(settings, with_host).await;
        protect(&world);
        world.enroll([automatic(1)]).await;
        let reason = if with_host { "PullRequest" } else { "Branch" };
        let message = world.awaits(1, reason).await;
        assert!(
            message.contains("could not commit it to the tracked branch itself"),
            "{message}"
        );
        assert_eq!(world.state(1).await, DeviceState::Pending);
        if with_host {
            let number = world.opened(1).await;
            let body = world.host.page(number).body;
            assert!(body.contains("without asking"), "{body}");
            world.host.merge(number, Merge::Squash);
            world.webhook();
            world.becomes(1, DeviceState::Active).await;
        }
        // When the branch moved and takes it again, nobody is asked.
        fs::remove_file(world.repo.path().join("hooks/pre-receive")).unwrap();
        world.push(&[write("base/all.yaml", "all: 2")]);
        world
            .until("the commit is in force", async || {
                let reading = world.branches.reading.borrow().clone();
                reading.map(|it| it.commit) == world.repo.tip("main")
            })
            .await;
        world.enroll([automatic(2)]).await;
        world.becomes(2, DeviceState::Active).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_moment_asks_once() {
    let mut world = World::new([settings("{batch: 1h}")]).await;
    for n in 1..=8 {
        world.enroll([device(n)]).await;
        // Somewhere in between: the sooner, the later.
        let calls =
            world.host.calls("open a pull request") + world.host.calls("edit a pull request");
        if n % 2 == 0 {
            world
                .until("it goes on", async || {
                    let now = world.host.calls("open a pull request")
                        + world.host.calls("edit a pull request");
                    now > calls
                })
                .await;
        }
        world.restart().await;
    }
    let number = world.opened(8).await;
    world
        .until("the text names all", async || {
            world.host.page(number).title == "Enroll 8 devices"
        })
        .await;
    assert_eq!(world.host.pages().len(), 1);
    world.host.merge(number, Merge::Commit);
    world.webhook();
    for n in 1..=8 {
        world.becomes(n, DeviceState::Active).await;
    }
}
