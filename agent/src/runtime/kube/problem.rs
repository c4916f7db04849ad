//! Why an object is not as it should be, in the API server's words and with what to do about it.

use longshore_protocol::ObjectKey;

use super::{
    api::{Cause, Refusal},
    kinds::Resource,
    name::Name,
};
use crate::runtime::Unapplied;

/// No more fields of a conflict are named than these.
const MOST_FIELDS: usize = 5;
/// API servers quote whole objects in some messages.
const MOST_CHARS: usize = 600;
/// And leave room for what to do about it.
const MOST_QUOTED: usize = 400;

/// The ways in which API servers say that something cannot be changed.
const IMMUTABLE: [&str; 22] = [
    "immutable",
    "may not change",
    "cannot change",
    "can not change",
    "cannot be changed",
    "can not be changed",
    "may not be changed",
    "cannot be updated",
    "can not be updated",
    "may not be updated",
    "cannot be modified",
    "can not be modified",
    "may not be modified",
    "cannot be unset",
    "can not be unset",
    // Of a pod's containers.
    "may not add or remove",
    // What kinds say that declare their rules: `+k8s:update`.
    "cannot be set once created",
    "cannot be cleared once set",
    "item may not be added",
    "item may not be removed",
    // The rule of a definition that has no message of its own: `failed rule: self == oldSelf`.
    "self == oldself",
    "oldself == self",
];

/// Something that went wrong with one object.
pub(super) fn of(name: &Name, reason: &'static str, message: String) -> Unapplied {
    Unapplied {
        object: name.to_string(),
        reason,
        message: shortened(message, MOST_CHARS),
    }
}

/// There is no such kind.
pub(super) fn unserved(key: &ObjectKey) -> Unapplied {
    let message = format!(
        "the API server serves no kind `{}` in `{}`: is its definition, or its operator, installed?",
        key.kind, key.api_version
    );
    of(&Name::of(key, &key.namespace), "UnknownKind", message)
}

/// What the refusal of an apply means.
pub(super) fn of_apply(name: &Name, resource: &Resource, refusal: &Refusal) -> Unapplied {
    match refusal.code {
        409 if is_conflict(refusal) => of(name, "Conflict", conflict(refusal)),
        422 if is_immutable(refusal) => of(
            name,
            "Immutable",
            format!(
                "{}; give it the annotation `longshore.dev/force: enabled` to have it deleted and made anew",
                shortened(refusal.message.clone(), MOST_QUOTED)
            ),
        ),
        422 => of(name, "Invalid", refusal.message.clone()),
        // A field that the kind does not have is an internal error in the API server's eyes.
        500 if refusal.message.starts_with("failed to create typed patch") => {
            of(name, "Invalid", refusal.message.clone())
        }
        _ => of_call(name, resource, refusal),
    }
}

/// What the refusal of a call means.
pub(super) fn of_call(name: &Name, resource: &Resource, refusal: &Refusal) -> Unapplied {
    match refusal.code {
        403 => match lacking(refusal) {
            Some(verb) => of(
                name,
                "Forbidden",
                format!(
                    "the agent's role lacks `{verb}` on `{}`: {}",
                    resource.rule(),
                    refusal.message
                ),
            ),
            None => of(name, "Forbidden", refusal.message.clone()),
        },
        404 => of(name, "NotFound", refusal.message.clone()),
        _ => of(name, "Refused", refusal.message.clone()),
    }
}

/// The verb that the agent's role lacks, where it is that. It need not be the one of the call: to apply what is not
/// there takes `create`, too.
fn lacking(refusal: &Refusal) -> Option<&str> {
    // Before 1.23, API servers refuse that one without a word.
    if refusal.message.trim_end().ends_with("is forbidden:") {
        return Some("create");
    }
    let (_, what) = refusal.message.split_once("\" cannot ")?;
    let (verb, what) = what.split_once(' ')?;
    what.starts_with("resource ").then_some(verb)
}

/// Whether the API server does not know who asks. Policies and webhooks may refuse with the same code.
pub(super) fn is_unauthorized(refusal: &Refusal) -> bool {
    let denied = [" denied request", " denied the request"];
    refusal.code == 401 && !denied.iter().any(|words| refusal.message.contains(words))
}

/// Whether other managers have fields that the manifest sets to something else.
pub(super) fn is_conflict(refusal: &Refusal) -> bool {
    refusal.code == 409 && conflicts(refusal).next().is_some()
}

/// The managers that have these fields, where each took them by changing the object, as people and controllers do,
/// and none by applying, which states an intent to keep them.
pub(super) fn takers(refusal: &Refusal) -> Option<Vec<String>> {
    let mut takers: Vec<String> = Vec::new();
    for cause in conflicts(refusal) {
        // `conflict with "kubectl-edit" using v1 at 2026-01-01T00:00:00Z` is said of a change,
        // `conflict with "argocd"` of an apply.
        if !cause.message.contains(" using ") {
            return None;
        }
        let manager = cause
            .message
            .split('"')
            .nth(1)
            .unwrap_or("somebody")
            .to_owned();
        if !takers.contains(&manager) {
            takers.push(manager);
        }
    }
    (!takers.is_empty()).then_some(takers)
}

/// Whether all that is wrong with the manifest is that it changes what cannot be changed.
pub(super) fn is_immutable(refusal: &Refusal) -> bool {
    let says_so = |text: &str| {
        // Whatever a policy says or is called, it would not let a new object pass either.
        if text.contains("ValidatingAdmissionPolicy '") {
            return false;
        }
        let text = text.to_lowercase();
        IMMUTABLE.iter().any(|way| text.contains(way))
            // `updates to parameters are forbidden`, and not what a policy says of a value.
            || (text.contains("updates to ") && text.contains("are forbidden"))
    };
    let causes = refusal.causes();
    refusal.code == 422
        && if causes.is_empty() {
            says_so(&refusal.message)
        } else {
            causes.iter().all(|cause| says_so(&cause.message))
        }
}

fn conflicts(refusal: &Refusal) -> impl Iterator<Item = &Cause> {
    let causes = refusal.causes().iter();
    causes.filter(|cause| cause.reason == "FieldManagerConflict")
}

fn conflict(refusal: &Refusal) -> String {
    let mut fields: Vec<_> = conflicts(refusal)
        .map(|cause| format!("`{}` ({})", cause.field, cause.message))
        .collect();
    let more = fields.len().saturating_sub(MOST_FIELDS);
    fields.truncate(MOST_FIELDS);
    if more > 0 {
        fields.push(format!("{more} more"));
    }
    format!(
        "others manage {}: leave them out of the manifest, or have the other manager give them up",
        fields.join(", ")
    )
}

fn shortened(text: String, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(code: u16, message: &str, causes: &Value) -> Refusal {
        serde_json::from_value(json!({"kind": "Status", "code": code, "message": message,
            "details": {"causes": causes}}))
        .unwrap()
    }

    fn conflict_with(managers: &[&str]) -> Refusal {
        let causes: Vec<_> = managers
            .iter()
            .map(|manager| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"),
                       "field": ".data.text"})
            })
            .collect();
        refusal(409, "Apply failed", &json!(causes))
    }

    #[test]
    fn who_changed_an_object_is_told_from_who_applies_it() {
        let edit = r#""kubectl-edit" using v1 at 2026-01-01T00:00:00Z"#;
        let scale = r#""kubectl" with subresource "scale" using autoscaling/v1"#;
        assert_eq!(
            takers(&conflict_with(&[edit, edit, scale])).unwrap(),
            ["kubectl-edit", "kubectl"]
        );
        assert_eq!(takers(&conflict_with(&[edit, r#""argocd""#])), None);
        // Another version of the object is in the way, not another manager.
        let modified = refusal(409, "the object has been modified", &json!([]));
        assert!(!is_conflict(&modified) && takers(&modified).is_none());
    }

    #[test]
    fn an_object_is_replaced_only_where_nothing_else_is_wrong_with_it() {
        let cause = |message: &str| json!({"reason": "FieldValueInvalid", "message": message, "field": "spec"});
        let immutable = [
            "Invalid value: {}: field is immutable",
            "Forbidden: updates to statefulset spec for fields other than 'replicas' are forbidden",
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`",
            "Invalid value: \"a\": cannot change roleRef",
            "Invalid value: \"a\": Value is immutable",
            "Forbidden: pod updates may not add or remove containers",
            "Forbidden: existing toleration can not be modified except its tolerationSeconds",
            "Forbidden: updates to parameters are forbidden.",
            "Forbidden: may not be changed in an update.",
            "Invalid value: []string(nil): primary clusterIP can not be unset",
            "Forbidden: spec is immutable after creation except resources.requests",
            "Invalid value: null: field cannot be cleared once set",
            "Invalid value: null: field cannot be set once created",
            "Invalid value: null: field cannot be modified once set",
            "Forbidden: item may not be removed",
            "Invalid value: \"string\": failed rule: self == oldSelf",
        ];
        for message in immutable {
            assert!(
                is_immutable(&refusal(422, "", &json!([cause(message)]))),
                "{message}"
            );
        }
        // A policy's word about the value: the same object made anew would be refused as well, and be gone.
        for message in [
            "updates to more than 5 replicas need an approval",
            "ValidatingAdmissionPolicy 'immutable-tags' with binding 'all' denied request: images need a digest",
            "Required value",
        ] {
            let policy = json!([cause(message)]);
            assert!(!is_immutable(&refusal(422, "", &policy)), "{message}");
        }
        let mixed = json!([cause("field is immutable"), cause("Required value")]);
        assert!(!is_immutable(&refusal(422, "", &mixed)));
        assert!(!is_immutable(&refusal(
            422,
            "metadata.name: Required value",
            &json!([])
        )));
        assert!(!is_immutable(&refusal(
            403,
            "field is immutable",
            &json!([])
        )));
    }

    #[test]
    fn the_verb_that_is_missing_is_the_one_that_was_refused() {
        let of = |message: &str| lacking(&refusal(403, message, &json!([]))).map(str::to_owned);
        let user = r#"deployments.apps "web" is forbidden: User "agent""#;
        let create = format!(r#"{user} cannot create resource "deployments" in API group "apps""#);
        assert_eq!(of(&create).as_deref(), Some("create"));
        assert_eq!(
            of(r#"deployments.apps "web" is forbidden: "#).as_deref(),
            Some("create")
        );
        // Other reasons to forbid something are told as they are.
        for message in [
            "pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false",
            "pods \"web\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on",
            "roles \"all\" is forbidden: user \"agent\" is attempting to grant RBAC permissions not currently held",
        ] {
            assert_eq!(of(message), None, "{message}");
        }
    }

    #[test]
    fn what_to_do_is_told_also_where_the_api_server_quotes_whole_objects() {
        let name = Name {
            group: String::new(),
            kind: "Pod".to_owned(),
            namespace: "shop".to_owned(),
            name: "till".to_owned(),
        };
        let words = "spec: Forbidden: pod updates may not change fields other than ";
        let refusal = refusal(422, &(words.to_owned() + &"x".repeat(5000)), &json!([]));
        let problem = of_apply(&name, &Resource::default(), &refusal);
        assert_eq!(problem.reason, "Immutable");
        assert!(problem.message.starts_with(words), "{}", problem.message);
        assert!(
            problem.message.contains("longshore.dev/force"),
            "{}",
            problem.message
        );
    }

    #[test]
    fn a_policy_that_refuses_says_nothing_of_credentials() {
        let policy = r#"configmaps "page" is forbidden: ValidatingAdmissionPolicy 'owners' with binding 'all' denied request: who are you"#;
        let webhook = r#"admission webhook "guard.example.com" denied the request: who are you"#;
        for message in [policy, webhook] {
            assert!(!is_unauthorized(&refusal(401, message, &json!([]))));
        }
        assert!(is_unauthorized(&refusal(401, "Unauthorized", &json!([]))));
        assert!(!is_unauthorized(&refusal(403, "Unauthorized", &json!([]))));
    }
}
