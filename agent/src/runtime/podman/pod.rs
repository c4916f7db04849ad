//! From a pod template to what `podman kube play` gets on stdin.
//!
//! What a pod reads (ConfigMaps, Secrets) becomes part of it: its revision is the digest of all of that together,
//! and everything that is made for it carries the revision in its name. So a pod is replaced when, and only when,
//! something that it is made of has changed, old and new never share a volume, and a revision that is there is
//! there completely.
//!
//! Two things are rewritten: volumes of ConfigMaps, Secrets and empty directories become volumes that the agent
//! fills (see [`contents`](super::contents)), and images are never pulled by `kube play`, because the agent has
//! pulled them before it touches what runs.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::{DeviceId, Digest, Object, ObjectKey};
use serde_json::{Map, Value, json};

use super::{
    contents::{self, Values, Volume},
    labels,
};

/// Goes into every revision: another number replaces every pod of every device that is updated.
const FORMAT: &[u8] = b"longshore.dev/podman/v1";
/// What Kubernetes gives processes to end.
const DEFAULT_GRACE: u64 = 30;

/// When containers are started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pull {
    Never,
    IfNotPresent,
    Always,
}

/// What tells a pod from others, and what to expect of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) object: ObjectKey,
    /// Its name in Podman.
    pub(super) name: String,
    pub(super) revision: Digest,
    pub(super) restart: Restart,
    /// The names of its containers in Podman, without those that only prepare it.
    pub(super) containers: BTreeSet<String>,
}

/// A pod with all that is to be made for it.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) expected: Expected,
    pub(super) images: BTreeMap<String, Pull>,
    pub(super) volumes: Vec<Volume>,
    /// Podman's secrets, by name.
    pub(super) secrets: BTreeMap<String, Vec<u8>>,
    /// Whether it has containers that run before the others.
    pub(super) is_prepared: bool,
    config_maps: Vec<Value>,
    manifest: Value,
}

/// What a pod is made from.
#[derive(Debug)]
pub(super) struct Template<'a> {
    pub(super) object: &'a ObjectKey,
    pub(super) name: String,
    pub(super) labels: Map<String, Value>,
    pub(super) annotations: Map<String, Value>,
    pub(super) spec: Value,
    pub(super) default_restart: &'static str,
    pub(super) keep: bool,
}

/// The ConfigMaps and Secrets of a set, by kind, namespace and name.
pub(super) type Inputs<'a> = BTreeMap<(&'a str, &'a str, &'a str), &'a Object>;

impl Pod {
    /// The pod of this template on this device, or what is wrong with it.
    pub(super) fn of(
        template: Template<'_>,
        inputs: &Inputs<'_>,
        device: &DeviceId,
    ) -> Result<Self, String> {
        let names: BTreeSet<_> = containers(&template.spec, "containers")
            .map(|container| text(container, "name"))
            .map(|name| format!("{}-{name}", template.name))
            .collect();
        if names.is_empty() {
            return Err("it has no containers".to_owned());
        }
        let restart = match template.spec.get("restartPolicy").and_then(Value::as_str) {
            Some(given) => given,
            None => template.default_restart,
        };
        let restart = match restart {
            "Always" => Restart::Always,
            "OnFailure" => Restart::OnFailure,
            "Never" => Restart::Never,
            other => return Err(format!("`{other}` is no restartPolicy")),
        };
        let revision = revision(&template, inputs);
        let mut rewriting = Rewriting {
            inputs,
            namespace: &template.object.namespace,
            pod: &template.name,
            suffix: revision.short(),
            config_maps: BTreeMap::new(),
            secrets: BTreeMap::new(),
            volumes: Vec::new(),
            images: BTreeMap::new(),
        };
        let mut spec = template.spec;
        rewriting.rewrite(&mut spec)?;
        let grace = spec
            .get("terminationGracePeriodSeconds")
            .and_then(Value::as_u64);
        let mut labels = template.labels;
        let mut label = |name: &str, value: String| labels.insert(name.to_owned(), value.into());
        label(labels::DEVICE, device.to_string());
        label(labels::OBJECT, template.object.to_string());
        label(labels::REVISION, revision.to_string());
        label(labels::GRACE, grace.unwrap_or(DEFAULT_GRACE).to_string());
        if template.keep {
            label(labels::PRUNE, "disabled".to_owned());
        }
        let metadata =
            json!({"name": template.name, "labels": labels, "annotations": template.annotations});
        Ok(Self {
            images: rewriting.images,
            volumes: rewriting.volumes,
            secrets: rewriting.secrets,
            config_maps: rewriting.config_maps.into_values().collect(),
            is_prepared: containers(&spec, "initContainers").next().is_some(),
            manifest: json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
            expected: Expected {
                object: template.object.clone(),
                name: template.name,
                revision,
                restart,
                containers: names,
            },
        })
    }

    /// The documents for `podman kube play -`.
    pub(super) fn manifest(&self, restart: Restart) -> Vec<u8> {
        let mut pod = self.manifest.clone();
        let policy = match restart {
            Restart::Always => "Always",
            Restart::OnFailure => "OnFailure",
            Restart::Never => "Never",
        };
        if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("restartPolicy".to_owned(), policy.into());
        }
        let documents = self.config_maps.iter().chain([&pod]);
        let documents: Vec<_> = documents.map(Value::to_string).collect();
        documents.join("\n---\n").into_bytes()
    }
}

/// The digest of all that the pod is made of.
fn revision(template: &Template<'_>, inputs: &Inputs<'_>) -> Digest {
    let namespace = template.object.namespace.as_str();
    let parts = json!([
        template.name,
        template.labels,
        template.annotations,
        template.spec,
        template.default_restart,
        template.keep
    ]);
    let parts = parts.to_string();
    let mut read = BTreeSet::new();
    references(&template.spec, &mut read);
    let inputs: Vec<_> = read
        .into_iter()
        .filter_map(|(kind, name)| inputs.get(&(kind, namespace, name)))
        .map(|object| object.digest())
        .collect();
    let inputs = inputs.iter().map(|digest| digest.as_bytes().as_slice());
    Digest::of_parts([FORMAT, parts.as_bytes()].into_iter().chain(inputs))
}

/// Every ConfigMap and Secret that is named anywhere. One too many costs a restart when it changes, and what names
/// them stands in these members only.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<(&'static str, &'a str)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let kind = match name.as_str() {
                    "configMap" | "configMapRef" | "configMapKeyRef" => Some("ConfigMap"),
                    "secret" | "secretRef" | "secretKeyRef" => Some("Secret"),
                    _ => None,
                };
                if let Some(kind) = kind {
                    let named = [text(member, "name"), text(member, "secretName")];
                    found.extend(named.into_iter().map(|name| (kind, name)));
                }
                references(member, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

struct Rewriting<'a> {
    inputs: &'a Inputs<'a>,
    namespace: &'a str,
    pod: &'a str,
    suffix: String,
    config_maps: BTreeMap<String, Value>,
    secrets: BTreeMap<String, Vec<u8>>,
    volumes: Vec<Volume>,
    images: BTreeMap<String, Pull>,
}

impl Rewriting<'_> {
    fn rewrite(&mut self, spec: &mut Value) -> Result<(), String> {
        let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut);
        let mut read_only = BTreeSet::new();
        for volume in volumes.into_iter().flatten() {
            let name = text(volume, "name").to_owned();
            if self
                .volume(&name, volume)
                .map_err(|why| format!("volume {name}: {why}"))?
            {
                read_only.insert(name);
            }
        }
        for list in ["initContainers", "containers"] {
            for container in containers_of(spec, list) {
                let name = text(container, "name").to_owned();
                let wrong = |why| format!("container {name}: {why}");
                self.image(container).map_err(wrong)?;
                self.variables(container).map_err(wrong)?;
                protect(container, &read_only);
            }
        }
        Ok(())
    }

    /// Puts a volume of ours in the place of one of these kinds; whether it is one that pods only read.
    fn volume(&mut self, name: &str, volume: &mut Value) -> Result<bool, String> {
        let mut ours = Volume {
            name: format!("{}-{name}-{}", self.pod, self.suffix),
            ..Volume::default()
        };
        let is_read_only = if let Some(source) = volume.get("configMap") {
            self.fill(&mut ours, "ConfigMap", text(source, "name"), source)?;
            true
        } else if let Some(source) = volume.get_mut("secret") {
            let secret = text(source, "secretName").to_owned();
            if self.find("Secret", &secret).is_none() {
                // One that was made on the device. Podman 4.3 crashes where it is not said whether it may be missing.
                say_whether_optional(source);
                return Ok(false);
            }
            self.fill(&mut ours, "Secret", &secret, source)?;
            true
        } else if let Some(source) = volume.get("projected") {
            for part in source
                .get("sources")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                self.project(&mut ours, source, part)?;
            }
            true
        } else if let Some(source) = volume.get("emptyDir") {
            ours.memory = (text(source, "medium") == "Memory").then(|| {
                let size = source.get("sizeLimit").and_then(bytes);
                size.map_or_else(|| "mode=1777".to_owned(), in_memory)
            });
            false
        } else {
            return Ok(false);
        };
        *volume = json!({"name": name, "persistentVolumeClaim": {"claimName": ours.name}});
        self.volumes.push(ours);
        Ok(is_read_only)
    }

    fn project(&self, ours: &mut Volume, whole: &Value, part: &Value) -> Result<(), String> {
        let kinds = [("configMap", "ConfigMap"), ("secret", "Secret")];
        let named = kinds
            .iter()
            .find_map(|(member, kind)| Some((part.get(*member)?, *kind)));
        let Some((source, kind)) = named else {
            return Err("Podman can project ConfigMaps and Secrets only".to_owned());
        };
        let mut source = source.clone();
        if let (Some(members), Some(mode)) = (source.as_object_mut(), whole.get("defaultMode")) {
            members.insert("defaultMode".to_owned(), mode.clone());
        }
        self.fill(ours, kind, text(&source, "name"), &source)
    }

    fn fill(
        &self,
        ours: &mut Volume,
        kind: &str,
        name: &str,
        source: &Value,
    ) -> Result<(), String> {
        match self.find(kind, name) {
            Some(object) => ours.add(source, &contents::values(object)?),
            None if is_optional(source) => Ok(()),
            None => Err(missing(kind, name)),
        }
    }

    fn find(&self, kind: &str, name: &str) -> Option<&Object> {
        self.inputs.get(&(kind, self.namespace, name)).copied()
    }

    fn image(&mut self, container: &mut Value) -> Result<(), String> {
        let image = text(container, "image").to_owned();
        if image.is_empty() {
            return Err("it has no image".to_owned());
        }
        let pull = match container.get("imagePullPolicy").and_then(Value::as_str) {
            Some("Always") => Pull::Always,
            Some("IfNotPresent") => Pull::IfNotPresent,
            Some("Never") => Pull::Never,
            Some(other) => return Err(format!("`{other}` is no imagePullPolicy")),
            None if is_latest(&image) => Pull::Always,
            None => Pull::IfNotPresent,
        };
        let wanted = self.images.entry(image).or_insert(pull);
        *wanted = pull.max(*wanted);
        if let Some(container) = container.as_object_mut() {
            container.insert("imagePullPolicy".to_owned(), "Never".into());
        }
        Ok(())
    }

    fn variables(&mut self, container: &mut Value) -> Result<(), String> {
        let list = |container: &mut Value, name: &str| {
            let list = container.get_mut(name).and_then(Value::as_array_mut);
            list.map(std::mem::take).unwrap_or_default()
        };
        let mut each = list(container, "env");
        let mut whole = Vec::new();
        for source in list(container, "envFrom") {
            if text(&source, "prefix").is_empty() {
                whole.push(source);
            } else {
                each.extend(self.spelled_out(&source, &each)?);
            }
        }
        for source in each
            .iter_mut()
            .filter_map(|variable| variable.get_mut("valueFrom"))
        {
            self.variable(source, "configMapKeyRef", "secretKeyRef")?;
        }
        for source in &mut whole {
            self.variable(source, "configMapRef", "secretRef")?;
        }
        if let Some(container) = container.as_object_mut() {
            for (name, list) in [("env", each), ("envFrom", whole)] {
                if !list.is_empty() {
                    container.insert(name.to_owned(), list.into());
                }
            }
        }
        Ok(())
    }

    /// The variables of an `envFrom` with a prefix, which Podman overlooks, one by one; those of `explicit` win.
    fn spelled_out(&self, source: &Value, explicit: &[Value]) -> Result<Vec<Value>, String> {
        let kinds = [
            ("configMapRef", "ConfigMap", "configMapKeyRef"),
            ("secretRef", "Secret", "secretKeyRef"),
        ];
        let named = kinds
            .iter()
            .find_map(|(member, kind, single)| Some((source.get(*member)?, *kind, *single)));
        let Some((from, kind, single)) = named else {
            return Err("an `envFrom` names neither a ConfigMap nor a Secret".to_owned());
        };
        let (name, prefix) = (text(from, "name"), text(source, "prefix"));
        let values = match self.find(kind, name) {
            Some(object) => contents::values(object)?,
            None if is_optional(from) => return Ok(Vec::new()),
            None => return Err(missing(kind, name)),
        };
        let variable = |key: &String| {
            let variable = format!("{prefix}{key}");
            let is_new = !explicit.iter().any(|it| text(it, "name") == variable);
            is_new.then(
                || json!({"name": variable, "valueFrom": {single: {"name": name, "key": key}}}),
            )
        };
        Ok(values.keys().filter_map(variable).collect())
    }

    fn variable(&mut self, source: &mut Value, map: &str, secret: &str) -> Result<(), String> {
        if let Some(source) = source.get_mut(map) {
            let name = text(source, "name").to_owned();
            match self.find("ConfigMap", &name) {
                Some(object) => {
                    let data = object.value().get("data").cloned().unwrap_or_default();
                    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": {"name": name}, "data": data});
                    self.config_maps.insert(name, map);
                }
                None if is_optional(source) => {}
                None => return Err(missing("ConfigMap", &name)),
            }
            say_whether_optional(source);
        }
        if let Some(source) = source.get_mut(secret) {
            let name = text(source, "name").to_owned();
            // One that is not in the set may have been made on the device; else Podman says that it is missing.
            if let Some(object) = self.find("Secret", &name) {
                let ours = format!("{}-{name}-{}", self.pod, self.suffix);
                let values = contents::values(object)?;
                check_key(source, &values, &name)?;
                if let Some(source) = source.as_object_mut() {
                    source.insert("name".to_owned(), ours.clone().into());
                }
                self.secrets.insert(ours, contents::as_secret(&values));
            }
            say_whether_optional(source);
        }
        Ok(())
    }
}

fn check_key(source: &Value, values: &Values, name: &str) -> Result<(), String> {
    match source.get("key").and_then(Value::as_str) {
        Some(key) if !values.contains_key(key) && !is_optional(source) => {
            Err(format!("the Secret {name} has no key `{key}`"))
        }
        _ => Ok(()),
    }
}

fn missing(kind: &str, name: &str) -> String {
    format!("the {kind} {name} is not in the set")
}

/// What pods only read, they cannot write.
fn protect(container: &mut Value, volumes: &BTreeSet<String>) {
    let mounts = container
        .get_mut("volumeMounts")
        .and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        if volumes.contains(text(mount, "name"))
            && let Some(mount) = mount.as_object_mut()
        {
            mount.insert("readOnly".to_owned(), true.into());
        }
    }
}

fn is_optional(source: &Value) -> bool {
    source.get("optional").and_then(Value::as_bool) == Some(true)
}

fn say_whether_optional(source: &mut Value) {
    let optional = is_optional(source);
    if let Some(source) = source.as_object_mut() {
        source.insert("optional".to_owned(), optional.into());
    }
}

/// Whether Kubernetes would pull it every time: no tag, or `latest`.
fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or_default();
    !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// In pages, because Podman takes a `size` for a quota on its disk.
fn in_memory(size: u64) -> String {
    let pages = size.div_ceil(rustix::param::page_size() as u64);
    format!("mode=1777,nr_blocks={pages}")
}

/// A Kubernetes quantity of bytes.
fn bytes(quantity: &Value) -> Option<u64> {
    if let Some(number) = quantity.as_u64() {
        return Some(number);
    }
    let quantity = quantity.as_str()?;
    let digits = quantity
        .find(|it: char| !it.is_ascii_digit())
        .unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at_checked(digits)?;
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "Ki" => 1024,
        "Mi" => 1024_u64.pow(2),
        "Gi" => 1024_u64.pow(3),
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A member that is a text, or nothing.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn containers<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    spec.get(list)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn containers_of<'a>(spec: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    spec.get_mut(list)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}
