//! Keeps this replica alive in the eyes of the others, renews its leases, and takes its share of free ones.
//!
//! Guarantees:
//! - Work under a lease that cannot be renewed stops before another replica may take the lease: after [`SAFE`] by
//!   this machine's monotonic clock, when the lease has [`LIFE`] by the database's.
//! - A dead replica's fleets are taken within [`LIFE`] and a [`TICK`]; one that stops gives them back at once.
//! - A replica takes no more than its share of all fleets, and gives up what it has beyond that, so that newcomers
//!   get theirs. What nobody else wants for a while (a repo that only one replica has), one takes all the same.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Notice, ReplicaId,
    leases::{Lease, Shared},
};
use crate::{
    error::chain,
    metrics::Metrics,
    store::{
        StoreError,
        fleets::FleetId,
        peers::{Census, Granted, Peers},
    },
};

/// How long a replica, and a lease, live without being renewed.
pub(super) const LIFE: Duration = Duration::from_secs(5);
/// How long after the last renewal the work under leases goes on.
const SAFE: Duration = Duration::from_millis(3500);
/// How often leases are renewed.
const TICK: Duration = Duration::from_secs(1);
/// How often at most, however often somebody says "look".
const PACE: Duration = Duration::from_millis(20);
/// For how long a lease must be free to be taken beyond the fair share.
const UNWANTED: Duration = Duration::from_secs(2);

/// Keeps leases.
#[derive(Debug)]
pub(super) struct Keeper {
    id: ReplicaId,
    peers: Arc<Peers>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// Taken since nobody else wanted them: to give those up would be of no use.
    unwanted: HashSet<FleetId>,
    /// When the work must stop unless the leases are renewed.
    until: Instant,
    failing: bool,
}

impl Keeper {
    pub(super) fn new(
        id: ReplicaId,
        peers: Arc<Peers>,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            id,
            peers,
            shared,
            metrics,
            unwanted: HashSet::new(),
            until: Instant::now(),
            failing: false,
        }
    }

    /// Keeps them until `shutdown`, then gives them back.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let started = Instant::now();
            let limit = if self.shared.held.borrow().is_empty() {
                started + SAFE
            } else {
                self.until
            };
            let problem = match timeout_at(limit, self.tick()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain(&error)),
                Err(_elapsed) => Some("the database does not answer in time".to_owned()),
            };
            match problem {
                None => {
                    self.until = started + SAFE;
                    self.failing = false;
                }
                Some(error) if !self.failing => {
                    warn!(
                        error,
                        "the leases cannot be renewed; this will be tried again"
                    );
                    self.failing = true;
                }
                Some(_) => {}
            }
            if Instant::now() >= self.until {
                self.lose_all();
            }
            let holds = !self.shared.held.borrow().is_empty();
            let next = started + TICK;
            let next = if holds { next.min(self.until) } else { next };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep_until(next) => {}
                () = self.shared.look.notified() => sleep_until(started + PACE).await,
            }
        }
        if let Err(error) = self.stop().await {
            warn!(error = %chain(&error), "the leases are not given back; they run out");
        }
    }

    async fn tick(&mut self) -> Result<(), StoreError> {
        let wanted = self.shared.wanted();
        let census = self.peers.beat(&self.id, wanted.len(), LIFE).await?;
        self.give_back().await?;
        let mut granted = self.peers.renew(&self.id, LIFE).await?;
        let busy = self.ending();
        let mine = granted.len().saturating_sub(busy);
        let share = fair_share(census);
        if share > mine {
            let free = Duration::ZERO;
            let taken = self.peers.take(&self.id, &wanted, share - mine, free, LIFE);
            granted.extend(taken.await?);
        }
        let rest = self
            .peers
            .take(&self.id, &wanted, usize::MAX, UNWANTED, LIFE);
        for lease in rest.await? {
            self.unwanted.insert(lease.fleet.clone());
            granted.push(lease);
        }
        self.metrics.replicas.set(census.living);
        self.accept(granted);
        self.give_up(share);
        Ok(())
    }

    /// Makes what is held here what the database says.
    fn accept(&mut self, granted: Vec<Granted>) {
        let mut granted: HashMap<_, _> = granted
            .into_iter()
            .map(|granted| (granted.fleet, granted.epoch))
            .collect();
        let unwanted = &mut self.unwanted;
        self.shared.held.send_if_modified(|held| {
            let before = held.len();
            held.retain(|fleet, lease| {
                // The same hands, and nobody's in between: nothing happened.
                let kept = granted.get(fleet).copied() == lease.epoch();
                if kept {
                    granted.remove(fleet);
                } else {
                    warn!(%fleet, "lost the lease");
                    lease.lost.cancel();
                    unwanted.remove(fleet);
                }
                kept
            });
            let changed = held.len() != before || !granted.is_empty();
            for (fleet, epoch) in granted {
                info!(%fleet, epoch, "works for the fleet from here on");
                let lease = Lease::of(self.id.clone(), fleet.clone(), epoch);
                held.insert(fleet, lease);
            }
            changed
        });
        self.count();
    }

    /// Lets work come to its end where there is more than the fair share, or nobody here wants it any more.
    fn give_up(&self, share: usize) {
        let held = self.shared.held.borrow();
        let (wanted, strange): (Vec<_>, Vec<_>) = held
            .iter()
            .filter(|(_, lease)| !lease.is_over())
            .partition(|(fleet, _)| self.shared.is_wanted(fleet));
        let surplus = wanted.len().saturating_sub(share);
        let surplus = wanted
            .into_iter()
            .filter(|(fleet, _)| !self.unwanted.contains(fleet))
            .take(surplus);
        for (fleet, lease) in surplus.chain(strange) {
            info!(%fleet, "gives the fleet up");
            self.end(lease);
        }
    }

    fn end(&self, lease: &Lease) {
        lease.finish.cancel();
        let (lease, shared) = (lease.clone(), self.shared.clone());
        self.shared.ending.spawn(async move {
            lease.idle().await;
            shared.look.notify_one();
        });
    }

    /// How many leases are still held for work that comes to its end.
    fn ending(&self) -> usize {
        let held = self.shared.held.borrow();
        held.values().filter(|lease| lease.is_over()).count()
    }

    /// Gives back the leases whose work has ended.
    async fn give_back(&mut self) -> Result<(), StoreError> {
        let ended: Vec<_> = self
            .shared
            .held
            .borrow()
            .iter()
            .filter(|(_, lease)| lease.is_over() && lease.is_idle())
            .map(|(fleet, _)| fleet.clone())
            .collect();
        if ended.is_empty() {
            return Ok(());
        }
        self.peers.release(&self.id, &ended).await?;
        self.shared.held.send_modify(|held| {
            for fleet in &ended {
                held.remove(fleet);
            }
        });
        self.peers.tell(&self.id, &[Notice::Leases]).await
    }

    /// Drops all work: another replica may take the leases soon.
    fn lose_all(&mut self) {
        self.shared.held.send_if_modified(|held| {
            if held.is_empty() {
                return false;
            }
            warn!(fleets = held.len(), "the leases run out; the work stops");
            for (_, lease) in held.drain() {
                lease.lost.cancel();
            }
            true
        });
        self.unwanted.clear();
        self.count();
    }

    fn count(&self) {
        let held = self.shared.held.borrow().len();
        self.metrics
            .leases
            .set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// Lets the work come to its end, and gives everything back.
    async fn stop(&mut self) -> Result<(), StoreError> {
        let held: Vec<_> = self.shared.held.borrow().values().cloned().collect();
        let ends = async {
            for lease in &held {
                lease.finish.cancel();
            }
            for lease in &held {
                lease.idle().await;
            }
        };
        if timeout_at(self.until, ends).await.is_err() {
            debug!("work is dropped where it stands");
        }
        self.lose_all();
        self.peers.leave(&self.id).await?;
        self.peers.tell(&self.id, &[Notice::Leases]).await
    }
}

/// How many fleets a replica is to work for: as many as every other, and those that the others could not.
fn fair_share(census: Census) -> usize {
    let Census {
        living,
        fleets,
        others_want,
    } = census;
    let living = usize::try_from(living).unwrap_or(1).max(1);
    let even = fleets.div_ceil(living);
    even.max(fleets.saturating_sub(others_want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_leave_nothing() {
        for fleets in 0..40 {
            for living in 1..6 {
                let census = Census {
                    living,
                    fleets,
                    others_want: fleets * 5,
                };
                let share = fair_share(census);
                assert!(share * usize::try_from(living).unwrap() >= fleets);
                assert!(share <= fleets / usize::try_from(living).unwrap() + 1);
            }
        }
        let alone_with_a_newcomer = Census {
            living: 2,
            fleets: 10,
            others_want: 0,
        };
        assert_eq!(fair_share(alone_with_a_newcomer), 10);
    }
}
