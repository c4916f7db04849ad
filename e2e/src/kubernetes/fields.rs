//! Who manages which fields: server-side apply as Kubernetes documents it, without schemas.
//!
//! A field is a path to a leaf. Lists are leaves, but for those that the API declares as associative (containers by
//! name, ports by number and protocol, conditions by type) or as sets (finalizers).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// One step of a path, as `fieldsV1` writes it: `f:name`, `k:{"name":"till"}`, `v:"value"`, or `.` for itself.
pub type Path = Vec<String>;

/// What one manager has.
#[derive(Clone, Debug)]
pub struct Manager {
    pub name: String,
    /// `Apply` or `Update`.
    pub operation: &'static str,
    pub api_version: String,
    pub subresource: String,
    pub time: String,
    pub fields: BTreeSet<Path>,
}

impl Manager {
    /// The entry of `metadata.managedFields`.
    pub fn entry(&self) -> Value {
        let mut tree = json!({});
        for path in &self.fields {
            let mut at = &mut tree;
            for step in path {
                let members = at.as_object_mut().unwrap();
                at = members.entry(step.clone()).or_insert_with(|| json!({}));
            }
        }
        let mut entry = json!({"manager": self.name, "operation": self.operation, "time": self.time,
            "apiVersion": self.api_version, "fieldsType": "FieldsV1", "fieldsV1": tree});
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.clone().into();
        }
        entry
    }

    /// As a conflict names it.
    pub fn called(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == "Update" {
            text.push_str(&format!(" using {} at {}", self.api_version, self.time));
        }
        text
    }
}

/// The fields of an object with their values: all that can be managed.
pub fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    let mut leaves = BTreeMap::new();
    let mut object = object.clone();
    if let Some(members) = object.as_object_mut() {
        members.remove("apiVersion");
        members.remove("kind");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let kept = ["labels", "annotations", "finalizers", "ownerReferences"];
        metadata.retain(|name, _| kept.contains(&name.as_str()));
        if metadata.is_empty() {
            object.as_object_mut().unwrap().remove("metadata");
        }
    }
    collect(&object, "", &mut Vec::new(), &mut leaves);
    leaves
}

fn collect(value: &Value, name: &str, path: &mut Path, leaves: &mut BTreeMap<Path, Value>) {
    match value {
        // A null in a manifest says nothing.
        Value::Null => {}
        Value::Object(members) if !members.is_empty() && !is_atomic(name) => {
            for (member, value) in members {
                path.push(format!("f:{member}"));
                collect(value, member, path, leaves);
                path.pop();
            }
        }
        Value::Array(items) if name == "finalizers" => {
            for item in items {
                path.push(format!("v:{item}"));
                leaves.insert(path.clone(), item.clone());
                path.pop();
            }
        }
        Value::Array(items)
            if items.iter().all(|item| keys(name, item).is_some()) && !items.is_empty() =>
        {
            for item in items {
                path.push(format!("k:{}", keys(name, item).unwrap()));
                path.push(".".to_owned());
                leaves.insert(path.clone(), Value::Null);
                path.pop();
                collect(item, "", path, leaves);
                path.pop();
            }
        }
        leaf => {
            if !path.is_empty() {
                leaves.insert(path.clone(), leaf.clone());
            }
        }
    }
}

fn is_atomic(name: &str) -> bool {
    ["selector", "nodeSelector", "resources", "roleRef"].contains(&name)
}

/// The keys of an item of an associative list.
fn keys(list: &str, item: &Value) -> Option<Value> {
    let names: &[&str] = match list {
        "containers" | "initContainers" | "volumes" | "env" => &["name"],
        "conditions" => &["type"],
        "ports" if item.get("containerPort").is_some() => &["containerPort", "protocol"],
        "ports" => &["port", "protocol"],
        "volumeMounts" => &["mountPath"],
        _ => return None,
    };
    let mut keys = Map::new();
    for name in names {
        let key = item.get(*name).cloned();
        let key = key.or_else(|| (*name == "protocol").then(|| json!("TCP")))?;
        keys.insert((*name).to_owned(), key);
    }
    Some(Value::Object(keys))
}

/// Sets the leaf at `path`.
pub fn set(object: &mut Value, path: &[String], leaf: &Value) {
    let Some((step, rest)) = path.split_first() else {
        *object = leaf.clone();
        return;
    };
    if let Some(member) = step.strip_prefix("f:") {
        if !object.is_object() {
            *object = json!({});
        }
        let members = object.as_object_mut().unwrap();
        set(members.entry(member).or_insert(Value::Null), rest, leaf);
    } else if step.starts_with("v:") {
        let items = items(object);
        if !items.contains(leaf) {
            items.push(leaf.clone());
        }
    } else if let Some(keys) = step.strip_prefix("k:") {
        let keys: Value = serde_json::from_str(keys).unwrap();
        let items = items(object);
        let at = items
            .iter()
            .position(|item| has(item, &keys))
            .unwrap_or_else(|| {
                items.push(keys.clone());
                items.len() - 1
            });
        if rest != ["."] {
            set(&mut items[at], rest, leaf);
        }
    }
}

fn items(object: &mut Value) -> &mut Vec<Value> {
    if !object.is_array() {
        *object = json!([]);
    }
    object.as_array_mut().unwrap()
}

fn has(item: &Value, keys: &Value) -> bool {
    keys.as_object().unwrap().iter().all(|(name, key)| {
        item.get(name) == Some(key)
            || (name == "protocol" && item.get(name).is_none() && key == "TCP")
    })
}

/// Removes the leaf at `path`, and what it leaves empty.
pub fn remove(object: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else {
        return;
    };
    if let Some(member) = step.strip_prefix("f:") {
        let Some(members) = object.as_object_mut() else {
            return;
        };
        let Some(value) = members.get_mut(member) else {
            return;
        };
        remove(value, rest);
        let empty = value.as_object().is_some_and(Map::is_empty) || value == &json!([]);
        if rest.is_empty() || empty {
            members.remove(member);
        }
    } else if let (Some(value), Some(items)) = (step.strip_prefix("v:"), object.as_array_mut()) {
        let value: Value = serde_json::from_str(value).unwrap();
        items.retain(|item| *item != value);
    } else if let (Some(keys), Some(items)) = (step.strip_prefix("k:"), object.as_array_mut()) {
        let keys: Value = serde_json::from_str(keys).unwrap();
        if rest == ["."] {
            items.retain(|item| !has(item, &keys));
        } else if let Some(item) = items.iter_mut().find(|item| has(item, &keys)) {
            remove(item, rest);
        }
    }
}

/// As a conflict names the field: `.spec.template.spec.containers[name="till"].image`.
pub fn called(path: &Path) -> String {
    let mut text = String::new();
    for step in path {
        if let Some(member) = step.strip_prefix("f:") {
            text.push('.');
            text.push_str(member);
        } else if let Some(keys) = step.strip_prefix("k:") {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap();
            let keys: Vec<_> = keys
                .iter()
                .map(|(name, key)| format!("{name}={key}"))
                .collect();
            text.push_str(&format!("[{}]", keys.join(",")));
        } else if let Some(value) = step.strip_prefix("v:") {
            text.push_str(&format!("[={value}]"));
        }
    }
    text
}

/// One field that somebody else manages with another value.
#[derive(Clone, Debug)]
pub struct Conflict {
    pub manager: String,
    pub field: String,
}

/// An object and its managers.
#[derive(Clone, Debug)]
pub struct Managed {
    pub object: Value,
    pub managers: Vec<Manager>,
}

/// Who does something to an object, when, and by which version of its API.
#[derive(Clone, Copy, Debug)]
pub struct Hand<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
    pub api_version: &'a str,
    pub time: &'a str,
}

impl Managed {
    /// Server-side apply.
    pub fn apply(
        &self,
        manifest: &Value,
        hand: Hand<'_>,
        force: bool,
    ) -> Result<Self, Vec<Conflict>> {
        let wanted = leaves(manifest);
        let live = leaves(&self.object);
        let is_own = |it: &Manager| it.name == hand.manager && it.operation == "Apply";
        let mut managers = self.managers.clone();
        let mut conflicts = Vec::new();
        for other in managers.iter_mut().filter(|it| !is_own(it)) {
            let differing: BTreeSet<_> = other
                .fields
                .iter()
                .filter(|path| {
                    wanted
                        .get(*path)
                        .is_some_and(|value| live.get(*path) != Some(value))
                })
                .cloned()
                .collect();
            conflicts.extend(differing.iter().map(|path| Conflict {
                manager: other.called(),
                field: called(path),
            }));
            other.fields.retain(|path| !differing.contains(path));
        }
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        let mut object = self.object.clone();
        let before = managers.iter().find(|it| is_own(it)).cloned();
        let given_up = before
            .iter()
            .flat_map(|own| &own.fields)
            .filter(|path| !wanted.contains_key(*path));
        for path in given_up {
            let shared = managers
                .iter()
                .any(|it| !is_own(it) && it.fields.contains(path));
            if !shared {
                remove(&mut object, path);
            }
        }
        for (path, value) in &wanted {
            set(&mut object, path, value);
        }
        let fields: BTreeSet<_> = wanted.into_keys().collect();
        let time = match &before {
            Some(before) if before.fields == fields && object == self.object => before.time.clone(),
            _ => hand.time.to_owned(),
        };
        managers.retain(|it| !is_own(it) && !it.fields.is_empty());
        if !fields.is_empty() {
            managers.push(Manager {
                name: hand.manager.to_owned(),
                operation: "Apply",
                api_version: hand.api_version.to_owned(),
                subresource: String::new(),
                time,
                fields,
            });
        }
        Ok(Self { object, managers })
    }

    /// A change by other means: whoever makes it manages what it changed.
    pub fn update(&self, object: Value, hand: Hand<'_>) -> Self {
        let (before, after) = (leaves(&self.object), leaves(&object));
        let changed: BTreeSet<_> = after
            .iter()
            .filter(|(path, value)| before.get(*path) != Some(value))
            .map(|(path, _)| path.clone())
            .collect();
        let mut managers = self.managers.clone();
        for manager in &mut managers {
            manager
                .fields
                .retain(|path| !changed.contains(path) && after.contains_key(path));
        }
        let is_own = |it: &Manager| {
            it.name == hand.manager
                && it.operation == "Update"
                && it.subresource == hand.subresource
        };
        if !changed.is_empty() {
            match managers.iter_mut().find(|it| is_own(it)) {
                Some(own) => {
                    own.fields.extend(changed);
                    hand.time.clone_into(&mut own.time);
                }
                None => managers.push(Manager {
                    name: hand.manager.to_owned(),
                    operation: "Update",
                    api_version: hand.api_version.to_owned(),
                    subresource: hand.subresource.to_owned(),
                    time: hand.time.to_owned(),
                    fields: changed,
                }),
            }
        }
        managers.retain(|manager| !manager.fields.is_empty());
        Self { object, managers }
    }
}
