//! Strict reading of mappings: every field is known, or it is an error that names the known ones.

use super::API_VERSION;
use crate::yaml::{Node, Scalar, Value, YamlError};

/// The fields of one mapping.
pub(super) struct Fields<'a> {
    node: &'a Node,
    what: &'static str,
}

impl<'a> Fields<'a> {
    /// The fields of `node`, which must be a mapping with no fields but `known`.
    pub(super) fn of(
        node: &'a Node,
        what: &'static str,
        known: &[&str],
    ) -> Result<Self, YamlError> {
        let Value::Mapping(members) = &node.value else {
            return Err(node.error(format!("`{what}` must be a mapping, not {}", node.what())));
        };
        for (key, _value) in members {
            let name = key
                .scalar()
                .ok_or_else(|| key.error("a field's name must be a text"))?;
            if !known.contains(&name) {
                return Err(key.error(unknown(name, what, known)));
            }
        }
        Ok(Self { node, what })
    }

    pub(super) fn optional(&self, name: &str) -> Option<&'a Node> {
        self.node.member(name).filter(|node| !node.is_null())
    }

    pub(super) fn required(&self, name: &str) -> Result<&'a Node, YamlError> {
        self.optional(name)
            .ok_or_else(|| self.node.error(format!("`{}` has no `{name}`", self.what)))
    }
}

/// The text of `node`, which must be a string as YAML reads it: what looks like a number must be quoted.
pub(super) fn text<'a>(node: &'a Node, what: &str) -> Result<&'a str, YamlError> {
    match &node.value {
        Value::Scalar(scalar) if is_text(scalar) => Ok(&scalar.text),
        Value::Scalar(scalar) => Err(node.error(format!(
            "`{what}` must be a text; write it in quotes: \"{}\"",
            scalar.text.escape_debug()
        ))),
        Value::Sequence(_) | Value::Mapping(_) => {
            Err(node.error(format!("`{what}` must be a text, not {}", node.what())))
        }
    }
}

fn is_text(scalar: &Scalar) -> bool {
    matches!(
        crate::render::resolve_scalar(scalar),
        Ok(serde_json::Value::String(_))
    )
}

pub(super) fn expect_kind(root: &Fields<'_>, kind: &str) -> Result<(), YamlError> {
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", kind)] {
        let node = root.required(field)?;
        let found = text(node, field)?;
        if found != expected {
            let found = found.escape_debug();
            return Err(node.error(format!("`{field}` must be `{expected}`, not `{found}`")));
        }
    }
    Ok(())
}

fn unknown(name: &str, what: &str, known: &[&str]) -> String {
    let shown = name.escape_debug();
    let meant = closest(name, known).map_or_else(
        || ".".to_owned(),
        |meant| format!("; did you mean `{meant}`?"),
    );
    format!(
        "unknown field `{shown}` in `{what}`{meant} Known fields: {}",
        known.join(", ")
    )
}

/// The known word nearest to `name`, if it is near.
pub(crate) fn closest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let near = |word: &&'k str| (distance(&name.to_lowercase(), &word.to_lowercase()), *word);
    let (distance, word) = known.iter().map(near).min()?;
    (distance <= 2 && distance < word.len()).then_some(word)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (to, above) in b.chars().zip(row.iter().skip(1)) {
            left = (diagonal + usize::from(from != to))
                .min(left + 1)
                .min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_that_was_meant() {
        let known = ["id", "publicKey", "overlay", "variables"];
        assert_eq!(closest("publickey", &known), Some("publicKey"));
        assert_eq!(closest("overlays", &known), Some("overlay"));
        assert_eq!(closest("variable", &known), Some("variables"));
        assert_eq!(closest("color", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
