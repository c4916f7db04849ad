//! Words of many devices, stored together; and none lost.

use std::{
    collections::BTreeMap,
    slice,
    sync::{Arc, Mutex},
    time::Duration,
};

use longshore_controller::{
    clock,
    gateway::Recorder,
    hub::{Hub, Signal},
    metrics::Metrics,
    replica::ReplicaId,
    store::{
        devices::{self, Connection, Device, DeviceView},
        fleets::FleetId,
        replicas,
    },
};
use longshore_protocol::{
    Digest, Generation,
    message::{Held, Phase, StatusReport},
};
use sqlx::AnyConnection;
use tokio_util::sync::CancellationToken;

use crate::store::{
    contracts,
    database::Database,
    samples::{coming, device, fleet_id, insert_devices, two_tenants},
};

contracts!(
    what_is_said_is_stored,
    many_devices_are_one_transaction,
    where_a_device_is_does_not_depend_on_the_order_of_words,
    a_store_that_fails_loses_nothing,
    a_device_that_is_gone_holds_up_nobody,
    what_was_left_out_is_said_again,
);

struct Bench {
    database: Database,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    progressed: Arc<Mutex<Vec<FleetId>>>,
    claimed: Arc<Mutex<Vec<FleetId>>>,
}

impl Bench {
    async fn new(database: Database) -> Self {
        two_tenants(&database).await;
        let hub = Arc::new(Hub::default());
        let metrics = Arc::new(Metrics::default());
        let progressed = Arc::new(Mutex::new(Vec::new()));
        let claimed = Arc::new(Mutex::new(Vec::new()));
        let (told, heard) = (progressed.clone(), claimed.clone());
        let replica = ReplicaId::random();
        let mut db = database.write().await;
        replicas::alone(&mut db, &replica).await.unwrap();
        db.commit().await.unwrap();
        let recorder = Recorder::new(
            replica,
            database.store.clone(),
            hub.clone(),
            metrics.clone(),
            move |fleet| told.lock().unwrap().push(fleet.clone()),
            move |fleet| heard.lock().unwrap().push(fleet.clone()),
        );
        Self {
            database,
            hub,
            metrics,
            recorder,
            progressed,
            claimed,
        }
    }

    async fn devices(&self, count: u32) -> Vec<Device> {
        let shops = fleet_id("one", "shops");
        let devices: Vec<_> = (0..count).map(|n| device(&shops, n)).collect();
        insert_devices(&self.database, &devices).await;
        devices
    }

    fn connect(&self, device: &Device) -> Arc<longshore_controller::hub::Session> {
        let session = self.hub.connect(&device.id, self.hub.pokes());
        self.recorder.moved(&device.fleet, &device.id);
        session
    }

    fn report(&self, device: &Device, report: &StatusReport) {
        let report = report.clone();
        self.recorder.report(&device.fleet, &device.id, report);
    }

    /// Stores all that was said.
    async fn flush(&self) {
        let end = CancellationToken::new();
        end.cancel();
        self.recorder.run(end).await;
    }

    async fn view(&self, device: &Device) -> DeviceView {
        let mut db = self.database.read().await;
        let device = devices::by_id(&mut db, &device.id).await.unwrap().unwrap();
        devices::view(&mut db, device).await.unwrap()
    }

    async fn is_connected(&self, device: &Device) -> bool {
        self.view(device).await.connection.connected
    }
}

fn report(generation: u64, phase: Phase) -> StatusReport {
    StatusReport {
        held: Held {
            generation: Generation::from(generation),
            digest: Digest::of(&generation.to_le_bytes()),
        },
        phase,
        conditions: Vec::new(),
    }
}

async fn what_is_said_is_stored(database: Database) {
    let bench = Bench::new(database).await;
    let only = bench.devices(1).await.remove(0);
    let facts = BTreeMap::from([("os".to_owned(), "plan9".to_owned())]);
    bench.connect(&only);
    bench.recorder.facts(&only.fleet, &only.id, facts.clone());
    bench.report(&only, &report(1, Phase::Pending));
    let last = report(1, Phase::Applied);
    bench.report(&only, &last);
    bench.flush().await;
    let view = bench.view(&only).await;
    assert!(matches!(
        view.connection,
        Connection {
            connected: true,
            seen_at: Some(_)
        }
    ));
    assert_eq!(view.device.facts, facts);
    assert_eq!(view.observed.unwrap().report, last);
    assert_eq!(
        *bench.progressed.lock().unwrap(),
        slice::from_ref(&only.fleet)
    );
    assert_eq!(*bench.claimed.lock().unwrap(), slice::from_ref(&only.fleet));
    // Said again, it is no news.
    bench.recorder.facts(&only.fleet, &only.id, facts);
    bench.flush().await;
    assert_eq!(bench.claimed.lock().unwrap().len(), 1);
}

async fn many_devices_are_one_transaction(database: Database) {
    const MANY: u32 = 2_500;
    let bench = Bench::new(database).await;
    let devices = bench.devices(MANY).await;
    for device in &devices {
        bench.connect(device);
        for phase in [Phase::Pending, Phase::Applying, Phase::Applied] {
            bench.report(device, &report(1, phase));
        }
    }
    bench.flush().await;
    let metrics = bench.metrics.text();
    for line in [
        "longshore_report_flushes_total 1".to_owned(),
        format!("longshore_report_flushed_devices_total {MANY}"),
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
    }
    let mut db = bench.database.read().await;
    let list = devices::list(&mut db, &devices[0].fleet).await.unwrap();
    assert_eq!(list.len(), devices.len());
    for view in list {
        assert!(view.connection.connected);
        assert_eq!(view.observed.unwrap().report.phase, Phase::Applied);
    }
    assert_eq!(bench.progressed.lock().unwrap().len(), 1, "one fleet");
}

/// A device that comes, comes again and whose older session ends then, in every order in which the two sessions can
/// say so, in one batch or in several.
async fn where_a_device_is_does_not_depend_on_the_order_of_words(database: Database) {
    let bench = Bench::new(database).await;
    let devices = bench.devices(4).await;
    for (device, flushes) in
        devices
            .iter()
            .zip([[false, false], [true, false], [false, true], [true, true]])
    {
        let old = bench.connect(device);
        if flushes[0] {
            bench.flush().await;
        }
        let new = bench.connect(device);
        bench.hub.disconnect(&device.id, &old);
        if flushes[1] {
            bench.flush().await;
        }
        // The older session says last that something changed.
        bench.recorder.moved(&device.fleet, &device.id);
        bench.flush().await;
        assert!(bench.is_connected(device).await, "{flushes:?}");
        bench.hub.disconnect(&device.id, &new);
        bench.recorder.moved(&device.fleet, &device.id);
        bench.flush().await;
        assert!(!bench.is_connected(device).await, "{flushes:?}");
        let again = bench.connect(device);
        bench.hub.disconnect(&device.id, &again);
        bench.recorder.moved(&device.fleet, &device.id);
        bench.connect(device);
        bench.flush().await;
        assert!(bench.is_connected(device).await, "{flushes:?}");
    }
}

async fn a_store_that_fails_loses_nothing(database: Database) {
    let bench = Arc::new(Bench::new(database).await);
    let devices = bench.devices(2).await;
    let [silent, busy] = &devices[..] else {
        panic!("two devices")
    };
    bench
        .database
        .damage("ALTER TABLE observed RENAME TO away")
        .await;
    let facts = BTreeMap::from([("os".to_owned(), "plan9".to_owned())]);
    bench.connect(silent);
    bench.report(silent, &report(1, Phase::Applied));
    bench.report(busy, &report(1, Phase::Pending));
    bench.recorder.facts(&busy.fleet, &busy.id, facts.clone());
    let end = CancellationToken::new();
    let running = tokio::spawn({
        let (bench, end) = (bench.clone(), end.clone());
        async move { bench.recorder.run(end).await }
    });
    // The process is told to end while the store is away, and what is said goes on.
    while bench.metrics.flush_failures.get() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    end.cancel();
    bench.report(busy, &report(2, Phase::Applied));
    let connections = "SELECT COUNT(*) FROM connections";
    let stored: i64 = sqlx::query_scalar(connections)
        .fetch_one(&mut *bench.database.read().await)
        .await
        .unwrap();
    assert_eq!(stored, 0, "all or nothing");
    assert!(bench.progressed.lock().unwrap().is_empty());
    bench
        .database
        .damage("ALTER TABLE away RENAME TO observed")
        .await;
    running.await.unwrap();
    let of = async |device| bench.view(device).await.observed.unwrap().report;
    assert_eq!(of(silent).await, report(1, Phase::Applied));
    assert_eq!(of(busy).await, report(2, Phase::Applied));
    assert_eq!(bench.view(busy).await.device.facts, facts);
    assert!(bench.is_connected(silent).await);
}

async fn a_device_that_is_gone_holds_up_nobody(database: Database) {
    let bench = Bench::new(database).await;
    let there = bench.devices(1).await.remove(0);
    let gone = device(&there.fleet, 7);
    for device in [&gone, &there] {
        bench.connect(device);
        bench.recorder.facts(
            &device.fleet,
            &device.id,
            BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        );
        bench.report(device, &report(1, Phase::Applied));
    }
    bench.flush().await;
    assert!(bench.is_connected(&there).await);
    assert!(bench.view(&there).await.observed.is_some());
}

/// Another replica takes a device for its own that is here: what it stored was late. Reports are left out then. That
/// is noticed, the device comes again, and what it says again is stored.
async fn what_was_left_out_is_said_again(database: Database) {
    let bench = Bench::new(database).await;
    let [stray, other] = &bench.devices(2).await[..] else {
        panic!("two devices")
    };
    let first = bench.connect(stray);
    bench.connect(other);
    let none = bench.recorder.strays(Duration::ZERO).await.unwrap();
    assert_eq!(none, [], "what is not stored yet may be as it should be");
    bench.flush().await;
    assert_eq!(bench.recorder.strays(Duration::ZERO).await.unwrap(), []);

    let elsewhere = ReplicaId::random();
    let mut db = bench.database.write().await;
    insert_replica(&mut db, &elsewhere).await;
    let late = [coming(stray, true, clock::now_ms())];
    devices::put_connections(&mut db, &elsewhere, &late)
        .await
        .unwrap();
    db.commit().await.unwrap();
    bench.report(stray, &report(1, Phase::Applied));
    bench.report(other, &report(1, Phase::Applied));
    bench.flush().await;
    assert!(bench.view(other).await.observed.is_some());
    assert!(bench.view(stray).await.observed.is_none(), "it is left out");

    let strays = bench.recorder.strays(Duration::ZERO).await.unwrap();
    assert_eq!(strays, slice::from_ref(&stray.id));
    let settled = bench.recorder.strays(Duration::from_mins(1)).await.unwrap();
    assert_eq!(settled, [], "it may have come just now");
    bench.hub.come_again(&strays);
    assert_eq!(first.signal().await, Signal::Again);
    // Its session ends, and it comes again, with all that it has to say.
    bench.hub.disconnect(&stray.id, &first);
    bench.recorder.moved(&stray.fleet, &stray.id);
    bench.flush().await;
    bench.connect(stray);
    bench.report(stray, &report(1, Phase::Applied));
    bench.flush().await;
    assert!(bench.view(stray).await.observed.is_some());
    assert!(bench.is_connected(stray).await);
    assert_eq!(bench.recorder.strays(Duration::ZERO).await.unwrap(), []);
}

/// A replica that lives.
async fn insert_replica(db: &mut AnyConnection, replica: &ReplicaId) {
    sqlx::query("INSERT INTO replicas (id, alive_until, wants) VALUES ($1, $2, 0)")
        .bind(replica.as_str())
        .bind(i64::MAX)
        .execute(db)
        .await
        .unwrap();
}
