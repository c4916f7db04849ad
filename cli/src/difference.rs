//! The difference between what a device should run now and what a working tree would give it.
//!
//! Pure: two lists of objects in, one list of changes out, `Secret` values redacted on both sides. Whether
//! an object changed is told by its digest, so a changed secret is a change although its values are hidden.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::{Object, ObjectKey, api::DeviceObject};
use serde::Serialize;
use similar::TextDiff;

use crate::{Error, output::yaml};

/// What becomes of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Added,
    Removed,
    Changed,
}

/// One object that differs.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) object: ObjectKey,
    #[serde(rename = "change")]
    pub(crate) kind: Kind,
    /// A unified diff of the YAML forms, `Secret` values redacted.
    pub(crate) diff: String,
}

/// The changes that lead from `running` to `ours`, in the order of their keys.
///
/// # Errors
/// Where an object cannot be written as YAML, which is a fault of this program.
pub(crate) fn between(running: &[DeviceObject], ours: &[Object]) -> Result<Vec<Change>, Error> {
    let running: BTreeMap<_, _> = running.iter().map(|object| (&object.key, object)).collect();
    let ours: BTreeMap<_, _> = ours.iter().map(|object| (object.key(), object)).collect();
    let keys: BTreeSet<_> = running.keys().chain(ours.keys()).copied().collect();
    let mut changes = Vec::new();
    for key in keys {
        let (old, new) = (running.get(key).copied(), ours.get(key).copied());
        let kind = match (old, new) {
            (Some(old), Some(new)) if old.digest == new.digest() => continue,
            (Some(_), Some(_)) => Kind::Changed,
            (None, _) => Kind::Added,
            (_, None) => Kind::Removed,
        };
        let before = old.map(|old| yaml(&old.object)).transpose()?;
        let after = new.map(|new| yaml(&new.redacted())).transpose()?;
        let diff = unified(key, before.as_deref(), after.as_deref());
        changes.push(Change {
            object: key.clone(),
            kind,
            diff,
        });
    }
    Ok(changes)
}

fn unified(key: &ObjectKey, before: Option<&str>, after: Option<&str>) -> String {
    let side = |name: &str, text: Option<&str>| match text {
        Some(_) => format!("{name}/{key}"),
        None => "/dev/null".to_owned(),
    };
    let header = (side("running", before), side("working-tree", after));
    let (old, new) = (before.unwrap_or_default(), after.unwrap_or_default());
    if old == new {
        return format!(
            "--- {}\n+++ {}\n(differs in what is not shown)\n",
            header.0, header.1
        );
    }
    TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(&header.0, &header.1)
        .to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(kind: &str, name: &str, data: &Value) -> Object {
        let value =
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data});
        Object::from_value(&value).unwrap()
    }

    fn running(objects: &[Object]) -> Vec<DeviceObject> {
        let shown = |object: &Object| DeviceObject {
            key: object.key().clone(),
            digest: object.digest(),
            object: object.redacted(),
        };
        objects.iter().map(shown).collect()
    }

    #[test]
    fn equal_lists_have_no_changes_whatever_their_order() {
        let (a, b) = (
            object("ConfigMap", "a", &json!({})),
            object("ConfigMap", "b", &json!({})),
        );
        let changes = between(&running(&[a.clone(), b.clone()]), &[b, a]).unwrap();
        assert!(changes.is_empty());
    }

    #[test]
    fn added_removed_changed() {
        let old = [
            object("ConfigMap", "goes", &json!({"x": "1"})),
            object("ConfigMap", "turns", &json!({"x": "1", "z": "2"})),
        ];
        let new = [
            object("ConfigMap", "comes", &json!({"x": "1"})),
            object("ConfigMap", "turns", &json!({"x": "1", "z": "3"})),
        ];
        let changes = between(&running(&old), &new).unwrap();
        let kinds: Vec<_> = changes.iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [Kind::Added, Kind::Removed, Kind::Changed]);
        let diffs: Vec<_> = changes.iter().map(|change| change.diff.as_str()).collect();
        assert!(
            diffs[0].starts_with("--- /dev/null\n+++ working-tree/v1/ConfigMap/comes\n@@ -0,0 +1,")
        );
        assert!(
            diffs[1].starts_with("--- running/v1/ConfigMap/goes\n+++ /dev/null\n"),
            "{}",
            diffs[1]
        );
        assert!(
            diffs[2].contains("\n-  z: \"2\"\n+  z: \"3\"\n"),
            "{}",
            diffs[2]
        );
    }

    #[test]
    fn a_changed_secret_shows_that_it_changed_and_not_to_what() {
        let old = object("Secret", "s", &json!({"password": "aHVudGVyMg=="}));
        let new = object("Secret", "s", &json!({"password": "aHVudGVyMw=="}));
        let changes = between(&running(&[old]), &[new]).unwrap();
        assert_eq!(changes.len(), 1);
        assert!(!changes[0].diff.contains("aHVu"), "{}", changes[0].diff);
        assert!(
            changes[0].diff.contains("+  password:"),
            "{}",
            changes[0].diff
        );
    }

    #[test]
    fn a_difference_that_redaction_hides_is_still_one() {
        let with = |note: &str| {
            let annotations = json!({"kubectl.kubernetes.io/last-applied-configuration": note});
            let value = json!({"apiVersion": "v1", "kind": "Secret",
                               "metadata": {"name": "s", "annotations": annotations}});
            Object::from_value(&value).unwrap()
        };
        let changes = between(&running(&[with("one")]), &[with("two")]).unwrap();
        assert_eq!(changes.len(), 1);
        assert!(
            changes[0]
                .diff
                .ends_with("(differs in what is not shown)\n")
        );
    }
}
