//! What a manifest set is on Podman: pods and volumes, and what Podman cannot run. Pure.
//!
//! Podman itself runs pods. A Deployment, a DaemonSet and a Job are templates of pods, and are translated here, so
//! that they mean the same with every version of Podman. ConfigMaps and Secrets are what pods are made of. A
//! Namespace is nothing: Podman has none, and where two objects are told apart by it alone, the second is refused.
//! Everything else is refused by name, and the rest of the set goes on.

use std::collections::{BTreeMap, BTreeSet};

use longshore_protocol::{DeviceId, Digest, Object, ObjectKey, session::Holding};
use serde_json::{Map, Value, json};

use super::{
    labels,
    pod::{Inputs, Pod, Template},
};
use crate::runtime::{UNSUPPORTED, Unapplied};

/// More pods of one Deployment than this are a mistake on one device.
const MOST_REPLICAS: u64 = 64;
/// What asks Podman for something of a volume that cannot be changed later.
const VOLUME_ANNOTATIONS: &str = "volume.podman.io/";

/// What a set is on Podman.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) pods: Vec<Pod>,
    pub(super) claims: Vec<Claim>,
    pub(super) refused: Vec<Unapplied>,
}

/// A volume that keeps its content for as long as its object is in the set.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) object: ObjectKey,
    /// The volume's name in Podman.
    pub(super) name: String,
    /// Of what cannot be changed without losing the content.
    pub(super) revision: Digest,
    manifest: Value,
}

impl Claim {
    /// The document for `podman kube play -`.
    pub(super) fn manifest(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }
}

/// What this holding is on the Podman of this device.
pub(super) fn translate(holding: &Holding, device: &DeviceId) -> Wanted {
    let inputs: Inputs<'_> = holding
        .objects()
        .filter(|object| object.key().api_version == "v1")
        .map(|object| (object.key(), object))
        .filter(|(key, _)| matches!(key.kind.as_str(), "ConfigMap" | "Secret"))
        .map(|(key, object)| {
            (
                (key.kind.as_str(), key.namespace.as_str(), key.name.as_str()),
                object,
            )
        })
        .collect();
    let mut wanted = Wanted::default();
    for object in holding.objects() {
        wanted.add(object, &inputs, device);
    }
    wanted.refuse_what_shares_a_name();
    wanted
}

impl Wanted {
    fn add(&mut self, object: &Object, inputs: &Inputs<'_>, device: &DeviceId) {
        let key = object.key();
        let value = object.value();
        let made = match (key.api_version.as_str(), key.kind.as_str()) {
            ("v1", "Namespace" | "ConfigMap" | "Secret") => Ok(Vec::new()),
            ("v1", "PersistentVolumeClaim") => {
                self.claims.push(claim(key, &value, device));
                Ok(Vec::new())
            }
            ("v1", "Pod") => Ok(vec![template(
                key,
                &value,
                &value,
                key.name.clone(),
                "Always",
            )]),
            ("apps/v1", "Deployment") => deployment(key, &value),
            ("apps/v1", "DaemonSet") => Ok(vec![of_workload(key, &value, 1, "Always")]),
            ("batch/v1", "Job") => job(key, &value),
            _ => Err(unsupported(key)),
        };
        let pods = made
            .map_err(|why| (UNSUPPORTED, why))
            .and_then(|templates| {
                let pods = templates
                    .into_iter()
                    .map(|template| Pod::of(template, inputs, device));
                pods.collect::<Result<Vec<_>, _>>()
                    .map_err(|why| ("Invalid", why))
            });
        match pods {
            Ok(pods) => self.pods.extend(pods),
            Err((reason, why)) => self.refuse(key, reason, why),
        }
    }

    fn refuse(&mut self, object: &ObjectKey, reason: &'static str, message: String) {
        let object = object.to_string();
        self.refused.push(Unapplied {
            object,
            reason,
            message,
        });
    }

    /// Podman has one space of names. What is first in the order of the set has the name.
    fn refuse_what_shares_a_name(&mut self) {
        let mut taken = BTreeMap::new();
        let mut refused = Vec::new();
        self.pods.retain(|pod| {
            let (name, object) = (&pod.expected.name, &pod.expected.object);
            let first = taken.entry(name.clone()).or_insert_with(|| object.clone());
            if first != object {
                let why =
                    format!("Podman has no namespaces, and the pod {name} is that of {first}");
                refused.push((object.clone(), why));
            }
            first == object
        });
        let mut taken = BTreeMap::new();
        self.claims.retain(|claim| {
            let first = taken
                .entry(claim.name.clone())
                .or_insert_with(|| claim.object.clone());
            if *first != claim.object {
                let why = format!(
                    "Podman has no namespaces, and the volume {} is that of {first}",
                    claim.name
                );
                refused.push((claim.object.clone(), why));
            }
            *first == claim.object
        });
        for (object, why) in refused {
            self.refuse(&object, "NameTaken", why);
        }
    }

    /// The objects that are in the set and not carried out: what runs of them stays as it is.
    pub(super) fn untouched(&self) -> BTreeSet<String> {
        self.refused
            .iter()
            .map(|refused| refused.object.clone())
            .collect()
    }
}

fn deployment<'a>(key: &'a ObjectKey, value: &Value) -> Result<Vec<Template<'a>>, String> {
    let replicas = value
        .pointer("/spec/replicas")
        .and_then(Value::as_u64)
        .unwrap_or(1);
    if replicas > MOST_REPLICAS {
        return Err(format!(
            "{replicas} replicas are more than the {MOST_REPLICAS} that run on one device"
        ));
    }
    Ok((1..=replicas)
        .map(|nth| of_workload(key, value, nth, "Always"))
        .collect())
}

fn job<'a>(key: &'a ObjectKey, value: &Value) -> Result<Vec<Template<'a>>, String> {
    let spec = |name: &str| {
        value
            .pointer(&format!("/spec/{name}"))
            .and_then(Value::as_u64)
    };
    if spec("completions").unwrap_or(1) != 1 || spec("parallelism").unwrap_or(1) != 1 {
        return Err("on Podman, a Job runs once: completions and parallelism must be 1".to_owned());
    }
    if value.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true) {
        return Ok(Vec::new());
    }
    Ok(vec![of_workload(key, value, 1, "Never")])
}

/// The nth pod of a workload, named as Podman itself names it.
fn of_workload<'a>(
    key: &'a ObjectKey,
    value: &Value,
    nth: u64,
    default_restart: &'static str,
) -> Template<'a> {
    let name = match nth {
        1 => format!("{}-pod", key.name),
        _ => format!("{}-pod-{nth}", key.name),
    };
    let pod = value.pointer("/spec/template").unwrap_or(&Value::Null);
    template(key, value, pod, name, default_restart)
}

fn template<'a>(
    key: &'a ObjectKey,
    object: &Value,
    pod: &Value,
    name: String,
    default_restart: &'static str,
) -> Template<'a> {
    // Podman reads annotations of its own from the workload, Kubernetes' pods have their template's.
    let mut annotations = Map::new();
    for from in [object, pod] {
        annotations.extend(metadata(from, "annotations").filter(|(name, _)| !is_bookkeeping(name)));
    }
    Template {
        object: key,
        name,
        labels: metadata(pod, "labels").collect(),
        annotations,
        spec: pod.get("spec").cloned().unwrap_or_default(),
        default_restart,
        keep: keeps(object),
    }
}

/// What tools and Longshore note on an object is nothing that a pod should be replaced for.
fn is_bookkeeping(annotation: &str) -> bool {
    annotation.starts_with("longshore.dev/")
        || annotation.starts_with("kubectl.kubernetes.io/")
        || annotation.starts_with("deployment.kubernetes.io/")
}

fn claim(key: &ObjectKey, value: &Value, device: &DeviceId) -> Claim {
    let annotations: Map<_, _> = metadata(value, "annotations")
        .filter(|(name, _)| name.starts_with(VOLUME_ANNOTATIONS))
        .collect();
    let revision = Digest::of(Value::from(annotations.clone()).to_string().as_bytes());
    let mut labels: Map<_, _> = metadata(value, "labels").collect();
    let mut label = |name: &str, value: String| labels.insert(name.to_owned(), value.into());
    label(labels::DEVICE, device.to_string());
    label(labels::OBJECT, key.to_string());
    label(labels::REVISION, revision.to_string());
    if keeps(value) {
        label(labels::PRUNE, "disabled".to_owned());
    }
    let metadata = json!({"name": key.name, "labels": labels, "annotations": annotations});
    let spec = value.get("spec").cloned().unwrap_or_default();
    Claim {
        object: key.clone(),
        name: key.name.clone(),
        revision,
        manifest: json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": metadata, "spec": spec}),
    }
}

/// Whether it stays when it leaves the set.
fn keeps(object: &Value) -> bool {
    metadata(object, "annotations")
        .any(|(name, value)| name == labels::PRUNE && value.as_str() == Some("disabled"))
}

fn metadata(value: &Value, name: &str) -> impl Iterator<Item = (String, Value)> {
    let members = value
        .get("metadata")
        .and_then(|metadata| metadata.get(name));
    let members = members.and_then(Value::as_object).into_iter().flatten();
    members
        .filter(|(_, value)| value.is_string())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<Vec<_>>()
        .into_iter()
}

fn unsupported(key: &ObjectKey) -> String {
    let instead = match key.kind.as_str() {
        "Service" => "; publish a port with `hostPort` in the pod",
        "StatefulSet" | "ReplicaSet" => "; make it a Deployment",
        "CronJob" => "; run a timer in a container, or on the device",
        _ => "",
    };
    format!(
        "Podman cannot run a {} of {}{instead}",
        key.kind, key.api_version
    )
}
