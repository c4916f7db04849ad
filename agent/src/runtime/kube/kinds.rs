//! Which kinds the API server serves, and where.
//!
//! Each version of a group is asked for when an object of it is met, and again where a kind was not in it, so that
//! a definition that came meanwhile is found. This is the form of discovery that every API server has, and it
//! costs as much as the set is varied, not as much as the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Deserialize;
use url::form_urlencoded::byte_serialize;

use super::{
    api::{Api, CallError, Detail},
    name::{Kind, api_version, group_of, version_of},
};

/// Kinds without a status: their metadata says all that there is to know.
const PLAIN: [(&str, &str); 17] = [
    ("", "ConfigMap"),
    ("", "Secret"),
    ("", "ServiceAccount"),
    ("", "LimitRange"),
    ("", "Endpoints"),
    ("", "PodTemplate"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("networking.k8s.io", "IngressClass"),
    ("storage.k8s.io", "StorageClass"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("node.k8s.io", "RuntimeClass"),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
    ),
];

/// A kind as the API server serves it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    /// The kind's name in paths and in roles: `deployments`.
    pub plural: String,
    pub namespaced: bool,
    verbs: Vec<String>,
}

impl Resource {
    pub(super) fn kind(&self) -> Kind {
        Kind {
            group: self.group.clone(),
            kind: self.kind.clone(),
        }
    }

    /// As a manifest says it.
    pub(super) fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub(super) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// How much of its objects is worth watching.
    pub(super) fn detail(&self) -> Detail {
        if PLAIN.contains(&(self.group.as_str(), self.kind.as_str())) {
            Detail::Metadata
        } else {
            Detail::Whole
        }
    }

    /// Where its objects are listed: in all namespaces where none is named.
    pub(super) fn path(&self, namespace: Option<&str>) -> String {
        let root = root(&self.api_version());
        let plural = segment(&self.plural);
        match namespace {
            Some(namespace) if self.namespaced => {
                format!("{root}/namespaces/{}/{plural}", segment(namespace))
            }
            _ => format!("{root}/{plural}"),
        }
    }

    /// Where one of its objects is.
    pub(super) fn path_of(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.path(Some(namespace)), segment(name))
    }

    /// As a role names it.
    pub(super) fn rule(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

fn root(api_version: &str) -> String {
    let prefix = if group_of(api_version).is_empty() {
        "/api"
    } else {
        "/apis"
    };
    let segments: Vec<_> = api_version.split('/').map(segment).collect();
    format!("{prefix}/{}", segments.join("/"))
}

/// One segment of a path. Manifests may name anything; the API server is to see it as a name, and refuse it.
fn segment(text: &str) -> String {
    match text {
        "." | ".." => "%2E".repeat(text.len()),
        text => byte_serialize(text.as_bytes()).collect(),
    }
}

/// What was discovered so far, by `apiVersion`.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    versions: BTreeMap<String, Vec<Arc<Resource>>>,
}

#[derive(Deserialize)]
struct Served {
    #[serde(default)]
    resources: Vec<ServedResource>,
}

#[derive(Deserialize)]
struct ServedResource {
    name: String,
    kind: String,
    #[serde(default)]
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

impl Kinds {
    /// The kind of this version, as far as it is known; asks where the version is not.
    pub(super) async fn find(
        &mut self,
        api: &Api,
        api_version: &str,
        kind: &str,
    ) -> Result<Option<Arc<Resource>>, CallError> {
        if !self.versions.contains_key(api_version) {
            let served = discover(api, api_version).await?;
            self.versions.insert(api_version.to_owned(), served);
        }
        Ok(self.known(api_version, kind))
    }

    /// The kind, in the version that the API server prefers: for objects whose own version is served no more.
    pub(super) async fn find_any(
        &mut self,
        api: &Api,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Result<Option<Arc<Resource>>, CallError> {
        let found = self.find(api, &api_version(group, version), kind).await?;
        if found.is_some() || group.is_empty() {
            return Ok(found);
        }
        for version in group_versions(api, group).await? {
            let found = self.find(api, &version, kind).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Forgets a version, so that it is asked for again.
    pub(super) fn forget(&mut self, api_version: &str) {
        self.versions.remove(api_version);
    }

    fn known(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        let served = self.versions.get(api_version)?;
        served.iter().find(|known| known.kind == kind).cloned()
    }
}

async fn discover(api: &Api, api_version: &str) -> Result<Vec<Arc<Resource>>, CallError> {
    let value = match api.get(&root(api_version), Detail::Whole).await {
        Ok(value) => value,
        Err(CallError::Refused(refusal)) if refusal.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let served: Served = serde_json::from_value(value).map_err(|error| {
        CallError::Unreachable(format!("{api_version} cannot be discovered: {error}"))
    })?;
    let resources = served.resources.into_iter();
    Ok(resources
        // `deployments/status` is a part of a resource.
        .filter(|resource| !resource.name.contains('/'))
        .map(|resource| {
            Arc::new(Resource {
                group: group_of(api_version).to_owned(),
                version: version_of(api_version).to_owned(),
                kind: resource.kind,
                plural: resource.name,
                namespaced: resource.namespaced,
                verbs: resource.verbs,
            })
        })
        .collect())
}

/// A group, as discovery shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(default)]
    versions: Vec<Version>,
    preferred_version: Option<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

impl Group {
    /// Its versions, the preferred one first.
    fn versions(self) -> Vec<String> {
        let mut versions = Vec::new();
        for version in self.preferred_version.into_iter().chain(self.versions) {
            if !versions.contains(&version.group_version) {
                versions.push(version.group_version);
            }
        }
        versions
    }
}

/// The versions of a group, the preferred one first.
async fn group_versions(api: &Api, group: &str) -> Result<Vec<String>, CallError> {
    let path = format!("/apis/{}", segment(group));
    let group: Group = match api.get(&path, Detail::Whole).await {
        Ok(value) => serde_json::from_value(value)
            .map_err(|error| CallError::Unreachable(format!("{path}: {error}")))?,
        Err(CallError::Refused(refusal)) if refusal.code == 404 => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(group.versions())
}

/// All kinds that can be listed and deleted, each in the version that its group prefers of those that have it. Costs
/// a request per version of a group.
pub(super) async fn everything(api: &Api) -> Result<Vec<Arc<Resource>>, CallError> {
    #[derive(Deserialize)]
    struct Groups {
        #[serde(default)]
        groups: Vec<Group>,
    }
    let value = api.get("/apis", Detail::Whole).await?;
    let groups: Groups = serde_json::from_value(value)
        .map_err(|error| CallError::Unreachable(format!("/apis: {error}")))?;
    let mut all = discover(api, "v1").await?;
    for version in groups.groups.into_iter().flat_map(Group::versions) {
        match discover(api, &version).await {
            Ok(resources) => all.extend(resources),
            Err(CallError::Refused(refusal)) => {
                tracing::warn!(version, message = refusal.message, "cannot be discovered");
            }
            Err(unreachable) => return Err(unreachable),
        }
    }
    all.retain(|resource| resource.can("list") && resource.can("delete"));
    let mut known = BTreeSet::new();
    all.retain(|resource| known.insert((resource.group.clone(), resource.kind.clone())));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_its_place_in_a_path() {
        let resource = Resource {
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
            namespaced: true,
            verbs: Vec::new(),
        };
        let cases = [
            ("till", "till"),
            ("../../x", "..%2F..%2Fx"),
            ("..", "%2E%2E"),
            ("a?force=true", "a%3Fforce%3Dtrue"),
            ("system:node", "system%3Anode"),
        ];
        for (name, expected) in cases {
            assert_eq!(
                resource.path_of("shop", name),
                format!("/apis/apps/v1/namespaces/shop/deployments/{expected}")
            );
        }
        assert_eq!(resource.path(None), "/apis/apps/v1/deployments");
    }
}
