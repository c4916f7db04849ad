//! Hands in the runtime: found through events, put right, and nothing else touched.

use longshore_agent::runtime::{Runtime as _, podman::Podman};
use tokio::time;

use super::{Machine, deployment, pod, set, settle, sleeper};
use crate::{DEADLINE, until_true};

#[tokio::test]
async fn what_was_stopped_paused_or_removed_is_put_right() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let wanted = set(
        1,
        ["a", "b", "c", "d", "e"].map(|name| pod(name, &sleeper())),
    );
    settle(&mut podman, &wanted).await;
    let names = ["a-c", "b-c", "c-c", "d-c", "e-c"];
    let before = names.map(|name| machine.id(name));
    machine.podman(&["stop", "--time", "0", "a-c"]);
    machine.podman(&["pause", "b-c"]);
    machine.podman(&["rm", "--force", "--time", "0", "c-c"]);
    machine.podman(&["pod", "rm", "--force", "--time", "0", "d"]);
    let is_right = || {
        names.iter().all(|name| {
            machine.names().contains(&(*name).to_owned()) && machine.status(name) == "running"
        })
    };
    time::timeout(DEADLINE * 2, async {
        while !is_right() {
            settle(&mut podman, &wanted).await;
        }
    })
    .await
    .expect("never put right");
    let after = names.map(|name| machine.id(name));
    assert_eq!(
        (&after[0], &after[1], &after[4]),
        (&before[0], &before[1], &before[4])
    );
    assert!(after[2] != before[2] && after[3] != before[3]);
}

#[tokio::test]
async fn events_wake_the_loop_and_their_silence_costs_nothing() {
    let machine = Machine::new();
    let mut podman = machine.runtime();
    let wanted = set(1, [deployment("a", &sleeper())]);
    settle(&mut podman, &wanted).await;
    // Until what the passes themselves did is heard of, and looked at.
    let quiet = async |podman: &mut Podman| {
        loop {
            podman.apply(wanted.clone()).await.unwrap();
            podman.health().await.unwrap();
            let moment = time::Duration::from_secs(3);
            if time::timeout(moment, podman.disturbed()).await.is_err() {
                return;
            }
        }
    };
    time::timeout(DEADLINE * 2, quiet(&mut podman))
        .await
        .expect("never quiet");
    let calls = machine.calls().len();
    for _ in 0..10 {
        assert!(podman.apply(wanted.clone()).await.unwrap().is_empty());
        assert_eq!(podman.health().await, Some(Vec::new()));
    }
    assert_eq!(machine.calls().len(), calls, "{:?}", machine.calls());

    machine.podman(&["pod", "rm", "--force", "--time", "0", "a-pod"]);
    time::timeout(DEADLINE, podman.disturbed())
        .await
        .expect("a pod that goes is heard of");
    settle(&mut podman, &wanted).await;
    assert_eq!(machine.status("a-pod-c"), "running");

    // The stream is killed, and what happens meanwhile is still found.
    let events = machine
        .calls()
        .iter()
        .filter(|it| it.starts_with("events"))
        .count();
    let path = machine.program().with_file_name("containers.conf");
    kill_events(&path.display().to_string());
    machine.podman(&["pod", "rm", "--force", "--time", "0", "a-pod"]);
    time::timeout(DEADLINE, podman.disturbed())
        .await
        .expect("an end of the stream is a hint");
    settle(&mut podman, &wanted).await;
    assert_eq!(machine.status("a-pod-c"), "running");
    let again = || {
        machine
            .calls()
            .iter()
            .filter(|it| it.starts_with("events"))
            .count()
            > events
    };
    until_true("the stream is started again", again).await;
}

/// Ends the `podman events` of the machine with this configuration, and no other.
fn kill_events(configuration: &str) {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let is_ours = String::from_utf8_lossy(&read("environ")).contains(configuration);
        if is_ours && String::from_utf8_lossy(&read("cmdline")).contains("events\0") {
            let id = rustix::process::Pid::from_raw(id).unwrap();
            rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert_eq!(killed, 1);
}
