//! Devices that come back all at once: those that are connected do not wait behind them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use longshore_controller::store::Engine;
use longshore_protocol::message::{ControlMessage, DeviceMessage, Held};
use tokio::task::JoinSet;

use super::world::{Bounds, World, everything_offered, hear, say, until};
use crate::store::{
    database::{self, Database},
    samples::object,
};

const STORMING: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poke_overtakes_a_storm() {
    database::with(Engine::Sqlite, overtakes).await;
}

async fn overtakes(database: Database) {
    let world = World::start(database, Bounds::default()).await;
    let storming = world.devices("one", 0, STORMING).await;
    let connected = world.devices("one", 1000, 1).await;
    world.desire(&connected, 1, &[object("a", "1")]).await;
    let mut socket = connected[0].greet(None).await;
    let (mut held, need) = everything_offered(&mut socket).await;
    say(&mut socket, &need).await.unwrap();
    say(&mut socket, &DeviceMessage::Accepted(held))
        .await
        .unwrap();

    let came = Arc::new(AtomicUsize::new(0));
    let mut storm = JoinSet::new();
    for member in storming {
        let came = came.clone();
        storm.spawn(async move {
            loop {
                // All at once, again and again.
                drop(member.connect().await);
                came.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    until("the storm is there", || came.load(Ordering::Relaxed) > 100).await;
    let mut overtook = Vec::new();
    for generation in 2..9 {
        let object = object("a", &generation.to_string());
        world.store_desired(&connected, generation, &[object]).await;
        let before = came.load(Ordering::Relaxed);
        world.poke(&connected);
        held = hear(&mut socket, |message| match message {
            ControlMessage::Delta {
                generation,
                base,
                target,
                ..
            } if base == held.digest => Some(Held {
                generation,
                digest: target,
            }),
            _ => None,
        })
        .await;
        overtook.push(came.load(Ordering::Relaxed) - before);
        say(&mut socket, &DeviceMessage::Accepted(held))
            .await
            .unwrap();
    }
    // A poke is looked up, read and sent. Who stood behind the storm at each of these would wait for all of it each
    // time; looked up together with those that ask at the same moment, it waits for few of them.
    overtook.sort_unstable();
    let median = overtook[overtook.len() / 2];
    assert!(
        median < 2 * STORMING as usize,
        "pokes waited for {overtook:?} handshakes"
    );
    assert!(storm.try_join_next().is_none(), "it is still there");
    storm.shutdown().await;
    world.stop().await;
}
