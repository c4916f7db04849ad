//! From manifests to where they go: which kind the API server serves them as, and in which namespace.

use std::{collections::BTreeSet, sync::Arc};

use longshore_protocol::Object;
use serde_json::Value;

use super::{
    Cluster,
    api::{CallError, Detail, Refusal},
    apply::{Desired, unauthorized},
    inventory::Record,
    kinds::{self, Resource},
    name::{Name, group_of},
    pass::{Report, order},
    problem,
    seen::{DEVICE, Seen},
    status::text,
};
use crate::runtime::{ApplyError, OUT_OF_SCOPE, Unapplied};

/// The set, as far as its kinds are known.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Those to apply, in order.
    pub desired: Vec<Desired>,
    /// Those whose kind the API server does not serve, so far.
    pub unknown: Vec<Object>,
    /// All names that must not be pruned: those of objects that cannot be applied as well.
    pub names: BTreeSet<Name>,
}

impl Wanted {
    /// The definitions in the set that define kinds of the set which are not served.
    pub(super) fn definitions_of_unknown(&self) -> Vec<Name> {
        let defines = |definition: &Value, object: &Object| {
            text(definition, "/spec/group") == group_of(&object.key().api_version)
                && text(definition, "/spec/names/kind") == object.key().kind
        };
        self.desired
            .iter()
            .filter(|desired| desired.name.kind == "CustomResourceDefinition")
            .filter(|desired| {
                let definition = desired.object.value();
                self.unknown
                    .iter()
                    .any(|object| defines(&definition, object))
            })
            .map(|desired| desired.name.clone())
            .collect()
    }
}

/// What is known of where an object goes.
enum Place {
    Here(Desired),
    Unknown(Object),
    Nowhere(Unapplied),
}

impl Cluster {
    /// Finds the kinds of all objects.
    pub(super) async fn resolve(
        &mut self,
        objects: Vec<Object>,
        report: &mut Report,
    ) -> Result<Wanted, ApplyError> {
        let mut wanted = Wanted::default();
        for object in objects {
            let key = object.key();
            for namespace in ["", &key.namespace, self.namespace()] {
                wanted.names.insert(Name::of(key, namespace));
            }
            match self.place(object).await? {
                Place::Here(desired) => wanted.desired.push(desired),
                Place::Unknown(object) => wanted.unknown.push(object),
                Place::Nowhere(problem) => report.problems.push(problem),
            }
        }
        wanted
            .desired
            .sort_by(|one, other| order(one).cmp(&order(other)));
        wanted.desired.dedup_by(|later, first| {
            let twice = later.name == first.name;
            if twice {
                let message = format!(
                    "it is in the set twice: as {} and as {}",
                    first.object.key(),
                    later.object.key()
                );
                report
                    .problems
                    .push(problem::of(&first.name, "Duplicate", message));
            }
            twice
        });
        Ok(wanted)
    }

    /// Asks again for the kinds that were not there, and takes the objects whose kinds are there now.
    pub(super) async fn resolve_again(
        &mut self,
        wanted: &mut Wanted,
        report: &mut Report,
    ) -> Result<Vec<Desired>, ApplyError> {
        let versions: BTreeSet<_> = wanted
            .unknown
            .iter()
            .map(|it| it.key().api_version.clone())
            .collect();
        for version in versions {
            self.kinds.forget(&version);
        }
        let mut found = Vec::new();
        for object in std::mem::take(&mut wanted.unknown) {
            match self.place(object).await? {
                Place::Here(desired) => found.push(desired),
                Place::Unknown(object) => wanted.unknown.push(object),
                Place::Nowhere(problem) => report.problems.push(problem),
            }
        }
        Ok(found)
    }

    async fn place(&mut self, object: Object) -> Result<Place, ApplyError> {
        let key = object.key();
        let name = Name::of(key, &key.namespace);
        let found = self
            .kinds
            .find(&self.api, &key.api_version, &key.kind)
            .await;
        let resource = match found {
            Ok(Some(resource)) => resource,
            Ok(None) => return Ok(Place::Unknown(object)),
            Err(CallError::Refused(refusal)) if refusal.code != 401 => {
                return Ok(Place::Nowhere(problem::of(
                    &name,
                    "UnknownKind",
                    refusal.message,
                )));
            }
            Err(error) => return Err(cut_off(error)),
        };
        let problem =
            |message: String| Ok(Place::Nowhere(problem::of(&name, OUT_OF_SCOPE, message)));
        let namespace = match (&self.confined, resource.namespaced) {
            (_, true) if key.namespace.is_empty() => self.namespace().to_owned(),
            (Some(confined), true) if *confined != key.namespace => {
                return problem(format!(
                    "this agent is confined to the namespace `{confined}`"
                ));
            }
            (Some(confined), false) => {
                return problem(format!(
                    "it belongs to the whole cluster, and this agent is confined to the namespace `{confined}`"
                ));
            }
            (_, true) => key.namespace.clone(),
            (None, false) => String::new(),
        };
        Ok(Place::Here(Desired {
            name: Name::of(key, &namespace),
            object,
            resource,
        }))
    }

    /// What the inventory lists and the set does not have, with where it is. What is of a kind that is gone is gone.
    pub(super) async fn leaving(
        &mut self,
        names: &BTreeSet<Name>,
        report: &mut Report,
    ) -> Result<Vec<(Name, Arc<Resource>)>, ApplyError> {
        let records = self.inventory.records.iter();
        let gone: Vec<_> = records
            .filter(|(name, _)| !names.contains(name))
            .map(|(name, record)| (name.clone(), record.version.clone()))
            .collect();
        let mut leaving = Vec::new();
        for (name, version) in gone {
            let found = self
                .kinds
                .find_any(&self.api, &name.group, &version, &name.kind)
                .await;
            match found {
                Ok(Some(_)) if self.is_out_of_scope(&name) => {
                    tracing::warn!(object = %name, "left in place: it is not in the namespace that this agent is confined to");
                    self.inventory.records.remove(&name);
                    self.unkept = true;
                }
                Ok(Some(resource)) => leaving.push((name, resource)),
                Ok(None) => {
                    self.inventory.records.remove(&name);
                    self.unkept = true;
                }
                Err(CallError::Refused(refusal)) if refusal.code != 401 => {
                    report
                        .problems
                        .push(problem::of(&name, "UnknownKind", refusal.message));
                }
                Err(error) => return Err(cut_off(error)),
            }
        }
        Ok(leaving)
    }

    fn is_out_of_scope(&self, name: &Name) -> bool {
        self.confined
            .as_ref()
            .is_some_and(|confined| *confined != name.namespace)
    }

    /// Makes up a lost inventory from the objects that carry this device's label and that we manage.
    pub(super) async fn recover(&mut self) -> Result<(), ApplyError> {
        tracing::info!(
            "there is no inventory; looking for what this device's agent applied before"
        );
        let resources = kinds::everything(&self.api).await.map_err(cut_off)?;
        let mut known = BTreeSet::new();
        for resource in resources {
            if self.confined.is_some() && !resource.namespaced {
                continue;
            }
            self.recover_kind(&resource, &mut known).await?;
        }
        self.unkept = true;
        self.keep().await
    }

    async fn recover_kind(
        &mut self,
        resource: &Resource,
        known: &mut BTreeSet<String>,
    ) -> Result<(), ApplyError> {
        let path = resource.path(self.confined.as_deref());
        let path = format!("{path}?labelSelector={DEVICE}%3D{}", self.device);
        let list = match self.api.list(&path, Detail::Metadata).await {
            Ok(list) => list,
            Err(CallError::Refused(refusal)) if refusal.code != 401 => {
                tracing::debug!(
                    kind = resource.kind,
                    message = refusal.message,
                    "cannot be listed"
                );
                return Ok(());
            }
            Err(error) => return Err(cut_off(error)),
        };
        let items = list.get("items").and_then(Value::as_array);
        for (name, seen) in items
            .into_iter()
            .flatten()
            .filter_map(|item| Seen::read(resource, item))
        {
            // Some objects are served by two groups, and are one nevertheless.
            if seen.is_of(&self.device) && known.insert(seen.uid.clone()) {
                let record = Record {
                    version: resource.version.clone(),
                    uid: seen.uid,
                    adopted: seen.shared,
                    ..Record::default()
                };
                self.inventory.records.insert(name, record);
            }
        }
        Ok(())
    }
}

/// An error that concerns all objects alike.
pub(super) fn cut_off(error: CallError) -> ApplyError {
    ApplyError::Unavailable(match error {
        CallError::Unreachable(why) => why,
        CallError::Refused(refusal) => refused(&refusal),
    })
}

fn refused(refusal: &Refusal) -> String {
    match refusal.code {
        401 => unauthorized(refusal),
        _ => refusal.message.clone(),
    }
}
