//! Facts that devices claim become labels, where `fleet.yaml` allows it and nowhere else.

use longshore_controller::store::devices::{self, Device};
use longshore_protocol::api::{DeviceState, Facts};

use super::world::{Change, FLEET, World, active, file, fleet_of, kiosk, shops, write};
use crate::store::samples::{device, device_id};

fn allowing(names: &str) -> Change {
    write(
        "fleet.yaml",
        format!("{FLEET}spec:\n  labelsFromFacts: [{names}]\n"),
    )
}

/// A fleet whose manifests name the architecture.
fn files(devices: impl IntoIterator<Item = Change>) -> Vec<Change> {
    let mut files = fleet_of(devices);
    files.push(write(
        "groups/kiosk/kiosk.yaml",
        "arch: ${LABEL_arch:=unknown}",
    ));
    files
}

fn labels(view: &devices::DeviceView) -> Vec<(&str, &str)> {
    let labels = view.device.labels.iter();
    labels
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

async fn claim(world: &World, n: u32, pairs: &[(&str, &str)]) {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let facts: Facts = pairs.iter().map(owned).collect();
    let mut db = world.store.write().await.unwrap();
    let news = devices::set_facts(&mut db, &[(&shops(), &device_id(n), &facts)]).await;
    assert_eq!(news.unwrap(), [shops()]);
    db.commit().await.unwrap();
    world.fleets.poke(&shops());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_fact_is_a_label_and_follows_what_the_device_says() {
    let world = World::new(&files([1, 2].map(kiosk))).await;
    // Both say that they are aarch64; at first nobody wants to know.
    world.enroll([1, 2].map(|n| active(&shops(), n))).await;
    for n in [1, 2] {
        world.reaches(n, 1).await;
        assert_eq!(world.content(n).await, ["all: 1", "arch: unknown"]);
    }
    world.apply(&[allowing("arch")]).await;
    for n in [1, 2] {
        world.reaches(n, 2).await;
        assert_eq!(world.content(n).await, ["all: 1", "arch: aarch64"]);
        assert_eq!(labels(&world.view(n).await), [("arch", "aarch64")]);
    }
    let builds = world.builder.count();
    claim(&world, 1, &[("arch", "x86_64"), ("site", "${DEVICE_ID}")]).await;
    world.reaches(1, 3).await;
    assert_eq!(world.content(1).await, ["all: 1", "arch: x86_64"]);
    assert_eq!(labels(&world.view(1).await), [("arch", "x86_64")]);
    world.passes().await;
    assert_eq!(
        world.generation(2).await,
        2,
        "the other one is not concerned"
    );
    assert_eq!(world.builder.count(), builds, "nor is any build");

    // A fact that is not allowed is nothing, and news of it moves nobody.
    claim(&world, 1, &[("arch", "x86_64"), ("uptime", "7")]).await;
    world.passes().await;
    assert_eq!(world.generation(1).await, 3);
    assert_eq!(labels(&world.view(1).await), [("arch", "x86_64")]);

    // What may come from a device is bounded by what may be a label.
    claim(&world, 1, &[("arch", "a\"\n- ${DEVICE_ID}: $${x}")]).await;
    world.reaches(1, 4).await;
    assert_eq!(world.content(1).await, ["all: 1", "arch: a--DEVICE_ID-x"]);

    world.apply(&[write("fleet.yaml", FLEET)]).await;
    world.reaches(1, 5).await;
    assert_eq!(world.content(1).await, ["all: 1", "arch: unknown"]);
    assert_eq!(labels(&world.view(1).await), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_wrote_wins_over_what_a_device_says() {
    let own = kiosk(1);
    let (path, Some(text)) = own else {
        unreachable!("a file")
    };
    let text = text.replace(
        "metadata:\n",
        "metadata:\n  labels: {arch: ours, site: madrid}\n",
    );
    let mut world = World::new(&files([
        write(&path, text),
        file(2, "device-2", Some("kiosk")),
        allowing("arch, site"),
    ]))
    .await;
    // One of them is only approved now, with its facts from its enrollment.
    let pending = Device {
        state: DeviceState::Pending,
        ..device(&shops(), 2)
    };
    world.enroll([active(&shops(), 1), pending]).await;
    world.reaches(1, 1).await;
    world.reaches(2, 1).await;
    assert_eq!(world.content(1).await, ["all: 1", "arch: ours"]);
    assert_eq!(
        labels(&world.view(1).await),
        [("arch", "ours"), ("site", "madrid")]
    );
    assert_eq!(world.content(2).await, ["all: 1", "arch: aarch64"]);
    assert_eq!(labels(&world.view(2).await), [("arch", "aarch64")]);
    claim(&world, 1, &[("arch", "theirs"), ("site", "theirs")]).await;
    world.passes().await;
    assert_eq!(world.generation(1).await, 1);
    assert_eq!(
        labels(&world.view(1).await),
        [("arch", "ours"), ("site", "madrid")]
    );

    // Facts are in the store: a restart changes nothing.
    world.restart().await;
    world.passes().await;
    assert_eq!(
        (world.generation(1).await, world.generation(2).await),
        (1, 1)
    );
}
