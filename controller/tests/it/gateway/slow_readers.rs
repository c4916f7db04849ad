//! Devices that do not read, in crowds: the memory for them has a bound, and those that read get what they need.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use longshore_controller::{gateway::outgoing, store::Engine};
use longshore_protocol::{
    Object,
    message::{ControlMessage, DeviceMessage},
};
use rand::RngExt as _;
use serde_json::json;

use super::world::{Bounds, Member, Socket, World, everything_offered, hear, say, until};
use crate::store::database::{self, Database};

const BOUNDS: outgoing::Bounds = outgoing::Bounds {
    all: 1024 * 1024,
    tenant: 768 * 1024,
    grace: Duration::from_millis(500),
    grace_for_others: Duration::from_millis(200),
};
const STUCK: u32 = 40;

/// Objects that no compression makes smaller than half, more together than any socket's buffer takes.
fn objects() -> Vec<Object> {
    let object = |n| {
        let noise: String = (0..60_000)
            .map(|_| char::from(rand::rng().random_range(b'!'..b'Z')))
            .collect();
        Object::from_value(&json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": format!("noise-{n}")},
            "data": {"noise": noise},
        }))
        .unwrap()
    };
    (0..100).map(object).collect()
}

/// A device that asks for everything and reads nothing of it.
async fn stuck(member: &Member) -> Socket {
    let mut socket = member.greet(None).await;
    let (_, need) = everything_offered(&mut socket).await;
    say(&mut socket, &need).await.unwrap();
    socket
}

async fn reads_everything(member: &Member) {
    let mut socket = member.greet(None).await;
    let (held, need) = everything_offered(&mut socket).await;
    say(&mut socket, &need).await.unwrap();
    let DeviceMessage::Need { digests, .. } = need else {
        unreachable!("it is what was made")
    };
    let mut missing: BTreeSet<_> = digests.into_iter().collect();
    hear(&mut socket, |message| {
        if let ControlMessage::Objects { parts, .. } = message {
            for part in parts {
                if part.offset + part.data.len() as u64 == part.compressed {
                    missing.remove(&part.digest);
                }
            }
        }
        missing.is_empty().then_some(())
    })
    .await;
    say(&mut socket, &DeviceMessage::Accepted(held))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_for_devices_that_do_not_read_has_a_bound() {
    database::with(Engine::Sqlite, bounded).await;
}

async fn bounded(database: Database) {
    let bounds = Bounds {
        outgoing: BOUNDS,
        ..Bounds::default()
    };
    let world = World::start(database, bounds).await;
    let bad = world.devices("one", 0, STUCK).await;
    let good = world.devices("one", 1000, 2).await;
    let others = world.devices("two", 2000, 2).await;
    let objects = objects();
    for members in [&bad, &good, &others] {
        world.desire(members, 1, &objects).await;
    }
    let most = Arc::new(AtomicI64::new(0));
    let watch = tokio::spawn({
        let (most, metrics) = (most.clone(), world.metrics.clone());
        async move {
            loop {
                most.fetch_max(metrics.outgoing_bytes.get(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let sockets = join_all(bad.iter().map(stuck)).await;
    let bound = i64::try_from(BOUNDS.tenant).unwrap();
    until("the tenant has no room left", || {
        world.metrics.outgoing_bytes.get() > bound - 80 * 1024
    })
    .await;
    // They read, in the middle of those that do not.
    join_all(others.iter().map(reads_everything)).await;
    join_all(good.iter().map(reads_everything)).await;
    let cut_off = world.metrics.readers_cut_off.get();
    assert!(cut_off > 0, "somebody made room for those that read");
    watch.abort();
    let most = most.load(Ordering::Relaxed);
    assert!(
        most > 0 && most <= i64::try_from(BOUNDS.all).unwrap(),
        "{most}"
    );
    drop(sockets);
    until("all is given back", || {
        world.metrics.outgoing_bytes.get() == 0
    })
    .await;
    world.stop().await;
}
