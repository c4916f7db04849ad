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

/// Something that went wrong with one object.
pub(super) fn of(name: &Name, reason: &'static str, message: String) -> Unapplied {
    Unapplied {
        object: name.to_string(),
        reason,
        message: shortened(message),
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
                refusal.message
            ),
        ),
        422 => of(name, "Invalid", refusal.message.clone()),
        _ => of_call(name, "patch", resource, refusal),
    }
}

/// What the refusal of this verb means.
pub(super) fn of_call(
    name: &Name,
    verb: &'static str,
    resource: &Resource,
    refusal: &Refusal,
) -> Unapplied {
    match refusal.code {
        403 if refusal.message.contains(" cannot ") => of(
            name,
            "Forbidden",
            format!(
                "the agent's role lacks `{verb}` on `{}`: {}",
                resource.rule(),
                refusal.message
            ),
        ),
        403 => of(name, "Forbidden", refusal.message.clone()),
        404 => of(name, "NotFound", refusal.message.clone()),
        _ => of(name, "Refused", refusal.message.clone()),
    }
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
        let text = text.to_lowercase();
        let ways = [
            "immutable",
            "may not change",
            "cannot change",
            "cannot be changed",
            "may not be changed",
            "updates to",
        ];
        ways.iter().any(|way| text.contains(way))
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

fn shortened(text: String) -> String {
    match text.char_indices().nth(MOST_CHARS) {
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
        ];
        for message in immutable {
            assert!(
                is_immutable(&refusal(422, "", &json!([cause(message)]))),
                "{message}"
            );
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
}
