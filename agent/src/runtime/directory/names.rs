//! Which file an object goes to.
//!
//! The name says what is inside, `apps-v1.deployment.shop.till.yaml`, wherever the object's key can be told
//! from it. A key with anything but lower-case letters, digits, `-` and `.` (beyond the capitals of a kind),
//! or a very long one, gets its unsafe characters replaced and a piece of its digest appended; so do keys of
//! one set whose names would coincide. Names are lower case throughout, so they stay apart on file systems
//! that do not tell cases apart.

use std::collections::BTreeMap;

use longshore_protocol::{Digest, ManifestSet, ObjectKey};

const LONGEST: usize = 180;
const SUFFIX: &str = ".yaml";

/// The file of every object of the set, in the order of the set.
pub(super) fn of(set: &ManifestSet) -> Vec<String> {
    let plain: Vec<_> = set
        .entries()
        .iter()
        .map(|entry| readable(&entry.key))
        .collect();
    let mut uses = BTreeMap::<_, usize>::new();
    for (name, _) in &plain {
        *uses.entry(name.clone()).or_default() += 1;
    }
    set.entries()
        .iter()
        .zip(plain)
        .map(|(entry, (name, exact))| {
            if exact && uses.get(&name) == Some(&1) {
                name + SUFFIX
            } else {
                format!("{name}.{}{SUFFIX}", fingerprint(&entry.key))
            }
        })
        .collect()
}

/// Whether a name could be one of ours: a single, safe component.
pub(super) fn is_possible(name: &str) -> bool {
    name.len() <= 255
        && name.ends_with(SUFFIX)
        && !name.starts_with('.')
        && name.bytes().all(is_safe)
}

fn is_safe(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
}

/// The readable name without its suffix, and whether nothing was lost in it.
fn readable(key: &ObjectKey) -> (String, bool) {
    let api_version = key.api_version.replacen('/', "-", 1);
    let kind = key.kind.to_ascii_lowercase();
    let parts = [api_version.as_str(), &kind, &key.namespace, &key.name];
    let joined = parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(".");
    let lossless = joined.len() <= LONGEST
        && joined.bytes().all(is_safe)
        && !joined.contains("..")
        && joined.starts_with(|first: char| first.is_ascii_alphanumeric());
    let mut name = String::new();
    for character in joined.chars().flat_map(char::to_lowercase).take(LONGEST) {
        match u8::try_from(character) {
            Ok(b'.') if name.is_empty() || name.ends_with('.') => name.push('-'),
            Ok(byte) if is_safe(byte) => name.push(character),
            _ => name.push('-'),
        }
    }
    (name, lossless)
}

fn fingerprint(key: &ObjectKey) -> String {
    let parts = [&key.api_version, &key.kind, &key.namespace, &key.name].map(String::as_bytes);
    let mut hex = Digest::of_parts(parts).to_hex();
    hex.truncate(20);
    hex
}

#[cfg(test)]
mod tests {
    use longshore_protocol::Entry;
    use proptest::prelude::*;

    use super::*;

    fn key(api_version: &str, kind: &str, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn names(keys: impl IntoIterator<Item = ObjectKey>) -> Vec<String> {
        let entries = keys.into_iter().map(|key| Entry {
            key,
            digest: Digest::of(b""),
            size: 0,
        });
        of(&ManifestSet::new(entries).unwrap())
    }

    #[test]
    fn usual_keys_read_well() {
        let keys = [
            key("apps/v1", "Deployment", "shop", "till"),
            key("networking.k8s.io/v1", "Ingress", "shop", "till"),
            key("v1", "Namespace", "", "shop"),
        ];
        assert_eq!(
            names(keys),
            [
                "apps-v1.deployment.shop.till.yaml",
                "networking.k8s.io-v1.ingress.shop.till.yaml",
                "v1.namespace.shop.yaml"
            ]
        );
    }

    #[test]
    fn hostile_keys_stay_inside_and_apart() {
        let long = "x".repeat(5000);
        let keys = [
            key("v1", "Secret", "", "../../etc/passwd"),
            key("v1", "Secret", "", "..-..-etc-passwd"),
            key("v1", "Secret", "..", "/etc/passwd"),
            key("../..", "../..", "../..", "../.."),
            key("v1", "A", "", &long),
            key("v1", "A", "", &(long.clone() + "y")),
            key("v1", "ConfigMap", "a", "b"),
            key("v1", "Configmap", "a", "b"),
            key("v1", "configmap", "A", "b"),
            key("v1", "ConfigMap", "", "a.b"),
            key("v1", "ConfigMap", "", "nul\0\n\u{202e}"),
            key("kustomization", "yaml", "", "."),
        ];
        let count = keys.len();
        let all = names(keys);
        for name in &all {
            assert!(is_possible(name) && name.len() < 255, "{name}");
            assert_ne!(name, "kustomization.yaml");
        }
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), count, "{all:?}");
    }

    #[test]
    fn a_name_from_an_inventory_is_not_trusted() {
        for bad in [
            "../a.yaml",
            "/a.yaml",
            "a/b.yaml",
            ".a.yaml",
            "a",
            "A.yaml",
            "",
            "a\0.yaml",
        ] {
            assert!(!is_possible(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn all_names_are_possible_and_distinct(
            keys in proptest::collection::btree_set((".{1,8}", "[A-Za-z./]{1,4}", "[a-bA.]{0,3}", "[a-bA./]{1,4}"), 1..12)
        ) {
            let all = names(keys.iter().map(|(a, k, ns, n)| key(a, k, ns, n)));
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            prop_assert_eq!(distinct.len(), all.len());
            prop_assert!(all.iter().all(|name| is_possible(name)));
        }
    }
}
