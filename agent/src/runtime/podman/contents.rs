//! What is in the volumes that stand for ConfigMaps, Secrets and empty directories.
//!
//! The agent fills them itself. Podman's own way differs between versions (4.3 mounts a Secret's values as
//! base64) and adds to a volume that is there already, so a key that left a ConfigMap would stay. A volume of
//! ours belongs to one revision of one pod, and is complete before the pod is made.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use longshore_protocol::Object;
use serde_json::{Map, Value};

const FILE_MODE: u32 = 0o644;

/// A volume of one revision of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Volume {
    /// Its name in Podman.
    pub(super) name: String,
    /// Files by path, with their modes.
    pub(super) files: BTreeMap<String, (u32, Vec<u8>)>,
    /// Where it is in memory: the options of that file system.
    pub(super) memory: Option<String>,
}

impl Volume {
    /// Adds the files of a ConfigMap or Secret, as its `items` and modes say.
    pub(super) fn add(&mut self, source: &Value, values: &Values) -> Result<(), String> {
        let default_mode = mode(source.get("defaultMode")).unwrap_or(FILE_MODE);
        let optional = source.get("optional").and_then(Value::as_bool) == Some(true);
        let Some(items) = source.get("items").and_then(Value::as_array) else {
            for (key, value) in values {
                self.put(key, default_mode, value.clone())?;
            }
            return Ok(());
        };
        for item in items {
            let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
            let (key, path) = (text("key"), text("path"));
            match values.get(key) {
                Some(value) => {
                    let mode = mode(item.get("mode")).unwrap_or(default_mode);
                    self.put(path, mode, value.clone())?;
                }
                None if optional => {}
                None => return Err(format!("there is no key `{key}` to mount")),
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &str, mode: u32, content: Vec<u8>) -> Result<(), String> {
        let is_plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        if !path.split('/').all(is_plain) {
            return Err(format!("`{path}` is no path for a file in a volume"));
        }
        self.files.insert(path.to_owned(), (mode, content));
        Ok(())
    }

    /// The files as a tar archive, which is what `podman volume import` reads.
    pub(super) fn archive(&self) -> std::io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut made = Vec::new();
        for (path, (mode, content)) in &self.files {
            for (at, _) in path.match_indices('/') {
                let folder = path.get(..at).unwrap_or_default();
                if !made.contains(&folder) {
                    let mut header = header(0o755, 0);
                    header.set_entry_type(tar::EntryType::Directory);
                    archive.append_data(&mut header, folder, std::io::empty())?;
                    made.push(folder);
                }
            }
            let mut header = header(*mode, content.len() as u64);
            archive.append_data(&mut header, path, content.as_slice())?;
        }
        archive.into_inner()
    }
}

fn header(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn mode(value: Option<&Value>) -> Option<u32> {
    u32::try_from(value?.as_u64()?)
        .ok()
        .map(|mode| mode & 0o777)
}

/// The decoded values of a ConfigMap or Secret.
pub(super) type Values = BTreeMap<String, Vec<u8>>;

/// The values of this ConfigMap or Secret.
pub(super) fn values(object: &Object) -> Result<Values, String> {
    let value = object.value();
    let is_secret = object.key().kind == "Secret";
    let (encoded, plain) = if is_secret {
        ("data", "stringData")
    } else {
        ("binaryData", "data")
    };
    let wrong = |key: &str| format!("the value of `{key}` in {} cannot be read", object.key());
    let mut values = Values::new();
    for (key, value) in members(&value, encoded) {
        let bytes = value.as_str().and_then(|text| {
            // Line breaks in base64 are usual in hand-made manifests, and Kubernetes takes them.
            let text: String = text.split_ascii_whitespace().collect();
            STANDARD.decode(text).ok()
        });
        values.insert(key.clone(), bytes.ok_or_else(|| wrong(key))?);
    }
    for (key, value) in members(&value, plain) {
        let text = value.as_str().ok_or_else(|| wrong(key))?;
        values.insert(key.clone(), text.as_bytes().to_vec());
    }
    Ok(values)
}

/// The values in the one form that every version of Podman reads environment variables from.
pub(super) fn as_secret(values: &Values) -> Vec<u8> {
    let encoded: Map<String, Value> = values
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(STANDARD.encode(value))))
        .collect();
    serde_json::to_vec(&encoded).unwrap_or_default()
}

fn members<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value
        .get(name)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret() -> Values {
        let object = Object::from_value(&json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "s"}, "data": {"a": "aHVu\ndGVyMg==", "b": "AP8="},
            "stringData": {"a": "wins", "c": "text"}}))
        .unwrap();
        values(&object).unwrap()
    }

    #[test]
    fn values_are_decoded() {
        let values = secret();
        assert_eq!(values["a"], b"wins");
        assert_eq!(values["b"], [0, 255]);
        assert_eq!(
            as_secret(&values),
            br#"{"a":"d2lucw==","b":"AP8=","c":"dGV4dA=="}"#
        );
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
            "data": {"a": "b64="}, "binaryData": {"b": "not base64!"}});
        let wrong = super::values(&Object::from_value(&map).unwrap()).unwrap_err();
        assert!(wrong.contains("`b` in v1/ConfigMap/c"), "{wrong}");
    }

    #[test]
    fn items_choose_paths_and_modes() {
        let mut volume = Volume::default();
        let source = json!({"defaultMode": 0o600, "items": [
            {"key": "a", "path": "x/y/a"}, {"key": "c", "path": "x/c", "mode": 0o400}]});
        volume.add(&source, &secret()).unwrap();
        let archive = volume.archive().unwrap();
        let mut archive = tar::Archive::new(archive.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap())
            })
            .collect();
        let expected = [
            ("x", 0o755),
            ("x/c", 0o400),
            ("x/y", 0o755),
            ("x/y/a", 0o600),
        ];
        assert_eq!(found, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn no_path_leaves_the_volume() {
        for path in ["../a", "/a", "a/../b", "", "a//b", "."] {
            let source = json!({"items": [{"key": "a", "path": path}]});
            let wrong = Volume::default().add(&source, &secret()).unwrap_err();
            assert!(wrong.contains("is no path"), "{wrong}");
        }
        let source = json!({"items": [{"key": "z", "path": "z"}]});
        Volume::default().add(&source, &secret()).unwrap_err();
        let source = json!({"optional": true, "items": [{"key": "z", "path": "z"}]});
        Volume::default().add(&source, &secret()).unwrap();
    }
}
