//! Applies one object.
//!
//! ```text
//! apply ──▶ 409: others manage some fields ──▶ they were ours, and were taken by a change ──▶ apply with force
//!       └─▶ 422: some fields are immutable ──▶ the manifest allows force, the object is ours ──▶ delete, apply
//! ```

use std::sync::Arc;

use longshore_protocol::{DeviceId, Object};
use serde_json::{Map, Value};

use super::{
    api::{Api, Applied, CallError, Refusal},
    kinds::Resource,
    name::Name,
    problem::{self, is_conflict, is_immutable, is_unauthorized, takers},
    seen::DEVICE,
    status::text,
};
use crate::runtime::Unapplied;

/// The annotation that allows to delete an object and make it anew.
const FORCE: &str = "longshore.dev/force";

/// One object of the set, and where it goes.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub name: Name,
    pub object: Object,
    pub resource: Arc<Resource>,
}

/// One object to apply.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub desired: Desired,
    /// Whether exactly this was applied before, so that every field of it was ours.
    pub repairs: bool,
    /// Id and version of the object where it is there and ours.
    pub ours: Option<(String, String)>,
}

/// How that went.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is applied, and fields were taken back from these managers.
    Applied { applied: Applied, from: Vec<String> },
    /// It was deleted, and cannot be made anew before that has ended.
    Ending(Value),
    /// The API server refused.
    Failed(Unapplied),
    /// So far the call did not even get.
    CutOff(String),
}

/// Applies it.
pub(super) async fn apply(api: &Api, device: &DeviceId, task: &Task) -> Outcome {
    let Desired { name, resource, .. } = &task.desired;
    let manifest = dressed(&task.desired, device);
    let may_replace = annotation(&manifest, FORCE) == "enabled";
    let body = manifest.to_string().into_bytes();
    let path = resource.path_of(&name.namespace, &name.name);
    let apply = |force| api.apply(&path, body.clone(), force, resource.detail());
    let refusal = match apply(false).await {
        Err(CallError::Refused(refusal)) => refusal,
        other => return outcome(other, &task.desired, Vec::new()),
    };
    if is_conflict(&refusal)
        && task.repairs
        && let Some(from) = takers(&refusal)
    {
        return outcome(apply(true).await, &task.desired, from);
    }
    if is_immutable(&refusal)
        && may_replace
        && let Some((uid, _)) = &task.ours
    {
        // The version may be older than the last report of its status: the id is what says that it is the one.
        return match api.delete(&path, uid, None).await {
            Ok(answer) if text(&answer, "/metadata/deletionTimestamp").is_empty() => {
                outcome(apply(false).await, &task.desired, Vec::new())
            }
            Ok(ending) => Outcome::Ending(ending),
            Err(CallError::Refused(refusal)) if refusal.code == 404 => {
                outcome(apply(false).await, &task.desired, Vec::new())
            }
            Err(CallError::Refused(refusal)) => {
                Outcome::Failed(problem::of_call(name, resource, &refusal))
            }
            Err(CallError::Unreachable(why)) => Outcome::CutOff(why),
        };
    }
    refused(&task.desired, &refusal)
}

fn outcome(result: Result<Applied, CallError>, desired: &Desired, from: Vec<String>) -> Outcome {
    match result {
        Ok(applied) => Outcome::Applied { applied, from },
        Err(CallError::Refused(refusal)) => refused(desired, &refusal),
        Err(CallError::Unreachable(why)) => Outcome::CutOff(why),
    }
}

fn refused(desired: &Desired, refusal: &Refusal) -> Outcome {
    if is_unauthorized(refusal) {
        return Outcome::CutOff(unauthorized(refusal));
    }
    Outcome::Failed(problem::of_apply(&desired.name, &desired.resource, refusal))
}

/// What a refusal of the credentials means.
pub(super) fn unauthorized(refusal: &Refusal) -> String {
    format!(
        "the API server does not know the agent's credentials ({}): renew the kubeconfig, or the pod's service account",
        refusal.message
    )
}

/// The manifest as it is applied: with the device's label and its namespace, without what only servers write.
fn dressed(desired: &Desired, device: &DeviceId) -> Value {
    let mut value = desired.object.value();
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else {
        return value;
    };
    for written in [
        "managedFields",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
    ] {
        metadata.remove(written);
    }
    if desired.resource.namespaced {
        metadata.insert(
            "namespace".to_owned(),
            desired.name.namespace.clone().into(),
        );
    } else {
        metadata.remove("namespace");
    }
    let labels = metadata.entry("labels").or_insert(Value::Null);
    if labels.is_null() {
        *labels = Value::Object(Map::new());
    }
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(DEVICE.to_owned(), device.as_str().into());
    }
    value
}

fn annotation<'a>(manifest: &'a Value, name: &str) -> &'a str {
    let annotations = manifest.pointer("/metadata/annotations");
    let value = annotations.and_then(|annotations| annotations.get(name));
    value.and_then(Value::as_str).unwrap_or_default()
}
