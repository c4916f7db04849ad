//! The agent's process killed with SIGKILL, while the `podman` that it called goes on without it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rustix::process::Signal;
use serde_json::json;
use tokio::time;

use super::{Machine, config_map, deployment, pod, running, sleeper};
use crate::{
    DEADLINE,
    pki::Pki,
    process::{Device, controller, ended, signal},
    until, until_true,
};

#[tokio::test]
async fn an_agent_says_which_podman_it_runs_on() {
    let machine = Machine::new();
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    edge.desire(1, &[pod("once", &running("true"))]);
    let mut command = device.join(&server, &pki, "lst_one");
    let arguments = ["--runtime", "podman", "--podman"];
    let command = command.args(arguments).arg(machine.program());
    let child = command.spawn().unwrap();
    let version = machine.podman(&["--version"]);
    assert!(version.starts_with("podman version "), "{version}");
    let mut seen = edge.seen.clone();
    until(&mut seen, "the version of its runtime", |seen| {
        let last = seen.facts.last();
        last.is_some_and(|facts| facts.get("runtime") == Some(&version))
    })
    .await;
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
}

#[tokio::test]
async fn an_agent_killed_at_random_moments_leaves_nothing_over_and_nothing_twice() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::new();
    let pki = Arc::new(Pki::new());
    let (server, edge) = controller(&pki).await;
    let device = Device::new();
    let program = machine.program();
    let agent = || {
        let mut command = device.join(&server, &pki, "lst_one");
        command
            .args(["--runtime", "podman", "--podman"])
            .arg(&program);
        command.spawn().unwrap()
    };
    let child = agent();
    let identity = device.state().join("identity.json");
    until_true("it is enrolled", || identity.exists()).await;
    signal(&child, Signal::KILL);
    ended(child).await;

    let names = ["a", "b", "c"];
    let mut wanted = BTreeSet::new();
    for generation in 1..=8 {
        wanted = names
            .into_iter()
            .filter(|_| random.random_bool(0.6))
            .collect();
        let mut spec = sleeper();
        spec["containers"][0]["env"] = json!([{"name": "N", "value": generation.to_string()}]);
        let pods = wanted.iter().map(|name| deployment(name, &spec));
        let page = config_map("page", &json!({"n": generation.to_string()}));
        let objects: Vec<_> = pods.chain([page]).collect();
        edge.desire(generation, &objects);
        let child = agent();
        // A pass with three pods takes some seconds.
        let moment = Duration::from_millis(random.random_range(100..4000));
        time::sleep(moment).await;
        println!("generation {generation}: {wanted:?}, killed after {moment:?}");
        signal(&child, Signal::KILL);
        ended(child).await;
    }

    let child = agent();
    let expected: Vec<_> = wanted.iter().map(|name| format!("{name}-pod-c")).collect();
    let settled = || {
        let (ok, values) = machine.try_podman(&[
            "ps",
            "--filter",
            "status=running",
            "--no-trunc",
            "--format",
            "{{.Names}} {{.IsInfra}}",
        ]);
        let mut running: Vec<_> = values
            .lines()
            .filter_map(|line| line.strip_suffix(" false"))
            .collect();
        running.sort_unstable();
        // The last generation's, and not what an earlier one left running.
        let is_last = |name: &String| {
            let (ok, value) = machine.try_podman(&["exec", name, "sh", "-c", "echo $N"]);
            ok && value.trim() == "8"
        };
        ok && running == expected && machine.names() == expected && expected.iter().all(is_last)
    };
    let end = time::Instant::now() + DEADLINE * 4;
    while !settled() {
        let names = machine.try_podman(&["ps", "--all", "--format", "{{.Names}} {{.Status}}"]);
        assert!(time::Instant::now() < end, "{names:?}, not {expected:?}");
        time::sleep(Duration::from_millis(200)).await;
    }
    let pods = machine.podman(&["pod", "ps", "--format", "{{.Name}}"]);
    assert_eq!(pods.lines().count(), expected.len(), "{pods}");
    assert_eq!(machine.podman(&["volume", "ls", "--quiet"]), "");
    signal(&child, Signal::TERM);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
}
