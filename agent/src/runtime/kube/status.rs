//! How an object fares, by the rules of the kstatus library, which `kubectl`'s and other tools' waiting follow too.
//!
//! First what all objects have in common: a deletion under way, a generation that its controller has not seen yet,
//! and the conditions `Reconciling` and `Stalled`. Then the rules of some kinds. Then a condition `Ready`, which
//! many custom resources have. What has none of these is current as it stands.

use serde_json::Value;

use super::super::health::Health;

/// How long a pod may wait for a node before that counts as a failure.
const SCHEDULING_MILLIS: u64 = 15_000;

/// How an object fares, and why, where it is not current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub health: Health,
    pub message: String,
    /// From when on it counts as failed if nothing changes, in milliseconds since the Unix epoch.
    pub fails_at: Option<u64>,
}

impl Verdict {
    pub(super) fn current() -> Self {
        Self {
            health: Health::Current,
            message: String::new(),
            fails_at: None,
        }
    }

    fn progress(message: impl Into<String>) -> Self {
        Self {
            health: Health::InProgress,
            message: message.into(),
            fails_at: None,
        }
    }

    fn failed(message: impl Into<String>) -> Self {
        Self {
            health: Health::Failed,
            message: message.into(),
            fails_at: None,
        }
    }
}

/// How the object of this group and kind fares.
pub(super) fn of(group: &str, kind: &str, object: &Value) -> Verdict {
    common(object)
        .or_else(|| of_kind(group, kind, object))
        .unwrap_or_else(|| by_readiness(object))
}

fn common(object: &Value) -> Option<Verdict> {
    let generation = object
        .pointer("/metadata/generation")
        .and_then(Value::as_i64);
    let observed = object
        .pointer("/status/observedGeneration")
        .and_then(Value::as_i64);
    if let (Some(generation), Some(observed)) = (generation, observed)
        && generation != observed
    {
        return Some(Verdict::progress(
            "its controller has not seen the change yet",
        ));
    }
    conditions(object).find_map(|condition| match condition.kind {
        "Reconciling" if condition.status == "True" => Some(Verdict::progress(condition.said())),
        "Stalled" if condition.status == "True" => Some(Verdict::failed(condition.said())),
        _ => None,
    })
}

fn of_kind(group: &str, kind: &str, object: &Value) -> Option<Verdict> {
    Some(match (group, kind) {
        ("", "Service") => service(object),
        ("", "Pod") => pod(object),
        ("", "PersistentVolumeClaim") => claim(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps", "DaemonSet") => daemon_set(object),
        ("apps", "Deployment") => deployment(object),
        ("apps", "ReplicaSet") => replica_set(object),
        ("batch", "Job") => job(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        ("", "Secret" | "ConfigMap") | ("batch", "CronJob") | ("policy", "PodDisruptionBudget") => {
            Verdict::current()
        }
        _ => return None,
    })
}

fn by_readiness(object: &Value) -> Verdict {
    match condition(object, "Ready") {
        Some(ready) if ready.status != "True" => Verdict::progress(ready.said()),
        _ => Verdict::current(),
    }
}

fn service(object: &Value) -> Verdict {
    let balanced = text(object, "/spec/type") == "LoadBalancer";
    if balanced && text(object, "/spec/clusterIP").is_empty() {
        return Verdict::progress("it has no cluster IP yet");
    }
    Verdict::current()
}

fn pod(object: &Value) -> Verdict {
    match text(object, "/status/phase") {
        "Succeeded" | "Failed" => Verdict::current(),
        "Running" if condition(object, "Ready").is_some_and(|ready| ready.status == "True") => {
            Verdict::current()
        }
        "Running" => {
            let looping = crash_looping(object);
            if looping.is_empty() {
                Verdict::progress("it runs and is not ready")
            } else {
                Verdict::failed(format!(
                    "it crashes again and again: {}",
                    looping.join(", ")
                ))
            }
        }
        "Pending" => pending(object),
        "" => Verdict::progress("no node has taken it yet"),
        phase => Verdict::progress(format!("its phase is {phase}")),
    }
}

fn pending(object: &Value) -> Verdict {
    let unschedulable = condition(object, "PodScheduled")
        .filter(|it| it.status == "False" && it.reason == "Unschedulable");
    match unschedulable {
        None => Verdict::progress("it is pending"),
        Some(condition) => Verdict {
            health: Health::InProgress,
            message: condition.said(),
            fails_at: millis(text(object, "/metadata/creationTimestamp"))
                .map(|created| created + SCHEDULING_MILLIS),
        },
    }
}

fn crash_looping(object: &Value) -> Vec<&str> {
    list(object, "/status/containerStatuses")
        .filter(|status| text(status, "/state/waiting/reason") == "CrashLoopBackOff")
        .map(|status| text(status, "/name"))
        .collect()
}

fn claim(object: &Value) -> Verdict {
    match text(object, "/status/phase") {
        "Bound" => Verdict::current(),
        "" => Verdict::progress("it is not bound yet"),
        phase => Verdict::progress(format!("it is not bound: its phase is {phase}")),
    }
}

fn stateful_set(object: &Value) -> Verdict {
    if text(object, "/spec/updateStrategy/type") == "OnDelete" {
        return Verdict::current();
    }
    let wanted = number(object, "/spec/replicas", 1);
    let status = |field: &str| number(object, &format!("/status/{field}"), 0);
    let replicas = status("replicas");
    let short = fewer("there", replicas, wanted)
        .or_else(|| fewer("ready", status("readyReplicas"), wanted))
        .or_else(|| surplus(replicas, wanted));
    if let Some(verdict) = short {
        return verdict;
    }
    let partition = number(object, "/spec/updateStrategy/rollingUpdate/partition", -1);
    if partition != -1 {
        return fewer("updated", status("updatedReplicas"), wanted - partition)
            .unwrap_or_else(Verdict::current);
    }
    if let Some(verdict) = fewer("current", status("currentReplicas"), wanted) {
        return verdict;
    }
    if text(object, "/status/currentRevision") != text(object, "/status/updateRevision") {
        return Verdict::progress("the new revision is not everywhere yet");
    }
    Verdict::current()
}

fn daemon_set(object: &Value) -> Verdict {
    let seen = object.pointer("/metadata/generation").is_some()
        && object.pointer("/status/observedGeneration").is_some();
    let wanted = number(object, "/status/desiredNumberScheduled", -1);
    if !seen || wanted == -1 {
        return Verdict::progress("its controller has not seen it yet");
    }
    let status = |field: &str| number(object, &format!("/status/{field}"), 0);
    fewer("scheduled", status("currentNumberScheduled"), wanted)
        .or_else(|| fewer("updated", status("updatedNumberScheduled"), wanted))
        .or_else(|| fewer("available", status("numberAvailable"), wanted))
        .or_else(|| fewer("ready", status("numberReady"), wanted))
        .unwrap_or_else(Verdict::current)
}

fn deployment(object: &Value) -> Verdict {
    let progressing = condition(object, "Progressing");
    if let Some(stuck) = progressing
        .as_ref()
        .filter(|it| it.reason == "ProgressDeadlineExceeded")
    {
        return Verdict::failed(stuck.said());
    }
    let wanted = number(object, "/spec/replicas", 1);
    let status = |field: &str| number(object, &format!("/status/{field}"), 0);
    let (replicas, updated) = (status("replicas"), status("updatedReplicas"));
    let short = fewer("there", replicas, wanted)
        .or_else(|| fewer("updated", updated, wanted))
        .or_else(|| surplus(replicas, wanted))
        .or_else(|| fewer("available", status("availableReplicas"), updated))
        .or_else(|| fewer("ready", status("readyReplicas"), wanted));
    if let Some(verdict) = short {
        return verdict;
    }
    // Without a deadline the controller does not keep the condition. Its way to say "none" is the largest number.
    let no_deadline = i64::from(i32::MAX);
    let watched = number(object, "/spec/progressDeadlineSeconds", no_deadline) != no_deadline;
    let arrived =
        progressing.is_some_and(|it| it.status == "True" && it.reason == "NewReplicaSetAvailable");
    if watched && !arrived {
        return Verdict::progress("its new pods are not available yet");
    }
    if condition(object, "Available").is_none_or(|it| it.status != "True") {
        return Verdict::progress("it is not available yet");
    }
    Verdict::current()
}

fn replica_set(object: &Value) -> Verdict {
    if let Some(failure) =
        condition(object, "ReplicaFailure").filter(|failure| failure.status == "True")
    {
        return Verdict::progress(failure.said());
    }
    let wanted = number(object, "/spec/replicas", 1);
    let status = |field: &str| number(object, &format!("/status/{field}"), 0);
    fewer("labeled", status("fullyLabeledReplicas"), wanted)
        .or_else(|| fewer("available", status("availableReplicas"), wanted))
        .or_else(|| fewer("ready", status("readyReplicas"), wanted))
        .or_else(|| surplus(status("replicas"), wanted))
        .unwrap_or_else(Verdict::current)
}

fn job(object: &Value) -> Verdict {
    let decided = conditions(object)
        .filter(|condition| condition.status == "True")
        .find_map(|condition| match condition.kind {
            "Complete" | "Suspended" => Some(Verdict::current()),
            "Failed" => Some(Verdict::failed(condition.said())),
            _ => None,
        });
    decided.unwrap_or_else(|| {
        if text(object, "/status/startTime").is_empty() {
            Verdict::progress("it has not started yet")
        } else {
            Verdict::current()
        }
    })
}

fn definition(object: &Value) -> Verdict {
    let decided =
        conditions(object).find_map(|condition| match (condition.kind, condition.status) {
            ("NamesAccepted", "False") => Some(Verdict::failed(condition.said())),
            ("Established", "False") if condition.reason != "Installing" => {
                Some(Verdict::failed(condition.said()))
            }
            ("Established", "True") => Some(Verdict::current()),
            _ => None,
        });
    decided.unwrap_or_else(|| Verdict::progress("it is not established yet"))
}

fn fewer(what: &str, there: i64, wanted: i64) -> Option<Verdict> {
    (there < wanted).then(|| Verdict::progress(format!("{there} of {wanted} {what}")))
}

fn surplus(there: i64, wanted: i64) -> Option<Verdict> {
    (there > wanted).then(|| Verdict::progress(format!("{} are still ending", there - wanted)))
}

struct Condition<'a> {
    kind: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
}

impl Condition<'_> {
    fn said(&self) -> String {
        match (self.reason, self.message) {
            ("", "") => format!("{} is {}", self.kind, self.status),
            (reason, "") => reason.to_owned(),
            ("", message) => message.to_owned(),
            (reason, message) => format!("{reason}: {message}"),
        }
    }
}

fn conditions(object: &Value) -> impl Iterator<Item = Condition<'_>> {
    list(object, "/status/conditions").map(|condition| Condition {
        kind: text(condition, "/type"),
        status: text(condition, "/status"),
        reason: text(condition, "/reason"),
        message: text(condition, "/message"),
    })
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<Condition<'a>> {
    conditions(object).find(|condition| condition.kind == kind)
}

fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    let items = object.pointer(pointer).and_then(Value::as_array);
    items.into_iter().flatten()
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn number(object: &Value, pointer: &str, otherwise: i64) -> i64 {
    object
        .pointer(pointer)
        .and_then(Value::as_i64)
        .unwrap_or(otherwise)
}

fn millis(timestamp: &str) -> Option<u64> {
    let parsed: jiff::Timestamp = timestamp.parse().ok()?;
    u64::try_from(parsed.as_millisecond()).ok()
}

/// What a namespace that is being deleted waits for, in its controller's words.
pub(super) fn remains(object: &Value) -> String {
    let words: Vec<_> = conditions(object)
        .filter(|condition| condition.status == "True" && !condition.message.is_empty())
        .map(|condition| condition.message)
        .collect();
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(group: &str, kind: &str, object: &Value, expected: Health, words: &str) {
        let verdict = of(group, kind, object);
        assert_eq!(verdict.health, expected, "{kind} {verdict:?} {object}");
        assert!(verdict.message.contains(words), "{verdict:?}");
    }

    #[test]
    fn what_all_kinds_have_in_common_comes_first() {
        use Health::{Current, Failed, InProgress};
        let unseen = json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1,
            "conditions": [{"type": "Ready", "status": "True"}]}});
        check("example.com", "Till", &unseen, InProgress, "not seen");
        let stalled = json!({"status": {"conditions": [
            {"type": "Stalled", "status": "True", "reason": "NoDisk", "message": "full"}]}});
        check("example.com", "Till", &stalled, Failed, "NoDisk: full");
        check("apps", "Deployment", &stalled, Failed, "NoDisk");
        let reconciling =
            json!({"status": {"conditions": [{"type": "Reconciling", "status": "True"}]}});
        check(
            "example.com",
            "Till",
            &reconciling,
            InProgress,
            "Reconciling",
        );
        for (status, expected) in [
            ("True", Current),
            ("False", InProgress),
            ("Unknown", InProgress),
        ] {
            let object = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
            check("example.com", "Till", &object, expected, "");
        }
        check("example.com", "Till", &json!({}), Current, "");
    }

    #[test]
    fn deployments() {
        use Health::{Current, Failed, InProgress};
        let deployment = |status: Value| {
            json!({"metadata": {"generation": 1}, "spec": {"replicas": 2, "progressDeadlineSeconds": 600},
                   "status": status})
        };
        let check = |status, expected, words| {
            check("apps", "Deployment", &deployment(status), expected, words);
        };
        check(json!({}), InProgress, "0 of 2 there");
        let counts = |updated: i64, ready: i64, available: i64, replicas: i64| {
            json!({"observedGeneration": 1, "replicas": replicas, "updatedReplicas": updated,
                "readyReplicas": ready, "availableReplicas": available, "conditions": [
                {"type": "Available", "status": "True"},
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]})
        };
        check(counts(1, 2, 2, 2), InProgress, "1 of 2 updated");
        check(counts(2, 2, 2, 3), InProgress, "1 are still ending");
        check(counts(2, 2, 1, 2), InProgress, "1 of 2 available");
        check(counts(2, 1, 2, 2), InProgress, "1 of 2 ready");
        check(counts(2, 2, 2, 2), Current, "");
        let mut waiting = counts(2, 2, 2, 2);
        waiting["conditions"][1]["reason"] = json!("ReplicaSetUpdated");
        check(waiting, InProgress, "not available yet");
        let mut unavailable = counts(2, 2, 2, 2);
        unavailable["conditions"][0]["status"] = json!("False");
        check(unavailable, InProgress, "not available");
        let stuck = json!({"observedGeneration": 1, "conditions": [{"type": "Progressing", "status": "False",
            "reason": "ProgressDeadlineExceeded", "message": "has timed out"}]});
        check(stuck, Failed, "has timed out");
    }

    #[test]
    fn stateful_sets_and_daemon_sets() {
        use Health::{Current, InProgress};
        let set = |spec: Value, status: Value| json!({"spec": spec, "status": status});
        let full = json!({"replicas": 2, "readyReplicas": 2, "currentReplicas": 2,
            "currentRevision": "a", "updateRevision": "a"});
        let check_set =
            |object: Value, expected, words| check("apps", "StatefulSet", &object, expected, words);
        check_set(
            set(json!({"replicas": 2}), json!({"replicas": 1})),
            InProgress,
            "1 of 2 there",
        );
        check_set(set(json!({"replicas": 2}), full.clone()), Current, "");
        check_set(
            set(json!({"replicas": 1}), full.clone()),
            InProgress,
            "1 are still ending",
        );
        let mut rolling = full.clone();
        rolling["updateRevision"] = json!("b");
        check_set(
            set(json!({"replicas": 2}), rolling.clone()),
            InProgress,
            "new revision",
        );
        let on_delete = json!({"replicas": 2, "updateStrategy": {"type": "OnDelete"}});
        check_set(set(on_delete, json!({})), Current, "");
        let partition =
            json!({"replicas": 2, "updateStrategy": {"rollingUpdate": {"partition": 1}}});
        check_set(
            set(partition.clone(), rolling.clone()),
            InProgress,
            "0 of 1 updated",
        );
        rolling["updatedReplicas"] = json!(1);
        check_set(set(partition, rolling), Current, "");

        let daemon = |status: Value| json!({"metadata": {"generation": 1}, "status": status});
        let check_daemon = |status: Value, expected, words| {
            check("apps", "DaemonSet", &daemon(status), expected, words);
        };
        check_daemon(json!({}), InProgress, "not seen");
        check_daemon(json!({"observedGeneration": 1}), InProgress, "not seen");
        let counted = json!({"observedGeneration": 1, "desiredNumberScheduled": 1, "currentNumberScheduled": 1,
            "updatedNumberScheduled": 1, "numberAvailable": 1, "numberReady": 0});
        check_daemon(counted.clone(), InProgress, "0 of 1 ready");
        let mut ready = counted;
        ready["numberReady"] = json!(1);
        check_daemon(ready, Current, "");
        // A node that no pod is meant for.
        check_daemon(
            json!({"observedGeneration": 1, "desiredNumberScheduled": 0}),
            Current,
            "",
        );
    }

    #[test]
    fn pods_jobs_and_claims() {
        use Health::{Current, Failed, InProgress};
        let pod = |status: Value| json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status});
        let check_pod =
            |status: Value, expected, words| check("", "Pod", &pod(status), expected, words);
        check_pod(json!({}), InProgress, "no node");
        check_pod(json!({"phase": "Pending"}), InProgress, "pending");
        check_pod(json!({"phase": "Succeeded"}), Current, "");
        check_pod(json!({"phase": "Running"}), InProgress, "not ready");
        let ready =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        check_pod(ready, Current, "");
        let looping = json!({"phase": "Running", "containerStatuses": [
            {"name": "till", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        check_pod(looping, Failed, "till");
        let unschedulable = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled",
            "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]});
        let verdict = of("", "Pod", &pod(unschedulable));
        assert_eq!(verdict.fails_at, Some(1_767_225_615_000));
        assert!(verdict.message.contains("0/1 nodes"), "{verdict:?}");

        let job = |status: Value| json!({ "status": status });
        let check_job =
            |status: Value, expected, words| check("batch", "Job", &job(status), expected, words);
        check_job(json!({}), InProgress, "not started");
        check_job(
            json!({"startTime": "2026-01-01T00:00:00Z", "active": 1}),
            Current,
            "",
        );
        let ended =
            |kind: &str| json!({"conditions": [{"type": kind, "status": "True", "reason": "Why"}]});
        check_job(ended("Complete"), Current, "");
        check_job(ended("Suspended"), Current, "");
        check_job(ended("Failed"), Failed, "Why");

        let claim = |phase: &str| json!({"status": {"phase": phase}});
        check(
            "",
            "PersistentVolumeClaim",
            &claim("Pending"),
            InProgress,
            "Pending",
        );
        check("", "PersistentVolumeClaim", &claim("Bound"), Current, "");
    }

    #[test]
    fn services_and_definitions() {
        use Health::{Current, Failed, InProgress};
        check(
            "",
            "Service",
            &json!({"spec": {"type": "LoadBalancer"}}),
            InProgress,
            "cluster IP",
        );
        let placed = json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1"}});
        check("", "Service", &placed, Current, "");
        check("", "Service", &json!({"spec": {}}), Current, "");
        let definition = |kind: &str, status: &str, reason: &str| json!({"status": {"conditions": [{"type": kind, "status": status, "reason": reason}]}});
        let check = |object: Value, expected| {
            check(
                "apiextensions.k8s.io",
                "CustomResourceDefinition",
                &object,
                expected,
                "",
            );
        };
        check(json!({}), InProgress);
        check(definition("Established", "True", ""), Current);
        check(definition("Established", "False", "Installing"), InProgress);
        check(definition("NamesAccepted", "False", "Taken"), Failed);
        check(definition("Established", "False", "NotAccepted"), Failed);
    }
}
