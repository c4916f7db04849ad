//! What the program reads: YAML documents, each of them one line of JSON, which is YAML that nobody misreads.

use longshore_protocol::{Object, ObjectKey};
use serde_json::json;

/// All objects, in the order in which a cluster takes them.
pub(super) fn of(objects: &[Object]) -> String {
    let mut sorted: Vec<_> = objects.iter().collect();
    sorted.sort_by_key(|object| (rank(object.key()), object.key()));
    let mut text = String::new();
    for object in sorted {
        document(&mut text, &String::from_utf8_lossy(object.body()));
    }
    text
}

/// What names these objects, in the opposite order.
pub(super) fn removals(keys: &[ObjectKey]) -> String {
    let mut sorted: Vec<_> = keys.iter().collect();
    sorted.sort_by_key(|key| std::cmp::Reverse((rank(key), *key)));
    let mut text = String::new();
    for key in sorted {
        let mut metadata = json!({"name": key.name});
        if let (Some(metadata), false) = (metadata.as_object_mut(), key.namespace.is_empty()) {
            metadata.insert("namespace".to_owned(), key.namespace.clone().into());
        }
        let object = json!({"apiVersion": key.api_version, "kind": key.kind, "metadata": metadata});
        document(&mut text, &object.to_string());
    }
    text
}

fn document(text: &mut String, body: &str) {
    text.push_str("---\n");
    for character in body.chars() {
        // JSON may hold these as they are, and YAML's readers take some of them for the end of a line. They can stand
        // in texts only, where an escape means the same.
        if matches!(
            character,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        ) {
            text.extend(format!("\\u{:04x}", u32::from(character)).chars());
        } else {
            text.push(character);
        }
    }
    text.push('\n');
}

/// Namespaces, kinds, what others build upon, what runs, and last what stands in the way of all others.
fn rank(key: &ObjectKey) -> u8 {
    let group = key
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group);
    match (group, key.kind.as_str()) {
        ("", "Namespace") => 0,
        ("apiextensions.k8s.io", _) => 1,
        ("admissionregistration.k8s.io" | "apiregistration.k8s.io", _) => 5,
        ("", "Pod" | "ReplicationController") => 4,
        (
            ""
            | "rbac.authorization.k8s.io"
            | "storage.k8s.io"
            | "scheduling.k8s.io"
            | "networking.k8s.io"
            | "policy",
            _,
        ) => 2,
        _ => 4,
    }
}
