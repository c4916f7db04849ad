//! The difference between two lists of objects, as people read it.
//!
//! Pure: values of `Secret`s are redacted on both sides, but whether an object changed is told by its digest. So a
//! changed secret is a change although its values are hidden. Time and size are bounded, whatever the objects hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use longshore_protocol::{
    Digest, Object, ObjectKey,
    api::{
        DeviceObject,
        preview::{Change, ChangeKind},
    },
};
use serde_json::Value;
use similar::TextDiff;

/// The most lines in which two texts may differ for a diff to be made: its time grows with their square.
const MAX_LINES: usize = 10_000;
/// The longest diff, in bytes.
const MAX_DIFF: usize = 256 * 1024;

/// One list of objects, by key.
#[derive(Debug)]
pub struct Side<'a> {
    name: &'static str,
    objects: BTreeMap<&'a ObjectKey, Shown<'a>>,
}

#[derive(Debug)]
enum Shown<'a> {
    Whole(&'a Object),
    Redacted(&'a DeviceObject),
}

impl Shown<'_> {
    fn digest(&self) -> Digest {
        match self {
            Self::Whole(object) => object.digest(),
            Self::Redacted(object) => object.digest,
        }
    }

    fn yaml(&self) -> String {
        match self {
            Self::Whole(object) => yaml(&object.redacted()),
            Self::Redacted(object) => yaml(&object.object),
        }
    }
}

impl<'a> Side<'a> {
    /// These objects, under a name that stands in the diffs' headers.
    pub fn of(name: &'static str, objects: &'a [Object]) -> Self {
        let objects = objects
            .iter()
            .map(|object| (object.key(), Shown::Whole(object)));
        Self {
            name,
            objects: objects.collect(),
        }
    }

    /// These objects, which the controller redacted.
    pub fn redacted(name: &'static str, objects: &'a [DeviceObject]) -> Self {
        let objects = objects
            .iter()
            .map(|object| (&object.key, Shown::Redacted(object)));
        Self {
            name,
            objects: objects.collect(),
        }
    }
}

/// The changes that lead from one list to the other, in the order of their keys.
pub fn between(before: &Side<'_>, after: &Side<'_>) -> Vec<Change> {
    let keys: BTreeSet<_> = before
        .objects
        .keys()
        .chain(after.objects.keys())
        .copied()
        .collect();
    keys.into_iter()
        .filter_map(|key| {
            let (old, new) = (before.objects.get(key), after.objects.get(key));
            let kind = match (old, new) {
                (Some(old), Some(new)) if old.digest() == new.digest() => return None,
                (Some(_), Some(_)) => ChangeKind::Changed,
                (None, _) => ChangeKind::Added,
                (_, None) => ChangeKind::Removed,
            };
            let header = |side: &Side<'_>, shown: Option<&Shown<'_>>| match shown {
                Some(_) => format!("{}/{key}", side.name),
                None => "/dev/null".to_owned(),
            };
            let header = (header(before, old), header(after, new));
            let text = |shown: Option<&Shown<'_>>| shown.map(Shown::yaml).unwrap_or_default();
            Some(Change {
                object: key.clone(),
                kind,
                diff: unified(&header, &text(old), &text(new)),
            })
        })
        .collect()
}

fn unified((from, to): &(String, String), old: &str, new: &str) -> String {
    let instead = |said: String| format!("--- {from}\n+++ {to}\n({said})\n");
    if old == new {
        return instead("differs in what is not shown".to_owned());
    }
    let differing = differing_lines(old, new);
    if differing > MAX_LINES {
        return instead(format!(
            "differs in about {differing} lines, too many to show"
        ));
    }
    let mut diff = TextDiff::from_lines(old, new)
        .unified_diff()
        .context_radius(3)
        .header(from, to)
        .to_string();
    if diff.len() > MAX_DIFF {
        let border = diff.floor_char_boundary(MAX_DIFF).min(diff.len());
        let end = diff
            .get(..border)
            .and_then(|kept| kept.rfind('\n'))
            .map_or(0, |line| line + 1);
        let left = diff.get(end..).map_or(0, |rest| rest.lines().count());
        diff.truncate(end);
        // Writing to a `String` cannot fail.
        let _ok = writeln!(diff, "({left} more lines)");
    }
    diff
}

/// How many lines there are, on both sides together, between the first and the last that differ.
fn differing_lines(old: &str, new: &str) -> usize {
    let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
    let equal = |pairs: &mut dyn Iterator<Item = (&str, &str)>| {
        pairs.take_while(|(old, new)| old == new).count()
    };
    let head = equal(&mut old.iter().copied().zip(new.iter().copied()));
    let (old, new) = (
        old.get(head..).unwrap_or_default(),
        new.get(head..).unwrap_or_default(),
    );
    let tail = equal(&mut old.iter().rev().copied().zip(new.iter().rev().copied()));
    old.len() + new.len() - 2 * tail
}

fn yaml(value: &Value) -> String {
    // YAML writes every value of JSON; were it not so, JSON would be as true.
    serde_saphyr::to_string(value).unwrap_or_else(|_unexpected| format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(kind: &str, name: &str, data: &Value) -> Object {
        let value =
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data});
        Object::from_value(&value).unwrap()
    }

    fn changes(before: &[Object], after: &[Object]) -> Vec<Change> {
        let shown = |object: &Object| DeviceObject {
            key: object.key().clone(),
            digest: object.digest(),
            object: object.redacted(),
        };
        let redacted: Vec<_> = before.iter().map(shown).collect();
        let after = Side::of("working-tree", after);
        let changes = between(&Side::redacted("running", &redacted), &after);
        assert_eq!(changes, between(&Side::of("running", before), &after));
        changes
    }

    #[test]
    fn equal_lists_have_no_changes_whatever_their_order() {
        let (a, b) = (
            object("ConfigMap", "a", &json!({})),
            object("ConfigMap", "b", &json!({})),
        );
        assert!(changes(&[a.clone(), b.clone()], &[b, a]).is_empty());
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
        let changes = changes(&old, &new);
        let kinds: Vec<_> = changes.iter().map(|change| change.kind).collect();
        assert_eq!(
            kinds,
            [ChangeKind::Added, ChangeKind::Removed, ChangeKind::Changed]
        );
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
        let changes = changes(&[old], &[new]);
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
        let changes = changes(&[with("one")], &[with("two")]);
        assert_eq!(changes.len(), 1);
        assert!(
            changes[0]
                .diff
                .ends_with("(differs in what is not shown)\n")
        );
    }

    #[test]
    fn what_is_too_long_is_cut_or_told() {
        let lines = |word: &str, count: usize| {
            let lines: Vec<_> = (0..count).map(|n| format!("{word} {n}")).collect();
            object("ConfigMap", "long", &json!({"text": lines}))
        };
        let told = &changes(&[lines("a", 6000)], &[lines("b", 6000)])[0].diff;
        assert!(told.contains("differs in about 12000 lines"), "{told}");
        let mut one_more = lines("a", 20_000).value();
        one_more["data"]["text"][7000] = json!("another");
        let short = changes(
            &[lines("a", 20_000)],
            &[Object::from_value(&one_more).unwrap()],
        );
        assert!(
            short[0].diff.contains("\n+  - another\n"),
            "few lines of many differ"
        );
        let cut = &changes(&[], &[lines(&"x".repeat(100), 4000)])[0].diff;
        assert!(cut.len() < MAX_DIFF + 100, "{}", cut.len());
        assert!(cut.ends_with(" more lines)\n"), "{cut}");
    }
}
