//! What is kept in memory of an object in the cluster: what tells whether it is as it was applied, and how it fares.
//!
//! Whether other hands changed a field of ours is known from the object's managed fields: whoever changes such a
//! field takes it out of our entry, and so does its removal. So a digest over our entry's fields, as it was after
//! the apply, is enough to notice any drift, and values need not be kept.

use jiff::Timestamp;
use longshore_protocol::{DeviceId, Digest};
use serde_json::Value;

use super::{
    api::MANAGER,
    kinds::Resource,
    name::Name,
    status::{self, Verdict, text},
};

/// The label that says which device's agent applied an object.
pub(super) const DEVICE: &str = "longshore.dev/device";
/// The annotation that keeps an object from being deleted when it leaves the set.
const PRUNE: &str = "longshore.dev/prune";

/// An object in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub uid: String,
    /// Its resource version.
    pub version: String,
    /// Whose label it carries.
    device: String,
    /// The digest of the fields that we manage, where we manage any.
    pub fields: Option<Digest>,
    /// Whether others had written it by the time that we did.
    pub shared: bool,
    /// Whether it was there before we wrote it last. Of an object that we wrote once, this says that it is not ours.
    pub elder: bool,
    /// Whether it is not to be deleted.
    pub kept: bool,
    /// What its deletion waits for, where it is being deleted.
    pub ending: Option<String>,
    pub verdict: Verdict,
}

impl Seen {
    /// Reads an object of this kind, or its metadata.
    pub(super) fn read(resource: &Resource, object: &Value) -> Option<(Name, Self)> {
        let metadata = object.get("metadata")?;
        let name = Name {
            group: resource.group.clone(),
            kind: resource.kind.clone(),
            namespace: text(metadata, "/namespace").to_owned(),
            name: text(metadata, "/name").to_owned(),
        };
        let of = |map: &str, key: &str| {
            let value = metadata.get(map).and_then(|map| map.get(key));
            value.and_then(Value::as_str).unwrap_or_default()
        };
        let managers = Managers::read(metadata);
        let seen = Self {
            uid: text(metadata, "/uid").to_owned(),
            version: text(metadata, "/resourceVersion").to_owned(),
            device: of("labels", DEVICE).to_owned(),
            fields: managers.fields,
            shared: managers.shared,
            elder: managers.elder,
            kept: of("annotations", PRUNE) == "disabled",
            ending: ending(object, metadata),
            verdict: status::of(&resource.group, &resource.kind, object),
        };
        Some((name, seen))
    }

    /// Whether this device's agent applied it: the label says so, and the API server that we manage it. A copy
    /// that somebody made of an object has the label and nothing else.
    pub(super) fn is_of(&self, device: &DeviceId) -> bool {
        self.device == device.as_str() && self.fields.is_some()
    }

    /// Another device, whose agent applied it.
    pub(super) fn other_device(&self, device: &DeviceId) -> Option<&str> {
        let other = self.fields.is_some() && !self.device.is_empty();
        (other && self.device != device.as_str()).then_some(self.device.as_str())
    }

    /// Whether it is an older state than `other`, of the same object.
    pub(super) fn is_older_than(&self, other: &Self) -> bool {
        is_older(&self.version, &other.version)
    }
}

/// Whether one resource version is older than another. They are decimal numbers in all API servers that keep to
/// the conformance tests; others are taken to come in order.
pub(super) fn is_older(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one < other,
        _ => false,
    }
}

fn ending(object: &Value, metadata: &Value) -> Option<String> {
    let since = metadata.get("deletionTimestamp").and_then(Value::as_str)?;
    let names = |value: Option<&Value>| -> Vec<String> {
        let names = value.and_then(Value::as_array).into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut finalizers = names(metadata.get("finalizers"));
    finalizers.extend(names(object.pointer("/spec/finalizers")));
    let mut text = format!("is being deleted since {since}");
    if !finalizers.is_empty() {
        text.push_str(", and waits for the finalizers ");
        text.push_str(&finalizers.join(", "));
    }
    let remains = status::remains(object);
    if object.pointer("/spec/finalizers").is_some() && !remains.is_empty() {
        text.push_str(": ");
        text.push_str(&remains);
    }
    Some(text)
}

/// What the managed fields tell.
struct Managers {
    fields: Option<Digest>,
    shared: bool,
    elder: bool,
}

impl Managers {
    fn read(metadata: &Value) -> Self {
        let entries = metadata.get("managedFields").and_then(Value::as_array);
        let entries: Vec<_> = entries
            .into_iter()
            .flatten()
            .filter(|entry| !is_report(entry))
            .collect();
        let ours = entries.iter().find(|entry| {
            text(entry, "/manager") == MANAGER && text(entry, "/operation") == "Apply"
        });
        let Some(ours) = ours else {
            return Self {
                fields: None,
                shared: !entries.is_empty(),
                elder: true,
            };
        };
        let fields = ours.get("fieldsV1").unwrap_or(&Value::Null).to_string();
        // RFC 3339 in UTC: texts sort as times do.
        let since = text(ours, "/time");
        Self {
            fields: Some(Digest::of_parts([
                text(ours, "/apiVersion").as_bytes(),
                fields.as_bytes(),
            ])),
            elder: is_before(text(metadata, "/creationTimestamp"), since),
            shared: entries
                .iter()
                .any(|entry| text(entry, "/manager") != MANAGER && text(entry, "/time") <= since),
        }
    }
}

/// Whether a manager only reports how the object fares. API servers before 1.22 do not say that it did so through
/// the subresource; what it wrote does.
fn is_report(entry: &Value) -> bool {
    let fields = entry.get("fieldsV1").and_then(Value::as_object);
    let only_status = fields.is_some_and(|fields| {
        fields.contains_key("f:status")
            && fields
                .keys()
                .all(|field| field == "f:status" || field == "f:metadata")
    });
    !text(entry, "/subresource").is_empty()
        || (only_status && text(entry, "/operation") == "Update")
}

/// Whether there is more between two times than one call takes. They have no fractions of seconds.
fn is_before(created: &str, written: &str) -> bool {
    match (created.parse::<Timestamp>(), written.parse::<Timestamp>()) {
        (Ok(created), Ok(written)) => written.as_second() - created.as_second() > 1,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(manager: &str, operation: &str, time: &str, fields: &Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn whoever_reports_a_status_does_not_share_the_object() {
        let ours = entry(
            MANAGER,
            "Apply",
            "2026-01-01T00:00:05Z",
            &json!({"f:spec": {"f:replicas": {}}}),
        );
        let read = |other: Value| {
            let entries = [ours.clone(), other];
            Managers::read(
                &json!({"creationTimestamp": "2026-01-01T00:00:05Z", "managedFields": entries}),
            )
        };
        let status = json!({"f:status": {"f:replicas": {}}, "f:metadata": {"f:annotations": {}}});
        let old = entry(
            "kube-controller-manager",
            "Update",
            "2026-01-01T00:00:05Z",
            &status,
        );
        assert!(!read(old.clone()).shared);
        let mut new = old;
        new["subresource"] = "status".into();
        assert!(!read(new).shared);
        let both = json!({"f:status": {"f:replicas": {}}, "f:spec": {"f:paused": {}}});
        assert!(read(entry("operator", "Update", "2026-01-01T00:00:05Z", &both)).shared);
        assert!(!read(entry("operator", "Update", "2026-01-01T00:00:06Z", &both)).shared);
    }
}
