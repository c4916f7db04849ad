//! `${NAME}` references in rendered objects, replaced per device.
//!
//! The syntax is that of Flux's `postBuild`: `${VAR}` and `${VAR:=default}`, where the default stands in for a
//! variable that is undefined or empty; `$${` writes `${`. Every reference must be one of these and be
//! defined: anything else is an error, so that no device ever runs a manifest with a hole in it.
//!
//! * Every string *value* of an object is looked at, at every depth; member names are not.
//! * A substituted value stays a string: `"${PORT}"` becomes `"80"`, never `80`.
//! * Values are not looked at again, so a variable cannot smuggle in a reference.
//! * `data` of a `Secret` is base64 and therefore untouched in effect; use `stringData`.
//! * An object annotated `longshore.dev/substitute: disabled` is left alone.

use std::{collections::BTreeMap, fmt::Write as _};

use longshore_protocol::{Object, ObjectKey, object::InvalidObject};
use serde_json::Value;

use crate::fleet::DeviceSpec;

/// The annotation whose value `disabled` keeps an object as rendered.
pub const SUBSTITUTE: &str = "longshore.dev/substitute";

/// What `${NAME}` references stand for on one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables(BTreeMap<String, String>);

/// Why an object's references cannot be replaced. The caller knows the device.
#[derive(Debug, thiserror::Error)]
pub enum SubstituteError {
    /// What comes out is too much for one device.
    #[error(
        "{object}: `{field}`: the references of this device's objects come to more than {} MiB",
        MAX_GROWTH / (1024 * 1024)
    )]
    TooLarge {
        /// The object.
        object: Box<ObjectKey>,
        /// The field in it.
        field: String,
    },
    /// A variable is not defined and has no default.
    #[error("{object}: `{field}` refers to the variable `{variable}`, which is not defined")]
    Undefined {
        /// The object that refers to it.
        object: Box<ObjectKey>,
        /// The field, such as `data.url` or `spec.containers[0].image`.
        field: String,
        /// The variable.
        variable: String,
    },
    /// A `${` does not start a reference.
    #[error(
        "{object}: `{field}` has `{found}`, which is neither ${{NAME}} nor ${{NAME:=default}}; \
         write $${{ for a plain ${{, or annotate the object with {SUBSTITUTE}: disabled"
    )]
    Malformed {
        /// The object.
        object: Box<ObjectKey>,
        /// The field.
        field: String,
        /// The start of what was found.
        found: String,
    },
    /// What came out is not an object any more.
    #[error("{object}: substitution spoils it")]
    Invalid {
        /// The object as it was.
        object: Box<ObjectKey>,
        /// What is wrong with what it became.
        #[source]
        source: InvalidObject,
    },
}

/// By how many bytes replacing may let the objects of one device grow, so that a few references to a long
/// value cannot fill the memory.
pub const MAX_GROWTH: usize = 16 * 1024 * 1024;

impl Variables {
    /// The variables of `device`: `DEVICE_NAME`, `DEVICE_ID` where it has one, `LABEL_<key>`, and its own.
    pub fn of(device: &DeviceSpec) -> Self {
        let mut variables = device.variables.clone();
        for (key, value) in &device.labels {
            variables.insert(label_variable(key), value.clone());
        }
        variables.insert("DEVICE_NAME".to_owned(), device.name.to_string());
        if let Some(id) = &device.id {
            variables.insert("DEVICE_ID".to_owned(), id.to_string());
        }
        Self(variables)
    }

    /// The objects with their references replaced, in the same order.
    ///
    /// # Errors
    /// At the first object whose references cannot be replaced.
    pub fn substitute(&self, objects: &[Object]) -> Result<Vec<Object>, SubstituteError> {
        let mut room = MAX_GROWTH;
        objects
            .iter()
            .map(|object| self.within(object, &mut room))
            .collect()
    }

    /// The object with its references replaced. One without any costs a scan of its bytes and shares its body.
    ///
    /// # Errors
    /// Where a reference is malformed or undefined, or where the result is no object.
    pub fn object(&self, object: &Object) -> Result<Object, SubstituteError> {
        self.within(object, &mut MAX_GROWTH.clone())
    }

    fn within(&self, object: &Object, room: &mut usize) -> Result<Object, SubstituteError> {
        // JSON escapes neither character, so a reference in a value is one in the bytes.
        if !object.body().windows(2).any(|pair| pair == b"${") {
            return Ok(object.clone());
        }
        let mut value = object.value();
        let annotation = value
            .get("metadata")
            .and_then(|metadata| metadata.get("annotations"));
        if annotation.and_then(|annotations| annotations.get(SUBSTITUTE))
            == Some(&Value::from("disabled"))
        {
            return Ok(object.clone());
        }
        self.value(&mut value, object.key(), &mut String::new(), room)?;
        Object::from_value(&value).map_err(|source| SubstituteError::Invalid {
            object: Box::new(object.key().clone()),
            source,
        })
    }

    fn value(
        &self,
        value: &mut Value,
        object: &ObjectKey,
        field: &mut String,
        room: &mut usize,
    ) -> Result<(), SubstituteError> {
        let parent = field.len();
        match value {
            Value::String(text) if text.contains("${") => {
                *text = self.text(text, object, field, room)?;
            }
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    // Writing to a `String` cannot fail.
                    let _ok = write!(field, "[{index}]");
                    self.value(item, object, field, room)?;
                    field.truncate(parent);
                }
            }
            Value::Object(members) => {
                for (name, member) in members.iter_mut() {
                    if parent > 0 {
                        field.push('.');
                    }
                    field.push_str(name);
                    self.value(member, object, field, room)?;
                    field.truncate(parent);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        Ok(())
    }

    fn text(
        &self,
        text: &str,
        object: &ObjectKey,
        field: &str,
        room: &mut usize,
    ) -> Result<String, SubstituteError> {
        let mut done = String::with_capacity(text.len());
        let mut ahead = text;
        while let Some((before, after)) = ahead.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                done.push_str(before);
                done.push_str("${");
                ahead = after;
                continue;
            }
            done.push_str(before);
            let malformed = || SubstituteError::Malformed {
                object: Box::new(object.clone()),
                field: field.to_owned(),
                // What follows in a Secret is no text for a log.
                found: match object.kind.as_str() {
                    "Secret" => "${".to_owned(),
                    _ => "${".chars().chain(after.chars().take(24)).collect(),
                },
            };
            let (reference, rest) = after.split_once('}').ok_or_else(malformed)?;
            let (name, default) = match reference.split_once(":=") {
                Some((name, default)) => (name, Some(default)),
                None => (reference, None),
            };
            if !is_name(name) {
                return Err(malformed());
            }
            let value = match (self.0.get(name).map(String::as_str), default) {
                (None | Some(""), Some(default)) => default,
                (Some(value), _) => value,
                (None, None) => {
                    return Err(SubstituteError::Undefined {
                        object: Box::new(object.clone()),
                        field: field.to_owned(),
                        variable: name.to_owned(),
                    });
                }
            };
            *room = room
                .checked_sub(value.len())
                .ok_or_else(|| SubstituteError::TooLarge {
                    object: Box::new(object.clone()),
                    field: field.to_owned(),
                })?;
            done.push_str(value);
            ahead = rest;
        }
        done.push_str(ahead);
        Ok(done)
    }
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// `[A-Za-z_][A-Za-z0-9_]*`
pub(crate) fn is_name(text: &str) -> bool {
    let word = |char: char| char.is_ascii_alphanumeric() || char == '_';
    !text.is_empty()
        && text.chars().all(word)
        && !text.starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a device's own variables may not have this name.
pub(crate) fn is_built_in(name: &str) -> bool {
    name.starts_with("DEVICE_") || name.starts_with("LABEL_")
}

/// The variable of a label: `LABEL_` and the key, `_` for what a variable's name cannot hold.
pub(crate) fn label_variable(key: &str) -> String {
    let word = |char: char| {
        if char.is_ascii_alphanumeric() {
            char
        } else {
            '_'
        }
    };
    "LABEL_".chars().chain(key.chars().map(word)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn variables() -> Variables {
        [("STORE", "0001"), ("EMPTY", ""), ("SNEAKY", "${STORE}")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect()
    }

    fn map(data: &Value) -> Object {
        Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data}))
            .unwrap()
    }

    fn substituted(text: &str) -> Result<String, SubstituteError> {
        let object = variables().object(&map(&json!({ "x": text })))?;
        Ok(object.value()["data"]["x"].as_str().unwrap().to_owned())
    }

    #[test]
    fn replaces_references() {
        for (text, expected) in [
            ("a ${STORE} b ${STORE}", "a 0001 b 0001"),
            ("${NOPE:=x y}", "x y"),
            ("${NOPE:=}", ""),
            ("${EMPTY}|${EMPTY:=d}", "|d"),
            ("$${STORE} $${x-y}", "${STORE} ${x-y}"),
            ("$$${STORE}", "$${STORE}"),
            ("$STORE $ {STORE} $$", "$STORE $ {STORE} $$"),
            ("${SNEAKY}", "${STORE}"),
        ] {
            assert_eq!(substituted(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn names_object_field_and_variable() {
        let object = map(&json!({"list": [{"url": "${NOPE}"}]}));
        let error = variables().object(&object).unwrap_err();
        assert_eq!(
            error.to_string(),
            "v1/ConfigMap/m: `data.list[0].url` refers to the variable `NOPE`, which is not defined"
        );
        for bad in [
            "${",
            "${}",
            "${STORE",
            "${1}",
            "${STORE:-x}",
            "${a b}",
            "${#STORE}",
        ] {
            let error = substituted(bad).unwrap_err();
            assert!(
                matches!(error, SubstituteError::Malformed { .. }),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn leaves_alone_what_asks_for_it() {
        let annotated = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "${1}"},
            "metadata": {"name": "m", "annotations": {"longshore.dev/substitute": "disabled"}}});
        let object = Object::from_value(&annotated).unwrap();
        assert_eq!(variables().object(&object).unwrap(), object);
        let named =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "${EMPTY}"}});
        let error = variables()
            .object(&Object::from_value(&named).unwrap())
            .unwrap_err();
        assert!(matches!(error, SubstituteError::Invalid { .. }), "{error}");
    }

    #[test]
    fn member_names_and_numbers_stay() {
        let object = map(&json!({"${STORE}": 5, "t": "${STORE}"}));
        let value = variables().object(&object).unwrap().value();
        assert_eq!(value["data"], json!({"${STORE}": 5, "t": "0001"}));
    }

    proptest! {
        #[test]
        fn escaping_undoes_substitution(text in "[a$\\{\\}:=]{0,16}") {
            let escaped = text.replace("${", "$${");
            // A `$` before an escape is a `$`, not a longer escape.
            prop_assert_eq!(substituted(&escaped).unwrap(), text);
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            drop(substituted(&text));
        }
    }

    #[test]
    fn a_few_references_cannot_fill_the_memory() {
        let long: Variables = [("A".to_owned(), "x".repeat(60_000))].into_iter().collect();
        let error = long
            .object(&map(&json!({ "x": "${A}".repeat(100_000) })))
            .unwrap_err();
        assert!(
            error.to_string().contains("`data.x`: the references"),
            "{error}"
        );
    }
}
