//! The command runtime with the program that most people will give it. Kubectl is the judge of what it reads.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use longshore_agent::{
    process::find,
    runtime::{
        Owner, Runtime as _,
        command::{Command, CommandSettings},
    },
};
use longshore_protocol::{DeviceId, Object};
use serde_json::{Value, json};

use crate::holding;

/// The script that the documents tell people to use.
fn documented() -> String {
    let document = include_str!("../../../docs/AGENT.md");
    let mut blocks = document.split("```sh\n").skip(1);
    let block = blocks.find(|block| block.contains("/etc/longshore/apply.sh"));
    let script = block.unwrap().split("```").next().unwrap();
    assert!(script.starts_with("#!/bin/sh\n"), "{script}");
    script.to_owned()
}

/// Stands in for `kubectl` where there is no cluster. The real one judges the words and reads the files as its
/// `--dry-run=client` does.
const KUBECTL: &str = r#"#!/bin/sh
set -e
export HOME=/nonexistent
"$REAL" "$@" --help > /dev/null
echo "$*" >> "$RECORD/calls"
for file in "$@"; do :; done
"$REAL" annotate --local --dry-run=client -f "$file" longshore.dev/checked=yes -o json > "$RECORD/$1.json"
"#;

fn program(path: &Path, script: &str) {
    std::fs::write(path, script).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

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

/// The runtime with the documented script, which leaves in `dir` what kubectl was called with.
fn scripted(dir: &Path) -> Command {
    let path = std::env::var_os("PATH").unwrap();
    let real = find("kubectl", &path).expect("kubectl is needed: run scripts/bootstrap");
    program(&dir.join("apply.sh"), &documented());
    program(&dir.join("kubectl"), KUBECTL);
    let here = dir.display();
    let line = [
        "env".to_owned(),
        format!("PATH={here}:{}", path.display()),
        format!("REAL={}", real.display()),
        format!("RECORD={here}"),
        format!("{here}/apply.sh"),
    ];
    let settings = CommandSettings {
        line: line.to_vec(),
        timeout: Duration::from_mins(1),
        interval: None,
        folder: dir.join("state"),
    };
    let owner = Owner {
        id: DeviceId::from_random([1; 16]),
        name: "till".to_owned(),
    };
    Command::new(settings, owner)
}

fn calls(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("calls")).unwrap()
}

#[tokio::test]
async fn kubectl_gets_exactly_the_set_and_what_left_it_from_the_documented_script() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = scripted(dir.path());
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
    assert_eq!(read(&dir.path().join("apply.json")), values);

    command
        .apply(Arc::new(holding(2, [objects[0].clone()])))
        .await
        .unwrap();
    let left = read(&dir.path().join("delete.json"));
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
    let said = calls(dir.path());
    assert!(
        said.starts_with("apply --server-side --field-manager=longshore -f "),
        "{said}"
    );
    assert!(
        said.contains("\ndelete --ignore-not-found --wait=false -f "),
        "{said}"
    );
}

#[tokio::test]
async fn an_empty_set_is_nothing_to_apply_and_a_failure_of_kubectl_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = scripted(dir.path());
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let objects = [Object::from_value(&namespace).unwrap()];
    command
        .apply(Arc::new(holding(1, objects.clone())))
        .await
        .unwrap();
    // Kubectl would refuse it.
    std::fs::remove_file(dir.path().join("calls")).unwrap();
    command.apply(Arc::new(holding(2, []))).await.unwrap();
    let said = calls(dir.path());
    assert!(
        said.starts_with("delete ") && said.lines().count() == 1,
        "{said}"
    );
    let left = read(&dir.path().join("delete.json"));
    assert_eq!(left[0]["kind"], "Namespace");
    // Where kubectl fails, so does the script.
    program(
        &dir.path().join("kubectl"),
        "#!/bin/sh\necho no cluster >&2\nexit 1\n",
    );
    let error = command.apply(Arc::new(holding(3, objects))).await;
    let error = error.unwrap_err().explanation();
    assert!(error.contains("no cluster"), "{error}");
}
