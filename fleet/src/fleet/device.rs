//! `device.yaml`.

use std::collections::BTreeMap;

use longshore_protocol::{DeviceId, DeviceName, Digest};

use super::fields::{Fields, expect_kind, text};
use crate::{
    variables,
    yaml::{self, Limits, Node, YamlError},
};

/// The largest `device.yaml`.
pub(super) const MAX_SIZE: u64 = 64 * 1024;

const LIMITS: Limits = Limits { nodes: 10_000 };

/// What one `device.yaml` says by itself, before its surroundings are looked at.
#[derive(Clone, Debug)]
pub(super) struct DeviceFile {
    pub(super) name: (DeviceName, u32),
    pub(super) labels: BTreeMap<String, String>,
    pub(super) id: Option<(DeviceId, u32)>,
    pub(super) public_key: Option<(Digest, u32)>,
    pub(super) overlay: Option<(String, u32)>,
    pub(super) variables: BTreeMap<String, String>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<DeviceFile, YamlError> {
    let document = yaml::document(bytes, LIMITS)?;
    let root = Fields::of(
        &document,
        "device.yaml",
        &["apiVersion", "kind", "metadata", "spec"],
    )?;
    expect_kind(&root, "Device")?;
    let metadata = Fields::of(root.required("metadata")?, "metadata", &["name", "labels"])?;
    let name = parsed(metadata.required("name")?, "metadata.name")?;
    let labels = metadata
        .optional("labels")
        .map(labels)
        .transpose()?
        .unwrap_or_default();
    let mut file = DeviceFile {
        name,
        labels,
        id: None,
        public_key: None,
        overlay: None,
        variables: BTreeMap::new(),
    };
    if let Some(spec) = root.optional("spec") {
        let spec = Fields::of(spec, "spec", &["id", "publicKey", "overlay", "variables"])?;
        file.id = spec
            .optional("id")
            .map(|node| parsed(node, "spec.id"))
            .transpose()?;
        file.public_key = spec
            .optional("publicKey")
            .map(|node| parsed(node, "spec.publicKey"))
            .transpose()?;
        if let Some(node) = spec.optional("overlay") {
            file.overlay = Some((text(node, "spec.overlay")?.to_owned(), node.line));
        }
        file.variables = spec
            .optional("variables")
            .map(given)
            .transpose()?
            .unwrap_or_default();
    }
    Ok(file)
}

fn parsed<T>(node: &Node, what: &str) -> Result<(T, u32), YamlError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let value = text(node, what)?
        .parse()
        .map_err(|error| node.error(format!("`{what}`: {error}")))?;
    Ok((value, node.line))
}

/// The texts of a mapping, whatever their names.
fn texts<'a>(node: &'a Node, what: &str) -> Result<Vec<(&'a Node, &'a str, &'a str)>, YamlError> {
    if !matches!(node.value, yaml::Value::Mapping(_)) {
        return Err(node.error(format!("`{what}` must be a mapping, not {}", node.what())));
    }
    let entry = |(key, value): &'a (Node, Node)| {
        let name = text(key, what)?;
        Ok((
            key,
            name,
            text(value, &format!("{what}.{}", name.escape_debug()))?,
        ))
    };
    node.members().iter().map(entry).collect()
}

fn labels(node: &Node) -> Result<BTreeMap<String, String>, YamlError> {
    let mut labels = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (at, key, value) in texts(node, "metadata.labels")? {
        check_label(&mut names, key, value).map_err(|message| at.error(message))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// Checks labels that are to stand in a `device.yaml`.
///
/// # Errors
/// What the file's reader would say.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    let mut names = BTreeMap::new();
    labels
        .iter()
        .try_for_each(|(key, value)| check_label(&mut names, key, value))
}

/// `names` are the labels so far, by the variable that each is.
fn check_label<'a>(
    names: &mut BTreeMap<String, &'a str>,
    key: &'a str,
    value: &str,
) -> Result<(), String> {
    let shown = key.escape_debug();
    if !is_label_key(key) {
        return Err(format!(
            "`{shown}` is no label key: up to 63 letters, digits, `-`, `_` and `.`, \
             starting and ending with a letter or digit, optionally after a DNS name and `/`"
        ));
    }
    if !value.is_empty() && !is_label_part(value) {
        return Err(format!(
            "the value of label `{shown}` must be up to 63 letters, digits, `-`, `_` and `.`, \
             starting and ending with a letter or digit"
        ));
    }
    let variable = variables::label_variable(key);
    if let Some(other) = names.insert(variable.clone(), key) {
        return Err(format!(
            "the labels `{other}` and `{shown}` would both be `{variable}`"
        ));
    }
    Ok(())
}

fn is_label_part(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_label_key(key: &str) -> bool {
    let is_dns_label = |label: &str| is_label_part(label) && !label.contains(['_', '.']);
    match key.split_once('/') {
        None => is_label_part(key),
        Some((prefix, name)) => {
            prefix.len() <= 253 && prefix.split('.').all(is_dns_label) && is_label_part(name)
        }
    }
}

fn given(node: &Node) -> Result<BTreeMap<String, String>, YamlError> {
    let mut given = BTreeMap::new();
    for (at, name, value) in texts(node, "spec.variables")? {
        let shown = name.escape_debug();
        if !variables::is_name(name) {
            return Err(at.error(format!(
                "`{shown}` is no variable name: letters, digits and `_`, not starting with a digit"
            )));
        }
        if variables::is_built_in(name) {
            return Err(at.error(format!(
                "`{shown}` cannot be set: names starting with DEVICE_ or LABEL_ are built in"
            )));
        }
        given.insert(name.to_owned(), value.to_owned());
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(extra: &str) -> Result<DeviceFile, YamlError> {
        let text = format!(
            "apiVersion: longshore.dev/v1alpha1\nkind: Device\nmetadata:\n  name: store-0001\n{extra}"
        );
        parse(text.as_bytes())
    }

    #[test]
    fn reads_what_the_design_shows() {
        let device = with(
            "  labels: {site: madrid, hardware: rpi4}\nspec:\n  id: dev_0123456789abcdefghij\n  \
             overlay: ../../groups/kiosk\n  variables: {STORE: \"0001\"}\n",
        )
        .unwrap();
        assert_eq!(device.labels["site"], "madrid");
        assert_eq!(device.overlay, Some(("../../groups/kiosk".to_owned(), 8)));
        assert_eq!(device.variables["STORE"], "0001");
        assert_eq!(device.public_key, None);
    }

    #[test]
    fn says_line_and_reason() {
        for (extra, line, message) in [
            ("spec:\n  overlays: x\n", 6, "did you mean `overlay`?"),
            (
                "spec:\n  color: x\n",
                6,
                "Known fields: id, publicKey, overlay, variables",
            ),
            ("spec: [a]\n", 5, "must be a mapping, not a list"),
            (
                "spec:\n  variables: {STORE: 0001}\n",
                6,
                "write it in quotes: \"0001\"",
            ),
            ("spec:\n  variables: {1A: x}\n", 6, "no variable name"),
            ("spec:\n  variables: {DEVICE_X: x}\n", 6, "built in"),
            ("spec:\n  variables: {LABEL_x: x}\n", 6, "built in"),
            ("spec:\n  id: nope\n", 6, "must be `dev_`"),
            ("spec:\n  publicKey: sha256:12\n", 6, "64 hex digits"),
            ("  labels:\n    a b: c\n", 6, "no label key"),
            (
                "  labels:\n    ok: c\n    bad: \"a b\"\n",
                7,
                "the value of label `bad`",
            ),
            (
                "  labels:\n    on: \"x\"\n",
                6,
                "write it in quotes: \"on\"",
            ),
            (
                "  labels:\n    a.b: x\n    a-b: x\n",
                7,
                "would both be `LABEL_a_b`",
            ),
            ("spec: {\n", 6, "not valid YAML"),
        ] {
            let error = with(extra).unwrap_err();
            assert_eq!(error.line, Some(line), "{extra}: {error:?}");
            assert!(error.message.contains(message), "{extra}: {error:?}");
        }
        let error = parse(b"apiVersion: v1\nkind: Device\n").unwrap_err();
        assert_eq!(
            error.message,
            "`apiVersion` must be `longshore.dev/v1alpha1`, not `v1`"
        );
    }

    #[test]
    fn labels_are_checked_alike_before_and_after_writing() {
        let labels = |pairs: &[(&str, &str)]| {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            check_labels(&pairs.iter().map(owned).collect())
        };
        assert_eq!(labels(&[("site", "madrid"), ("empty", "")]), Ok(()));
        for (pairs, message) in [
            (&[("a b", "c")][..], "no label key"),
            (&[("a", "b c")], "the value of label `a`"),
            (&[("a-b", "x"), ("a.b", "x")], "would both be `LABEL_a_b`"),
        ] {
            assert!(labels(pairs).unwrap_err().contains(message), "{pairs:?}");
        }
    }

    #[test]
    fn label_keys() {
        for good in ["a", "A_b.c", "example.com/role"] {
            assert!(is_label_key(good), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a/b/c",
            "/a",
            "a/",
            "é",
            "A_.x/a",
            &"x".repeat(64),
        ] {
            assert!(!is_label_key(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(parse(&bytes));
        }

        #[test]
        fn never_panics_on_near_devices(text in "[a-z:{}\n \"'&*-]{0,60}") {
            drop(with(&text));
        }
    }
}
