//! Typed, timed statements about a device or an object, in the style of Kubernetes conditions.

use serde::{Deserialize, Serialize};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// One statement about a device or an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is stated, in `CamelCase`: `Rendered`, `Applied`, `Drifted`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one `CamelCase` word for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// When `status` last changed, in milliseconds since the Unix epoch by the reporter's clock.
    pub since: u64,
}

impl Condition {
    /// A condition that holds.
    pub fn holds(kind: &str, reason: &str, message: impl Into<String>, now: u64) -> Self {
        Self::new(kind, ConditionStatus::True, reason, message, now)
    }

    /// A condition that does not hold.
    pub fn fails(kind: &str, reason: &str, message: impl Into<String>, now: u64) -> Self {
        Self::new(kind, ConditionStatus::False, reason, message, now)
    }

    /// A condition of which nobody knows yet whether it holds.
    pub fn unknown(kind: &str, reason: &str, message: impl Into<String>, now: u64) -> Self {
        Self::new(kind, ConditionStatus::Unknown, reason, message, now)
    }

    fn new(
        kind: &str,
        status: ConditionStatus,
        reason: &str,
        message: impl Into<String>,
        now: u64,
    ) -> Self {
        Self {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.into(),
            since: now,
        }
    }
}

/// Puts `condition` in the place of the one of its kind, keeping `since` where the status did not change.
pub fn set(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|old| old.kind == condition.kind) {
        Some(old) => {
            if old.status == condition.status {
                condition.since = old.since;
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_moves_only_with_the_status() {
        let mut conditions = vec![Condition::holds("Applied", "Done", "", 1)];
        set(&mut conditions, Condition::holds("Applied", "Again", "", 2));
        assert_eq!(conditions, [Condition::holds("Applied", "Again", "", 1)]);
        set(
            &mut conditions,
            Condition::fails("Applied", "DiskFull", "", 3),
        );
        assert_eq!(conditions, [Condition::fails("Applied", "DiskFull", "", 3)]);
    }
}
