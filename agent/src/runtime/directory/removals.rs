//! What left the set, for `MicroShift`.
//!
//! `MicroShift` applies `manifests.d/<name>` at each start and deletes nothing that is not there any more. Before that
//! it deletes what is in `manifests.d/delete/<name>`, if it is there to be deleted. So an object that leaves the set
//! is named in that folder, and stays named there, for nobody says when `MicroShift` has seen it, until it comes
//! back into the set. What is named is no more than its name: no `Secret` outlives its removal.
//!
//! An object is never in both places when a pass has ended. Where one is killed between, `MicroShift` deletes and
//! applies it, which is what the set says.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use longshore_protocol::{Object, ObjectKey};
use serde_json::{Value, json};

use super::{
    content,
    inventory::{Inventory, MOST_FILE_BYTES},
};
use crate::files::{FileError, Folder, Found};

/// More are not named; the oldest have long been deleted.
const MOST: usize = 1000;

/// The folder beside `path` in which `MicroShift` looks for what to delete.
pub(super) fn path(path: &Path) -> Option<PathBuf> {
    Some(path.parent()?.join("delete").join(path.file_name()?))
}

/// Opens that folder, and makes it where it is missing.
pub(super) fn open(path: &Path) -> Result<Folder, FileError> {
    Folder::create(path)
}

/// Everything that the folder may have had `MicroShift` apply: the files' objects, by their names.
pub(super) fn objects_of(
    folder: &Folder,
    inventory: &Inventory,
) -> Result<Vec<Applied>, FileError> {
    let mut objects = inventory.objects.clone();
    let known: BTreeSet<_> = objects.iter().map(|it| it.file.clone()).collect();
    // Files of an inventory that was lost, or written before there were removals.
    for file in inventory.files.difference(&known) {
        if let Some(object) = read(folder, file)? {
            objects.push(object);
        }
    }
    Ok(objects)
}

/// The objects named in the folder of removals.
pub(super) fn named_in(folder: &Folder) -> Result<Vec<ObjectKey>, FileError> {
    let inventory = Inventory::read(folder)?;
    let mut named = Vec::new();
    for file in &inventory.files {
        named.extend(read(folder, file)?.map(|object| object.key));
    }
    Ok(named)
}

fn read(folder: &Folder, file: &str) -> Result<Option<Applied>, FileError> {
    let Found::File { content, .. } = folder.read(file, MOST_FILE_BYTES)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&content);
    let object = content::is_ours(file, text.as_bytes())
        .then(|| serde_saphyr::from_str::<Value>(&text).ok())
        .flatten()
        .and_then(|value| Object::from_value(&value).ok());
    Ok(object
        .filter(|object| object.key().kind != "Kustomization")
        .map(|object| Applied::of(file, &object)))
}

/// An object and its file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Applied {
    pub(super) file: String,
    pub(super) key: ObjectKey,
    /// Whether it stays when it leaves the set.
    #[serde(default)]
    pub(super) keep: bool,
}

impl Applied {
    pub(super) fn of(file: &str, object: &Object) -> Self {
        let value = object.value();
        let prune = value.pointer("/metadata/annotations/longshore.dev~1prune");
        Self {
            file: file.to_owned(),
            key: object.key().clone(),
            keep: prune.and_then(Value::as_str) == Some("disabled"),
        }
    }
}

/// What is to be named: what was, and what leaves now, without what is in the set.
pub(super) fn due(named: &[ObjectKey], applied: &[Applied], wanted: &[Applied]) -> Vec<ObjectKey> {
    let wanted: BTreeSet<_> = wanted.iter().map(|it| &it.key).collect();
    let leaving = applied.iter().filter(|it| !it.keep).map(|it| &it.key);
    let mut due: Vec<ObjectKey> = Vec::new();
    for key in named.iter().chain(leaving) {
        if !wanted.contains(key) && !due.contains(key) {
            due.push(key.clone());
        }
    }
    due.drain(..due.len().saturating_sub(MOST));
    due
}

/// What may be there while a pass goes on: what was, and what comes.
pub(super) fn together(before: Vec<Applied>, wanted: &[Applied]) -> Vec<Applied> {
    let mut all = wanted.to_vec();
    for object in before {
        if !all.iter().any(|it| it.key == object.key) {
            all.push(object);
        }
    }
    all
}

/// Objects that are no more than their names.
pub(super) fn objects(keys: &[ObjectKey]) -> Vec<Object> {
    let objects = keys.iter().filter_map(|key| {
        let mut metadata = json!({"name": key.name});
        if let (Some(metadata), false) = (metadata.as_object_mut(), key.namespace.is_empty()) {
            metadata.insert("namespace".to_owned(), key.namespace.clone().into());
        }
        let value = json!({"apiVersion": key.api_version, "kind": key.kind, "metadata": metadata});
        Object::from_value(&value).ok()
    });
    objects.collect()
}
