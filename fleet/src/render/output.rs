//! What kustomize prints, read as kubectl reads it.
//!
//! Kustomize keeps scalars as their authors wrote them, and kubectl reads them by the rules of `go-yaml` v2, which
//! are those of YAML 1.1: a bare `yes` is a boolean and `0644` is 420. A device must run what `kubectl apply`
//! would have run, so the same rules hold here.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use longshore_protocol::{Object, ObjectKey, object::InvalidObject};
use serde_json::{Map, Number, Value};

use crate::yaml::{self, Limits, Node, Scalar, YamlError};

const LIMITS: Limits = Limits { nodes: 2_000_000 };

/// Why an output is not a list of objects.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// It is not YAML, or has a value that JSON cannot hold.
    #[error("line {line}: {message}")]
    Yaml {
        /// The line in the output.
        line: u32,
        /// What is wrong there.
        message: String,
    },
    /// A document is no object.
    #[error("the document at line {line} is no object")]
    Object {
        /// Where the document starts.
        line: u32,
        /// What is missing.
        #[source]
        source: InvalidObject,
    },
    /// Two objects have the same key.
    #[error("{0} appears twice")]
    Duplicate(ObjectKey),
}

impl From<YamlError> for OutputError {
    fn from(error: YamlError) -> Self {
        Self::Yaml {
            line: error.line.unwrap_or(1),
            message: error.message,
        }
    }
}

/// The objects of a multi-document YAML text, in its order; the items of a `List` stand for the list.
///
/// # Errors
/// Where the text is not YAML, a document is no object, or two objects have the same key.
pub fn objects(yaml: &[u8]) -> Result<Vec<Object>, OutputError> {
    let mut objects = Vec::new();
    for document in yaml::documents(yaml, LIMITS)? {
        let value = value(&document)?;
        flatten(value, document.line, &mut objects)?;
    }
    let mut keys = BTreeSet::new();
    for object in &objects {
        if !keys.insert(object.key()) {
            return Err(OutputError::Duplicate(object.key().clone()));
        }
    }
    Ok(objects)
}

/// A list is, as for kubectl, what has a kind ending in `List` and `items`.
fn flatten(value: Value, line: u32, objects: &mut Vec<Object>) -> Result<(), OutputError> {
    let is_list = value
        .get("kind")
        .and_then(Value::as_str)
        .is_some_and(|kind| kind.ends_with("List"));
    match value {
        Value::Object(mut members)
            if is_list && matches!(members.get("items"), Some(Value::Array(_))) =>
        {
            if let Some(Value::Array(items)) = members.remove("items") {
                for item in items {
                    flatten(item, line, objects)?;
                }
            }
            Ok(())
        }
        value => {
            if value
                .pointer("/metadata/namespace")
                .is_some_and(|namespace| !namespace.is_string())
            {
                let message = "`metadata.namespace` is no text; write it in quotes".to_owned();
                return Err(OutputError::Yaml { line, message });
            }
            let object = Object::from_value(&value)
                .map_err(|source| OutputError::Object { line, source })?;
            objects.push(object);
            Ok(())
        }
    }
}

fn value(node: &Node) -> Result<Value, YamlError> {
    match &node.value {
        yaml::Value::Scalar(scalar) => {
            resolve_scalar(scalar).map_err(|message| node.error(message))
        }
        yaml::Value::Sequence(items) => items.iter().map(value).collect(),
        yaml::Value::Mapping(members) => {
            let mut object = Map::new();
            for (key, member) in members {
                let name = member_name(key)?;
                let shown = name.escape_debug().to_string();
                if object.insert(name, value(member)?).is_some() {
                    return Err(key.error(format!("`{shown}` is given twice")));
                }
            }
            Ok(Value::Object(object))
        }
    }
}

/// A key as JSON needs it: numbers and booleans become their text.
fn member_name(key: &Node) -> Result<String, YamlError> {
    match value(key)? {
        Value::String(name) => Ok(name),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(bool) => Ok(bool.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(key.error("a member's name must be a text, a number or a boolean"))
        }
    }
}

/// What a scalar stands for, by the rules of `go-yaml` v2 (`resolve.go`) and `sigs.k8s.io/yaml`.
pub(crate) fn resolve_scalar(scalar: &Scalar) -> Result<Value, String> {
    let text = scalar.text.as_str();
    match scalar.tag.as_deref() {
        None if scalar.plain => resolve_plain(text),
        Some("tag:yaml.org,2002:binary") => {
            let compact: String = text
                .chars()
                .filter(|char| !char.is_ascii_whitespace())
                .collect();
            let bytes = STANDARD
                .decode(compact)
                .map_err(|_detail| "a !!binary value is not base64".to_owned())?;
            String::from_utf8(bytes)
                .map(Value::String)
                .map_err(|_detail| "a !!binary value is not text".to_owned())
        }
        Some(
            tag @ ("tag:yaml.org,2002:int"
            | "tag:yaml.org,2002:float"
            | "tag:yaml.org,2002:bool"
            | "tag:yaml.org,2002:null"),
        ) => {
            let value = resolve_plain(text)?;
            let name = tag.rsplit(':').next().unwrap_or(tag);
            let fits = match (&value, name) {
                (Value::Number(number), "int") => number.is_i64() || number.is_u64(),
                (Value::Number(_), "float") | (Value::Bool(_), "bool") | (Value::Null, "null") => {
                    true
                }
                _ => false,
            };
            if fits {
                Ok(value)
            } else {
                Err(format!("`{}` is no !!{name}", text.escape_debug()))
            }
        }
        // Quoted, a block, `!!str`, or a tag that nobody knows.
        None | Some(_) => Ok(Value::String(text.to_owned())),
    }
}

fn resolve_plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Ok(Value::Bool(true));
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Ok(Value::Bool(false));
        }
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(format!("`{text}` is a number that JSON cannot hold"));
    }
    let number = match text.as_bytes().first() {
        // The only way to a number that keeps its underscores, and with them is none.
        Some(b'.') => float(text),
        Some(b'+' | b'-' | b'0'..=b'9') if !is_timestamp(text) => {
            let plain = text.replace('_', "");
            integer(&plain).or_else(|| float(&plain))
        }
        _ => None,
    };
    Ok(number.map_or_else(|| Value::String(text.to_owned()), Value::Number))
}

/// `strconv.ParseInt(text, 0, 64)`, else `ParseUint`.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(octal) = lower.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        (8, octal)
    } else {
        (10, lower.as_str())
    };
    // `from_str_radix` takes a sign, and a second one is none of Go's.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        return 0_i64.checked_sub_unsigned(magnitude).map(Number::from);
    }
    // `ParseUint` takes no sign.
    if i64::try_from(magnitude).is_err() && text.starts_with('+') {
        return None;
    }
    Some(Number::from(magnitude))
}

/// `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`, as a number that prints as Go prints it.
fn float(text: &str) -> Option<Number> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (
            mantissa,
            Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)),
        ),
        None => (unsigned, None),
    };
    if exponent.is_some_and(|exponent| exponent.is_empty() || !digits(exponent)) {
        return None;
    }
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let number: f64 = text
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())?;
    // Go prints whole numbers below 1e21 without a fraction, and Kubernetes reads those as integers.
    if number.fract() == 0.0 && number.abs() < 9e15 {
        return format!("{number:.0}").parse::<i64>().ok().map(Number::from);
    }
    Number::from_f64(number)
}

/// The forms that `go-yaml` takes as a time, which stay texts.
fn is_timestamp(text: &str) -> bool {
    let mut date = text.splitn(3, '-');
    let is_number = |part: Option<&str>, lengths: &[usize]| {
        part.is_some_and(|part| {
            lengths.contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    is_number(date.next(), &[4]) && is_number(date.next(), &[1, 2]) && date.next().is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn one(yaml: &str) -> Value {
        let object = format!("apiVersion: v1\nkind: T\nmetadata: {{name: x}}\nv: {yaml}\n");
        objects(object.as_bytes()).unwrap()[0].value()["v"].clone()
    }

    #[test]
    fn scalars_are_what_kubectl_makes_of_them() {
        // What kubectl 1.32 prints for these.
        for (yaml, expected) in [
            (
                "[yes, No, on, OFF, y, n, TRUE]",
                json!([true, false, true, false, true, false, true]),
            ),
            (
                "[~, null, NULL, '', \"null\"]",
                json!([null, null, null, "", "null"]),
            ),
            ("[\"yes\", 'no', \"0644\"]", json!(["yes", "no", "0644"])),
            (
                "[0644, 0x1F, 0o17, 0b11, -0b11, 1_000]",
                json!([420, 31, 15, 3, -3, 1000]),
            ),
            (
                "[08, 1e3, 1.50, .5, 5., -.5, +5, 1_0.5]",
                json!([8, 1000, 1.5, 0.5, 5, -0.5, 5, 10.5]),
            ),
            (
                "[2001-01-01, 1:30, 1.2.3, 0x, 1e, ., _1]",
                json!(["2001-01-01", "1:30", "1.2.3", "0x", "1e", ".", "_1"]),
            ),
            (
                "[9223372036854775807, -9223372036854775808]",
                json!([i64::MAX, i64::MIN]),
            ),
            ("[1e21, 1e-7, 0.1e400]", json!([1e21, 1e-7, "0.1e400"])),
            (
                "[!!str 5, ! 5, !foo 5, !!int \"5\", !!bool \"yes\", !!binary aGk=]",
                json!(["5", "5", "5", 5, true, "hi"]),
            ),
            (
                "{1: a, yes: b, 0x10: c, 1.5: d}",
                json!({"1": "a", "true": "b", "16": "c", "1.5": "d"}),
            ),
        ] {
            assert_eq!(one(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn lists_are_flattened() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A, metadata: {name: x}}\n\
                    - {apiVersion: v1, kind: B, metadata: {name: x}}\n---\n# nothing\n---\n\
                    {apiVersion: v1, kind: C, metadata: {name: x}}\n";
        let keys: Vec<String> = objects(text.as_bytes())
            .unwrap()
            .iter()
            .map(|object| object.key().to_string())
            .collect();
        assert_eq!(keys, ["v1/A/x", "v1/B/x", "v1/C/x"]);
        assert!(objects(b"").unwrap().is_empty());
    }

    #[test]
    fn says_what_is_wrong() {
        let object = "{apiVersion: v1, kind: A, metadata: {name: x, namespace: shop}}";
        let twice = objects(format!("{object}\n---\n{object}\n").as_bytes()).unwrap_err();
        assert_eq!(twice.to_string(), "v1/A/shop/x appears twice");
        for (text, message) in [
            ("a: .inf", "JSON cannot hold"),
            ("{~: 3}", "member's name"),
            ("a: 1", "is no object"),
            (
                "{apiVersion: v1, kind: A, metadata: {name: x, namespace: n}}",
                "write it in quotes",
            ),
            ("a: [", "not valid YAML"),
        ] {
            let error = objects(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(message), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(objects(&bytes));
        }

        #[test]
        fn never_panics_on_scalars(text in "[-+0-9a-fxXoObBeE_.:]{0,24}") {
            drop(resolve_plain(&text));
        }
    }
}
