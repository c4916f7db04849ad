//! The builds under way: every input key at most once, and nobody waits for them.
//!
//! Whoever needs a key asks [`Builds::start`] and looks into the store. When the build is done, its result is
//! in the store and those who asked are poked. So a build that hangs holds up nothing but its own devices, and a
//! restart loses nothing but the builds under way.
//!
//! Failures that would come again (a broken overlay) are stored like results. Others (a timeout, a full disk)
//! are remembered here, and tried again after a pause that doubles.
//!
//! [`Builds::ensure`] is for those who do wait: previews.

pub mod ensure;
pub mod outcome;
mod scrub;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use longshore_fleet::{Closure, InputKey, Render, RenderError, Tree};
use longshore_protocol::TenantName;
use tokio::{
    sync::{Notify, Semaphore},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span, warn};

use crate::{
    clock,
    error::chain,
    metrics::Metrics,
    store::{Store, StoreError, content},
};

const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

type Key = (TenantName, InputKey);

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

#[derive(Debug)]
struct Job {
    waiting: Vec<Weak<Notify>>,
    running: bool,
    failure: Option<(String, Instant, Duration)>,
}

/// The builds under way of all fleets.
#[derive(Clone, Debug)]
pub struct Builds {
    render: Arc<dyn Render>,
    store: Store,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    under_way: Arc<Mutex<HashMap<Key, Job>>>,
    /// The places of builds that somebody waits for.
    waited_for: Arc<Semaphore>,
}

impl Builds {
    /// No builds yet.
    pub fn new(
        render: Arc<dyn Render>,
        store: Store,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Self {
        // The other half of the places is for the reconcilers alone.
        let waited_for = (render.parallelism() / 2).max(1);
        Self {
            render,
            store,
            metrics,
            tasks,
            under_way: Arc::default(),
            waited_for: Arc::new(Semaphore::new(waited_for)),
        }
    }

    /// What the output depends on besides the input.
    pub fn identity(&self) -> &str {
        self.render.identity()
    }

    /// Makes sure that the closure is being built, unless a failure's pause is not over; `done` is poked when
    /// there is something to see.
    pub fn start(
        &self,
        tenant: &TenantName,
        closure: &Arc<Closure>,
        tree: &Arc<dyn Tree>,
        done: &Arc<Notify>,
    ) -> Standing {
        let key = (tenant.clone(), closure.key);
        let mut builds = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let build = builds.entry(key.clone()).or_insert_with(|| Job {
            waiting: Vec::new(),
            running: false,
            failure: None,
        });
        build.waiting.retain(|waiting| waiting.strong_count() > 0);
        let done = Arc::downgrade(done);
        if !build.waiting.iter().any(|waiting| waiting.ptr_eq(&done)) {
            build.waiting.push(done);
        }
        let paused = !build.running
            && build
                .failure
                .as_ref()
                .is_some_and(|(_, until, _)| Instant::now() < *until);
        let standing = match &build.failure {
            Some((message, _, _)) => Standing::Failed {
                message: message.clone(),
                again: !paused,
            },
            None => Standing::UnderWay,
        };
        if !build.running && !paused {
            build.running = true;
            let (this, closure, tree) = (self.clone(), closure.clone(), tree.clone());
            let span = info_span!("render", %tenant, overlay = %closure.overlay);
            self.tasks
                .spawn(async move { this.build(key, closure, tree).await }.instrument(span));
        }
        standing
    }

    async fn build(&self, key: Key, closure: Arc<Closure>, tree: Arc<dyn Tree>) {
        if self.is_known(&key).await {
            // It ended between the asker's look into the store and its asking.
            return self.finish(&key, None);
        }
        let started = Instant::now();
        let result = self.render.render(&tree, &closure).await;
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
                self.remember(&key, &Ok(objects)).await
            }
            Err(error) if error.is_deterministic() => {
                let message = told(&error, closure, tree).await;
                warn!(error = message, "the overlay does not build");
                self.remember(&key, &Err(message)).await
            }
            Err(error) => {
                let message = told(&error, closure, tree).await;
                warn!(error = message, "the build failed; it will be tried again");
                Some(message)
            }
        };
        self.finish(&key, failure);
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

    async fn remember(
        &self,
        (tenant, input): &Key,
        build: &Result<Vec<longshore_protocol::Object>, String>,
    ) -> Option<String> {
        let put = async {
            let mut db = self.store.write().await?;
            content::put_build(&mut db, tenant, *input, build, clock::now_ms()).await?;
            db.commit().await?;
            Ok::<_, StoreError>(())
        };
        match put.await {
            Ok(()) => None,
            Err(error) => {
                warn!(
                    error = %chain(&error),
                    "the build cannot be stored"
                );
                Some("the controller's store does not accept the build".to_owned())
            }
        }
    }

    fn finish(&self, key: &Key, failure: Option<String>) {
        let mut builds = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let waiting = match failure {
            None => builds
                .remove(key)
                .map(|build| build.waiting)
                .unwrap_or_default(),
            Some(message) => {
                let Some(build) = builds.get_mut(key) else {
                    return;
                };
                let pause = build
                    .failure
                    .as_ref()
                    .map_or(FIRST_PAUSE, |(_, _, pause)| (*pause * 2).min(LONGEST_PAUSE));
                build.running = false;
                build.failure = Some((message, Instant::now() + pause, pause));
                let (this, key) = (self.clone(), key.clone());
                self.tasks.spawn(async move {
                    tokio::time::sleep(pause).await;
                    this.remind(&key);
                });
                build.waiting.clone()
            }
        };
        drop(builds);
        poke(&waiting);
    }

    /// Tells those who still wait that a failure's pause is over; a build that nobody waits for is forgotten.
    fn remind(&self, key: &Key) {
        let mut builds = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(build) = builds.get_mut(key).filter(|build| !build.running) else {
            return;
        };
        build.waiting.retain(|waiting| waiting.strong_count() > 0);
        let waiting = build.waiting.clone();
        if waiting.is_empty() {
            builds.remove(key);
        }
        drop(builds);
        poke(&waiting);
    }
}

fn poke(waiting: &[Weak<Notify>]) {
    for waiting in waiting.iter().filter_map(Weak::upgrade) {
        waiting.notify_one();
    }
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
