//! Whatever the order of commits was, the devices are to run what a controller that starts now would find.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::api::DeviceState;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::world::{Change, World, active, delete, file, fleet_of, kiosk, overlay, shops, write};

const DEVICES: u32 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commits_end_where_a_fresh_start_ends() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut chance = StdRng::seed_from_u64(seed);
    let world = World::new(&fleet_of((1..=DEVICES).map(kiosk))).await;
    world
        .enroll((1..=DEVICES).map(|n| active(&shops(), n)))
        .await;
    let mut living: BTreeSet<u32> = (1..=DEVICES).collect();
    let mut generations = BTreeMap::new();
    let mut last = String::new();
    for round in 0..40 {
        let changes: Vec<_> = (0..chance.random_range(1..4))
            .map(|_| change(&mut chance, &mut living))
            .collect();
        let changes = changes.concat();
        last = world.push(&changes).to_string();
        if round % 4 == 0 {
            world.settled(&last).await;
        }
        // Whatever was skipped, generations only grow, and one generation is one digest.
        for view in world.views().await {
            let Some(desired) = view.desired else {
                continue;
            };
            let now = desired.target;
            let before = generations.insert(view.device.id, now);
            assert!(
                before.is_none_or(|before: longshore_protocol::message::Held| {
                    before == now || before.generation < now.generation
                })
            );
        }
    }
    world.settled(&last).await;
    assert!(world.status().await.problems.is_empty());

    // What this one finds first, it finds without any history.
    let fresh = World::of(world.repo.clone()).await;
    fresh
        .enroll((1..=DEVICES).map(|n| active(&shops(), n)))
        .await;
    fresh.settled(&last).await;
    fresh
        .until("every device is decided on", async || {
            let views = fresh.views().await;
            views
                .iter()
                .all(|view| view.device.state != DeviceState::Active || view.desired.is_some())
        })
        .await;
    let expected = outcome(&fresh).await;
    world
        .until("it comes to the same as a fresh start", async || {
            outcome(&world).await == expected
        })
        .await;
}

/// State and content of each device.
async fn outcome(world: &World) -> Vec<(String, String)> {
    let views = world.views().await;
    let mut outcome: Vec<_> = views
        .into_iter()
        .map(|view| {
            let id = view.device.id.to_string();
            if view.device.state != DeviceState::Active {
                return (id, "gone".to_owned());
            }
            let digest = view.desired.map(|desired| desired.target.digest);
            (id, format!("{} {digest:?}", view.device.name))
        })
        .collect();
    outcome.sort();
    outcome
}

fn change(chance: &mut StdRng, living: &mut BTreeSet<u32>) -> Vec<Change> {
    let value = chance.random_range(0..4);
    let n = *living
        .iter()
        .copied()
        .collect::<Vec<_>>()
        .choose(chance)
        .unwrap();
    let name = format!("device-{n}");
    let folder = format!("devices/{name}");
    let own = format!("{folder}/kustomization.yaml");
    match chance.random_range(0..8) {
        0 => vec![write("base/all.yaml", format!("all: {value}"))],
        1 => vec![write(
            "groups/kiosk/kiosk.yaml",
            format!("kiosk: {value} ${{DEVICE_NAME}}"),
        )],
        2 => vec![write(
            "groups/gateway/gateway.yaml",
            format!("gateway: {value}"),
        )],
        3 => vec![write("README.md", format!("{value}"))],
        4 => vec![file(n, &name, Some("gateway")), delete(&own)],
        5 => vec![file(n, &name, Some("kiosk")), delete(&own)],
        6 => {
            vec![
                file(n, &name, None),
                overlay(&folder, &["../../groups/kiosk", "own.yaml"]),
                write(&format!("{folder}/own.yaml"), format!("own: {value}")),
            ]
        }
        _ if living.len() > 5 && value == 0 => {
            living.remove(&n);
            let files = ["device.yaml", "kustomization.yaml", "own.yaml"];
            files
                .map(|file| delete(&format!("{folder}/{file}")))
                .to_vec()
        }
        _ => vec![kiosk(n), delete(&own)],
    }
}
