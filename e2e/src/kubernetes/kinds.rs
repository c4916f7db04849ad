//! The kinds that the double serves, and what it refuses to change in them.

use serde_json::{Value, json};

/// A kind.
#[allow(clippy::struct_field_names, reason = "Kubernetes' own word")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
}

impl Kind {
    fn new(api_version: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As messages name it: `deployments.apps`.
    pub fn called(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether the API server counts its generations.
    pub fn counts_generations(&self) -> bool {
        ![
            "ConfigMap",
            "Secret",
            "ServiceAccount",
            "Namespace",
            "Role",
            "RoleBinding",
        ]
        .contains(&self.kind.as_str())
    }

    /// The kind that a definition defines.
    pub fn defined(definition: &Value) -> Self {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            group: text(&spec["group"]),
            version: text(&spec["versions"][0]["name"]),
            kind: text(&spec["names"]["kind"]),
            plural: text(&spec["names"]["plural"]),
            namespaced: spec["scope"] == "Namespaced",
        }
    }
}

/// What every API server serves.
pub fn built_in() -> Vec<Kind> {
    vec![
        Kind::new("v1", "Namespace", "namespaces", false),
        Kind::new("v1", "ConfigMap", "configmaps", true),
        Kind::new("v1", "Secret", "secrets", true),
        Kind::new("v1", "Service", "services", true),
        Kind::new("v1", "ServiceAccount", "serviceaccounts", true),
        Kind::new(
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            true,
        ),
        Kind::new("v1", "Pod", "pods", true),
        Kind::new("apps/v1", "Deployment", "deployments", true),
        Kind::new("apps/v1", "StatefulSet", "statefulsets", true),
        Kind::new("apps/v1", "DaemonSet", "daemonsets", true),
        Kind::new("batch/v1", "Job", "jobs", true),
        Kind::new("rbac.authorization.k8s.io/v1", "Role", "roles", true),
        Kind::new(
            "rbac.authorization.k8s.io/v1",
            "RoleBinding",
            "rolebindings",
            true,
        ),
        Kind::new(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            "clusterroles",
            false,
        ),
        Kind::new(
            "admissionregistration.k8s.io/v1",
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
            false,
        ),
        Kind::new(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            false,
        ),
    ]
}

/// What is wrong with an object, or with the change to it: field, reason and message.
pub fn invalid(kind: &Kind, before: Option<&Value>, after: &Value) -> Vec<Value> {
    let mut causes = Vec::new();
    let mut wrong = |field: &str, reason: &str, message: String| {
        causes.push(json!({"field": field, "reason": reason, "message": message}));
    };
    let name = after["metadata"]["name"].as_str().unwrap_or_default();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if name.is_empty() || !name.chars().all(allowed) {
        let message = format!(
            "Invalid value: {name:?}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        );
        wrong("metadata.name", "FieldValueInvalid", message);
    }
    if kind.kind == "Deployment" && after["spec"]["selector"].is_null() {
        wrong(
            "spec.selector",
            "FieldValueRequired",
            "Required value".to_owned(),
        );
    }
    let Some(before) = before else {
        return causes;
    };
    let changes = |pointer: &str| before.pointer(pointer) != after.pointer(pointer);
    match kind.kind.as_str() {
        "Deployment" if changes("/spec/selector") => {
            let value = &after["spec"]["selector"];
            wrong("spec.selector", "FieldValueInvalid", format!("Invalid value: {value}: field is immutable"));
        }
        "Job" if changes("/spec/template") => {
            let value = &after["spec"]["template"];
            wrong("spec.template", "FieldValueInvalid", format!("Invalid value: {value}: field is immutable"));
        }
        "ConfigMap" | "Secret" if before["immutable"] == true && changes("/data") => wrong(
            "data",
            "FieldValueForbidden",
            "Forbidden: field is immutable when `immutable` is set".to_owned(),
        ),
        "RoleBinding" if changes("/roleRef") => {
            let value = &after["roleRef"];
            wrong("roleRef", "FieldValueInvalid", format!("Invalid value: {value}: cannot change roleRef"));
        }
        "StatefulSet" if changes("/spec/serviceName") || changes("/spec/selector") => wrong(
            "spec",
            "FieldValueForbidden",
            "Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden".to_owned(),
        ),
        _ => {}
    }
    causes
}
