//! Memory for what is being sent, of all sessions together.
//!
//! A device that does not read keeps what it is sent in the controller's memory. So whoever sends more than a little
//! sets aside room for it first, and waits where there is none. One tenant's sessions never have all of it. Where
//! somebody waits, sessions end whose device took nothing for a while; those that read, however slowly, go on.

use std::{sync::Arc, time::Duration};

use longshore_protocol::TenantName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    crowd::{Crowd, Member, room},
    metrics::Metrics,
    shares::Shares,
};

/// What is counted is kibibytes.
const UNIT: usize = 1024;
/// How much a session may send without asking, in bytes: most of what changes.
const LITTLE: usize = 1024;
/// How much there is, in bytes, and for how long a device may take nothing while somebody waits.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of all sessions.
    pub all: usize,
    /// Of one tenant's.
    pub tenant: usize,
    /// While one of its own tenant's waits.
    pub grace: Duration,
    /// While one of another tenant's waits that has fewer.
    pub grace_for_others: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            all: 64 * 1024 * 1024,
            tenant: 48 * 1024 * 1024,
            grace: Duration::from_secs(5),
            grace_for_others: Duration::from_secs(1),
        }
    }
}

/// The room of all sessions.
#[derive(Debug)]
pub struct Outgoing {
    bounds: Bounds,
    metrics: Arc<Metrics>,
    all: Arc<Semaphore>,
    tenants: Shares,
    senders: Crowd<TenantName>,
}

/// Room that is set aside until this is dropped.
#[derive(Debug)]
pub(super) struct Room<'a> {
    outgoing: &'a Outgoing,
    tenant: TenantName,
    /// Cancelled when the session has to end for others.
    go: CancellationToken,
    sender: Option<Member<TenantName>>,
    of_tenant: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl Outgoing {
    /// So much room.
    pub fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Self {
        Self {
            bounds,
            metrics,
            all: Arc::new(Semaphore::new(bounds.all / UNIT)),
            tenants: Shares::of(bounds.tenant / UNIT),
            senders: Crowd::default(),
        }
    }

    /// Waits for room for so many bytes; none is needed for a little.
    pub(super) async fn take(&self, tenant: &TenantName, bytes: usize) -> Option<Box<Room<'_>>> {
        if bytes <= LITTLE {
            return None;
        }
        let units = bytes.min(self.bounds.tenant).div_ceil(UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let Bounds {
            grace,
            grace_for_others,
            ..
        } = self.bounds;
        let count = |sent_away: bool| {
            if sent_away {
                self.metrics.readers_cut_off.inc();
            }
        };
        let of_tenant = room(self.tenants.get(tenant), units, || {
            count(self.senders.send_away_of(tenant, grace));
        })
        .await?;
        let of_all = room(self.all.clone(), units, || {
            count(self.senders.send_away(tenant, grace, grace_for_others));
        })
        .await?;
        self.metrics.outgoing_bytes.inc_by(bytes_of(&of_all));
        let go = CancellationToken::new();
        let sender = self
            .senders
            .enter(tenant.clone(), Duration::ZERO, go.clone());
        Some(Box::new(Room {
            outgoing: self,
            tenant: tenant.clone(),
            go,
            sender: Some(sender),
            of_tenant,
            of_all,
        }))
    }
}

impl Room<'_> {
    /// Gives back what is not needed for so many bytes.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let needed = bytes.div_ceil(UNIT);
        let excess = self.of_all.num_permits().saturating_sub(needed);
        self.outgoing
            .metrics
            .outgoing_bytes
            .dec_by(bytes_in(excess));
        drop((self.of_all.split(excess), self.of_tenant.split(excess)));
    }

    /// The device took something.
    pub(super) fn progressed(&mut self) {
        self.sender = None;
        let senders = &self.outgoing.senders;
        self.sender = Some(senders.enter(self.tenant.clone(), Duration::ZERO, self.go.clone()));
    }

    /// Until the room is needed for others.
    pub(super) fn over(&self) -> impl Future<Output = ()> + use<> {
        self.go.clone().cancelled_owned()
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.outgoing
            .metrics
            .outgoing_bytes
            .dec_by(bytes_of(&self.of_all));
    }
}

fn bytes_of(permit: &OwnedSemaphorePermit) -> i64 {
    bytes_in(permit.num_permits())
}

fn bytes_in(units: usize) -> i64 {
    i64::try_from(units * UNIT).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::time::Instant;

    use super::*;
    use crate::crowd::LOOK_AGAIN;

    const BOUNDS: Bounds = Bounds {
        all: 100 * UNIT,
        tenant: 60 * UNIT,
        grace: Duration::from_secs(5),
        grace_for_others: Duration::from_secs(1),
    };

    fn outgoing() -> Outgoing {
        Outgoing::new(BOUNDS, Arc::default())
    }

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn fill<'a>(outgoing: &'a Outgoing, tenant: &TenantName) -> Vec<Box<Room<'a>>> {
        let room = || outgoing.take(tenant, 10 * UNIT).now_or_never().flatten();
        std::iter::from_fn(room).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_never_has_all_of_it() {
        let outgoing = outgoing();
        let [one, two] = [tenant("one"), tenant("two")];
        let rooms = fill(&outgoing, &one);
        assert_eq!(rooms.len(), 6);
        let others = fill(&outgoing, &two);
        assert_eq!(others.len(), 4);
        assert_eq!(outgoing.metrics.outgoing_bytes.get(), 100 * 1024);
        assert!(
            outgoing.take(&one, LITTLE).await.is_none(),
            "a little needs none"
        );
        drop((rooms, others));
        assert_eq!(outgoing.metrics.outgoing_bytes.get(), 0);
        assert_eq!(fill(&outgoing, &two).len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_goes_and_who_reads_stays() {
        let outgoing = outgoing();
        let one = tenant("one");
        let mut rooms = fill(&outgoing, &one);
        let mut stuck = rooms.pop().unwrap();
        let begun = Instant::now();
        let waits = async {
            let room = outgoing.take(&one, 10 * UNIT).await;
            assert!(begun.elapsed() >= BOUNDS.grace, "{:?}", begun.elapsed());
            room
        };
        let reads = async {
            loop {
                tokio::time::sleep(BOUNDS.grace / 2).await;
                for room in &mut rooms {
                    room.progressed();
                }
            }
        };
        let ends = async {
            stuck.over().await;
            stuck.shrink_to(0);
            drop(stuck);
            std::future::pending::<()>().await;
        };
        let room = tokio::select! {
            room = waits => room,
            () = reads => unreachable!("it goes on for ever"),
            () = ends => unreachable!("it goes on for ever"),
        };
        assert!(room.is_some());
        assert!(rooms.iter().all(|room| !room.go.is_cancelled()));
    }

    /// Two tenants fill it with devices that do not read; a third one's device waits for a moment only.
    #[tokio::test(start_paused = true)]
    async fn another_tenant_waits_shortly() {
        let outgoing = outgoing();
        let stuck = [
            fill(&outgoing, &tenant("one")),
            fill(&outgoing, &tenant("two")),
        ];
        let ends = stuck.into_iter().flatten().map(async |room| {
            room.over().await;
            drop(room);
        });
        let ends = futures_util::future::join_all(ends);
        let begun = Instant::now();
        let third = tenant("three");
        let waits = outgoing.take(&third, 10 * UNIT);
        let room = tokio::select! {
            room = waits => room,
            _ = ends => None,
        };
        assert!(room.is_some());
        let bound = BOUNDS.grace_for_others + 2 * LOOK_AGAIN;
        assert!(begun.elapsed() <= bound, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_needed_is_given_back() {
        let outgoing = outgoing();
        let one = tenant("one");
        let mut room = outgoing.take(&one, 60 * UNIT).await.unwrap();
        assert!(outgoing.take(&one, 2 * UNIT).now_or_never().is_none());
        room.shrink_to(5 * UNIT);
        assert_eq!(outgoing.metrics.outgoing_bytes.get(), 5 * 1024);
        assert!(
            outgoing
                .take(&one, 55 * UNIT)
                .now_or_never()
                .flatten()
                .is_some()
        );
        // More than there is for a tenant is all that there is for it.
        drop(room);
        assert!(outgoing.take(&one, usize::MAX).await.is_some());
    }
}
