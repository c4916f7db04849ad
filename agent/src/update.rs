//! How a device moves from one manifest set to the next.
//!
//! ```text
//! accepted ─▶ window open? ─▶ prepare ─▶ before-update ─▶ apply ─▶ healthy? ─▶ after-update ─▶ good
//!                  │ no                                                │ not within the deadline
//!                  └─────────▶ the good set goes on running ◀──────────┘ refused, until another set comes
//! ```
//!
//! This module decides, without a clock and without I/O; [`crate::reconcile`] carries out. What must outlive a
//! restart is a [`Record`], which [`crate::ledger`] keeps: the last good set, the update that was begun, and the
//! set that was refused.
//!
//! The first set of a device is no update: there is nothing to fall back to, and nothing that could be
//! disturbed. Nor is the good set itself, however often it has to be repaired.

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

/// An object with this annotation set to `enabled` stays as it was in the last good set, or away where it was not
/// there.
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
    /// The last set that was applied and healthy, without what was held back.
    pub good: Option<Arc<Holding>>,
    /// What was decided on the way to the next.
    pub way: Way,
}

/// What was decided on the way from the good set to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Way {
    /// The update that was begun: it is gone on with when its window closes.
    pub begun: Option<Held>,
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
    /// The good set, for now.
    Stay {
        /// What to apply.
        good: Arc<Holding>,
        /// Why not what was accepted.
        why: Stay,
    },
}

/// Why the good set stays.
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

/// The decisions of one device.
#[derive(Debug, Default)]
pub struct Updates {
    /// How careful it is.
    pub policy: Policy,
    record: Record,
    /// What the deadline runs for, and since when. A restart begins it anew.
    waiting: Option<(Held, Instant)>,
}

impl Updates {
    /// Goes on from what was recorded.
    pub fn new(policy: Policy, record: Record) -> Self {
        Self {
            policy,
            record,
            waiting: None,
        }
    }

    /// What to keep for the next start.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What to apply, now that `accepted` is what the device should run.
    pub fn aim(&self, accepted: &Arc<Holding>, now: Timestamp) -> Aim {
        let holding = less_held_back(accepted, self.record.good.as_deref());
        let Some(good) = &self.record.good else {
            return Aim::Forward {
                holding,
                begins: false,
            };
        };
        let held = holding.held();
        if held == good.held() {
            return Aim::Forward {
                holding,
                begins: false,
            };
        }
        if let Some(refusal) = self.record.way.refused.as_ref()
            && refusal.held == held
        {
            return Aim::Stay {
                good: good.clone(),
                why: Stay::Refused(refusal.clone()),
            };
        }
        let begun = self.record.way.begun == Some(held);
        if !begun && !window::is_open(&self.policy.windows, now) {
            return Aim::Stay {
                good: good.clone(),
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

    /// The update to this set began.
    pub fn began(&mut self, held: Held) {
        self.record.way = Way {
            begun: Some(held),
            refused: None,
        };
    }

    /// The set is applied and healthy: it is what to fall back to. Says whether that is news.
    pub fn succeeded(&mut self, holding: &Arc<Holding>) -> bool {
        self.waiting = None;
        let is_news = self
            .record
            .good
            .as_ref()
            .is_none_or(|good| good.held() != holding.held());
        if is_news {
            self.record.good = Some(holding.clone());
            self.record.way = Way::default();
        }
        is_news
    }

    /// Whether a set that is not healthy yet is out of time; the first question starts its clock. There is no
    /// deadline for a set that there is nothing to fall back from.
    pub fn is_overdue(&mut self, held: Held, now: Instant) -> bool {
        let is_update = |good: &Arc<Holding>| good.held() != held;
        let (Some(deadline), true) = (
            self.policy.deadline,
            self.record.good.as_ref().is_some_and(is_update),
        ) else {
            return false;
        };
        let since = match self.waiting {
            Some((waiting, since)) if waiting == held => since,
            _ => self.waiting.insert((held, now)).1,
        };
        now.saturating_duration_since(since) >= deadline
    }

    /// Gives a set up.
    pub fn refuse(&mut self, held: Held, why: String) {
        self.waiting = None;
        self.record.way = Way {
            begun: None,
            refused: Some(Refusal { held, why }),
        };
    }
}

/// The holding with each object that asks to be held back as it is in `good`.
fn less_held_back(holding: &Arc<Holding>, good: Option<&Holding>) -> Arc<Holding> {
    if !holding.objects().any(is_held_back) {
        return holding.clone();
    }
    let before: BTreeMap<_, _> = good
        .into_iter()
        .flat_map(Holding::objects)
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
