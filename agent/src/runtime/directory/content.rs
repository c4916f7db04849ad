//! What the files say: YAML for people, checked to mean exactly the object.

use longshore_protocol::Object;
use serde_json::Value;
use serde_saphyr::SerializerOptions;

const MARK: &str = "# Written by longshore-agent as ";

/// The content of the file `name` for this object.
pub(super) fn of_object(name: &str, object: &Object) -> Vec<u8> {
    let value = object.value();
    marked(name, &yaml(&value).unwrap_or_else(|| json(&value)))
}

/// The content of `kustomization.yaml`. Names of ours need no quotes.
pub(super) fn of_kustomization(name: &str, resources: &[String]) -> Vec<u8> {
    let mut body = String::from(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n",
    );
    for resource in resources {
        body.push_str("- ");
        body.push_str(resource);
        body.push('\n');
    }
    marked(name, &body)
}

/// Whether the agent wrote this content under this very name, or at least began as if.
pub(super) fn is_ours(name: &str, content: &[u8]) -> bool {
    content.starts_with(mark(name).as_bytes())
}

fn marked(name: &str, body: &str) -> Vec<u8> {
    (mark(name) + body).into_bytes()
}

fn mark(name: &str) -> String {
    format!("{MARK}{name}; edits are undone.\n")
}

/// YAML, where every reader understands it alike.
fn yaml(value: &Value) -> Option<String> {
    let mut options = SerializerOptions::default();
    // Folding breaks long lines at spaces, which reads worse than long lines do.
    options.folded_wrap_chars = usize::MAX;
    let text = serde_saphyr::to_string_with_options(value, options).ok()?;
    let same = serde_saphyr::from_str::<Value>(&text).is_ok_and(|parsed| parsed == *value);
    (same && !text.contains(is_exotic) && !has_block_that_starts_with_a_tab(value)).then_some(text)
}

/// JSON, which is YAML, with everything escaped that go-yaml refuses to read.
fn json(value: &Value) -> String {
    let plain = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut text = String::with_capacity(plain.len() + 1);
    for character in plain.chars() {
        if is_exotic(character) {
            // All of them are in the Basic Multilingual Plane: one escape each.
            text.extend(format!("\\u{:04x}", u32::from(character)).chars());
        } else {
            text.push(character);
        }
    }
    text.push('\n');
    text
}

/// What go-yaml does not take for text, or takes for the end of a line.
fn is_exotic(character: char) -> bool {
    character.is_control() && character != '\n' && character != '\t'
        || matches!(
            character,
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// Where go-yaml looks for a block's indentation and finds a tab, it gives up.
fn has_block_that_starts_with_a_tab(value: &Value) -> bool {
    match value {
        Value::String(text) => {
            text.contains('\n') && text.trim_start_matches([' ', '\n']).starts_with('\t')
        }
        Value::Array(items) => items.iter().any(has_block_that_starts_with_a_tab),
        Value::Object(members) => members.values().any(has_block_that_starts_with_a_tab),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: &Value) -> String {
        let object = Object::from_value(value).unwrap();
        String::from_utf8(of_object("v1.configmap.a.yaml", &object)).unwrap()
    }

    #[test]
    fn reads_well() {
        let text = text(
            &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"},
            "data": {"app.conf": "listen 80\nserver till\n", "on": "yes", "port": "010"}}),
        );
        assert_eq!(
            text,
            "# Written by longshore-agent as v1.configmap.a.yaml; edits are undone.\n\
             apiVersion: v1\n\
             data:\n\
             \x20 app.conf: |\n\
             \x20   listen 80\n\
             \x20   server till\n\
             \x20 \"on\": \"yes\"\n\
             \x20 port: \"010\"\n\
             kind: ConfigMap\n\
             metadata:\n\
             \x20 name: a\n"
        );
        assert!(is_ours("v1.configmap.a.yaml", text.as_bytes()));
        assert!(!is_ours("v1.configmap.b.yaml", text.as_bytes()));
    }
}
