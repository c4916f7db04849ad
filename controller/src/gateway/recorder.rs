//! What sessions have to say is gathered here, and stored by one task.
//!
//! ```text
//! sessions ─▶ one entry per device, the last word of each kind ─▶ one transaction at a time ─▶ who waits is poked
//! ```
//!
//! A session never waits for the store. A lone word is stored at once; what comes while a transaction is under
//! way gathers for the next one, so the batches grow with the load and nothing waits for a clock. There is one
//! entry per device, however much it says.
//!
//! Whether a device is connected is not a word but a fact: it is read from the [`Hub`] when it is stored. So it
//! does not matter in which order a device's older and newer sessions say that something changed.
//!
//! When the store fails, everything stays and is tried again, under what came since. What a device said here before
//! it went to another replica does not overwrite what it says there.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_protocol::{DeviceId, api::Facts, message::StatusReport};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    clock,
    error::chain,
    hub::Hub,
    metrics::Metrics,
    replica::ReplicaId,
    store::{
        Store, StoreError,
        devices::{self, Coming, Observed, Reported},
        fleets::{self, FleetId},
    },
};

const LEAST_REST: Duration = Duration::from_millis(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is to be stored of one device.
#[derive(Clone, Debug)]
struct News {
    fleet: FleetId,
    /// When it came or went last.
    moved_at: Option<u64>,
    facts: Option<Facts>,
    report: Option<Observed>,
}

impl News {
    fn of(fleet: &FleetId) -> Self {
        Self {
            fleet: fleet.clone(),
            moved_at: None,
            facts: None,
            report: None,
        }
    }

    /// Puts `older` under what is there.
    fn over(&mut self, older: Self) {
        self.moved_at = self.moved_at.or(older.moved_at);
        self.facts = self.facts.take().or(older.facts);
        self.report = self.report.take().or(older.report);
    }
}

type Batch = HashMap<DeviceId, News>;

/// Stores what devices say.
pub struct Recorder {
    replica: ReplicaId,
    store: Store,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    progressed: Box<dyn Fn(&FleetId) + Send + Sync>,
    claimed: Box<dyn Fn(&FleetId) + Send + Sync>,
    news: Mutex<Batch>,
    /// What is being stored.
    under_way: Mutex<Arc<Batch>>,
    wake: Notify,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Stores what devices say that are connected to `replica`. `progressed` is called with each fleet of which
    /// reports were stored, `claimed` with each one whose devices say something new of themselves.
    pub fn new(
        replica: ReplicaId,
        store: Store,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
        progressed: impl Fn(&FleetId) + Send + Sync + 'static,
        claimed: impl Fn(&FleetId) + Send + Sync + 'static,
    ) -> Self {
        Self {
            replica,
            store,
            hub,
            metrics,
            progressed: Box::new(progressed),
            claimed: Box::new(claimed),
            news: Mutex::default(),
            under_way: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Stores whether the device is connected, which changed.
    pub fn moved(&self, fleet: &FleetId, device: &DeviceId) {
        self.note(fleet, device, |news| news.moved_at = Some(clock::now_ms()));
    }

    /// Stores what the device says of itself.
    pub fn facts(&self, fleet: &FleetId, device: &DeviceId, facts: Facts) {
        self.note(fleet, device, |news| news.facts = Some(facts));
    }

    /// Stores how the device does.
    pub fn report(&self, fleet: &FleetId, device: &DeviceId, report: StatusReport) {
        let observed = Observed {
            report,
            reported_at: clock::now_ms(),
        };
        self.note(fleet, device, |news| news.report = Some(observed));
    }

    fn note(&self, fleet: &FleetId, device: &DeviceId, change: impl FnOnce(&mut News)) {
        let mut batch = self.news();
        if let Some(news) = batch.get_mut(device) {
            change(news);
            return;
        }
        let mut news = News::of(fleet);
        change(&mut news);
        batch.insert(device.clone(), news);
        let is_first = batch.len() == 1;
        drop(batch);
        if is_first {
            self.wake.notify_one();
        }
    }

    /// Runs until `end`; what was said before is stored before this returns.
    pub async fn run(&self, end: CancellationToken) {
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                () = end.cancelled() => {
                    self.drain(&end).await;
                    return;
                }
            }
            self.drain(&end).await;
        }
    }

    /// Stores until nothing is left. After each transaction there is a rest as long as it took: more gathers for the next
    /// one, and others get to write in between.
    async fn drain(&self, end: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        loop {
            let batch = self.take();
            if batch.is_empty() {
                return;
            }
            let started = Instant::now();
            match self.write(&batch).await {
                Ok(claimed) => {
                    if pause != FIRST_PAUSE {
                        info!("the store takes what devices report again");
                        pause = FIRST_PAUSE;
                    }
                    *self.under_way() = Arc::default();
                    self.metrics.flushes.inc();
                    self.metrics.flushed.inc_by(batch.len() as u64);
                    self.metrics
                        .flush_seconds
                        .observe(started.elapsed().as_secs_f64());
                    let told = batch.values().filter(|news| news.report.is_some());
                    for fleet in told.map(|news| &news.fleet).collect::<BTreeSet<_>>() {
                        (self.progressed)(fleet);
                    }
                    for fleet in &claimed {
                        (self.claimed)(fleet);
                    }
                    let rest = tokio::time::sleep(started.elapsed().max(LEAST_REST));
                    tokio::select! {
                        () = rest => {}
                        () = end.cancelled() => {}
                    }
                }
                Err(error) => {
                    if pause == FIRST_PAUSE {
                        warn!(
                            error = %chain(&error),
                            devices = batch.len(),
                            "what devices report cannot be stored now; trying again"
                        );
                    }
                    self.metrics.flush_failures.inc();
                    self.put_back(batch);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Returns the fleets whose devices say something new of themselves.
    async fn write(&self, batch: &Batch) -> Result<Vec<FleetId>, StoreError> {
        // Replicas that write the same devices do so in the same order.
        let mut sorted: Vec<_> = batch.iter().collect();
        sorted.sort_unstable_by_key(|(device, _)| *device);
        let comings: Vec<_> = sorted
            .iter()
            .filter_map(|(device, news)| {
                Some(Coming {
                    tenant: news.fleet.tenant.clone(),
                    device: (*device).clone(),
                    came: self.hub.has(device),
                    at: news.moved_at?,
                })
            })
            .collect();
        let facts: Vec<_> = sorted
            .iter()
            .filter_map(|(device, news)| Some((&news.fleet, *device, news.facts.as_ref()?)))
            .collect();
        let reports: Vec<_> = sorted
            .iter()
            .filter_map(|(device, news)| {
                Some(Reported {
                    tenant: &news.fleet.tenant,
                    device,
                    observed: news.report.as_ref()?,
                })
            })
            .collect();
        let fleets: BTreeSet<_> = batch.values().map(|news| &news.fleet).collect();
        let mut db = self.store.write().await?;
        fleets::keep(&mut db, fleets).await?;
        let claimed = devices::set_facts(&mut db, &facts).await?;
        devices::put_connections(&mut db, &self.replica, &comings).await?;
        devices::put_observed(&mut db, &self.replica, &reports).await?;
        db.commit().await?;
        Ok(claimed)
    }

    /// The devices that are connected here for so long, and of which the store says otherwise although nothing of
    /// them is left to be stored. Another replica took them for its own: its clock is ahead, or what it stored was
    /// late. What they report here is left out, until they come again.
    pub async fn strays(&self, since: Duration) -> Result<Vec<DeviceId>, StoreError> {
        let mut db = self.store.read().await?;
        let known = devices::count_at(&mut db, &self.replica).await?;
        if known >= self.hub.len() as u64 {
            return Ok(Vec::new());
        }
        let mut here = self.hub.here_for(since);
        {
            let news = self.news();
            let under_way = self.under_way();
            here.retain(|device| !news.contains_key(device) && !under_way.contains_key(device));
        }
        let known = devices::connected_at(&mut db, &self.replica).await?;
        here.retain(|device| !known.contains(device));
        Ok(here)
    }

    /// What is to be stored now. Whoever holds the news sees it here or there.
    fn take(&self) -> Arc<Batch> {
        let mut news = self.news();
        let batch = Arc::new(std::mem::take(&mut *news));
        *self.under_way() = batch.clone();
        batch
    }

    fn under_way(&self) -> MutexGuard<'_, Arc<Batch>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What could not be stored goes under what came since.
    fn put_back(&self, batch: Arc<Batch>) {
        let mut news = self.news();
        *self.under_way() = Arc::default();
        for (device, older) in Arc::unwrap_or_clone(batch) {
            match news.entry(device) {
                Entry::Occupied(mut newer) => {
                    newer.get_mut().over(older);
                }
                Entry::Vacant(place) => {
                    place.insert(older);
                }
            }
        }
    }

    fn news(&self) -> MutexGuard<'_, Batch> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
