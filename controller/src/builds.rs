//! The builds under way: every input key at most once, and nobody waits for them.
//!
//! Whoever needs builds is an [`Asker`]. It asks for keys with [`Asker::start`] and looks into the store. When a
//! build is done, its result is in the store and its askers are poked. So a build that hangs holds up nothing but
//! its own devices, and a restart loses nothing but the builds under way.
//!
//! A build that does not run yet waits in the [`Queue`], which says whose turn it is. What no asker wants any more
//! ([`Asker::keep_only`]) leaves it: a commit that was replaced is not built to its end.
//!
//! Failures that would come again (a broken overlay) are stored like results. Others (a timeout, a full disk)
//! are remembered here, and tried again after a pause that doubles.
//!
//! [`Builds::ensure`] is for those who do wait: previews.

pub mod ensure;
pub mod outcome;
mod queue;
mod scrub;
mod shelf;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use longshore_fleet::{Closure, InputKey, Render, RenderError, Tree};
use longshore_protocol::TenantName;
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span, warn};

pub use self::queue::Purpose;
use self::{
    queue::{AskerId, Key, Queue},
    shelf::{Built, Shelf},
};
use crate::{
    error::chain,
    metrics::Metrics,
    store::{Store, StoreError},
};

const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// An asker that waits for many builds is poked this often at most, but for the last one.
const BETWEEN_POKES: Duration = Duration::from_millis(200);

/// How a build stands that has no result in the store.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It runs or waits for its turn.
    UnderWay,
    /// It failed in a way that may pass.
    Failed {
        /// How it failed the last time.
        message: String,
        /// Whether it is being tried again right now, rather than after a pause.
        again: bool,
    },
}

/// The builds under way of all fleets.
#[derive(Clone, Debug)]
pub struct Builds {
    render: Arc<dyn Render>,
    store: Store,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    shelf: Arc<Shelf>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    jobs: HashMap<Key, Job>,
    askers: HashMap<AskerId, Asking>,
    last_asker: u64,
}

struct Job {
    closure: Arc<Closure>,
    tree: Arc<dyn Tree>,
    askers: BTreeSet<AskerId>,
    phase: Phase,
    failure: Option<Failure>,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("overlay", &self.closure.overlay)
            .field("askers", &self.askers)
            .field("phase", &self.phase)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It has failed, and is not tried again yet.
    Idle,
    /// It is in its askers' lines.
    Waiting,
    /// It runs, or is being stored.
    Running,
}

#[derive(Clone, Debug)]
struct Failure {
    message: String,
    until: Instant,
    pause: Duration,
}

/// What is known of an asker.
#[derive(Debug)]
struct Asking {
    purpose: Purpose,
    keys: HashSet<InputKey>,
    done: Arc<Notify>,
    poked: Option<Instant>,
    /// Whether a task is there that will poke it.
    will_be_poked: bool,
}

/// One who needs builds: a fleet's reconciler, a preview. When it is dropped, it needs none any more.
#[derive(Debug)]
pub struct Asker {
    builds: Builds,
    tenant: TenantName,
    id: AskerId,
}

/// A build that has its turn. Dropped before it is finished, by a panic, it counts as failed.
struct Turn<'a> {
    builds: &'a Builds,
    key: &'a Key,
    has_place: bool,
    is_finished: bool,
}

impl Turn<'_> {
    /// Lets the next build run.
    fn give_place_back(&mut self) {
        if std::mem::take(&mut self.has_place) {
            let mut state = self.builds.state();
            state.queue.done(self.key);
            self.builds.dispatch(&mut state);
        }
    }

    fn finish(mut self, failure: Option<String>) {
        // In this order: who asks for the key from now on finds its job, or a place in a line.
        self.give_place_back();
        self.is_finished = true;
        self.builds.finish(self.key, failure);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.give_place_back();
        if !self.is_finished {
            let message = "the build broke off; the controller's log says why";
            self.builds.finish(self.key, Some(message.to_owned()));
        }
    }
}

impl Asker {
    /// Makes sure that the closure is being built, unless a failure's pause is not over. The asker is poked when
    /// there is something to see.
    pub fn start(&self, closure: &Arc<Closure>, tree: &Arc<dyn Tree>) -> Standing {
        let key = (self.tenant.clone(), closure.key);
        let mut guard = self.builds.state();
        let state = &mut *guard;
        let Some(asking) = state.askers.get_mut(&self.id) else {
            return Standing::UnderWay;
        };
        let job = state.jobs.entry(key.clone()).or_insert_with(|| Job {
            closure: closure.clone(),
            tree: tree.clone(),
            askers: BTreeSet::new(),
            phase: Phase::Idle,
            failure: None,
        });
        job.askers.insert(self.id);
        asking.keys.insert(closure.key);
        let paused = job.phase == Phase::Idle
            && job
                .failure
                .as_ref()
                .is_some_and(|failure| Instant::now() < failure.until);
        if job.phase == Phase::Idle && !paused {
            job.phase = Phase::Waiting;
        }
        if job.phase == Phase::Waiting {
            state.queue.add(self.id, asking.purpose, &key);
        }
        let standing = match &job.failure {
            Some(failure) => Standing::Failed {
                message: failure.message.clone(),
                again: !paused,
            },
            None => Standing::UnderWay,
        };
        self.builds.dispatch(state);
        standing
    }

    /// What it asked for and is being built, or waits for its turn: there is nothing to see yet.
    pub fn under_way(&self) -> HashSet<InputKey> {
        let state = self.builds.state();
        let is_under_way = |key: &&InputKey| {
            let job = state.jobs.get(&(self.tenant.clone(), **key));
            job.is_some_and(|job| job.phase != Phase::Idle && job.failure.is_none())
        };
        let asking = state.askers.get(&self.id).into_iter();
        asking
            .flat_map(|asking| &asking.keys)
            .filter(is_under_way)
            .copied()
            .collect()
    }

    /// Withdraws what was asked for and is not among `keys`, unless it runs already.
    pub fn keep_only(&self, keys: &HashSet<InputKey>) {
        let mut state = self.builds.state();
        let Some(asking) = state.askers.get_mut(&self.id) else {
            return;
        };
        let unwanted: Vec<_> = asking.keys.extract_if(|key| !keys.contains(key)).collect();
        for key in unwanted {
            state.withdraw(self.id, &(self.tenant.clone(), key));
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.keep_only(&HashSet::new());
        self.builds.state().askers.remove(&self.id);
    }
}

impl State {
    fn withdraw(&mut self, asker: AskerId, key: &Key) {
        self.queue.withdraw(asker, key);
        if let Some(job) = self.jobs.get_mut(key) {
            job.askers.remove(&asker);
            if job.askers.is_empty() && job.phase != Phase::Running {
                self.jobs.remove(key);
            }
        }
    }
}

impl Builds {
    /// No builds yet.
    pub fn new(
        render: Arc<dyn Render>,
        store: Store,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Self {
        let state = State {
            queue: Queue::new(render.parallelism()),
            jobs: HashMap::new(),
            askers: HashMap::new(),
            last_asker: 0,
        };
        let shelf = Shelf::new(store.clone(), metrics.clone());
        Self {
            render,
            store,
            metrics,
            tasks,
            shelf: Arc::new(shelf),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What the output depends on besides the input.
    pub fn identity(&self) -> &str {
        self.render.identity()
    }

    /// One who will ask for builds of a tenant, and is poked through `done`.
    pub fn asker(&self, tenant: &TenantName, purpose: Purpose, done: &Arc<Notify>) -> Asker {
        let mut state = self.state();
        state.last_asker += 1;
        let id = AskerId(state.last_asker);
        let asking = Asking {
            purpose,
            keys: HashSet::new(),
            done: done.clone(),
            poked: None,
            will_be_poked: false,
        };
        state.askers.insert(id, asking);
        Asker {
            builds: self.clone(),
            tenant: tenant.clone(),
            id,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what has its turn.
    fn dispatch(&self, state: &mut State) {
        while let Some(key) = state.queue.next() {
            let Some(job) = state.jobs.get_mut(&key) else {
                // Who withdraws the last wish for a job takes it out of the queue, too.
                state.queue.done(&key);
                continue;
            };
            job.phase = Phase::Running;
            let (this, closure, tree) = (self.clone(), job.closure.clone(), job.tree.clone());
            let span = info_span!("render", tenant = %key.0, overlay = %closure.overlay);
            self.tasks
                .spawn(async move { this.build(key, closure, tree).await }.instrument(span));
        }
        let (running, waiting) = (state.queue.running(), state.queue.waiting());
        self.metrics.builds_running.set(signed(running));
        self.metrics.builds_waiting.set(signed(waiting));
    }

    async fn build(&self, key: Key, closure: Arc<Closure>, tree: Arc<dyn Tree>) {
        let mut turn = Turn {
            builds: self,
            key: &key,
            has_place: true,
            is_finished: false,
        };
        if self.is_known(&key).await {
            // It ended between the asker's look into the store and its asking.
            return turn.finish(None);
        }
        let started = Instant::now();
        let result = self.render.render(key.0.as_str(), &tree, &closure).await;
        // The next one runs while this one is stored.
        turn.give_place_back();
        let elapsed = started.elapsed();
        self.metrics.renders.inc();
        self.metrics.render_seconds.observe(elapsed.as_secs_f64());
        let failure = match result {
            Ok(objects) => {
                info!(
                    objects = objects.len(),
                    milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
                    "rendered"
                );
                self.remember(&key, Ok(objects)).await
            }
            Err(error) if error.is_deterministic() => {
                let message = told(&error, closure, tree).await;
                warn!(error = message, "the overlay does not build");
                self.remember(&key, Err(message)).await
            }
            Err(error) => {
                let message = told(&error, closure, tree).await;
                warn!(error = message, "the build failed; it will be tried again");
                Some(message)
            }
        };
        turn.finish(failure);
    }

    /// Whether the store has what the build gave, whole.
    async fn is_known(&self, (tenant, input): &Key) -> bool {
        let look = async {
            let mut db = self.store.read().await?;
            let outcomes = outcome::load(&mut db, tenant, &[*input]).await?;
            Ok::<_, StoreError>(outcomes.contains_key(input))
        };
        // A store that does not answer now is asked again when the build is to be remembered.
        look.await.unwrap_or(false)
    }

    async fn remember(&self, key: &Key, built: Built) -> Option<String> {
        let message = "the controller's store does not accept the build";
        (!self.shelf.put(key, built).await).then(|| message.to_owned())
    }

    fn finish(&self, key: &Key, failure: Option<String>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(job) = state.jobs.get_mut(key) else {
            return;
        };
        let askers = job.askers.clone();
        match failure {
            None => {
                state.jobs.remove(key);
                for asker in &askers {
                    if let Some(asking) = state.askers.get_mut(asker) {
                        asking.keys.remove(&key.1);
                    }
                }
            }
            Some(_) if askers.is_empty() => {
                state.jobs.remove(key);
            }
            Some(message) => {
                let pause = job.failure.as_ref().map_or(FIRST_PAUSE, |failure| {
                    (failure.pause * 2).min(LONGEST_PAUSE)
                });
                job.phase = Phase::Idle;
                job.failure = Some(Failure {
                    message,
                    until: Instant::now() + pause,
                    pause,
                });
                let (this, key) = (self.clone(), key.clone());
                self.tasks.spawn(async move {
                    tokio::time::sleep(pause).await;
                    this.remind(&key);
                });
            }
        }
        self.poke(state, &askers);
    }

    /// Tells those who still wait that a failure's pause is over.
    fn remind(&self, key: &Key) {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(job) = state.jobs.get(key)
            && job.phase == Phase::Idle
        {
            let askers = job.askers.clone();
            self.poke(state, &askers);
        }
    }

    /// Pokes at once where nothing else is awaited or the last poke is long ago, else a little later.
    fn poke(&self, state: &mut State, askers: &BTreeSet<AskerId>) {
        for id in askers {
            let Some(asking) = state.askers.get_mut(id) else {
                continue;
            };
            let next = asking.poked.map(|poked| poked + BETWEEN_POKES);
            match next.filter(|next| Instant::now() < *next && !asking.keys.is_empty()) {
                None => asking.poke(),
                Some(_) if asking.will_be_poked => {}
                Some(next) => {
                    asking.will_be_poked = true;
                    let (this, id) = (self.clone(), *id);
                    self.tasks.spawn(async move {
                        tokio::time::sleep_until(next).await;
                        if let Some(asking) = this.state().askers.get_mut(&id)
                            && asking.will_be_poked
                        {
                            asking.poke();
                        }
                    });
                }
            }
        }
    }
}

impl Asking {
    fn poke(&mut self) {
        self.will_be_poked = false;
        self.poked = Some(Instant::now());
        self.done.notify_one();
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What may be told of a failure: one line, of bounded length, without the secrets that the build read.
async fn told(error: &RenderError, closure: Arc<Closure>, tree: Arc<dyn Tree>) -> String {
    let line = in_one_line(error);
    let scrub = move || scrub::scrubbed(line, &closure, &*tree);
    // Only the shutdown cuts it off, and then nobody is told.
    let scrubbed = tokio::task::spawn_blocking(scrub).await;
    scrubbed.unwrap_or_default().chars().take(2000).collect()
}

fn in_one_line(error: &RenderError) -> String {
    chain(error)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests;
