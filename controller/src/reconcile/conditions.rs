//! What the reconciler states about a fleet.

use longshore_protocol::{Condition, FleetName, api::HeldRemoval};

use crate::source::mirror::Refs;

/// Whether the repo answers, and has the branch.
pub(super) fn source(refs: Option<&Refs>, problem: Option<String>, now: u64) -> Condition {
    match (refs, problem) {
        (_, Some(problem)) => Condition::fails("SourceReady", "Unreachable", problem, now),
        (None, None) => Condition::fails("SourceReady", "NotFetchedYet", "", now),
        (Some(refs), None) if refs.tracked.is_none() => Condition::fails(
            "SourceReady",
            "BranchMissing",
            "the repo does not have the branch; what devices run stays as it is",
            now,
        ),
        _ => Condition::holds("SourceReady", "Fetched", "", now),
    }
}

/// Whether the repo's content is without problems.
pub(super) fn valid(count: u64, problems: &[String], now: u64) -> Condition {
    match problems.first() {
        None => Condition::holds("FleetValid", "NoProblems", "", now),
        Some(first) => {
            let message = format!("{count} problems; the first: {first}");
            Condition::fails("FleetValid", "Problems", message, now)
        }
    }
}

/// Whether it is decided what every device is to run.
pub(super) fn planned(building: usize, now: u64) -> Condition {
    match building {
        0 => Condition::holds("Planned", "Decided", "", now),
        1 => Condition::fails("Planned", "Building", "1 device waits for a build", now),
        many => {
            let message = format!("{many} devices wait for builds");
            Condition::fails("Planned", "Building", message, now)
        }
    }
}

/// Whether removals wait for an operator.
pub(super) fn held(held: &[HeldRemoval], fleet: &FleetName, revision: &str, now: u64) -> Condition {
    if held.is_empty() {
        return Condition::fails("RemovalsHeld", "NothingHeld", "", now);
    }
    let message = format!(
        "{} removals are more than `maxDecommission` allows; if they are meant, \
         `longshore fleets confirm-removals {fleet} --revision {revision}`",
        held.len()
    );
    Condition::holds("RemovalsHeld", "MassRemoval", message, now)
}
