//! Removes one object that left the set.
//!
//! It is deleted where it is this device's: it carries the label, the API server knows us as one of its managers,
//! and it is the same object in the same version as when that was seen. What was there before us is given up and
//! stays, without what only we had set.

use std::sync::Arc;

use longshore_protocol::DeviceId;
use serde_json::{Value, json};

use super::{
    api::{Api, CallError, Detail, Refusal},
    apply::unauthorized,
    inventory::Record,
    kinds::Resource,
    name::Name,
    problem,
    seen::Seen,
    status::text,
};
use crate::runtime::Unapplied;

/// One object to remove.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    pub name: Name,
    pub record: Record,
    pub resource: Arc<Resource>,
    pub seen: Seen,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Removal {
    /// It is gone.
    Gone,
    /// It is not ours to delete, or not any more. Stays as it is.
    Left(&'static str),
    /// Its deletion has begun.
    Ending(Value),
    /// The API server refused.
    Failed(Unapplied),
    /// So far the call did not even get.
    CutOff(String),
}

/// Removes it.
pub(super) async fn remove(api: &Api, device: &DeviceId, leaving: &Leaving) -> Removal {
    let Leaving { name, resource, .. } = leaving;
    let path = resource.path_of(&name.namespace, &name.name);
    let mut seen = leaving.seen.clone();
    // What was seen may be older than the last report of a status. Looked at once more, it is as new as can be.
    for _ in 0..3 {
        if let Some(removal) = untouchable(&seen, device) {
            return removal;
        }
        let unsure = leaving.record.uid.is_empty();
        if leaving.record.adopted || (unsure && (seen.shared || seen.elder)) {
            return release(api, leaving, &path).await;
        }
        let refusal = match api.delete(&path, &seen.uid, Some(&seen.version)).await {
            Ok(answer) if text(&answer, "/metadata/deletionTimestamp").is_empty() => {
                return Removal::Gone;
            }
            Ok(ending) => return Removal::Ending(ending),
            Err(CallError::Unreachable(why)) => return Removal::CutOff(why),
            Err(CallError::Refused(refusal)) => refusal,
        };
        if refusal.code != 409 {
            return refused(leaving, "delete", &refusal);
        }
        match api.get(&path, Detail::Metadata).await {
            Ok(object) => match Seen::read(resource, &object) {
                Some((_, fresh)) => seen = fresh,
                None => return Removal::Gone,
            },
            Err(CallError::Refused(refusal)) => return refused(leaving, "get", &refusal),
            Err(CallError::Unreachable(why)) => return Removal::CutOff(why),
        }
    }
    let message = "it changes faster than it can be deleted".to_owned();
    Removal::Failed(problem::of(name, "Refused", message))
}

fn untouchable(seen: &Seen, device: &DeviceId) -> Option<Removal> {
    if !seen.is_of(device) {
        Some(Removal::Left("it is not this device's any more"))
    } else if seen.kept {
        Some(Removal::Left("its annotation disables pruning"))
    } else {
        None
    }
}

/// Gives up all fields. Those that nobody else has go away; the object stays.
async fn release(api: &Api, leaving: &Leaving, path: &str) -> Removal {
    let Leaving { name, resource, .. } = leaving;
    let metadata = if resource.namespaced {
        json!({"name": name.name, "namespace": name.namespace})
    } else {
        json!({ "name": name.name })
    };
    let body =
        json!({"apiVersion": resource.api_version(), "kind": resource.kind, "metadata": metadata});
    let body = body.to_string().into_bytes();
    match api.apply(path, body, false, Detail::Metadata).await {
        Ok(_) => Removal::Left("it was there before, so it was given up and not deleted"),
        // It cannot be without what we set.
        Err(CallError::Refused(refusal)) if refusal.code == 422 => {
            Removal::Left("it was there before, and cannot be without what was set")
        }
        Err(CallError::Refused(refusal)) => refused(leaving, "patch", &refusal),
        Err(CallError::Unreachable(why)) => Removal::CutOff(why),
    }
}

fn refused(leaving: &Leaving, verb: &'static str, refusal: &Refusal) -> Removal {
    match refusal.code {
        404 => Removal::Gone,
        401 => Removal::CutOff(unauthorized(refusal)),
        _ => Removal::Failed(problem::of_call(
            &leaving.name,
            verb,
            &leaving.resource,
            refusal,
        )),
    }
}
