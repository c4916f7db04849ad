//! Killed at any moment, the next pass ends where it would have ended.

use std::time::Instant;

use longshore_agent::runtime::Runtime as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time;

use super::{Machine, config_map, deployment, set, settle, sleeper};

/// A pod that reads what changes.
fn reading(name: &str) -> Value {
    let mut spec = sleeper();
    spec["containers"][0]["volumeMounts"] = json!([{"name": "page", "mountPath": "/page"}]);
    spec["containers"][0]["env"] = json!([{"name": "PIN",
        "valueFrom": {"secretKeyRef": {"name": "door", "key": "pin"}}}]);
    spec["volumes"] = json!([{"name": "page", "configMap": {"name": name}}]);
    spec
}

#[tokio::test]
async fn killed_at_random_moments_it_converges() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::new();
    let secret = |pin: &str| {
        super::object(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "door"},
            "stringData": {"pin": pin}}),
        )
    };
    let wanted = |generation: u64| {
        let text = generation.to_string();
        let data = json!({"text": text});
        let mut objects = vec![
            secret(&text),
            config_map("a", &data),
            config_map("b", &json!({"text": "same"})),
            deployment("a", &reading("a")),
        ];
        // One that comes and goes.
        if generation % 2 == 1 {
            objects.push(deployment("b", &reading("b")));
        }
        set(generation, objects)
    };
    let begun = Instant::now();
    settle(&mut machine.runtime(), &wanted(1)).await;
    let usual = begun.elapsed();
    for generation in 2..=9 {
        let wanted = wanted(generation);
        // A pass that is dropped kills the podman that it waits for, with SIGKILL and its whole group.
        let moment = usual.mul_f64(random.random_range(0.0..1.2));
        let outcome = time::timeout(moment, machine.runtime().apply(wanted.clone())).await;
        println!(
            "generation {generation}: killed after {moment:?}: {}",
            outcome.is_err()
        );
        if generation % 3 != 0 {
            continue;
        }
        let mut podman = machine.runtime();
        settle(&mut podman, &wanted).await;
        let mut expected = vec!["a-pod-c"];
        if generation % 2 == 1 {
            expected.push("b-pod-c");
        }
        assert_eq!(machine.names(), expected);
        let text = generation.to_string();
        let read = machine.inside("a-pod-c", &["sh", "-c", "cat /page/text; echo $PIN"]);
        assert_eq!(read, format!("{text}{text}"));
        let volumes = machine.podman(&["volume", "ls", "--quiet"]);
        assert_eq!(volumes.lines().count(), expected.len(), "{volumes}");
        let secrets = machine.podman(&["secret", "ls", "--quiet"]);
        assert_eq!(secrets.lines().count(), expected.len(), "{secrets}");
        assert!(podman.apply(wanted).await.unwrap().is_empty());
    }
}
