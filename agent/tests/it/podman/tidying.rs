//! Images that nothing needs any more go, and no others.

use std::sync::Arc;

use longshore_agent::{
    files::Folder,
    ledger::Ledger,
    runtime::{Runtime as _, podman::Podman},
};
use longshore_protocol::session::Holding;
use serde_json::json;
use tempfile::TempDir;

use super::{
    Machine, device, object,
    pulling::{blob_is_held_back, machine, with_image},
    registry::Registry,
    set, settle, unapplied,
};

struct Tidy {
    machine: Machine,
    registry: Registry,
    state: TempDir,
}

impl Tidy {
    async fn new(offered: &[&str]) -> Self {
        let (machine, registry) = machine(offered).await;
        let state = tempfile::tempdir().unwrap();
        Self {
            machine,
            registry,
            state,
        }
    }

    fn runtime(&self) -> Podman {
        Podman::new(self.machine.program(), device()).tidying(self.state.path().to_owned())
    }

    fn set(&self, generation: u64, image: &str) -> Arc<Holding> {
        set(
            generation,
            [with_image("till", &self.registry.image(image))],
        )
    }

    /// What the reconciler does once a set is applied and healthy.
    fn is_good(&self, holding: &Holding) {
        let folder = Folder::open(self.state.path()).unwrap();
        Ledger::new(folder).store_base(holding).unwrap();
    }

    fn has(&self, image: &str) -> bool {
        let image = self.registry.image(image);
        self.machine.try_podman(&["image", "exists", &image]).0
    }

    fn ids(&self) -> Vec<String> {
        let ids = self.machine.podman(&["image", "ls", "--all", "--quiet"]);
        let mut ids: Vec<_> = ids.lines().map(str::to_owned).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

#[tokio::test]
async fn what_neither_the_set_nor_the_last_good_one_needs_goes() {
    let tidy = Tidy::new(&["app:1", "app:2", "app:3", "own:1", "own:2"]).await;
    let mut podman = tidy.runtime();
    // The device's owner brings one, and gives another one of the agent's a name.
    let own = tidy.registry.image("own:1");
    let (machine, pull) = (&tidy.machine, own.clone());
    let program = machine.program();
    let pulled = tokio::process::Command::new(program)
        .args(["pull", &pull])
        .output();
    assert!(pulled.await.unwrap().status.success());

    let first = tidy.set(1, "app:1");
    settle(&mut podman, &first).await;
    tidy.is_good(&first);
    let second = tidy.set(2, "app:2");
    settle(&mut podman, &second).await;
    assert!(tidy.has("app:1"), "the way back needs no network");
    // The second does not become good, and the third comes.
    let third = tidy.set(3, "app:3");
    settle(&mut podman, &third).await;
    let has = || ["app:1", "app:2", "app:3"].map(|image| tidy.has(image));
    assert_eq!(has(), [true, false, true]);
    // It goes back to the first, and forth again, without the second's image; after a restart, too.
    settle(&mut tidy.runtime(), &first).await;
    assert_eq!(has(), [true, false, false]);
    settle(&mut podman, &third).await;
    tidy.is_good(&third);
    // The next pass changes nothing else, and one more starts no process for it.
    assert!(podman.apply(third.clone()).await.unwrap().is_empty());
    assert_eq!(has(), [false, false, true]);
    let calls = |what: &str| {
        let calls = machine.calls();
        calls.iter().filter(|it| it.starts_with(what)).count()
    };
    let before = calls("image ls");
    assert!(podman.apply(third).await.unwrap().is_empty());
    assert_eq!(calls("image ls"), before);

    // What the agent did not bring is used by a set, and stays when that is over.
    let owns = tidy.set(4, "own:1");
    settle(&mut podman, &owns).await;
    tidy.is_good(&owns);
    let fifth = tidy.set(5, "own:2");
    settle(&mut podman, &fifth).await;
    tidy.is_good(&fifth);
    // What somebody gave another name is theirs, too.
    let named = tidy.registry.image("own:2");
    machine.podman(&["tag", &named, "localhost/kept:1"]);
    podman.clear().await.unwrap();
    assert_eq!(has(), [false; 3]);
    assert!(tidy.has("own:1") && tidy.has("own:2"));
    machine.podman(&["untag", "localhost/kept:1", "localhost/kept:1"]);
    podman.clear().await.unwrap();
    assert!(tidy.has("own:1") && !tidy.has("own:2"));
    assert!(!calls_force(machine));
}

fn calls_force(machine: &Machine) -> bool {
    let calls = machine.calls();
    calls
        .iter()
        .any(|it| it.starts_with("image rm") && it.contains("--force"))
}

#[tokio::test]
async fn images_under_a_name_that_moves_do_not_pile_up() {
    let tidy = Tidy::new(&[]).await;
    let mut podman = tidy.runtime();
    let before = tidy.ids();
    for generation in 1..=3 {
        let layout = tidy.machine.packed(&format!("moves-{generation}"));
        tidy.registry.offer("app:latest", &layout);
        let mut wanted = with_image("till", &tidy.registry.image("app:latest")).value();
        wanted["spec"]["template"]["metadata"]["annotations"] =
            json!({"n": generation.to_string()});
        let wanted = set(generation, [object(&wanted)]);
        settle(&mut podman, &wanted).await;
        let what = tidy
            .machine
            .inside("till-pod-c", &["sh", "-c", "echo $WHAT"]);
        assert_eq!(what, format!("moves-{generation}"));
        tidy.is_good(&wanted);
        podman.apply(wanted).await.unwrap();
    }
    // The one of the set, and what Podman makes for pods itself.
    let pause = tidy
        .machine
        .podman(&["image", "ls", "--format", "{{.Repository}}"]);
    let pause = pause.lines().filter(|it| it.contains("pause")).count();
    assert_eq!(
        tidy.ids().len(),
        before.len() + 1 + pause,
        "{:?}",
        tidy.ids()
    );
}

#[tokio::test]
async fn an_image_whose_pull_was_cut_short_is_remembered() {
    let tidy = Tidy::new(&["app:1", "app:2"]).await;
    tidy.registry.hold(true);
    let mut asked = tidy.registry.asked();
    let mut podman = tidy.runtime();
    let first = tidy.set(1, "app:1");
    let cut = first.clone();
    let pulling = tokio::spawn(async move { podman.apply(cut).await.map(drop) });
    blob_is_held_back(&mut asked).await;
    // The agent is killed; its `podman`, which goes on, or somebody's next try has the image.
    pulling.abort();
    assert!(pulling.await.unwrap_err().is_cancelled());
    tidy.registry.hold(false);
    let pull = tidy.registry.image("app:1");
    let pulled = tokio::process::Command::new(tidy.machine.program())
        .args(["pull", &pull])
        .output();
    assert!(pulled.await.unwrap().status.success());

    let mut podman = tidy.runtime();
    settle(&mut podman, &first).await;
    // An object that Podman never runs keeps nothing on the disk.
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "till"}});
    let till = with_image("till", &tidy.registry.image("app:2"));
    let second = set(2, [till, object(&service)]);
    let refused = unapplied(&mut podman, &second).await;
    assert_eq!(refused[0].reason, "Unsupported");
    assert!(!tidy.has("app:1") && tidy.has("app:2"));
}
