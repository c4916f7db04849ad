//! What names an object in a cluster, whichever version of the API it is written in.

use std::fmt;

use longshore_protocol::ObjectKey;
use serde::{Deserialize, Serialize};

/// A kind, in all its versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind {
    /// Empty for the core group.
    pub group: String,
    pub kind: String,
}

/// An object. Two manifests of one object in two versions of its API have the same name.
#[allow(
    clippy::struct_field_names,
    reason = "what names an object has a name in it"
)]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Name {
    /// Empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    pub kind: String,
    /// Empty for what belongs to the cluster.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
}

impl Name {
    /// The name under which `key` goes in this namespace.
    pub(super) fn of(key: &ObjectKey, namespace: &str) -> Self {
        Self {
            group: group_of(&key.api_version).to_owned(),
            kind: key.kind.clone(),
            namespace: namespace.to_owned(),
            name: key.name.clone(),
        }
    }

    /// Its kind.
    pub(super) fn kind(&self) -> Kind {
        Kind {
            group: self.group.clone(),
            kind: self.kind.clone(),
        }
    }

    /// Its key in this version of its API.
    pub(super) fn key(&self, version: &str) -> ObjectKey {
        ObjectKey {
            api_version: api_version(&self.group, version),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// In which order objects are applied: namespaces, definitions, what others build upon, the rest, and last
    /// what may stand in the way of all others. Removed in the opposite order.
    pub(super) fn rank(&self) -> u8 {
        match (self.group.as_str(), self.kind.as_str()) {
            ("", "Namespace") => NAMESPACES,
            ("apiextensions.k8s.io", "CustomResourceDefinition") => DEFINITIONS,
            ("admissionregistration.k8s.io" | "apiregistration.k8s.io", _) => 4,
            ("", "Pod" | "ReplicationController") => 3,
            (
                ""
                | "rbac.authorization.k8s.io"
                | "storage.k8s.io"
                | "scheduling.k8s.io"
                | "networking.k8s.io"
                | "policy",
                _,
            ) => 2,
            _ => 3,
        }
    }
}

/// The rank of namespaces.
pub(super) const NAMESPACES: u8 = 0;
/// The rank of definitions of kinds.
pub(super) const DEFINITIONS: u8 = 1;

impl fmt::Display for Name {
    /// `Deployment.apps shop/till`, as `kubectl` is asked for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// The group of an `apiVersion`.
pub(super) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// The version of an `apiVersion`.
pub(super) fn version_of(api_version: &str) -> &str {
    api_version
        .split_once('/')
        .map_or(api_version, |(_, version)| version)
}

/// The `apiVersion` of a group's version.
pub(super) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}
