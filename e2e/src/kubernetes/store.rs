//! The double's objects, and what may be done to them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    fields::{Conflict, Hand, Managed},
    kinds::{Kind, built_in, invalid},
};

/// Where an object is: group, plural, namespace, name.
pub type At = (String, String, String, String);

/// A refusal: its code and its `Status`.
#[derive(Clone, Debug)]
pub struct Refused(pub u16, pub Value);

/// What was done, for watches.
#[derive(Clone, Debug)]
pub struct Done {
    pub version: u64,
    pub group: String,
    pub plural: String,
    pub namespace: String,
    /// As it was before, where it was.
    pub before: Option<Value>,
    /// As it is now, or was when it went.
    pub object: Value,
    pub gone: bool,
}

/// Everything.
#[derive(Debug)]
pub struct Store {
    pub kinds: Vec<Kind>,
    pub objects: BTreeMap<At, Managed>,
    pub log: Vec<Done>,
    /// Watches from before this version are told that they are too old.
    pub compacted: u64,
    pub version: u64,
    /// Whether definitions are left without being established.
    pub holds_definitions: bool,
    seconds: u64,
    uids: u64,
}

/// Who does something.
#[derive(Clone, Copy, Debug)]
pub struct By<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
}

impl Store {
    pub fn new() -> Self {
        let mut store = Self {
            kinds: built_in(),
            objects: BTreeMap::new(),
            log: Vec::new(),
            compacted: 0,
            version: 1,
            holds_definitions: false,
            seconds: 0,
            uids: 0,
        };
        for name in ["default", "kube-system"] {
            let namespace =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            store.apply("kube-apiserver", &namespace, false).unwrap();
        }
        store
    }

    pub fn kind(&self, group: &str, plural: &str) -> Option<&Kind> {
        self.kinds
            .iter()
            .find(|kind| kind.group == group && kind.plural == plural)
    }

    /// The kind of a manifest, and where its object is.
    pub fn place(&self, manifest: &Value) -> (Kind, At) {
        let api_version = manifest["apiVersion"].as_str().unwrap();
        let kind = self
            .kinds
            .iter()
            .find(|kind| {
                kind.api_version() == api_version && manifest["kind"] == kind.kind.as_str()
            })
            .unwrap_or_else(|| panic!("no kind of {manifest}"))
            .clone();
        let metadata = &manifest["metadata"];
        let namespace = if kind.namespaced {
            metadata["namespace"].as_str().unwrap_or("default")
        } else {
            ""
        };
        let at = (
            kind.group.clone(),
            kind.plural.clone(),
            namespace.to_owned(),
            metadata["name"].as_str().unwrap_or_default().to_owned(),
        );
        (kind, at)
    }

    /// The object as it is shown.
    pub fn shown(managed: &Managed) -> Value {
        let mut object = managed.object.clone();
        let entries: Vec<_> = managed
            .managers
            .iter()
            .map(super::fields::Manager::entry)
            .collect();
        object["metadata"]["managedFields"] = entries.into();
        object
    }

    /// Server-side apply; whether it created the object.
    pub fn apply(
        &mut self,
        manager: &str,
        manifest: &Value,
        force: bool,
    ) -> Result<(bool, Value), Refused> {
        let (kind, at) = self.place(manifest);
        let time = self.time();
        let api_version = kind.api_version();
        let hand = Hand {
            manager,
            subresource: "",
            api_version: &api_version,
            time: &time,
        };
        let live = self.objects.get(&at).cloned();
        let mut manifest = manifest.clone();
        let metadata = manifest["metadata"].as_object_mut();
        if let Some(asked) = metadata.and_then(|metadata| metadata.remove("resourceVersion")) {
            let live = live.as_ref();
            if live.is_none_or(|live| live.object["metadata"]["resourceVersion"] != asked) {
                let message = format!(
                    "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to the latest version and try again",
                    at.1, at.3
                );
                return Err(status(409, "Conflict", &message, &json!([])));
            }
        }
        let metadata = manifest["metadata"].as_object_mut();
        if let Some(asked) = metadata.and_then(|metadata| metadata.remove("uid")) {
            refuse_other(&kind, &at, live.as_ref(), &asked)?;
        }
        let manifest = &manifest;
        if live.is_none() {
            self.may_create(&kind, &at)?;
        }
        let from = live.clone().unwrap_or_else(|| Managed {
            object: self.born(&kind, &at, &time),
            managers: Vec::new(),
        });
        let next = from
            .apply(manifest, hand, force)
            .map_err(|conflicts| refused_conflicts(&conflicts))?;
        let before = live.as_ref().map(|live| &live.object);
        refuse_invalid(&kind, &at, before, &next.object)?;
        let created = live.is_none();
        let stored = self.put(&kind, at.clone(), live.as_ref(), next);
        if created {
            self.after_creation(&kind, &at);
        }
        Ok((created, self.objects.get(&at).map_or(stored, Self::shown)))
    }

    /// A change by other means than apply.
    pub fn update(
        &mut self,
        by: By<'_>,
        at: &At,
        change: impl FnOnce(&mut Value),
    ) -> Result<Value, Refused> {
        let live = self
            .objects
            .get(at)
            .cloned()
            .ok_or_else(|| not_found(&at.1, &at.3))?;
        let kind = self.kind(&at.0, &at.1).unwrap().clone();
        let mut object = live.object.clone();
        change(&mut object);
        if by.subresource.is_empty() {
            refuse_invalid(&kind, at, Some(&live.object), &object)?;
        }
        let time = self.time();
        let api_version = kind.api_version();
        let hand = Hand {
            manager: by.manager,
            subresource: by.subresource,
            api_version: &api_version,
            time: &time,
        };
        let next = live.update(object, hand);
        let ends =
            !next.object["metadata"]["deletionTimestamp"].is_null() && !is_held(&next.object);
        let stored = self.put(&kind, at.clone(), Some(&live), next);
        if ends {
            self.erase(at);
        }
        Ok(stored)
    }

    /// Deletes, or begins to. The answer is the object where it waits for finalizers.
    pub fn delete(&mut self, at: &At, preconditions: &Value) -> Result<Value, Refused> {
        let live = self
            .objects
            .get(at)
            .cloned()
            .ok_or_else(|| not_found(&at.1, &at.3))?;
        let metadata = &live.object["metadata"];
        for (field, name) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let (asked, is) = (&preconditions[field], &metadata[field]);
            if !asked.is_null() && asked != is {
                let message = format!(
                    "Operation cannot be fulfilled on {} {:?}: the {name} in the precondition ({}) does not match the {name} in record ({}). The object might have been modified",
                    at.1,
                    at.3,
                    asked.as_str().unwrap(),
                    is.as_str().unwrap()
                );
                return Err(status(409, "Conflict", &message, &json!([])));
            }
        }
        let is_namespace = at.1 == "namespaces";
        if is_held(&live.object) || is_namespace {
            if metadata["deletionTimestamp"].is_null() {
                let time = self.time();
                let kind = self.kind(&at.0, &at.1).unwrap().clone();
                let mut next = live.clone();
                next.object["metadata"]["deletionTimestamp"] = time.into();
                next.object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
                if is_namespace {
                    next.object["status"]["phase"] = "Terminating".into();
                }
                self.put(&kind, at.clone(), Some(&live), next);
            }
            if is_namespace {
                self.empty(&at.3);
            }
            if let Some(waiting) = self.objects.get(at) {
                return Ok(Self::shown(waiting));
            }
        } else {
            self.erase(at);
        }
        Ok(
            json!({"kind": "Status", "apiVersion": "v1", "status": "Success",
            "details": {"name": at.3, "kind": at.1, "uid": live.object["metadata"]["uid"]}}),
        )
    }

    /// Establishes the definitions that were held.
    pub fn establish(&mut self) {
        self.holds_definitions = false;
        let definitions: Vec<_> = self
            .objects
            .keys()
            .filter(|at| at.1 == "customresourcedefinitions")
            .cloned()
            .collect();
        for at in definitions {
            self.serve(&at);
        }
    }

    /// Forgets what happened so far.
    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
    }

    fn may_create(&self, kind: &Kind, at: &At) -> Result<(), Refused> {
        if !kind.namespaced {
            return Ok(());
        }
        let namespace = (
            String::new(),
            "namespaces".to_owned(),
            String::new(),
            at.2.clone(),
        );
        let Some(namespace) = self.objects.get(&namespace) else {
            return Err(not_found("namespaces", &at.2));
        };
        if namespace.object["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let message = format!(
            "{} {:?} is forbidden: unable to create new content in namespace {} because it is being terminated",
            kind.called(),
            at.3,
            at.2
        );
        let cause = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
            "message": format!("namespace {} is being terminated", at.2)}]);
        Err(status(403, "Forbidden", &message, &cause))
    }

    fn born(&mut self, kind: &Kind, at: &At, time: &str) -> Value {
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012}", self.uids);
        let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"name": at.3, "uid": uid, "creationTimestamp": time}});
        if kind.namespaced {
            object["metadata"]["namespace"] = at.2.clone().into();
        }
        if kind.counts_generations() {
            object["metadata"]["generation"] = 1.into();
        }
        if kind.kind == "Namespace" {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
        }
        object
    }

    fn after_creation(&mut self, kind: &Kind, at: &At) {
        if kind.kind == "CustomResourceDefinition" {
            if self.holds_definitions {
                let by = By {
                    manager: "kube-apiserver",
                    subresource: "status",
                };
                let installing = json!([{"type": "Established", "status": "False", "reason": "Installing",
                    "message": "the initial names have been accepted"}]);
                let changed =
                    self.update(by, at, |object| object["status"]["conditions"] = installing);
                changed.unwrap();
            } else {
                self.serve(at);
            }
        }
    }

    fn serve(&mut self, at: &At) {
        let by = By {
            manager: "kube-apiserver",
            subresource: "status",
        };
        let established = json!([{"type": "NamesAccepted", "status": "True", "reason": "NoConflicts"},
            {"type": "Established", "status": "True", "reason": "InitialNamesAccepted"}]);
        let object = self
            .update(by, at, |object| {
                object["status"]["conditions"] = established;
            })
            .unwrap();
        let kind = Kind::defined(&object);
        if !self.kinds.contains(&kind) {
            self.kinds.push(kind);
        }
    }

    /// Stores, unless nothing changed.
    fn put(&mut self, kind: &Kind, at: At, live: Option<&Managed>, mut next: Managed) -> Value {
        if let Some(live) = live {
            let entries = |managed: &Managed| {
                let managers = managed.managers.iter();
                managers
                    .map(|it| (it.called_without_time(), it.fields.clone()))
                    .collect::<Vec<_>>()
            };
            if live.object == next.object && entries(live) == entries(&next) {
                return Self::shown(live);
            }
            if kind.counts_generations() && live.object["spec"] != next.object["spec"] {
                let generation = live.object["metadata"]["generation"].as_u64().unwrap_or(1);
                next.object["metadata"]["generation"] = (generation + 1).into();
            }
        }
        self.version += 1;
        next.object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let shown = Self::shown(&next);
        self.log.push(Done {
            version: self.version,
            group: at.0.clone(),
            plural: at.1.clone(),
            namespace: at.2.clone(),
            before: live.map(Self::shown),
            object: shown.clone(),
            gone: false,
        });
        self.objects.insert(at, next);
        shown
    }

    fn erase(&mut self, at: &At) {
        let Some(mut gone) = self.objects.remove(at) else {
            return;
        };
        self.version += 1;
        let before = Self::shown(&gone);
        gone.object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push(Done {
            version: self.version,
            group: at.0.clone(),
            plural: at.1.clone(),
            namespace: at.2.clone(),
            before: Some(before),
            object: Self::shown(&gone),
            gone: true,
        });
        if at.1 == "customresourcedefinitions" {
            let kind = Kind::defined(&gone.object);
            let instances: Vec<_> = self
                .objects
                .keys()
                .filter(|it| it.1 == kind.plural)
                .cloned()
                .collect();
            for instance in instances {
                self.erase(&instance);
            }
            self.kinds.retain(|it| *it != kind);
        }
        self.end_empty_namespaces();
    }

    /// Deletes what is in a namespace that is being deleted.
    fn empty(&mut self, namespace: &str) {
        let inside: Vec<_> = self
            .objects
            .keys()
            .filter(|at| at.2 == namespace)
            .cloned()
            .collect();
        for at in inside {
            self.delete(&at, &Value::Null).unwrap();
        }
        self.end_empty_namespaces();
    }

    fn end_empty_namespaces(&mut self) {
        let ending: Vec<_> = self
            .objects
            .iter()
            .filter(|(at, managed)| {
                at.1 == "namespaces" && !managed.object["metadata"]["deletionTimestamp"].is_null()
            })
            .map(|(at, _)| at.clone())
            .collect();
        for at in ending {
            let held = self.objects[&at].object["metadata"]["finalizers"].is_array();
            if !held && !self.objects.keys().any(|it| it.2 == at.3) {
                self.erase(&at);
            }
        }
    }

    /// The next second.
    fn time(&mut self) -> String {
        self.seconds += 1;
        let start: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        (start + std::time::Duration::from_secs(self.seconds)).to_string()
    }
}

impl super::fields::Manager {
    fn called_without_time(&self) -> (String, &'static str, String) {
        (self.name.clone(), self.operation, self.subresource.clone())
    }
}

fn is_held(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|finalizers| !finalizers.is_empty())
}

fn refuse_invalid(
    kind: &Kind,
    at: &At,
    before: Option<&Value>,
    after: &Value,
) -> Result<(), Refused> {
    let causes = invalid(kind, before, after);
    if causes.is_empty() {
        return Ok(());
    }
    let texts: Vec<_> = causes
        .iter()
        .map(|cause| {
            format!(
                "{}: {}",
                cause["field"].as_str().unwrap(),
                cause["message"].as_str().unwrap()
            )
        })
        .collect();
    let text = match texts.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let group = if kind.group.is_empty() {
        String::new()
    } else {
        format!(".{}", kind.group)
    };
    let message = format!("{}{group} {:?} is invalid: {text}", kind.kind, at.3);
    Err(status(422, "Invalid", &message, &json!(causes)))
}

/// An apply that names an id is for the object of that id, and makes none.
fn refuse_other(kind: &Kind, at: &At, live: Option<&Managed>, uid: &Value) -> Result<(), Refused> {
    let Some(live) = live else {
        let message = format!(
            "Operation cannot be fulfilled on {} {:?}: uid mismatch: the provided object specified uid {}, and no existing object was found",
            kind.called(),
            at.3,
            uid.as_str().unwrap()
        );
        return Err(status(409, "Conflict", &message, &json!([])));
    };
    if live.object["metadata"]["uid"] == *uid {
        return Ok(());
    }
    let message = format!("Invalid value: {uid}: field is immutable");
    let cause =
        json!([{"reason": "FieldValueInvalid", "field": "metadata.uid", "message": message}]);
    let message = format!(
        "{} {:?} is invalid: metadata.uid: {message}",
        kind.kind, at.3
    );
    Err(status(422, "Invalid", &message, &cause))
}

fn refused_conflicts(conflicts: &[Conflict]) -> Refused {
    let causes: Vec<_> = conflicts
        .iter()
        .map(|it| {
            json!({"reason": "FieldManagerConflict", "field": it.field,
                   "message": format!("conflict with {}", it.manager)})
        })
        .collect();
    let message = match conflicts {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.field
        ),
        many => format!("Apply failed with {} conflicts", many.len()),
    };
    status(409, "Conflict", &message, &json!(causes))
}

/// The API server's way to refuse.
pub fn status(code: u16, reason: &str, message: &str, causes: &Value) -> Refused {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "details": {"causes": causes}, "code": code});
    Refused(code, body)
}

pub fn not_found(plural: &str, name: &str) -> Refused {
    status(
        404,
        "NotFound",
        &format!("{plural} {name:?} not found"),
        &json!([]),
    )
}
