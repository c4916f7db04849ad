//! Removes what left the set.
//!
//! An object is deleted where it is this device's: it carries the label, the API server knows us as one of its managers,
//! and it is the same object in the same version as when that was seen. What was there before us is given up and
//! stays, without what only we had set.

use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use longshore_protocol::DeviceId;
use serde_json::{Value, json};

use super::{
    Cluster,
    api::{Api, CallError, Detail, Refusal},
    apply::unauthorized,
    inventory::Record,
    kinds::Resource,
    name::Name,
    pass::{AT_ONCE, Report},
    problem::{self, is_unauthorized},
    seen::Seen,
    status::text,
    view::Known,
};
use crate::runtime::{ApplyError, Unapplied};

/// One object to remove.
#[derive(Clone, Debug)]
struct Leaving {
    name: Name,
    record: Record,
    resource: Arc<Resource>,
    seen: Seen,
}

/// What came of it.
#[derive(Debug)]
enum Removal {
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

impl Cluster {
    /// Removes these, those of one rank at once, the last rank first.
    pub(super) async fn prune(
        &mut self,
        mut leaving: Vec<(Name, Arc<Resource>)>,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        leaving.sort_by(|(one, _), (other, _)| (other.rank(), other).cmp(&(one.rank(), one)));
        let mut deletions = Vec::new();
        for (name, resource) in leaving {
            deletions.extend(self.consider(name, resource, report));
        }
        for rank in deletions.chunk_by(|one, other| one.name.rank() == other.name.rank()) {
            let (api, device) = (self.api.clone(), self.device.clone());
            let calls = rank.iter().map(|leaving| {
                remove(&api, &device, leaving)
                    .map(move |removal| (leaving, removal))
                    .boxed()
            });
            let calls: Vec<BoxFuture<'_, _>> = calls.collect();
            let mut removals = stream::iter(calls).buffer_unordered(AT_ONCE);
            while let Some((leaving, removal)) = removals.next().await {
                self.removed(leaving, removal, report)?;
            }
        }
        Ok(())
    }

    fn consider(
        &mut self,
        name: Name,
        resource: Arc<Resource>,
        report: &mut Report,
    ) -> Option<Leaving> {
        match self.view.knows(&name.kind()) {
            Known::Yes => {}
            Known::No(why) => {
                report.problems.push(problem::of(&name, "NotWatched", why));
                return None;
            }
            Known::Unserved => {
                self.kinds.forget(&resource.api_version());
                self.forget(&name);
                return None;
            }
        }
        let Some(seen) = self.view.object(&name).cloned() else {
            self.forget(&name);
            return None;
        };
        if let Some(ending) = &seen.ending {
            report.waits(&name, ending);
            return None;
        }
        let record = self
            .inventory
            .records
            .get(&name)
            .cloned()
            .unwrap_or_default();
        Some(Leaving {
            name,
            record,
            resource,
            seen,
        })
    }

    fn removed(
        &mut self,
        leaving: &Leaving,
        removal: Removal,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let name = &leaving.name;
        match removal {
            Removal::Gone => {
                self.view.remove(name);
                self.forget(name);
                report.changes.removed.push(name.to_string());
            }
            Removal::Left(why) => {
                tracing::info!(object = %name, why, "left in place");
                self.forget(name);
            }
            Removal::Ending(object) => {
                report.changes.removed.push(name.to_string());
                if let Some(Seen {
                    ending: Some(ending),
                    ..
                }) = self.take(name, &leaving.resource, &object)
                {
                    report.waits(name, &ending);
                }
            }
            Removal::Failed(problem) => report.problems.push(problem),
            Removal::CutOff(why) => return Err(ApplyError::Unavailable(why)),
        }
        Ok(())
    }
}

/// Removes it.
async fn remove(api: &Api, device: &DeviceId, leaving: &Leaving) -> Removal {
    let Leaving { name, resource, .. } = leaving;
    let path = resource.path_of(&name.namespace, &name.name);
    let mut seen = leaving.seen.clone();
    // What was seen may be older than the last report of a status. Looked at once more, it is as new as can be.
    for _ in 0..3 {
        if let Some(removal) = untouchable(&seen, device) {
            return removal;
        }
        let adopted = if leaving.record.uid == seen.uid {
            leaving.record.adopted
        } else {
            seen.shared || seen.elder
        };
        if adopted {
            return release(api, leaving, &path, &seen.uid).await;
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
            return refused(leaving, &refusal);
        }
        match api.get(&path, Detail::Metadata).await {
            Ok(object) => match Seen::read(resource, &object) {
                Some((_, fresh)) => seen = fresh,
                None => return Removal::Gone,
            },
            Err(CallError::Refused(refusal)) => return refused(leaving, &refusal),
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
async fn release(api: &Api, leaving: &Leaving, path: &str, uid: &str) -> Removal {
    let Leaving { name, resource, .. } = leaving;
    // The id keeps an apply from making an object that went in the meantime.
    let metadata = if resource.namespaced {
        json!({"name": name.name, "namespace": name.namespace, "uid": uid})
    } else {
        json!({"name": name.name, "uid": uid})
    };
    let body =
        json!({"apiVersion": resource.api_version(), "kind": resource.kind, "metadata": metadata});
    let body = body.to_string().into_bytes();
    match api.apply(path, body, false, Detail::Metadata).await {
        Ok(_) => Removal::Left("it was there before, so it was given up and not deleted"),
        // It is gone, or another one is there by now.
        Err(CallError::Refused(refusal)) if is_other(&refusal) => {
            Removal::Left("it is not the one that was there before any more")
        }
        // It cannot be without what we set.
        Err(CallError::Refused(refusal)) if refusal.code == 422 => {
            Removal::Left("it was there before, and cannot be without what was set")
        }
        Err(CallError::Refused(refusal)) => refused(leaving, &refusal),
        Err(CallError::Unreachable(why)) => Removal::CutOff(why),
    }
}

/// Whether an apply was refused for the object's id. API servers before 1.21 have an internal error for it.
fn is_other(refusal: &Refusal) -> bool {
    let says = |what| refusal.message.contains(what);
    says("uid mismatch") || (refusal.code == 409 && says("UID in precondition"))
}

fn refused(leaving: &Leaving, refusal: &Refusal) -> Removal {
    match refusal.code {
        404 => Removal::Gone,
        _ if is_unauthorized(refusal) => Removal::CutOff(unauthorized(refusal)),
        _ => Removal::Failed(problem::of_call(&leaving.name, &leaving.resource, refusal)),
    }
}
