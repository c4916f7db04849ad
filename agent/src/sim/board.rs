//! What is known of every simulated device. It is written by the devices and read by whoever measures.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use longshore_protocol::{DeviceName, message::Held, session::Holding};
use tokio::sync::watch;

use crate::identity::Identity;

/// The last set that a device applied.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Generation and digest.
    pub held: Held,
    /// The commit that it comes from.
    pub revision: Arc<str>,
    /// When the runtime was done with it.
    pub at: Instant,
}

/// How far the whole fleet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many devices there are.
    pub devices: usize,
    /// How many have an identity.
    pub enrolled: usize,
    /// How many have an open session.
    pub connected: usize,
    /// How many have applied what they hold, and hold something.
    pub in_sync: usize,
    /// How many ended for good: decommissioned, rejected, or refused.
    pub ended: usize,
    /// How many sets were applied so far.
    pub applied: u64,
}

/// All devices, by index.
#[derive(Debug)]
pub struct Board {
    names: Vec<DeviceName>,
    seats: Vec<Seat>,
    applied: watch::Sender<u64>,
}

#[derive(Debug)]
struct Seat {
    connected: watch::Sender<bool>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    identity: Option<Arc<Identity>>,
    holding: Option<Arc<Holding>>,
    applied: Option<Applied>,
    ended: Option<String>,
}

impl Board {
    pub(super) fn of(names: Vec<DeviceName>) -> Self {
        let seat = |_: &DeviceName| Seat {
            connected: watch::Sender::new(false),
            seen: Mutex::default(),
        };
        Self {
            seats: names.iter().map(seat).collect(),
            names,
            applied: watch::Sender::new(0),
        }
    }

    /// How many devices there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The devices' names.
    pub fn names(&self) -> &[DeviceName] {
        &self.names
    }

    /// How far the fleet is.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            devices: self.len(),
            applied: *self.applied.borrow(),
            ..Totals::default()
        };
        for seat in &self.seats {
            let seen = seat.seen();
            totals.enrolled += usize::from(seen.identity.is_some());
            totals.connected += usize::from(*seat.connected.borrow());
            totals.ended += usize::from(seen.ended.is_some());
            let held = seen.holding.as_ref().map(|holding| holding.held());
            let applied = seen.applied.as_ref().map(|applied| applied.held);
            totals.in_sync += usize::from(held.is_some() && held == applied);
        }
        totals
    }

    /// What a device applied last.
    pub fn applied(&self, index: usize) -> Option<Applied> {
        self.seats.get(index)?.seen().applied.clone()
    }

    /// Counts applications of all devices; wakes with each. The order is: [`Board::applied`] first, then this.
    pub fn applications(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until a device has applied a set of this revision, and says when that was.
    pub async fn applies(&self, index: usize, revision: &str) -> Option<Instant> {
        let mut applications = self.applications();
        loop {
            match self.applied(index) {
                Some(applied) if *applied.revision == *revision => return Some(applied.at),
                _ => applications.changed().await.ok()?,
            }
        }
    }

    /// When each device applied a set of this revision, as far as they have.
    pub fn applied_at(&self, revision: &str) -> Vec<Instant> {
        let of = |seat: &Seat| {
            let seen = seat.seen();
            let applied = seen.applied.as_ref()?;
            (*applied.revision == *revision).then_some(applied.at)
        };
        self.seats.iter().filter_map(of).collect()
    }

    /// Whether a device's session is open, and every change of that.
    pub fn connection(&self, index: usize) -> Option<watch::Receiver<bool>> {
        Some(self.seats.get(index)?.connected.subscribe())
    }

    /// Who a device is, once it is enrolled.
    pub fn identity(&self, index: usize) -> Option<Arc<Identity>> {
        self.seats.get(index)?.seen().identity.clone()
    }

    /// Why a device ended for good, where it did.
    pub fn ended(&self, index: usize) -> Option<String> {
        self.seats.get(index)?.seen().ended.clone()
    }

    pub(super) fn connected(&self, index: usize) -> Option<watch::Sender<bool>> {
        self.seats.get(index).map(|seat| seat.connected.clone())
    }

    pub(super) fn enroll(&self, index: usize, identity: Arc<Identity>) {
        self.change(index, |seen| seen.identity = Some(identity));
    }

    pub(super) fn hold(&self, index: usize, holding: Arc<Holding>) {
        self.change(index, |seen| seen.holding = Some(holding));
    }

    pub(super) fn holding(&self, index: usize) -> Option<Arc<Holding>> {
        self.seats.get(index)?.seen().holding.clone()
    }

    pub(super) fn apply(&self, index: usize, holding: &Holding) {
        let applied = Applied {
            held: holding.held(),
            revision: holding.revision().into(),
            at: Instant::now(),
        };
        self.change(index, |seen| seen.applied = Some(applied));
        self.applied.send_modify(|count| *count += 1);
    }

    pub(super) fn end(&self, index: usize, why: String) {
        self.change(index, |seen| seen.ended = Some(why));
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Seen)) {
        if let Some(seat) = self.seats.get(index) {
            change(&mut seat.seen());
        }
    }
}

impl Seat {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
