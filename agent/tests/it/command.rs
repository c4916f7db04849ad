//! The command runtime with the program that most people will give it. Kubectl is the judge of what it reads.

use std::{path::Path, sync::Arc, time::Duration};

use longshore_agent::runtime::{
    Owner, Runtime as _,
    command::{Command, CommandSettings},
};
use longshore_protocol::{DeviceId, Object};
use serde_json::{Value, json};

use crate::holding;

/// Reads what it gets as kubectl's `--dry-run=client` does, without a cluster, and both files as they are.
const SCRIPT: &str = "set -e\nexport HOME=/nonexistent\ncd \"$1\"\ncat > set\n\
    kubectl annotate --local --dry-run=client -f set longshore.dev/checked=yes -o json > set.json\n\
    if [ -s \"$LONGSHORE_REMOVALS\" ]; then\n\
    kubectl annotate --local --dry-run=client -f \"$LONGSHORE_REMOVALS\" longshore.dev/checked=yes -o json > removals.json\n\
    fi\n";

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read(path).unwrap();
    let documents = serde_json::Deserializer::from_slice(&text).into_iter();
    let mut documents: Vec<Value> = documents.map(Result::unwrap).collect();
    for document in &mut documents {
        let metadata = document["metadata"].as_object_mut().unwrap();
        let noted = metadata["annotations"].as_object_mut().unwrap();
        noted.remove("longshore.dev/checked").unwrap();
        if noted.is_empty() {
            metadata.remove("annotations");
        }
    }
    documents
}

#[tokio::test]
async fn kubectl_reads_exactly_the_set_and_what_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let line = ["sh", "-c", SCRIPT, "sh", dir.path().to_str().unwrap()];
    let settings = CommandSettings {
        line: line.map(str::to_owned).to_vec(),
        timeout: Duration::from_mins(1),
        interval: None,
        folder: dir.path().join("state"),
    };
    let owner = Owner {
        id: DeviceId::from_random([1; 16]),
        name: "till".to_owned(),
    };
    let mut command = Command::new(settings, owner);
    let tricky = [
        "yes",
        "010",
        "- a",
        "a: b # c",
        "\u{feff}a",
        "\u{2028}",
        "a\u{85}b",
        "\u{7f}",
        "\ttab\n",
        "🙂",
        "---\n",
    ];
    let data: serde_json::Map<_, _> = tricky
        .iter()
        .enumerate()
        .map(|(at, text)| (format!("k{at}"), (*text).into()))
        .collect();
    let values = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tricky", "namespace": "shop"}, "data": data}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "till", "namespace": "shop"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}}),
        json!({"apiVersion": "example.com/v1", "kind": "Camera", "metadata": {"name": "front"},
            "spec": {"rate": 29.97, "big": 9_007_199_254_740_993_i64, "none": null}}),
    ];
    let objects: Vec<_> = values
        .iter()
        .map(|value| Object::from_value(value).unwrap())
        .collect();
    command
        .apply(Arc::new(holding(1, objects.clone())))
        .await
        .unwrap();
    // Namespaces first, then what others read, then what runs.
    assert_eq!(read(&dir.path().join("set.json")), values);

    command
        .apply(Arc::new(holding(2, [objects[0].clone()])))
        .await
        .unwrap();
    let left = read(&dir.path().join("removals.json"));
    let names: Vec<_> = left
        .iter()
        .map(|it| {
            (
                it["kind"].as_str().unwrap(),
                it["metadata"]["name"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        names,
        [
            ("Camera", "front"),
            ("Deployment", "till"),
            ("ConfigMap", "tricky")
        ]
    );
}
