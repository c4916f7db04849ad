//! What kustomize makes of the directory is exactly the set. Kustomize is the judge, not our own parser.

use std::{path::Path, process::Command, sync::Arc};

use longshore_agent::runtime::{Runtime as _, directory::Directory};
use longshore_protocol::{DeviceId, ManifestSet, Object};
use serde_json::{Value, json};

use crate::holding;

fn build(path: &Path) -> Vec<Object> {
    // The same kustomize, from a package of its own or inside kubectl.
    let candidates: [&[&str]; 2] = [&["kustomize", "build"], &["kubectl", "kustomize"]];
    let output = candidates
        .iter()
        .find_map(|command| {
            Command::new(command[0])
                .args(&command[1..])
                .arg(path)
                .output()
                .ok()
        })
        .expect("kustomize or kubectl is needed: run scripts/bootstrap");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let values: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    values
        .iter()
        .map(|value| Object::from_value(value).unwrap())
        .collect()
}

fn config_map(name: &str, data: &Value) -> Object {
    Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop"}, "data": data}))
    .unwrap()
}

async fn agrees(objects: Vec<Object>) {
    let dir = tempfile::tempdir().unwrap();
    let mut runtime = Directory::new(dir.path().to_owned(), DeviceId::from_random([1; 16]));
    let wanted = holding(1, objects);
    runtime.apply(Arc::new(wanted.clone())).await.unwrap();
    let built = build(dir.path());
    let expected: Vec<_> = wanted.objects().map(Object::value).collect();
    let mut got: Vec<_> = built.iter().map(Object::value).collect();
    got.sort_by_key(|value| expected.iter().position(|other| other == value));
    assert_eq!(got, expected);
    assert_eq!(
        ManifestSet::of(&built).unwrap().digest(),
        wanted.set().digest()
    );
}

#[tokio::test]
async fn kustomize_reads_what_was_written() {
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "till", "namespace": "shop", "annotations": {"n": "1"}},
        "spec": {"replicas": 2, "paused": false, "template": {"spec": {"containers": [
            {"name": "till", "image": "till:1", "args": ["--a=b", "-", ": x", "# y", ""],
             "env": [], "resources": {}, "ports": [{"containerPort": 80}, {"containerPort": 443}]}]}}}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "data": {"password": "aHVudGVyMg=="}});
    let custom = json!({"apiVersion": "example.com/v1alpha1", "kind": "Camera",
        "metadata": {"name": "front.door"},
        "spec": {"rate": 29.97, "big": 9_007_199_254_740_993_u64, "negative": -5, "none": null, "exp": 1e21}});
    let values = [deployment, secret, custom];
    agrees(
        values
            .iter()
            .map(|value| Object::from_value(value).unwrap())
            .collect(),
    )
    .await;
}

#[tokio::test]
async fn text_that_yaml_would_like_to_read_as_something_else() {
    let tricky = [
        "yes",
        "no",
        "on",
        "off",
        "y",
        "n",
        "true",
        "True",
        "null",
        "~",
        "",
        " ",
        "0",
        "010",
        "0o10",
        "0x1F",
        "1_000",
        "1e3",
        ".5",
        "+1",
        "-0",
        ".inf",
        ".nan",
        "12:30:45",
        "2001-01-01",
        "=",
        "<<",
        "- a",
        "a: b",
        "a #b",
        "#",
        "@a",
        "`a",
        "%a",
        "&a",
        "*a",
        "!a",
        "|",
        ">",
        "?",
        "? a",
        "[a",
        "{a",
        "'",
        "\"",
        "\\",
        "a\\nb",
        " lead",
        "trail ",
        "\ttab",
        "a\tb",
        "---",
        "...",
        "--- a",
        "a,b",
        "é",
        "日本",
        "🙂",
        "a\r\nb",
        "a\rb",
        "$(X)",
        "{{ x }}",
    ];
    let data: serde_json::Map<_, _> = tricky
        .iter()
        .enumerate()
        .map(|(at, text)| (format!("k{at}"), Value::String((*text).to_owned())))
        .collect();
    let keys = json!({"yes": "1", "on": "2", "1": "3", "1.5": "4", "null": "5", "~": "6", "0x1": "7", "a.b": "8"});
    agrees(vec![
        config_map("values", &Value::Object(data)),
        config_map("keys", &keys),
    ])
    .await;
}

#[tokio::test]
async fn characters_that_yaml_does_not_like() {
    // U+007F and U+0085 are not among them: kustomize cannot read them back from its own JSON.
    for (at, text) in ["\u{feff}a", "\u{2028}", "\u{1}", "\u{1b}[0m", "\ta\nb"]
        .iter()
        .enumerate()
    {
        agrees(vec![config_map(&format!("c{at}"), &json!({"text": text}))]).await;
    }
}

#[tokio::test]
async fn text_of_many_lines() {
    let texts = [
        "one\ntwo\n",
        "one\ntwo",
        "one\n\n\ntwo\n\n\n",
        "\nlead\n",
        "\n",
        "\n\n",
        "  indented\nless\n",
        "a\n  b\n c\n",
        "tab\n\tindented\n",
        "\ttab first\nx\n",
        "trailing  \nspaces \n",
        "#!/bin/sh\nset -e\n# x\n",
        "---\na: b\n---\n",
        " \n",
        "a\n \n",
        "x\n\n  \n",
        "no newline\n  at end",
        "windows\r\nlines\r\n",
    ];
    let data: serde_json::Map<_, _> = texts
        .iter()
        .enumerate()
        .map(|(at, text)| (format!("k{at}"), Value::String((*text).to_owned())))
        .collect();
    let long = "word ".repeat(2000) + "\n" + &"x".repeat(5000);
    agrees(vec![
        config_map("lines", &Value::Object(data)),
        config_map("long", &json!({"long": long, "wide": "word ".repeat(500)})),
    ])
    .await;
}

#[tokio::test]
async fn many_objects_with_unusual_names() {
    let mut objects: Vec<_> = (0..50)
        .map(|n| config_map(&format!("c{n}"), &json!({"n": n.to_string()})))
        .collect();
    for name in [
        "Upper",
        "upper",
        "../../etc/passwd",
        "with space",
        "a:b",
        "é",
        &"x".repeat(300),
    ] {
        objects.push(config_map(name, &json!({"name": name})));
    }
    agrees(objects).await;
}

#[tokio::test]
async fn microshift_can_read_what_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("longshore");
    let mut runtime = Directory::new(path, DeviceId::from_random([1; 16])).for_microshift();
    let map = |name: &str| config_map(name, &json!({"a": "b"}));
    let hook = Object::from_value(&json!({"apiVersion": "example.com/v1", "kind": "Camera",
        "metadata": {"name": "Front Door: 1"}, "spec": {"a": 1}}))
    .unwrap();
    let first = holding(1, [map("a"), map("b"), hook]);
    runtime.apply(Arc::new(first)).await.unwrap();
    runtime
        .apply(Arc::new(holding(2, [map("b")])))
        .await
        .unwrap();
    let mut left: Vec<_> = build(&dir.path().join("delete/longshore"))
        .iter()
        .map(Object::value)
        .collect();
    left.sort_by_key(Value::to_string);
    assert_eq!(
        left,
        [
            json!({"apiVersion": "example.com/v1", "kind": "Camera", "metadata": {"name": "Front Door: 1"}}),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop"}}),
        ]
    );
    runtime.clear().await.unwrap();
    assert_eq!(build(&dir.path().join("delete/longshore")).len(), 3);
}
