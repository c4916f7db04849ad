//! Who gets in where there is no room for all: those that are there stay, and the others are told when to come back.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use http::{StatusCode, header::RETRY_AFTER};
use longshore_controller::{gateway::admission, store::Engine};
use longshore_protocol::message::ControlMessage;
use tokio_tungstenite::tungstenite::Error;

use super::world::{Bounds, Member, World, everything_offered, hear, until};
use crate::store::{
    database::{self, Database},
    samples::object,
};

fn bounds(admission: admission::Bounds) -> Bounds {
    Bounds {
        admission,
        ..Bounds::default()
    }
}

/// After how many seconds a device that is not let in is to come back.
async fn told_to_come_back(member: &Member) -> u64 {
    match member.connect().await {
        Err(Error::Http(response)) => {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let seconds = response.headers().get(RETRY_AFTER).unwrap();
            seconds.to_str().unwrap().parse().unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_house_keeps_who_is_there_and_sends_the_others_back() {
    database::with(Engine::Sqlite, full_house).await;
}

async fn full_house(database: Database) {
    let world = World::start(
        database,
        bounds(admission::Bounds {
            seats: 3,
            tenant_seats: 2,
            ..admission::Bounds::default()
        }),
    )
    .await;
    let ones = world.devices("one", 0, 32).await;
    let twos = world.devices("two", 1000, 2).await;
    let mut there = [ones[0].greet(None).await, ones[1].greet(None).await];
    until("both are there", || world.hub.len() == 2).await;
    let crowd = join_all(ones[2..].iter().map(told_to_come_back)).await;
    let moments: BTreeSet<_> = crowd.into_iter().collect();
    assert!(moments.len() > 3, "they come back together: {moments:?}");
    assert!(
        moments.iter().all(|seconds| (2..=10).contains(seconds)),
        "{moments:?}"
    );

    // One tenant's crowd is not another one's; but all together have a bound, too.
    let mut third = twos[0].greet(None).await;
    let welcomed = |message| matches!(message, ControlMessage::Welcome { .. }).then_some(());
    hear(&mut third, welcomed).await;
    told_to_come_back(&twos[1]).await;

    world.desire(&ones[..2], 1, &[object("a", "1")]).await;
    for socket in &mut there {
        everything_offered(socket).await;
    }
    drop(there);
    until("their seats are free", || world.hub.len() == 1).await;
    while twos[1].connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    world.stop().await;
}

/// Connections with a right certificate that never ask for a session fill all places. A device of another tenant gets
/// in at once, and one of the same tenant after a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_asks_keeps_nobody_out() {
    database::with(Engine::Sqlite, stalled).await;
}

async fn stalled(database: Database) {
    let world = World::start(
        database,
        bounds(admission::Bounds {
            places: 8,
            grace: Duration::from_millis(500),
            ..admission::Bounds::default()
        }),
    )
    .await;
    let silent = world.devices("one", 0, 8).await;
    let one = world.devices("one", 100, 1).await.remove(0);
    let two = world.devices("two", 1000, 1).await.remove(0);
    let stalled = join_all(silent.iter().map(Member::secure)).await;
    assert!(stalled.iter().all(Result::is_ok));
    until("all places are taken", || {
        world.metrics.looked_up.get() == 8
    })
    .await;
    drop(two.greet(None).await);
    drop(one.greet(None).await);
    drop(stalled);
    world.stop().await;
}
