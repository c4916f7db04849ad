//! How a device moves from one manifest set to the next.
//!
//! ```text
//! accepted ─▶ window open? ─▶ prepare ─▶ before-update ─▶ apply ─▶ healthy? ─▶ after-update ─▶ steady? ─▶ good
//!                  │ no                                                │ not within the deadline
//!                  └─────────▶ the base goes on running ◀──────────────┘ refused, until another set comes
//! ```
//!
//! This module decides, without a clock and without I/O; [`crate::reconcile`] carries out. What must outlive a
//! restart is a [`Record`], which [`crate::ledger`] keeps: the base, the update that was begun, and the set that was
//! refused.
//!
//! The base is the last good set. Before there was one it is the set that was begun last: updates of that have
//! windows and hooks as all others, and what is held back is held at it, but it is nothing to fall back to.
//!
//! The first set of a device is no update: nothing could be disturbed. Nor is the base itself, however often it has
//! to be repaired.

pub mod hooks;
pub mod window;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use longshore_protocol::{Object, message::Held, session::Holding};
use serde::{Deserialize, Serialize};

use self::{hooks::Hooks, window::Window};

/// An object with this annotation set to `enabled` stays as it was in the base, or away where it was not there.
pub const HOLD: &str = "longshore.dev/hold";

/// How careful a device is. All of it comes from the device's own settings, none from the repo.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// When updates may begin; at any time where there is none.
    pub windows: Vec<Window>,
    /// What runs around them.
    pub hooks: Hooks,
    /// How long a set may take to become healthy before the last good one comes back. `None`: as long as it
    /// takes.
    pub deadline: Option<Duration>,
}

/// What outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What updates move away from, without what was held back: the last set that was applied and healthy, or,
    /// before there was one, the last that was begun.
    pub base: Option<Arc<Holding>>,
    /// Whether there was one that cannot be read any more.
    pub lost: bool,
    /// What was decided on the way to the next.
    pub way: Way,
}

/// What was decided on the way from the base to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Way {
    /// Whether the base never was healthy.
    pub unproven: bool,
    /// The update that was begun: it is gone on with when its window closes.
    pub begun: Option<Held>,
    /// How much of its time that update has had, in milliseconds; each start of the agent counts a little.
    pub spent: u64,
    /// The set that did not become healthy.
    pub refused: Option<Refusal>,
}

/// A set that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which.
    pub held: Held,
    /// Why, for people.
    pub why: String,
}

/// What to apply now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aim {
    /// This, which is what was accepted less what is held back. `begins` where an update starts with it.
    Forward {
        /// What to apply.
        holding: Arc<Holding>,
        /// Whether this is the beginning of an update.
        begins: bool,
    },
    /// The base, for now.
    Stay {
        /// What to apply.
        base: Arc<Holding>,
        /// Why not what was accepted.
        why: Stay,
    },
}

/// Why the base stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stay {
    /// No window is open.
    Closed {
        /// When the next one opens; `None` where none ever does.
        opens: Option<Timestamp>,
    },
    /// What was accepted did not become healthy.
    Refused(Refusal),
}

/// In so many steps the time of an update is counted on disk.
const STEPS: u32 = 20;

/// The decisions of one device.
#[derive(Debug, Default)]
pub struct Updates {
    /// How careful it is.
    pub policy: Policy,
    record: Record,
    /// The update that this process began.
    begun: Option<Arc<Holding>>,
    /// What the deadline runs for, and since when what it has had is not recorded.
    waiting: Option<(Held, Instant)>,
    /// What is healthy, and since when.
    healthy: Option<(Held, Instant)>,
}

impl Updates {
    /// Goes on from what was recorded.
    pub fn new(policy: Policy, mut record: Record) -> Self {
        let base = record.base.as_ref().map(|base| base.held());
        if !record.way.unproven && record.way.begun == base {
            // It became good, and the rest of that was cut off.
            record.way = Way::default();
        }
        Self {
            policy,
            record,
            ..Self::default()
        }
    }

    /// What to keep for the next start.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether there is a set to fall back to from `held`.
    fn is_update(&self, held: Held) -> bool {
        let base = self.record.base.as_ref();
        !self.record.way.unproven && base.is_some_and(|base| base.held() != held)
    }

    /// Goes on with an update in whose midst the agent ended. That costs some of the update's time, for a set that has
    /// the device start again and again would otherwise never be out of it. Says whether there is something to record.
    pub fn resume(&mut self) -> bool {
        let (Some(begun), Some(deadline)) = (self.record.way.begun, self.policy.deadline) else {
            return false;
        };
        self.spend(deadline / STEPS);
        if Duration::from_millis(self.record.way.spent) >= deadline && self.is_update(begun) {
            let why = "the agent was started again and again in the midst of it".to_owned();
            self.refuse(begun, why);
        }
        true
    }

    fn spend(&mut self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.record.way.spent = self.record.way.spent.saturating_add(millis);
    }

    /// What to apply, now that `accepted` is what the device should run.
    pub fn aim(&self, accepted: &Arc<Holding>, now: Timestamp) -> Aim {
        let holding = less_held_back(accepted, &self.record);
        let Some(base) = &self.record.base else {
            return Aim::Forward {
                holding,
                begins: false,
            };
        };
        let held = holding.held();
        if held == base.held() {
            return Aim::Forward {
                holding,
                begins: false,
            };
        }
        if let Some(refusal) = self.record.way.refused.as_ref()
            && refusal.held == held
        {
            return Aim::Stay {
                base: base.clone(),
                why: Stay::Refused(refusal.clone()),
            };
        }
        let begun = self.is_under_way(held);
        if !begun && !window::is_open(&self.policy.windows, now) {
            // What was begun in a window goes on, also where it is not good yet.
            let begun = self.begun.as_ref();
            let in_place = begun.filter(|begun| self.is_under_way(begun.held()));
            return Aim::Stay {
                base: in_place.unwrap_or(base).clone(),
                why: Stay::Closed {
                    opens: window::next(&self.policy.windows, now),
                },
            };
        }
        Aim::Forward {
            holding,
            begins: !begun,
        }
    }

    /// This is about to be applied. Says whether it is another base by that.
    pub fn began(&mut self, holding: &Arc<Holding>) -> bool {
        let unproven = self.is_first() || self.record.way.unproven;
        self.record.way = Way {
            unproven,
            begun: (!self.is_first()).then(|| holding.held()),
            ..Way::default()
        };
        self.begun = Some(holding.clone());
        (self.waiting, self.healthy) = (None, None);
        if unproven {
            self.record.base = Some(holding.clone());
            self.record.lost = false;
        }
        unproven
    }

    /// Whether nothing was ever begun.
    pub fn is_first(&self) -> bool {
        self.record.base.is_none()
    }

    /// Whether this is an update that was begun and is not good yet.
    pub fn is_under_way(&self, held: Held) -> bool {
        self.record.way.begun == Some(held)
    }

    /// How long this has to stay healthy before it is good, where it has to: a container that ends soon after its
    /// start was healthy, too.
    pub fn unsteady(&mut self, held: Held, now: Instant, steady: Duration) -> Option<Duration> {
        let since = match self.healthy {
            Some((healthy, since)) if healthy == held => since,
            _ => self.healthy.insert((held, now)).1,
        };
        let rest = steady.saturating_sub(now.saturating_duration_since(since));
        (!self.is_good(held) && !rest.is_zero()).then_some(rest)
    }

    fn is_good(&self, held: Held) -> bool {
        let base = self.record.base.as_ref();
        !self.record.way.unproven && base.is_some_and(|base| base.held() == held)
    }

    /// The set is applied and healthy: it is what to fall back to. Says whether that is news.
    pub fn succeeded(&mut self, holding: &Arc<Holding>) -> bool {
        self.waiting = None;
        let is_news = !self.is_good(holding.held());
        if is_news {
            self.record.base = Some(holding.clone());
            self.record.way = Way::default();
        }
        is_news
    }

    /// Whether a set that is not healthy is out of time; the first question starts its clock. There is no deadline for
    /// a set that there is nothing to fall back from.
    pub fn is_overdue(&mut self, held: Held, now: Instant) -> bool {
        self.healthy = None;
        let (Some(deadline), true) = (self.policy.deadline, self.is_update(held)) else {
            return false;
        };
        let since = match self.waiting {
            Some((waiting, since)) if waiting == held => since,
            _ => self.waiting.insert((held, now)).1,
        };
        let spent = Duration::from_millis(self.record.way.spent);
        spent + now.saturating_duration_since(since) >= deadline
    }

    /// Counts the time that an update has had since it was counted last. Says whether there is something to record.
    pub fn count(&mut self, now: Instant) -> bool {
        let (Some((held, since)), Some(deadline)) = (self.waiting, self.policy.deadline) else {
            return false;
        };
        let had = now.saturating_duration_since(since);
        if had < deadline / STEPS || self.record.way.begun != Some(held) {
            return false;
        }
        self.spend(had);
        self.waiting = Some((held, now));
        true
    }

    /// Whether the set is well cannot be known now, and that is not its fault: the time does not count, neither against
    /// it nor for it.
    pub fn excuse(&mut self, now: Instant) {
        self.healthy = None;
        if let Some((held, since)) = self.waiting.take()
            && self.is_under_way(held)
        {
            self.spend(now.saturating_duration_since(since));
        }
    }

    /// Gives a set up.
    pub fn refuse(&mut self, held: Held, why: String) {
        self.waiting = None;
        self.record.way = Way {
            refused: Some(Refusal { held, why }),
            ..Way::default()
        };
    }
}

/// The holding with each object that asks to be held back as it is in the base. Where the base is lost, nothing is held
/// back: what runs would be removed otherwise.
fn less_held_back(holding: &Arc<Holding>, record: &Record) -> Arc<Holding> {
    if record.lost || !holding.objects().any(is_held_back) {
        return holding.clone();
    }
    let before: BTreeMap<_, _> = record
        .base
        .iter()
        .flat_map(|base| base.objects())
        .map(|object| (object.key(), object))
        .collect();
    let objects = holding.objects().filter_map(|object| {
        if is_held_back(object) {
            before.get(object.key()).map(|before| (*before).clone())
        } else {
            Some(object.clone())
        }
    });
    let revision = holding.revision().to_owned();
    // Keys stay as they are, so none can come twice.
    Holding::new(holding.generation(), revision, objects)
        .map_or_else(|_twice| holding.clone(), Arc::new)
}

/// Which objects of the set ask to be held back.
pub fn held_back(holding: &Holding) -> Vec<String> {
    holding
        .objects()
        .filter(|object| is_held_back(object))
        .map(|object| object.key().to_string())
        .collect()
}

fn is_held_back(object: &Object) -> bool {
    // Looking at the bytes first: parsing every object of every set would be most of a pass's work.
    let body = object.body();
    let mentions = body
        .windows(HOLD.len())
        .any(|window| window == HOLD.as_bytes());
    mentions
        && object
            .value()
            .pointer("/metadata/annotations")
            .and_then(|annotations| annotations.get(HOLD))
            .is_some_and(|value| value == "enabled" || value == "true")
}

#[cfg(test)]
mod tests;
