//! What containers say, as the API server hands it on from the node: one request for each container, for as long as
//! somebody reads.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use longshore_protocol::{
    ObjectKey,
    message::{LogEnd, LogRequest},
};
use serde_json::Value;
use tokio_util::io::StreamReader;
use url::form_urlencoded::Serializer;

use super::{
    api::{Api, CallError, Detail},
    connect,
    name::group_of,
};
use crate::{
    config::KubeSettings,
    runtime::logs::{self, Lines, LogStream, Logs, Source, chosen, lines},
};

/// The kinds that make pods, and where they are served.
const WORKLOADS: [(&str, &str, &str); 6] = [
    ("apps", "Deployment", "apis/apps/v1"),
    ("apps", "StatefulSet", "apis/apps/v1"),
    ("apps", "DaemonSet", "apis/apps/v1"),
    ("apps", "ReplicaSet", "apis/apps/v1"),
    ("batch", "Job", "apis/batch/v1"),
    ("", "ReplicationController", "api/v1"),
];

/// The logs of a cluster's containers. It is connected to when somebody asks, and not for longer.
#[derive(Debug)]
pub(super) struct KubeLogs {
    pub(super) settings: KubeSettings,
}

struct Container {
    pod: String,
    name: String,
}

#[async_trait]
impl Logs for KubeLogs {
    async fn open(&self, request: &LogRequest) -> Result<LogStream, LogEnd> {
        let Some(object) = &request.object else {
            return Err(LogEnd::Refused("no object is named".to_owned()));
        };
        let connection = connect::connect(&self.settings)
            .await
            .map_err(LogEnd::Failed)?;
        let namespace = match (&self.settings.namespace, object.namespace.as_str()) {
            (Some(only), _) => only.clone(),
            (None, "") => connection.namespace,
            (None, named) => named.to_owned(),
        };
        let api = connection.api;
        let pods = pods(&api, object, &namespace).await?;
        let found: Vec<_> = pods.iter().flat_map(containers).collect();
        if found.is_empty() {
            let why = format!("{object} has no pods at the moment");
            return Err(LogEnd::Refused(why));
        }
        let found = chosen(found, |it| &it.name, request.container.as_deref())?;
        let several = found.len() > 1;
        let mut sources = Vec::new();
        for container in &found {
            let Container { pod, name } = container;
            let name = if pods.len() > 1 {
                format!("{pod}/{name}")
            } else {
                name.clone()
            };
            let prefix = logs::prefix(&name, several);
            let lines = follow(&api, &namespace, container, request, &prefix).await;
            sources.push(Source { prefix, lines });
        }
        LogStream::of_all(sources)
    }
}

/// The pods of an object.
async fn pods(api: &Api, object: &ObjectKey, namespace: &str) -> Result<Vec<Value>, LogEnd> {
    let of_namespace = format!("/api/v1/namespaces/{namespace}/pods");
    let group = group_of(&object.api_version);
    if group.is_empty() && object.kind == "Pod" {
        let path = format!("{of_namespace}/{}", object.name);
        return Ok(vec![api.get(&path, Detail::Whole).await.map_err(failed)?]);
    }
    let workload = WORKLOADS
        .iter()
        .find(|(of, kind, _)| *of == group && *kind == object.kind);
    let Some((_, kind, served)) = workload else {
        let why = format!("{} has no containers that can be found", object.kind);
        return Err(LogEnd::Refused(why));
    };
    let kind = kind.to_ascii_lowercase();
    let path = format!("/{served}/namespaces/{namespace}/{kind}s/{}", object.name);
    let workload = api.get(&path, Detail::Whole).await.map_err(failed)?;
    let selector = selector(workload.pointer("/spec/selector").unwrap_or(&Value::Null));
    if selector.is_empty() {
        // Without one, all pods would be its own.
        return Ok(Vec::new());
    }
    let query = Serializer::new(String::new())
        .append_pair("labelSelector", &selector)
        .finish();
    let path = format!("{of_namespace}?{query}");
    let list = api.list(&path, Detail::Whole).await.map_err(failed)?;
    let items = list.get("items").and_then(Value::as_array);
    Ok(items.cloned().unwrap_or_default())
}

/// A selector as the API server takes it in a query.
fn selector(selector: &Value) -> String {
    let mut terms = Vec::new();
    let is_old =
        selector.get("matchLabels").is_none() && selector.get("matchExpressions").is_none();
    let labels = if is_old {
        Some(selector)
    } else {
        selector.get("matchLabels")
    };
    for (name, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        terms.push(format!("{name}={}", value.as_str().unwrap_or_default()));
    }
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    for expression in expressions.into_iter().flatten() {
        let text = |member| {
            expression
                .get(member)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let values = expression.get("values").and_then(Value::as_array);
        let values: Vec<_> = values
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let (key, values) = (text("key"), values.join(","));
        terms.push(match text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

fn containers(pod: &Value) -> Vec<Container> {
    let text = |value: &Value, path: &str| {
        value
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
    let containers = containers.into_iter().flatten().map(|container| Container {
        pod: text(pod, "/metadata/name"),
        name: text(container, "/name"),
    });
    containers.collect()
}

async fn follow(
    api: &Api,
    namespace: &str,
    container: &Container,
    request: &LogRequest,
    prefix: &str,
) -> Result<Lines, LogEnd> {
    let (pod, query) = (&container.pod, query(&container.name, request));
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?{query}");
    let body = api.stream(&path).await.map_err(failed)?;
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    Ok(lines(StreamReader::new(bytes), prefix))
}

fn query(container: &str, request: &LogRequest) -> String {
    let mut query = Serializer::new(String::new());
    query.append_pair("container", container);
    if request.follow {
        query.append_pair("follow", "true");
    }
    if let Some(lines) = request.tail {
        query.append_pair("tailLines", &lines.to_string());
    }
    if let Some(seconds) = request.since {
        query.append_pair("sinceSeconds", &seconds.to_string());
    }
    query.finish()
}

fn failed(error: CallError) -> LogEnd {
    match error {
        CallError::Unreachable(why) => LogEnd::Failed(why),
        CallError::Refused(refusal) => LogEnd::Refused(refusal.message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_are_written_as_the_api_server_reads_them() {
        let new = json!({"matchLabels": {"app": "till", "tier": "front"},
        "matchExpressions": [
            {"key": "site", "operator": "In", "values": ["madrid", "lisbon"]},
            {"key": "old", "operator": "DoesNotExist"},
            {"key": "new", "operator": "Exists"},
            {"key": "kind", "operator": "NotIn", "values": ["test"]},
        ]});
        assert_eq!(
            selector(&new),
            "app=till,tier=front,site in (madrid,lisbon),!old,new,kind notin (test)"
        );
        assert_eq!(selector(&json!({"app": "till"})), "app=till");
        assert_eq!(selector(&Value::Null), "");
    }
}
