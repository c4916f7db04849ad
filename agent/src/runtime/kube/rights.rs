//! What the agent may not do, as the API server itself judges. Nothing is changed by asking.

use serde_json::{Value, json};

use super::{
    api::{Api, CallError},
    connect,
};
use crate::config::KubeSettings;

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
/// What a pass does with each kind of a set. `ConfigMap`s stand for all: there is hardly a set without them.
const FOR_OBJECTS: [&str; 5] = ["list", "watch", "patch", "create", "delete"];
/// What the agent does with the Secret of its identity.
const FOR_IDENTITY: [&str; 2] = ["get", "patch"];

/// What a right is asked for.
struct Resource<'a> {
    plural: &'a str,
    /// Empty for all.
    namespace: &'a str,
    /// Empty for all.
    name: &'a str,
}

/// The rights that a pass needs at least and that the agent has not got.
pub(super) async fn lacks(settings: &KubeSettings) -> Result<Vec<String>, String> {
    let connection = connect::connect(settings).await?;
    let configmaps = Resource {
        plural: "configmaps",
        namespace: settings.namespace.as_deref().unwrap_or_default(),
        name: "",
    };
    lacking(&connection.api, &configmaps, &FOR_OBJECTS).await
}

/// The rights to the Secret of the agent's identity that the agent has not got.
pub(crate) async fn lacks_for_identity(
    settings: &KubeSettings,
    name: &str,
) -> Result<Vec<String>, String> {
    let (api, namespace) = connect::home(settings).await?;
    let secret = Resource {
        plural: "secrets",
        namespace: &namespace,
        name,
    };
    lacking(&api, &secret, &FOR_IDENTITY).await
}

async fn lacking(
    api: &Api,
    resource: &Resource<'_>,
    verbs: &[&str],
) -> Result<Vec<String>, String> {
    let mut lacking = Vec::new();
    for verb in verbs {
        let may = may(api, resource, verb)
            .await
            .map_err(|error| match error {
                CallError::Unreachable(why) => why,
                CallError::Refused(refusal) => refusal.message,
            })?;
        if !may {
            lacking.push(resource.right(verb));
        }
    }
    Ok(lacking)
}

async fn may(api: &Api, resource: &Resource<'_>, verb: &str) -> Result<bool, CallError> {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"group": "", "resource": resource.plural, "verb": verb,
            "namespace": resource.namespace, "name": resource.name}}});
    let answer = api.ask(REVIEWS, &review).await?;
    let allowed = answer.pointer("/status/allowed").and_then(Value::as_bool);
    Ok(allowed == Some(true))
}

impl Resource<'_> {
    /// As `kubectl auth can-i` takes it.
    fn right(&self, verb: &str) -> String {
        let name = match self.name {
            "" => String::new(),
            name => format!("/{name}"),
        };
        let scope = match self.namespace {
            "" => "in all namespaces".to_owned(),
            namespace => format!("in the namespace {namespace}"),
        };
        format!("{verb} {}{name} {scope}", self.plural)
    }
}
