//! Leases, and who lives: on PostgreSQL, where there can be several replicas.

use std::time::Duration;

use longshore_controller::{
    replica::{Notice, ReplicaId, heard},
    store::{
        Engine, StoreError,
        fleets::FleetId,
        peers::{Granted, Peers},
        replicas,
    },
};

use super::{
    database::{self, Database},
    samples::{fleet_id, two_tenants},
};

const LONG: Duration = Duration::from_mins(1);
const FREE: Duration = Duration::ZERO;

fn peers(database: &Database) -> &Peers {
    database.store.peers().expect("PostgreSQL has peers")
}

async fn take(
    database: &Database,
    replica: &ReplicaId,
    fleets: &[FleetId],
    life: Duration,
) -> Vec<Granted> {
    let taken = peers(database).take(replica, fleets, 10, FREE, life);
    taken.await.unwrap()
}

/// Takes a lease that runs out right now: the database's clock moves on by itself.
async fn taken_at_last(database: &Database, replica: &ReplicaId, fleet: &FleetId) -> Granted {
    loop {
        let mut taken = take(database, replica, std::slice::from_ref(fleet), LONG).await;
        if let Some(lease) = taken.pop() {
            return lease;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn checked(
    database: &Database,
    replica: &ReplicaId,
    lease: &Granted,
) -> Result<(), StoreError> {
    let mut db = database.write().await;
    replicas::check(&mut db, replica, &lease.fleet, lease.epoch).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_one_replicas_until_it_runs_out() {
    database::with(Engine::Postgres, async |database: Database| {
        two_tenants(&database).await;
        let shops = fleet_id("one", "shops");
        let (one, two) = (ReplicaId::random(), ReplicaId::random());
        peers(&database).beat(&one, 1, LONG).await.unwrap();
        let wanted = [shops.clone()];
        let first = take(&database, &one, &wanted, LONG).await.remove(0);
        assert_eq!(first.fleet, shops);
        assert!(take(&database, &two, &wanted, LONG).await.is_empty());
        assert!(take(&database, &one, &wanted, LONG).await.is_empty());
        checked(&database, &one, &first).await.unwrap();

        // Nobody renews it any more.
        let kept = peers(&database).renew(&one, FREE).await.unwrap();
        assert_eq!(kept, std::slice::from_ref(&first));
        let second = taken_at_last(&database, &two, &shops).await;
        assert_eq!(second.epoch, first.epoch + 1);
        let overtaken = checked(&database, &one, &first).await.unwrap_err();
        assert!(matches!(overtaken, StoreError::LeaseLost), "{overtaken}");
        checked(&database, &two, &second).await.unwrap();
        assert!(peers(&database).renew(&one, LONG).await.unwrap().is_empty());

        // Given back, it is there at once; what was done under the first is still over.
        peers(&database).leave(&two).await.unwrap();
        let third = taken_at_last(&database, &one, &shops).await;
        assert_eq!(third.epoch, second.epoch + 1);
        let stale = checked(&database, &one, &first).await.unwrap_err();
        assert!(matches!(stale, StoreError::LeaseLost), "{stale}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_writing_is_not_overtaken() {
    database::with(Engine::Postgres, async |database: Database| {
        two_tenants(&database).await;
        let shops = fleet_id("one", "shops");
        let (one, two) = (ReplicaId::random(), ReplicaId::random());
        peers(&database).beat(&one, 1, LONG).await.unwrap();
        let lease = taken_at_last(&database, &one, &shops).await;
        let mut writing = database.write().await;
        replicas::check(&mut writing, &one, &shops, lease.epoch)
            .await
            .unwrap();
        // The writer does not hold up the renewal, which makes the lease run out here.
        peers(&database).renew(&one, FREE).await.unwrap();
        let others = [shops.clone(), fleet_id("two", "shops")];
        for _ in 0..20 {
            let taken = take(&database, &two, &others, LONG).await;
            assert!(taken.iter().all(|taken| taken.fleet != shops), "{taken:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        writing.commit().await.unwrap();
        taken_at_last(&database, &two, &shops).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_are_not_counted() {
    database::with(Engine::Postgres, async |database: Database| {
        two_tenants(&database).await;
        let (one, two) = (ReplicaId::random(), ReplicaId::random());
        let peers = peers(&database);
        peers.beat(&two, 5, LONG).await.unwrap();
        let census = peers.beat(&one, 3, LONG).await.unwrap();
        assert_eq!((census.living, census.others_want), (2, 5));
        let all = census.fleets;
        peers.beat(&two, 5, FREE).await.unwrap();
        loop {
            let census = peers.beat(&one, 3, LONG).await.unwrap();
            assert_eq!(census.fleets, all);
            if census.living == 1 {
                assert_eq!(census.others_want, 0);
                break;
            }
        }
        // It was only slow, and says so.
        assert_eq!(peers.beat(&two, 5, LONG).await.unwrap().living, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_hear_each_other() {
    database::with(Engine::Postgres, async |database: Database| {
        let (one, two) = (ReplicaId::random(), ReplicaId::random());
        let peers = peers(&database);
        let mut listener = peers.listen().await.unwrap();
        let said = [Notice::Fleets, Notice::Look(fleet_id("one", "shops"))];
        peers.tell(&two, &said).await.unwrap();
        let notification = listener.recv().await.unwrap();
        assert_eq!(heard(&one, notification.payload()), said);
        assert!(heard(&two, notification.payload()).is_empty());
    })
    .await;
}
