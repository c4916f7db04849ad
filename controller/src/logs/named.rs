//! Which of a device's objects a name means. People write `till`, `deployment/till` or `shop/deployment/till`.

use longshore_protocol::ObjectKey;

/// The kinds that have containers, and how people write them.
const KINDS: [(&str, &[&str]); 7] = [
    ("Pod", &["pod", "pods", "po"]),
    ("Deployment", &["deployment", "deployments", "deploy"]),
    ("StatefulSet", &["statefulset", "statefulsets", "sts"]),
    ("DaemonSet", &["daemonset", "daemonsets", "ds"]),
    ("ReplicaSet", &["replicaset", "replicasets", "rs"]),
    (
        "ReplicationController",
        &["replicationcontroller", "replicationcontrollers", "rc"],
    ),
    ("Job", &["job", "jobs"]),
];
/// How many names an error lists.
const SHOWN: usize = 20;

/// Why a name means no object, in words that list what there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNamed {
    /// The device has nothing of that name.
    #[error("the device has no object `{0}` with a log; {1}")]
    Unknown(String, String),
    /// It has several.
    #[error("`{0}` can be several objects of the device; name one: {1}")]
    Several(String, String),
}

/// The one object with containers, among these, that `name` means.
///
/// # Errors
/// Where there is none, or more than one.
pub fn named<'a>(
    name: &str,
    keys: impl IntoIterator<Item = &'a ObjectKey>,
) -> Result<&'a ObjectKey, NotNamed> {
    let mut keys: Vec<_> = keys
        .into_iter()
        .filter(|key| words(key).is_some())
        .collect();
    keys.sort();
    keys.dedup();
    let found: Vec<_> = keys.iter().copied().filter(|key| is(key, name)).collect();
    match found.as_slice() {
        [only] => Ok(only),
        [] => {
            let there = match keys.as_slice() {
                [] => "none of its objects has containers".to_owned(),
                keys => format!("it has {}", list(keys)),
            };
            Err(NotNamed::Unknown(name.to_owned(), there))
        }
        several => Err(NotNamed::Several(name.to_owned(), list(several))),
    }
}

/// How people write the kind of what has containers.
fn words(key: &ObjectKey) -> Option<&'static [&'static str]> {
    let group = key
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group);
    let kind = KINDS.iter().find(|(kind, _)| *kind == key.kind)?;
    matches!(group, "" | "apps" | "batch").then_some(kind.1)
}

fn is(key: &ObjectKey, name: &str) -> bool {
    let is_kind = |kind: &str| {
        let kind = kind.to_ascii_lowercase();
        words(key).is_some_and(|words| words.contains(&kind.as_str()))
    };
    match *name.split('/').collect::<Vec<_>>() {
        [name] => key.name == name,
        [kind, name] => key.name == name && is_kind(kind),
        [namespace, kind, name] => key.name == name && is_kind(kind) && key.namespace == namespace,
        _ => false,
    }
}

/// Names that mean these, each as short as can be said of all.
fn list(keys: &[&ObjectKey]) -> String {
    let mut namespaces: Vec<_> = keys.iter().map(|key| &key.namespace).collect();
    namespaces.dedup();
    let qualified = namespaces.len() > 1;
    let name = |key: &&ObjectKey| {
        let kind = key.kind.to_ascii_lowercase();
        if qualified && !key.namespace.is_empty() {
            format!("{}/{kind}/{}", key.namespace, key.name)
        } else {
            format!("{kind}/{}", key.name)
        }
    };
    let more = keys.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| format!("and {more} more"));
    let shown = keys.iter().take(SHOWN).map(name).chain(more);
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(api_version: &str, kind: &str, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn keys() -> Vec<ObjectKey> {
        vec![
            key("apps/v1", "Deployment", "shop", "till"),
            key("v1", "ConfigMap", "shop", "till"),
            key("apps/v1", "Deployment", "shop", "web"),
            key("batch/v1", "Job", "shop", "web"),
            key("v1", "Pod", "shop", "probe"),
            key("v1", "Pod", "yard", "probe"),
            key("example.com/v1", "Job", "shop", "odd"),
        ]
    }

    #[test]
    fn people_name_objects_as_they_are_used_to() {
        let keys = keys();
        for (name, index) in [
            ("till", 0),
            ("deployment/till", 0),
            ("Deploy/till", 0),
            ("job/web", 3),
            ("shop/po/probe", 4),
            ("yard/pod/probe", 5),
        ] {
            assert_eq!(named(name, &keys), Ok(&keys[index]), "{name}");
        }
    }

    #[test]
    fn what_is_not_one_object_lists_what_there_is() {
        let keys = keys();
        let error = |name: &str| named(name, &keys).unwrap_err().to_string();
        assert_eq!(
            error("web"),
            "`web` can be several objects of the device; name one: deployment/web, job/web"
        );
        assert_eq!(
            error("pod/probe"),
            "`pod/probe` can be several objects of the device; name one: shop/pod/probe, yard/pod/probe"
        );
        for name in ["odd", "configmap/till", "nothing", "a/b/c/d", ""] {
            let error = error(name);
            assert!(error.contains("shop/deployment/till"), "{error}");
            assert!(!error.contains("odd,"), "{error}");
        }
        assert_eq!(
            named("x", &[]).unwrap_err().to_string(),
            "the device has no object `x` with a log; none of its objects has containers"
        );
    }
}
