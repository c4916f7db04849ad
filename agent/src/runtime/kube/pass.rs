//! One pass: makes the cluster match a set.
//!
//! ```text
//! resolve kinds ─▶ follow them ─▶ judge each object ─▶ claim those to apply in the inventory
//!     ─▶ namespaces ─▶ definitions, and wait for them ─▶ the rest ─▶ webhooks
//!     ─▶ remove what left the set, in the opposite order ─▶ keep the inventory
//! ```
//!
//! Objects that are as they were applied cost no request. One that fails is told of at the end, and stops no other;
//! only an API server that does not answer ends a pass early.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use longshore_protocol::{Object, session::Holding};
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{
    Cluster,
    apply::{self, Desired, Outcome, Task},
    kinds::Resource,
    name::{DEFINITIONS, Name},
    problem,
    resolve::Wanted,
    seen::Seen,
    view::Known,
};
use crate::runtime::{ApplyError, Changes, Unapplied, health::Health};

/// So many requests are under way at once.
pub(super) const AT_ONCE: usize = 4;
/// How long definitions may take to be served. Objects of their kinds fail after that, until the next pass.
const DEFINING: Duration = Duration::from_secs(15);

/// What a pass has to tell.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub changes: Changes,
    pub problems: Vec<Unapplied>,
}

impl Report {
    pub(super) fn waits(&mut self, name: &Name, what: &str) {
        self.changes.waiting.push(format!("{name} {what}"));
    }
}

impl Cluster {
    /// Makes the cluster match the holding.
    pub(super) async fn pass(&mut self, holding: &Holding) -> Result<Changes, ApplyError> {
        if self.held != Some(holding.held()) {
            self.held = Some(holding.held());
            self.attempts.begin_anew();
        }
        if self.inventory.lost {
            // The first set of a new device: there can be nothing of it in the cluster.
            if holding.generation().number() > 1 {
                self.recover().await?;
            }
            self.inventory.lost = false;
        }
        self.converge(holding.objects().cloned().collect()).await
    }

    /// Removes everything; also tells what still waits for its deletion to end.
    pub(super) async fn remove_all(&mut self) -> Result<Changes, ApplyError> {
        if self.inventory.lost {
            self.recover().await?;
            self.inventory.lost = false;
        }
        self.converge(Vec::new()).await
    }

    async fn converge(&mut self, objects: Vec<Object>) -> Result<Changes, ApplyError> {
        let mut report = Report::default();
        let mut wanted = self.resolve(objects, &mut report).await?;
        let leaving = self.leaving(&wanted.names, &mut report).await?;
        self.leaving = leaving.iter().map(|(name, _)| name.clone()).collect();
        self.follow(&wanted, &leaving).await?;
        let worked = self.work(&mut wanted, leaving, &mut report).await;
        // Whatever was done is kept, also where the rest could not be.
        self.keep().await?;
        worked?;
        self.finish(report)
    }

    async fn work(
        &mut self,
        wanted: &mut Wanted,
        leaving: Vec<(Name, Arc<Resource>)>,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let mut tasks = self.judge(&wanted.desired, report);
        self.claim(&tasks).await?;
        let later =
            tasks.split_off(tasks.partition_point(|task| task.desired.name.rank() <= DEFINITIONS));
        self.apply(tasks, report).await?;
        let mut tasks = later;
        if !wanted.unknown.is_empty() {
            let defined = self.await_kinds(wanted, report).await?;
            self.follow(wanted, &leaving).await?;
            let late = self.judge(&defined, report);
            self.claim(&late).await?;
            tasks.extend(late);
            tasks.sort_by(|one, other| order(&one.desired).cmp(&order(&other.desired)));
        }
        self.apply(tasks, report).await?;
        self.prune(leaving, report).await
    }

    /// Which objects are to be applied.
    fn judge(&mut self, desired: &[Desired], report: &mut Report) -> Vec<Task> {
        let mut tasks = Vec::new();
        for desired in desired {
            tasks.extend(self.judge_one(desired, report));
        }
        tasks
    }

    fn judge_one(&mut self, desired: &Desired, report: &mut Report) -> Option<Task> {
        let name = &desired.name;
        let digest = desired.object.digest();
        match self.view.knows(&name.kind()) {
            Known::Yes => {}
            Known::No(why) => {
                report.problems.push(problem::of(name, "NotWatched", why));
                return None;
            }
            Known::Unserved => {
                self.kinds.forget(&desired.resource.api_version());
                report
                    .problems
                    .push(problem::unserved(desired.object.key()));
                return None;
            }
        }
        let record = self.inventory.records.get(name);
        let repairs = record.is_some_and(|record| record.digest == Some(digest));
        let seen = self.view.object(name);
        let version = seen.map(|seen| seen.version.clone());
        if let Some(seen) = seen {
            if let Some(ending) = &seen.ending {
                let what = format!("{ending}; it is made anew when it is gone");
                report.waits(name, &what);
                return None;
            }
            let as_applied =
                record.is_some_and(|it| it.uid == seen.uid && it.fields == seen.fields);
            if repairs && as_applied && seen.is_of(&self.device) {
                return None;
            }
            if let Some(other) = seen.other_device(&self.device).filter(|_| !repairs) {
                let message = format!("it is applied by the agent of device {other} already");
                report
                    .problems
                    .push(problem::of(name, "OtherDevice", message));
                return None;
            }
        }
        if repairs && let Some((next, from)) = self.attempts.rests(name) {
            let who = match from {
                [] => "other hands".to_owned(),
                managers => managers.join(", "),
            };
            let what = format!(
                "is changed again and again by {who}, and is put right again, but not at once"
            );
            report.waits(name, &what);
            self.wake_at(next);
            return None;
        }
        if let Some((problem, next)) = self
            .attempts
            .failed_before(name, digest, version.as_deref())
        {
            report.problems.push(problem);
            self.wake_at(next);
            return None;
        }
        let ours = self
            .view
            .object(name)
            .filter(|seen| seen.is_of(&self.device))
            .map(|seen| (seen.uid.clone(), seen.version.clone()));
        Some(Task {
            desired: desired.clone(),
            repairs,
            ours,
        })
    }

    /// Lists the objects in the inventory as ones that are being applied.
    async fn claim(&mut self, tasks: &[Task]) -> Result<(), ApplyError> {
        for task in tasks {
            let Desired { name, resource, .. } = &task.desired;
            let record = self.inventory.records.entry(name.clone()).or_default();
            // Applied by a process that was killed before it could note so. Whether the object was there before that
            // can be told until it is written again.
            if let Some((uid, _)) = &task.ours
                && record.uid != *uid
                && let Some(seen) = self.view.object(name)
            {
                record.uid.clone_from(uid);
                record.adopted = seen.shared || seen.elder;
                self.unkept = true;
            }
            if record.version != resource.version {
                record.version.clone_from(&resource.version);
                self.unkept = true;
            }
            // A repair applies what was applied: only what is seen of it has to be noted anew.
            if !task.repairs && record.digest.take().is_some() {
                self.unkept = true;
            }
        }
        self.keep().await
    }

    /// Applies these, which are in order: those of one rank at once.
    async fn apply(&mut self, tasks: Vec<Task>, report: &mut Report) -> Result<(), ApplyError> {
        for rank in
            tasks.chunk_by(|one, other| one.desired.name.rank() == other.desired.name.rank())
        {
            let (api, device) = (self.api.clone(), self.device.clone());
            // Boxed, for the compiler cannot see that borrowing futures in a stream may go to another thread.
            let calls = rank.iter().map(|task| {
                apply::apply(&api, &device, task)
                    .map(move |outcome| (task, outcome))
                    .boxed()
            });
            let calls: Vec<BoxFuture<'_, _>> = calls.collect();
            let mut outcomes = stream::iter(calls).buffer_unordered(AT_ONCE);
            while let Some((task, outcome)) = outcomes.next().await {
                self.applied(task, outcome, report)?;
            }
        }
        Ok(())
    }

    fn applied(
        &mut self,
        task: &Task,
        outcome: Outcome,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let Desired {
            name,
            resource,
            object,
        } = &task.desired;
        match outcome {
            Outcome::Applied { applied, from } => {
                self.attempts.succeeded(name);
                let Some(seen) = self.take(name, resource, &applied.object) else {
                    return Ok(());
                };
                let unchanged = task
                    .ours
                    .as_ref()
                    .is_some_and(|(uid, version)| *uid == seen.uid && *version == seen.version);
                if !unchanged {
                    report.changes.written.push(name.to_string());
                    if task.repairs {
                        self.attempts.repaired(name, from);
                    }
                }
                let record = self.inventory.records.entry(name.clone()).or_default();
                if record.uid != seen.uid {
                    record.adopted = !applied.created && (seen.shared || seen.elder);
                }
                record.uid = seen.uid;
                record.fields = seen.fields;
                record.digest = Some(object.digest());
                self.unkept = true;
            }
            Outcome::Ending(object) => {
                self.take(name, resource, &object);
                report.waits(
                    name,
                    "is being replaced; it is made anew when the old one is gone",
                );
            }
            Outcome::Failed(problem) => {
                if problem.reason == "NotFound" {
                    // The namespace is missing, or the kind is not served any more.
                    self.kinds.forget(&resource.api_version());
                }
                let version = self.view.object(name).map(|seen| seen.version.clone());
                let next = self
                    .attempts
                    .failed(name, object.digest(), version, problem.clone());
                self.wake_at(next);
                report.problems.push(problem);
            }
            Outcome::CutOff(why) => return Err(ApplyError::Unavailable(why)),
        }
        Ok(())
    }

    /// Waits until the kinds are served that definitions of this set define, and resolves their objects.
    async fn await_kinds(
        &mut self,
        wanted: &mut Wanted,
        report: &mut Report,
    ) -> Result<Vec<Desired>, ApplyError> {
        let over = Instant::now() + DEFINING;
        let mut pause = Duration::from_millis(50);
        let mut defined = Vec::new();
        // Only new ones are worth a wait. What becomes of older ones, or failed, is a reason for another pass.
        let is_new = |name: &Name| report.changes.written.contains(&name.to_string());
        let mut new = wanted.definitions_of_unknown();
        new.retain(is_new);
        loop {
            let established = new.iter().all(|name| {
                let seen = self.view.object(name);
                seen.is_some_and(|seen| seen.verdict.health == Health::Current)
            });
            let late = Instant::now() >= over;
            if established || late {
                defined.extend(self.resolve_again(wanted, report).await?);
                let unknown = wanted.definitions_of_unknown();
                new.retain(|name| unknown.contains(name));
            }
            if new.is_empty() || late {
                break;
            }
            tokio::select! {
                stirred = self.view.event(&self.inventory.records) => self.stirred |= stirred,
                () = time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(2)),
            }
        }
        for object in wanted.unknown.drain(..) {
            report.problems.push(problem::unserved(object.key()));
        }
        wanted.desired.extend(defined.iter().cloned());
        Ok(defined)
    }

    /// Takes what the API server answered about an object.
    pub(super) fn take(
        &mut self,
        name: &Name,
        resource: &Resource,
        object: &Value,
    ) -> Option<Seen> {
        let (_, seen) = Seen::read(resource, object)?;
        self.view.put(name.clone(), seen.clone());
        Some(seen)
    }

    pub(super) fn forget(&mut self, name: &Name) {
        self.unkept |= self.inventory.records.remove(name).is_some();
    }

    fn finish(&self, report: Report) -> Result<Changes, ApplyError> {
        if let Some(why) = self.view.cut_off() {
            return Err(ApplyError::Unavailable(why.to_owned()));
        }
        if report.problems.is_empty() {
            return Ok(report.changes);
        }
        Err(ApplyError::Objects(report.problems))
    }
}

/// The order in which objects are applied.
pub(super) fn order(desired: &Desired) -> (u8, &Name) {
    (desired.name.rank(), &desired.name)
}
