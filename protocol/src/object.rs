//! Kubernetes-style objects in canonical form.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Digest;

/// What names an object on a device.
///
/// Ordered by API version, kind, namespace and name; a manifest set is sorted by this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectKey {
    /// `v1`, `apps/v1`, …
    pub api_version: String,
    /// `ConfigMap`, `Deployment`, …
    pub kind: String,
    /// Empty where the object has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    /// `apps/v1/Deployment/shop/till`, or `v1/Namespace/shop` where there is no namespace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.api_version, self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// One object: its key, its canonical form and that form's digest.
///
/// The canonical form is JSON without white space, members sorted by name, numbers as `serde_json` prints
/// them. It is what travels, what is stored and what is hashed, so that equal objects are equal bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    key: ObjectKey,
    digest: Digest,
    body: Arc<[u8]>,
}

/// Why a value is not an object.
#[derive(Debug, thiserror::Error)]
pub enum InvalidObject {
    /// It is not JSON.
    #[error("the object is not JSON")]
    Json(#[from] serde_json::Error),
    /// A field that names the object is missing, empty or no text.
    #[error("the object has no `{0}`")]
    Missing(&'static str),
    /// Its namespace is no text.
    #[error("the object's `metadata.namespace` is no text")]
    Namespace,
    /// The bytes are JSON, but not in canonical form.
    #[error("the object is not in canonical form")]
    NotCanonical,
}

impl Object {
    /// The object that `value` describes.
    ///
    /// # Errors
    /// Where `apiVersion`, `kind` or `metadata.name` is missing.
    pub fn from_value(value: &Value) -> Result<Self, InvalidObject> {
        let key = key_of(value)?;
        // `serde_json::Value` keeps members sorted, and `to_vec` adds no white space: this is canonical.
        let body: Arc<[u8]> = serde_json::to_vec(value)?.into();
        Ok(Self {
            key,
            digest: Digest::of(&body),
            body,
        })
    }

    /// The object whose canonical form is `body`, as received from a peer or a disk.
    ///
    /// # Errors
    /// Where the bytes are not the canonical form of an object.
    pub fn from_canonical(body: impl Into<Arc<[u8]>>) -> Result<Self, InvalidObject> {
        let body = body.into();
        let value: Value = serde_json::from_slice(&body)?;
        let object = Self::from_value(&value)?;
        if object.body != body {
            return Err(InvalidObject::NotCanonical);
        }
        Ok(object)
    }

    /// What names it.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// The digest of its canonical form.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its canonical form.
    pub fn body(&self) -> &Arc<[u8]> {
        &self.body
    }

    /// Its value, parsed anew.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Its value for people: the values of a `Secret`'s `data` and `stringData` replaced by their sizes, also of one
    /// inside of another object, such as a template's. What `kubectl` notes of earlier values is left out.
    pub fn redacted(&self) -> Value {
        let mut value = self.value();
        redact(&mut value, &self.key);
        value
    }
}

/// Where `kubectl apply` keeps a copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn redact(value: &mut Value, object: &ObjectKey) {
    match value {
        Value::Object(members) => {
            let is =
                |name: &str, text: &str| members.get(name).and_then(Value::as_str) == Some(text);
            let is_secret = is("kind", "Secret") && is("apiVersion", "v1");
            members.remove(LAST_APPLIED);
            for (name, member) in members.iter_mut() {
                if is_secret && (name == "data" || name == "stringData") {
                    hide(member, object);
                } else {
                    redact(member, object);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| redact(item, object)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Replaces values by what tells them apart and nothing else.
fn hide(data: &mut Value, object: &ObjectKey) {
    let hidden = |name: &str, secret: &Value| {
        let size = secret.as_str().map_or(0, str::len);
        let digest = Digest::of_parts([
            object.to_string().as_bytes(),
            name.as_bytes(),
            secret.to_string().as_bytes(),
        ]);
        Value::String(format!("(redacted, {size} bytes, {})", digest.short()))
    };
    match data {
        Value::Null => {}
        Value::Object(members) => {
            for (name, secret) in members.iter_mut() {
                *secret = hidden(name, secret);
            }
        }
        unusual => *unusual = hidden("", unusual),
    }
}

fn key_of(value: &Value) -> Result<ObjectKey, InvalidObject> {
    let text = |pointer: &str, missing: &'static str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .ok_or(InvalidObject::Missing(missing))
    };
    let namespace = match value.pointer("/metadata/namespace") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(namespace)) => namespace.clone(),
        Some(_) => return Err(InvalidObject::Namespace),
    };
    Ok(ObjectKey {
        api_version: text("/apiVersion", "apiVersion")?,
        kind: text("/kind", "kind")?,
        namespace,
        name: text("/metadata/name", "metadata.name")?,
    })
}

impl fmt::Debug for Object {
    /// The key and the digest: a body may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} {:?})", self.key, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret() -> Value {
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"namespace": "a", "name": "b"},
               "data": {"password": "aHVudGVyMg=="}})
    }

    #[test]
    fn canonical_form_sorts_members() {
        let object = Object::from_value(&secret()).unwrap();
        assert_eq!(object.key().to_string(), "v1/Secret/a/b");
        let text = std::str::from_utf8(object.body()).unwrap();
        assert!(text.starts_with(r#"{"apiVersion":"v1","data":{"#), "{text}");
        let again = Object::from_canonical(object.body().clone()).unwrap();
        assert_eq!(again, object);
    }

    #[test]
    fn refuses_what_is_not_canonical_or_not_named() {
        let spaced = serde_json::to_vec_pretty(&secret()).unwrap();
        assert!(matches!(
            Object::from_canonical(spaced),
            Err(InvalidObject::NotCanonical)
        ));
        let error = Object::from_value(&json!({"apiVersion": "v1", "kind": "Pod"})).unwrap_err();
        assert_eq!(error.to_string(), "the object has no `metadata.name`");
    }

    #[test]
    fn redaction_hides_values_and_shows_change() {
        let object = Object::from_value(&secret()).unwrap();
        let shown = object.redacted().to_string();
        assert!(!shown.contains("aHVudGVyMg=="), "{shown}");
        assert!(!format!("{object:?}").contains("aHVu"));
        let mut other = secret();
        other["data"]["password"] = json!("aHVudGVyMw==");
        assert_ne!(
            Object::from_value(&other).unwrap().redacted().to_string(),
            shown
        );
    }

    #[test]
    fn redaction_finds_secrets_wherever_they_are() {
        let annotated =
            json!({"name": "a", "annotations": {LAST_APPLIED: "{\"hunter2\"}", "x": "y"}});
        let objects = [
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": annotated}),
            json!({"kind": "Template", "apiVersion": "template.openshift.io/v1", "metadata": annotated,
                   "objects": [{"kind": "Secret", "apiVersion": "v1", "stringData": {"p": "hunter2"}}]}),
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": annotated, "data": "hunter2"}),
            json!({"kind": "Secret", "apiVersion": "v1", "metadata": annotated,
                   "data": {"nested": {"odd": "hunter2"}}}),
        ];
        for object in objects {
            let shown = Object::from_value(&object).unwrap().redacted().to_string();
            assert!(!shown.contains("hunter2"), "{shown}");
            assert!(shown.contains(r#""x":"y""#), "{shown}");
        }
    }
}
