//! When to try an object again: those that failed, and those that other hands change again and again.
//!
//! The first repair of an object is at once. Each further one waits twice as long as the one before, until the
//! object has been left alone for a while. An object that failed is tried again when it changed, when its manifest
//! did, and otherwise after waits that grow in the same way, so that it costs nothing while others are looked at.

use std::{collections::BTreeMap, time::Duration};

use longshore_protocol::Digest;
use tokio::time::Instant;

use super::name::Name;
use crate::runtime::Unapplied;

/// The shortest and the longest wait of an object that failed.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_mins(1);
/// The shortest and the longest wait between two repairs.
const FIRST_REPAIR: Duration = Duration::from_secs(1);
const LAST_REPAIR: Duration = Duration::from_mins(5);
/// A repaired object that is left alone for this long after its wait is at peace.
const PEACE: Duration = Duration::from_mins(1);

/// What was tried.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failures: BTreeMap<Name, Failure>,
    repairs: BTreeMap<Name, Repair>,
}

#[derive(Debug)]
struct Failure {
    problem: Unapplied,
    digest: Digest,
    /// The object's version when it failed, where there was one.
    version: Option<String>,
    count: u32,
    next: Instant,
}

#[derive(Debug)]
struct Repair {
    /// The managers that the object was taken back from last.
    from: Vec<String>,
    count: u32,
    next: Instant,
}

impl Attempts {
    /// Why this manifest failed on this version of the object, while it is not to be tried again.
    pub(super) fn failed_before(
        &self,
        name: &Name,
        digest: Digest,
        version: Option<&str>,
    ) -> Option<(Unapplied, Instant)> {
        let failure = self.failures.get(name)?;
        let same = failure.digest == digest && failure.version.as_deref() == version;
        (same && Instant::now() < failure.next).then(|| (failure.problem.clone(), failure.next))
    }

    /// Notes a failure; returns when to try again.
    pub(super) fn failed(
        &mut self,
        name: &Name,
        digest: Digest,
        version: Option<String>,
        problem: Unapplied,
    ) -> Instant {
        let count = self.failures.get(name).map_or(0, |failure| failure.count) + 1;
        let next = Instant::now() + growing(FIRST_RETRY, count, LAST_RETRY);
        let failure = Failure {
            problem,
            digest,
            version,
            count,
            next,
        };
        self.failures.insert(name.clone(), failure);
        next
    }

    /// Notes that an object was applied.
    pub(super) fn succeeded(&mut self, name: &Name) {
        self.failures.remove(name);
    }

    /// Until when an object is left to whoever changes it, and who that was.
    pub(super) fn rests(&self, name: &Name) -> Option<(Instant, &[String])> {
        let repair = self.repairs.get(name)?;
        (Instant::now() < repair.next).then_some((repair.next, repair.from.as_slice()))
    }

    /// Notes a repair, which took fields from these managers.
    pub(super) fn repaired(&mut self, name: &Name, from: Vec<String>) {
        let now = Instant::now();
        self.repairs.retain(|_, repair| {
            now < repair.next + growing(FIRST_REPAIR, repair.count, LAST_REPAIR).max(PEACE)
        });
        let count = self.repairs.get(name).map_or(0, |repair| repair.count) + 1;
        let next = now + growing(FIRST_REPAIR, count, LAST_REPAIR);
        self.repairs
            .insert(name.clone(), Repair { from, count, next });
    }

    /// Forgets all failures: there is a new set, which may have what they missed.
    pub(super) fn begin_anew(&mut self) {
        self.failures.clear();
    }
}

fn growing(first: Duration, count: u32, last: Duration) -> Duration {
    first
        .saturating_mul(1 << count.saturating_sub(1).min(20))
        .min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name {
            group: String::new(),
            kind: "ConfigMap".to_owned(),
            namespace: "shop".to_owned(),
            name: "till".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repairs_become_rare_and_peace_makes_them_prompt_again() {
        let mut attempts = Attempts::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert!(attempts.rests(&name()).is_none());
            attempts.repaired(&name(), vec!["other".to_owned()]);
            let (next, from) = attempts.rests(&name()).unwrap();
            assert_eq!(from, ["other"]);
            waits.push((next - Instant::now()).as_secs());
            tokio::time::sleep_until(next).await;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        tokio::time::sleep(LAST_REPAIR + PEACE).await;
        attempts.repaired(&name(), Vec::new());
        let (next, _) = attempts.rests(&name()).unwrap();
        assert_eq!((next - Instant::now()).as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_counts_for_one_manifest_on_one_version() {
        let mut attempts = Attempts::default();
        let problem = super::super::problem::of(&name(), "Refused", "no".to_owned());
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        attempts.failed(&name(), one, Some("7".to_owned()), problem);
        assert!(attempts.failed_before(&name(), one, Some("7")).is_some());
        assert!(attempts.failed_before(&name(), other, Some("7")).is_none());
        assert!(attempts.failed_before(&name(), one, Some("8")).is_none());
        assert!(attempts.failed_before(&name(), one, None).is_none());
        tokio::time::sleep(FIRST_RETRY).await;
        assert!(attempts.failed_before(&name(), one, Some("7")).is_none());
    }
}
