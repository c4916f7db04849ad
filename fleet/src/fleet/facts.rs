//! Labels that devices' facts make, where `fleet.yaml` allows it.
//!
//! A fact is what a device says of itself, so it is believed as little as possible: only allowed names become labels,
//! what people wrote in `device.yaml` wins, and a value is made of the characters of labels whatever the device says.

use std::collections::{BTreeMap, BTreeSet};

use super::device;
use crate::variables;

/// The longest value of a label.
const MAX_VALUE: usize = 63;

/// The labels of a device: its `own`, and beside them those that its facts make, of the names that are allowed. A fact
/// that no label can be made of, or that would be the same variable as an own label, makes none.
pub fn labels_with_facts(
    own: &BTreeMap<String, String>,
    facts: &BTreeMap<String, String>,
    allowed: &BTreeSet<String>,
) -> BTreeMap<String, String> {
    let mut labels = own.clone();
    let known: BTreeSet<_> = own
        .keys()
        .map(|key| variables::label_variable(key))
        .collect();
    for name in allowed {
        let value = facts.get(name).and_then(|fact| value(fact));
        if let Some(value) = value
            && !known.contains(&variables::label_variable(name))
        {
            labels.insert(name.clone(), value);
        }
    }
    labels
}

/// The value of a label for a fact such as `Raspberry Pi 4 Model B`: what labels do not have becomes `-`.
fn value(fact: &str) -> Option<String> {
    let mut value = String::new();
    for char in fact.chars() {
        let is_fit = char.is_ascii_alphanumeric() || "-_.".contains(char);
        if !is_fit && (value.is_empty() || value.ends_with('-')) {
            continue;
        }
        if value.len() == MAX_VALUE {
            break;
        }
        value.push(if is_fit { char } else { '-' });
    }
    let value = value.trim_matches(|end: char| !end.is_ascii_alphanumeric());
    (!value.is_empty()).then(|| value.to_owned())
}

/// Checks names of facts that are to be labels.
///
/// # Errors
/// What `device.yaml` would be told of such labels.
pub(super) fn check_names(names: &[String]) -> Result<(), String> {
    let labels = names.iter().map(|name| (name.clone(), String::new()));
    let labels: BTreeMap<_, _> = labels.collect();
    device::check_labels(&labels)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_allowed_facts_are_labels_and_peoples_own_win() {
        let own = map(&[("site", "madrid"), ("cpu.arch", "ours")]);
        let facts = map(&[
            ("arch", "aarch64"),
            ("model", "Raspberry Pi 4 Model B Rev 1.4"),
            ("site", "elsewhere"),
            ("cpu-arch", "theirs"),
            ("kernel", "Linux 6.12"),
            ("os", "\u{1F980}"),
        ]);
        let allowed = set(&["arch", "model", "site", "cpu-arch", "os", "absent"]);
        let labels = labels_with_facts(&own, &facts, &allowed);
        assert_eq!(
            labels,
            map(&[
                ("site", "madrid"),
                ("cpu.arch", "ours"),
                ("arch", "aarch64"),
                ("model", "Raspberry-Pi-4-Model-B-Rev-1.4"),
            ])
        );
        assert_eq!(labels_with_facts(&own, &facts, &BTreeSet::new()), own);
    }

    #[test]
    fn hostile_values_become_plain_ones() {
        for (fact, expected) in [
            ("${DEVICE_ID}", Some("DEVICE_ID")),
            ("a\nb: c", Some("a-b-c")),
            ("../../etc", Some("etc")),
            ("\"; rm -rf /", Some("rm--rf")),
            ("----", None),
            ("", None),
        ] {
            assert_eq!(value(fact).as_deref(), expected, "{fact}");
        }
        assert_eq!(value(&"x".repeat(500)).unwrap().len(), MAX_VALUE);
    }

    proptest! {
        #[test]
        fn whatever_a_device_says_is_a_label_or_nothing(fact in ".{0,200}") {
            let facts = map(&[("arch", &fact)]);
            let labels = labels_with_facts(&BTreeMap::new(), &facts, &set(&["arch"]));
            prop_assert_eq!(device::check_labels(&labels), Ok(()));
            let empty = labels.values().any(String::is_empty);
            prop_assert!(!empty);
        }
    }
}
